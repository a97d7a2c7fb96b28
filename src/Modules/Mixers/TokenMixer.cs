using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Exchanges information between the positions of a sequence: the part in which recurrent networks, attention and convolution differ.
/// </summary>
/// <remarks>
/// Seen as a recurrence it is <c>H_t = fA(H_{t-1}) + fB(x_t)</c>, <c>y_t = fC(H_t)</c>. A mixer promises that real positions never depend on padded
/// ones; what it returns at padded positions is arbitrary but finite.
/// </remarks>
public abstract class TokenMixer(string name) : nn.Module<Tensor, SequencePadding?, Tensor>(name)
{
    /// <summary>Mixes over time.</summary>
    /// <param name="x">[batch, time, width].</param>
    /// <param name="padding">Which positions are real; null when all are.</param>
    /// <returns>[batch, time, width].</returns>
    public abstract override Tensor forward(Tensor x, SequencePadding? padding);
}
