using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Which positions of a right-padded batch [batch, time, …] are real. Row b is real at positions 0 … lengths[b] − 1.</summary>
/// <remarks>A batch whose rows all fill the time axis carries no padding object, and no masking work is done for it.</remarks>
public sealed class SequencePadding
{
    private Tensor? _valid, _reversal;

    /// <summary>Creates the padding of a batch.</summary>
    /// <param name="lengths">Int64 [batch], each between 1 and <paramref name="time"/>, on the batch's device.</param>
    /// <param name="time">The padded length.</param>
    public SequencePadding(Tensor lengths, long time)
    {
        ArgumentNullException.ThrowIfNull(lengths);
        Lengths = lengths;
        Time = time;
    }

    /// <summary>Int64 [batch].</summary>
    public Tensor Lengths { get; }

    /// <summary>The padded length.</summary>
    public long Time { get; }

    /// <summary>Bool [batch, time]: true where real.</summary>
    public Tensor Valid => _valid ??= Positions().unsqueeze(0) < Lengths.unsqueeze(1);

    /// <summary>Sets padded positions of <paramref name="x"/> [batch, time, width] to <paramref name="value"/>.</summary>
    public Tensor Fill(Tensor x, double value) => x.masked_fill(Valid.logical_not().unsqueeze(-1), value);

    /// <summary>Reverses each row of <paramref name="x"/> [batch, time, width] within its own length; padding stays at the right.</summary>
    public Tensor Reverse(Tensor x) => x.gather(1, Reversal.unsqueeze(-1).expand(x.shape));

    private Tensor Reversal
        => _reversal ??= where(Valid, Lengths.unsqueeze(1) - 1 - Positions().unsqueeze(0), Positions().unsqueeze(0));

    private Tensor Positions() => arange(Time, device: Lengths.device);
}
