using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// DeltaNet that can also forget at large: <c>S_t = a_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ</c>, <c>a_t = e^{−A softplus(w_aᵀ x_t + b)}</c> per head, <c>β_t = σ(w_βᵀ x_t)</c>,
/// <c>y = W (norm(S_tᵀ q_t) ∘ silu(W_g x))</c>.
/// </summary>
/// <remarks>Yang et al. 2024, equation 10 and section 3.4; a_t and its initialization as in Mamba-2. State: S and the convolution's last elements.</remarks>
internal sealed class GatedDeltaNet : TokenMixer
{
    private const string Memory = "memory";

    private readonly Linear project, strength, step, output;
    private readonly ShortConvolution convolution;
    private readonly GatedHeadNorm norm;
    private readonly Parameter logRate; // log A, [h]
    private readonly int _heads;

    public GatedDeltaNet(int width, int heads) : base(nameof(GatedDeltaNet))
    {
        _heads = heads;
        project = nn.Linear(width, 4 * width, hasBias: false);
        convolution = new ShortConvolution(3 * width);
        strength = nn.Linear(width, heads);
        step = nn.Linear(width, heads);
        logRate = StateSpaceInit.LogRates(heads);
        StateSpaceInit.StepBias(step.bias!);
        norm = new GatedHeadNorm(width / heads);
        output = nn.Linear(width, width, hasBias: false);
        RegisterComponents();
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var (width, type) = (x.shape[2], Chunks.StateType(x));
        var projected = project.call(x).Parts(3 * width, width);
        var (q, k, v) = UnitHeads.Run(convolution.call(projected[0], state), _heads, queryDivisor: Math.Sqrt(width / _heads));
        var beta = strength.call(x).sigmoid(); // [batch, time, h]
        var logDecay = -logRate.to(type).exp() * nn.functional.softplus(step.call(x).to(type)); // [batch, time, h]
        var (read, memory) = DeltaRecurrence.Run(q, k, v, beta, logDecay, state?[Memory]);
        state?.Set(Memory, memory);
        return output.call(norm.call(read, projected[1]));
    }

    internal override SpanMixer OverSpans()
    {
        var (into, outOf, strengths, steps) = (new PackedLinear(project), new PackedLinear(output), new PackedLinear(strength), new PackedLinear(step));
        var (convolve, normalize, rate) = (convolution.OverSpans(), norm.OverSpans(), logRate.exp().Numbers());
        var (heads, width, size) = (_heads, outOf.Inputs, outOf.Inputs / _heads);
        return (x, y, state, work) =>
        {
            var parts = into.Apply(x, work); // q, k, v, gate
            var beta = strengths.Apply(x, work);
            var decay = steps.Apply(x, work);
            var read = work.Take(x.Count, width);
            var memory = work.Past(state, Memory, 1, heads, size, size);
            convolve(parts.Columns(0, 3 * width), state, work);
            for (var t = 0; t < x.Count; t++)
            {
                beta[t].Apply<Functions.Sigmoid>();
                decay[t].Apply<Functions.LogOnePlusExp>();
                for (var h = 0; h < heads; h++)
                {
                    parts[t].QueryKeyValue(h, heads, size, out var q, out var k, out var v);
                    UnitHeads.Normalize(q);
                    UnitHeads.Normalize(k);
                    q.Scale(1 / MathF.Sqrt(size));
                    DeltaRecurrence.Step(memory.Head(h, size * size), q, k, v, beta[t][h], MathF.Exp(-rate[h] * decay[t][h]), read[t].Head(h, size));
                }
                normalize(read[t], parts[t][(3 * width)..]);
            }
            outOf.Apply(read, y);
        };
    }
}

/// <summary>Gated DeltaNet in residual blocks. Yang et al., "Gated delta networks: improving Mamba2 with delta rule", 2024.</summary>
public sealed record GatedDeltaNetBackbone : MultiHeadBackbone
{
    internal override TokenMixer CreateMixer(int layer) => Directed(() => new GatedDeltaNet(Width, Heads));
}

public abstract partial record Backbone
{
    /// <summary>Gated DeltaNet (Yang et al. 2024): replaces what a key holds, and can clear the whole memory. Constant memory and cost per step.</summary>
    /// <inheritdoc cref="LinearAttention(int, int, int, double, bool)"/>
    public static GatedDeltaNetBackbone GatedDeltaNet(int width = 128, int depth = 2, int heads = 0, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, Heads = heads == 0 ? MultiHeadBackbone.DefaultHeads(width) : heads, Dropout = dropout, Bidirectional = bidirectional };
}
