using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Examples.Claims;

/// <summary>A way to keep pairs: writes (k_t, v_t) and reads at q_t, for every t. All [trials, time, 1, size].</summary>
internal sealed record Rule(string Name, Func<Tensor, Tensor, Tensor, Tensor> Read);

/// <summary>The memories of the mixers, untrained: random keys of length 1, gates at the values with which the networks begin unless their names say otherwise.</summary>
internal static class Rules
{
    public const int Size = 64;

    public static IEnumerable<Rule> All()
    {
        yield return new("softmax attention", Softmax);
        yield return new("linear attention", (q, k, v) => GatedLinearRecurrence.Run(q, k, v).Output);
        yield return new("retention, γ = 31/32", (q, k, v) => Gated(q, k, v, Constant(k, Math.Log(31.0 / 32))));
        yield return new("retention, γ = 255/256", (q, k, v) => Gated(q, k, v, Constant(k, Math.Log(255.0 / 256))));
        yield return new("gated retention", (q, k, v) => Gated(q, k, v, Constant(k, Math.Log(0.5) / 16))); // σ(0)^{1/16}
        yield return new("gated linear attention", (q, k, v) => Gated(q, k, v, nn.functional.logsigmoid(randn_like(k)) / 16)); // a gate per key dimension and step
        yield return new("Mamba-2", (q, k, v) => Gated(q, k, v, StateSpaceDecay(k)));
        yield return new("delta rule", (q, k, v) => DeltaRecurrence.Run(q, k, v, Constant(k, 1)).Output);
        yield return new("gated delta rule", (q, k, v) => DeltaRecurrence.Run(q, k, v, Constant(k, 1), StateSpaceDecay(k)).Output);
        yield return new("Titans", (q, k, v) => Titans(q, k, v, keep: 0.99));
    }

    public static Tensor Gated(Tensor q, Tensor k, Tensor v, Tensor logDecay) => GatedLinearRecurrence.Run(q, k, v, logDecay).Output;

    /// <summary>The same at every step: [trials, time, 1].</summary>
    public static Tensor Constant(Tensor k, double value) => full([k.shape[0], k.shape[1], 1], value, k.dtype, k.device);

    /// <summary>Keys of length 1 in random directions.</summary>
    public static Tensor RandomUnits(long trials, long time, Device device) => nn.functional.normalize(randn([trials, time, 1, Size], device: device), dim: -1);

    /// <summary>−A Δ of a head drawn for each trial: A uniform from 1 to 16, Δ from 0.001 to 0.1, even in logarithm.</summary>
    private static Tensor StateSpaceDecay(Tensor k)
    {
        long[] shape = [k.shape[0], 1, 1];
        var (rate, step) = (rand(shape, device: k.device) * 15 + 1, (rand(shape, device: k.device) * Math.Log(100) + Math.Log(0.001)).exp());
        return (-rate * step).expand(-1, k.shape[1], -1);
    }

    // Logits q·k √d: as if queries and keys had length √d and were divided by √d, the usual scale.
    private static Tensor Softmax(Tensor q, Tensor k, Tensor v)
        => nn.functional.scaled_dot_product_attention(q.transpose(1, 2) * Size, k.transpose(1, 2), v.transpose(1, 2), is_casual: true).transpose(1, 2);

    /// <summary>A network of two layers whose second begins at zero, so that all it returns has been written; it learns after every pair.</summary>
    private static Tensor Titans(Tensor q, Tensor k, Tensor v, double keep)
    {
        const double Rate = 1, Momentum = 0.5; // θ / (1 − η) ‖hidden‖² ≈ 1: a pair is learned about fully
        var gates = new NeuralMemoryGates(Constant(k, Rate), Constant(k, Math.Log(Momentum)), Constant(k, Math.Log(keep)));
        Tensor[] weights = [randn([1, Size, 2 * Size], device: k.device) / Math.Sqrt(Size), zeros([1, 2 * Size, Size], device: k.device)];
        return NeuralMemory.Run(q, k, v, gates, NeuralMemoryState.Start(weights, k.shape[0]), chunk: 1).Output;
    }
}
