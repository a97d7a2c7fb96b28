using static TorchSharp.torch;

namespace MLSeq;

/// <summary>A batch of sequences, padded on the right to a common length.</summary>
/// <param name="Elements">
/// Single [batch, time, channels] for series, Int64 [batch, time] for token ids; with <paramref name="Words"/>, Int64 [batch, time] rows of that table.
/// </param>
/// <param name="Padding">Which positions are real; null when all are.</param>
/// <param name="Words">Int64 [words, pieces]: the hashed pieces (1-based; 0 fills up) of each distinct word of the batch; null for other inputs.</param>
public sealed record SequenceBatch(Tensor Elements, SequencePadding? Padding, Tensor? Words = null)
{
    /// <summary>The number of rows.</summary>
    public long Count => Elements.shape[0];
}
