using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Retention whose pace of forgetting depends on the input: <c>S_t = γ_t S_{t−1} + k_t v_tᵀ</c>, <c>γ_t = σ(w_γᵀ x_t)^{1/τ}</c> per head, read and gated as in retention.
/// </summary>
/// <remarks>Sun et al., "You only cache once", 2024, section 3.2 (gated retention, gRet), with τ = 16. State: S.</remarks>
internal sealed class GatedRetention : TokenMixer
{
    private const string Memory = "memory";
    private const double Temperature = 16; // τ: at the beginning, heads forget half in about 16 elements

    private readonly Linear project, decay, output;
    private readonly GatedHeadNorm norm;
    private readonly int _heads;

    public GatedRetention(int width, int heads) : base(nameof(GatedRetention))
    {
        _heads = heads;
        project = nn.Linear(width, 4 * width, hasBias: false);
        decay = nn.Linear(width, heads);
        norm = new GatedHeadNorm(width / heads);
        output = nn.Linear(width, width, hasBias: false);
        RegisterComponents();
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var parts = TurnedHeads.Run(project.call(x), 4, _heads, state?.Position ?? 0, keyDivisor: Math.Sqrt(x.shape[2] / _heads)); // q, k, v, gate: [batch, time, h, d]
        var logDecay = nn.functional.logsigmoid(decay.call(x).to(Chunks.StateType(x))) / Temperature; // [batch, time, h]
        var (read, memory) = GatedLinearRecurrence.Run(parts[0], parts[1], parts[2], logDecay, state?[Memory]);
        state?.Set(Memory, memory);
        return output.call(norm.call(read, parts[3].MergeHeads()));
    }

    internal override SpanMixer OverSpans()
    {
        var (into, decays, outOf, normalize) = (new PackedLinear(project), new PackedLinear(decay), new PackedLinear(output), norm.OverSpans());
        var (heads, width, size) = (_heads, outOf.Inputs, outOf.Inputs / _heads);
        var rotary = new Rotary.OverSpans(size);
        return (x, y, state, work) =>
        {
            var parts = into.Apply(x, work); // q, k, v, gate
            var gamma = decays.Apply(x, work);
            var read = work.Take(x.Count, width);
            var memory = work.Past(state, Memory, 1, heads, size, size);
            for (var t = 0; t < x.Count; t++)
            {
                using var frame = work.Open();
                gamma[t].SigmoidRoot(Temperature);
                Rotary.OverSpans.Turn(parts[t][..(2 * width)], rotary.At((state?.Position ?? 0) + t, work));
                parts[t].Slice(width, width).Scale(1 / MathF.Sqrt(size));
                for (var h = 0; h < heads; h++)
                {
                    parts[t].QueryKeyValue(h, heads, size, out var q, out var k, out var v);
                    GatedLinearRecurrence.Step(memory.Head(h, size * size), q, k, v, [gamma[t][h]], read[t].Head(h, size));
                }
                normalize(read[t], parts[t][(3 * width)..]);
            }
            outOf.Apply(read, y);
        };
    }
}

/// <summary>Gated retention in residual blocks. Sun et al., "You only cache once: decoder-decoder architectures for language models", 2024.</summary>
public sealed record GatedRetentionBackbone : MultiHeadBackbone
{
    internal override TokenMixer CreateMixer(int layer) => Directed(() => new GatedRetention(Width, Heads));
}

public abstract partial record Backbone
{
    /// <summary>Gated retention (Sun et al. 2024): each head decides at each element how much to forget. Constant memory and cost per step.</summary>
    /// <inheritdoc cref="LinearAttention(int, int, int, double, bool)"/>
    public static GatedRetentionBackbone GatedRetention(int width = 128, int depth = 2, int heads = 0, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, Heads = heads == 0 ? MultiHeadBackbone.DefaultHeads(width) : heads, Dropout = dropout, Bidirectional = bidirectional };
}
