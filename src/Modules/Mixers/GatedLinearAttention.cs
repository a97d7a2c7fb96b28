using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Linear attention that forgets each key dimension by itself: <c>S_t = diag(α_t) S_{t−1} + k_t v_tᵀ</c>, <c>α_t = σ(W_2 W_1 x_t + b)^{1/τ}</c>, <c>y = W (norm(S_tᵀ q_t) ∘ silu(W_g x))</c>.
/// </summary>
/// <remarks>Yang et al. 2023, equation 3 and section 4.4, with τ = 16 and a gate of rank 16. State: S.</remarks>
internal sealed class GatedLinearAttention : TokenMixer
{
    private const string Memory = "memory";
    private const double Temperature = 16; // τ
    private const int Rank = 16;

    private readonly Linear project, decayDown, decayUp, output;
    private readonly GatedHeadNorm norm;
    private readonly int _heads;

    public GatedLinearAttention(int width, int heads) : base(nameof(GatedLinearAttention))
    {
        _heads = heads;
        project = nn.Linear(width, 4 * width, hasBias: false);
        decayDown = nn.Linear(width, Rank, hasBias: false);
        decayUp = nn.Linear(Rank, width);
        norm = new GatedHeadNorm(width / heads);
        output = nn.Linear(width, width, hasBias: false);
        RegisterComponents();
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var width = x.shape[2];
        var parts = project.call(x).Parts(width, width, width, width); // q, k, v, gate
        var (q, k, v) = (parts[0].SplitHeads(_heads) / Math.Sqrt(width / _heads), parts[1].SplitHeads(_heads), parts[2].SplitHeads(_heads)); // [batch, time, h, d]
        var logDecay = (nn.functional.logsigmoid(decayUp.call(decayDown.call(x)).to(Chunks.StateType(x))) / Temperature).SplitHeads(_heads);
        var (read, memory) = GatedLinearRecurrence.Run(q, k, v, logDecay, state?[Memory], padding); // decays are measured from the middles of blocks, which may be padded
        state?.Set(Memory, memory);
        return output.call(norm.call(read, parts[3]));
    }

    internal override SpanMixer OverSpans()
    {
        var (into, down, up, outOf, normalize) = (new PackedLinear(project), new PackedLinear(decayDown), new PackedLinear(decayUp), new PackedLinear(output), norm.OverSpans());
        var (heads, width, size) = (_heads, outOf.Inputs, outOf.Inputs / _heads);
        return (x, y, state, work) =>
        {
            var parts = into.Apply(x, work); // q, k, v, gate
            var alpha = up.Apply(down.Apply(x, work), work);
            var read = work.Take(x.Count, width);
            var memory = work.Past(state, Memory, 1, heads, size, size);
            for (var t = 0; t < x.Count; t++)
            {
                alpha[t].SigmoidRoot(Temperature);
                parts[t][..width].Scale(1 / MathF.Sqrt(size));
                for (var h = 0; h < heads; h++)
                {
                    parts[t].QueryKeyValue(h, heads, size, out var q, out var k, out var v);
                    GatedLinearRecurrence.Step(memory.Head(h, size * size), q, k, v, alpha[t].Head(h, size), read[t].Head(h, size));
                }
                normalize(read[t], parts[t][(3 * width)..]);
            }
            outOf.Apply(read, y);
        };
    }
}

/// <summary>Gated linear attention in residual blocks. Yang et al., "Gated linear attention transformers with hardware-efficient training", 2023.</summary>
public sealed record GatedLinearAttentionBackbone : MultiHeadBackbone
{
    internal override TokenMixer CreateMixer(int layer) => Directed(() => new GatedLinearAttention(Width, Heads));
}

public abstract partial record Backbone
{
    /// <summary>Gated linear attention (Yang et al. 2023): each key dimension decides at each element how much to forget. Constant memory and cost per step.</summary>
    /// <inheritdoc cref="LinearAttention(int, int, int, double, bool)"/>
    public static GatedLinearAttentionBackbone GatedLinearAttention(int width = 128, int depth = 2, int heads = 0, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, Heads = heads == 0 ? MultiHeadBackbone.DefaultHeads(width) : heads, Dropout = dropout, Bidirectional = bidirectional };
}
