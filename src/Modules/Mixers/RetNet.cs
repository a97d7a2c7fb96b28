using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Multi-scale retention: <c>S_t = γ_h S_{t−1} + k_t v_tᵀ</c>, <c>o_t = S_tᵀ q_t</c>, <c>y = W (norm(o) ∘ silu(W_g x))</c>. Each head h forgets at its own constant pace,
/// <c>γ_h = 1 − 2^(−5−h)</c>.
/// </summary>
/// <remarks>Sun et al. 2023, equations 5, 7 and 8, with rotary positions for the complex phase e^{inθ}. State: S.</remarks>
internal sealed class Retention : TokenMixer
{
    private const string Memory = "memory";

    private readonly Linear project, output;
    private readonly GatedHeadNorm norm;
    private readonly int _heads;

    public Retention(int width, int heads) : base(nameof(Retention))
    {
        _heads = heads;
        project = nn.Linear(width, 4 * width, hasBias: false);
        norm = new GatedHeadNorm(width / heads);
        output = nn.Linear(width, width, hasBias: false);
        RegisterComponents();
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var parts = TurnedHeads.Run(project.call(x), 4, _heads, state?.Position ?? 0, keyDivisor: Math.Sqrt(x.shape[2] / _heads)); // q, k, v, gate: [batch, time, h, d]
        var (read, memory) = GatedLinearRecurrence.Run(parts[0], parts[1], parts[2], LogGamma(x), state?[Memory]);
        state?.Set(Memory, memory);
        return output.call(norm.call(read, parts[3].MergeHeads()));
    }

    internal override SpanMixer OverSpans()
    {
        var (into, outOf, normalize) = (new PackedLinear(project), new PackedLinear(output), norm.OverSpans());
        var (heads, width, size) = (_heads, outOf.Inputs, outOf.Inputs / _heads);
        var rotary = new Rotary.OverSpans(size);
        var decay = LogGamma(output.weight).exp().Numbers();
        return (x, y, state, work) =>
        {
            var parts = into.Apply(x, work); // q, k, v, gate
            var read = work.Take(x.Count, width);
            var memory = work.Past(state, Memory, 1, heads, size, size);
            for (var t = 0; t < x.Count; t++)
            {
                using var frame = work.Open();
                Rotary.OverSpans.Turn(parts[t][..(2 * width)], rotary.At((state?.Position ?? 0) + t, work));
                parts[t].Slice(width, width).Scale(1 / MathF.Sqrt(size));
                for (var h = 0; h < heads; h++)
                {
                    parts[t].QueryKeyValue(h, heads, size, out var q, out var k, out var v);
                    GatedLinearRecurrence.Step(memory.Head(h, size * size), q, k, v, [decay[h]], read[t].Head(h, size));
                }
                normalize(read[t], parts[t][(3 * width)..]);
            }
            outOf.Apply(read, y);
        };
    }

    // log γ_h, [h]
    private Tensor LogGamma(Tensor like) => log1p(-pow(2.0, -5 - arange(_heads, dtype: float64, device: like.device))).to(Chunks.StateType(like));
}

/// <summary>RetNet's retention in residual blocks. Sun et al., "Retentive network: a successor to transformer for large language models", 2023.</summary>
public sealed record RetNetBackbone : MultiHeadBackbone
{
    internal override TokenMixer CreateMixer(int layer) => Directed(() => new Retention(Width, Heads));
}

public abstract partial record Backbone
{
    /// <summary>RetNet (Sun et al. 2023): linear attention whose heads forget at constant paces, from about 32 elements upwards. Constant memory and cost per step.</summary>
    /// <inheritdoc cref="LinearAttention(int, int, int, double, bool)"/>
    public static RetNetBackbone RetNet(int width = 128, int depth = 2, int heads = 0, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, Heads = heads == 0 ? MultiHeadBackbone.DefaultHeads(width) : heads, Dropout = dropout, Bidirectional = bidirectional };
}
