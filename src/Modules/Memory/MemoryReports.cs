namespace MLSeq;

/// <summary>A key and the value that belongs to it.</summary>
/// <param name="Key">The memory's key size; any length but zero, only its direction counts.</param>
/// <param name="Value">The memory's value size.</param>
/// <param name="Strength">β, how strongly it is written, 0 to 1.</param>
/// <param name="Keep">γ, the share of the memory that is kept at this write, 0 to 1, for rules that let a write say so; null: the rule's own.</param>
public sealed record MemoryPair(float[] Key, float[] Value, double Strength = 1, double? Keep = null);

/// <summary>What a memory is and how full it is.</summary>
/// <param name="Rule">Its rule.</param>
/// <param name="Writes">Pairs written so far; rehearsed ones are not counted.</param>
/// <param name="Capacity">
/// Pairs that can be held without loss: the rows of H, which are the key size or, with a hidden layer, its units. Reached only when their keys (or hidden activations) are orthogonal or, where the
/// rule erases or descends a gradient, linearly independent and rehearsed.
/// </param>
/// <param name="Numbers">Numbers of the state, momentum among them. It never grows.</param>
/// <param name="Bytes">Bytes of the state.</param>
/// <param name="Norm">‖H‖, Frobenius.</param>
/// <param name="EffectiveRank">
/// <c>exp(−Σ pᵢ ln pᵢ)</c> with <c>pᵢ = σᵢ / Σ σ</c>, σ the singular values of H (Roy and Vetterli 2007): how many directions are in use, weighed by their size. 0 for an empty memory, at most
/// min(rows, value size).
/// </param>
public sealed record MemoryReport(string Rule, long Writes, long Capacity, long Numbers, long Bytes, double Norm, double EffectiveRank);

/// <summary>How well pairs are recalled.</summary>
/// <param name="Pairs">In the order asked.</param>
/// <param name="LargestKeyCosine">max |kᵢ · kⱼ| over i ≠ j, of keys of length 1: 0 for orthogonal keys, 1 when two say the same; 0 for a single pair.</param>
public sealed record InterferenceReport(IReadOnlyList<PairRecall> Pairs, double LargestKeyCosine)
{
    /// <summary>Mean of the pairs' cosines; NaN without pairs.</summary>
    public double MeanCosine => Pairs.Select(pair => pair.Cosine).DefaultIfEmpty(double.NaN).Average();

    /// <summary>√ of the mean of the pairs' squared relative errors; NaN without pairs.</summary>
    public double RelativeError => Math.Sqrt(Pairs.Select(pair => pair.RelativeError * pair.RelativeError).DefaultIfEmpty(double.NaN).Average());
}

/// <summary>How well a pair (k, v) is recalled; o = read(k).</summary>
/// <param name="Cosine">o · v / (‖o‖ ‖v‖), 0 where either is zero: 1 when the direction is right, whatever has faded.</param>
/// <param name="RelativeError">‖o − v‖ / ‖v‖ (‖o‖ for a value of zero): 0 when recalled exactly, 1 when forgotten.</param>
public readonly record struct PairRecall(double Cosine, double RelativeError);
