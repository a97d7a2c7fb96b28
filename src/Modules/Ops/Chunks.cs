using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Time cut into chunks: the layout in which all chunked forms compute.</summary>
internal static class Chunks
{
    /// <summary>The smallest logarithm of a decay that is told from zero: a state times e^−20 is below the rounding of float32, and sums of such logarithms stay exact enough.</summary>
    private const double Float32Floor = -20, Float64Floor = -45;

    /// <summary>[batch, time, heads, size] to contiguous [batch, heads, chunks, chunk, size]; what the last chunk lacks is filled with zeros.</summary>
    public static Tensor Split(Tensor x, long chunk)
    {
        var (batch, time, heads, size) = (x.shape[0], x.shape[1], x.shape[2], x.shape[3]);
        var chunks = (time + chunk - 1) / chunk;
        if (time == chunks * chunk) return x.Unflatten(1, chunks, chunk).permute(0, 3, 1, 2, 4).contiguous();
        var filled = zeros([batch, heads, chunks * chunk, size], x.dtype, x.device);
        filled.narrow(2, 0, time).copy_(x.transpose(1, 2));
        return filled.view(batch, heads, chunks, chunk, size);
    }

    /// <summary>The reverse of <see cref="Split"/>: [batch, heads, chunks, chunk, size] to contiguous [batch, time, heads, size].</summary>
    public static Tensor Join(Tensor x, long time) => x.flatten(2, 3).narrow(2, 0, time).transpose(1, 2).contiguous();

    /// <summary>The element type of states and decays: float64 for float64, else float32.</summary>
    public static ScalarType StateType(Tensor x) => x.dtype == float64 ? float64 : float32;

    /// <summary>Logarithms of decays as numbers whose sums can be subtracted: minus infinity (a decay of 0) becomes the floor.</summary>
    public static Tensor Floored(Tensor logDecay)
    {
        var type = StateType(logDecay);
        return logDecay.to(type).clamp_min(type == float64 ? Float64Floor : Float32Floor);
    }

    /// <summary>The gradient of <see cref="Floored"/>: none where the floor was.</summary>
    public static Tensor FlooredGradient(Tensor gradient, Tensor logDecay)
        => gradient.masked_fill_(logDecay.lt(StateType(logDecay) == float64 ? Float64Floor : Float32Floor), 0).to(logDecay.dtype);

    /// <summary>e^(G_t − G_s) for s ≤ t, 0 for s > t: [.., t, s] of cumulated log-decays G [.., t]. No exponent is positive.</summary>
    public static Tensor DecayMatrix(Tensor cumulated)
    {
        var difference = cumulated.unsqueeze(-1) - cumulated.unsqueeze(-2);
        return difference.masked_fill_(Above(cumulated.shape[^1], cumulated.device), double.NegativeInfinity).exp_();
    }

    /// <summary>Gradient of a sum over time within the chunk: g_t = Σ_{j ≥ t} x_j of [.., chunk, size].</summary>
    public static Tensor ReverseCumulate(Tensor x) => ones(x.shape[^2], x.shape[^2], x.dtype, x.device).triu_().Times(x);

    /// <summary>Σ S'_n ∘ dS'_n of the states that follow each chunk, summed over columns: [.., chunks, rows]. What the gradient of a chunk's whole decay gets from its end.</summary>
    public static Tensor AtEnd(ChunkStates states, Tensor dNext)
    {
        var chunks = dNext.shape[^3];
        var type = StateType(dNext);
        var last = (states.Last.to(dNext.dtype) * dNext.select(-3, chunks - 1)).sum([-1L], false, type).unsqueeze(-2);
        return chunks == 1 ? last : cat([(states.Edges.narrow(-3, 1, chunks - 1) * dNext.narrow(-3, 0, chunks - 1)).sum([-1L], false, type), last], -2);
    }

    /// <summary>Bool [size, size]: true above the diagonal.</summary>
    private static Tensor Above(long size, Device device) => ones(size, size, ScalarType.Bool, device).triu_(1);
}
