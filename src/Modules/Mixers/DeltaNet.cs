using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// A memory that corrects itself: <c>S_t = (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ</c>, <c>β_t = σ(w_βᵀ x_t)</c>, with q, k and v from short convolutions, q and k of length 1, and
/// <c>y = W norm(S_tᵀ q_t)</c>.
/// </summary>
/// <remarks>Schlag et al. 2021, equation 24; as a network, Yang et al. 2024 ("Parallelizing linear transformers with the delta rule"), section 3.3. State: S and the convolution's last elements.</remarks>
internal sealed class DeltaNet : TokenMixer
{
    private const string Memory = "memory";

    private readonly Linear project, strength, output;
    private readonly ShortConvolution convolution;
    private readonly GatedHeadNorm norm;
    private readonly int _heads;

    public DeltaNet(int width, int heads) : base(nameof(DeltaNet))
    {
        _heads = heads;
        project = nn.Linear(width, 3 * width, hasBias: false);
        convolution = new ShortConvolution(3 * width);
        strength = nn.Linear(width, heads);
        norm = new GatedHeadNorm(width / heads);
        output = nn.Linear(width, width, hasBias: false);
        RegisterComponents();
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var width = x.shape[2];
        var (q, k, v) = UnitHeads.Run(convolution.call(project.call(x), state), _heads, queryDivisor: Math.Sqrt(width / _heads));
        var beta = strength.call(x).sigmoid(); // [batch, time, h]
        var (read, memory) = DeltaRecurrence.Run(q, k, v, beta, initialState: state?[Memory]);
        state?.Set(Memory, memory);
        return output.call(norm.call(read, null));
    }

    internal override SpanMixer OverSpans()
    {
        var (into, outOf, strengths, convolve, normalize) = (new PackedLinear(project), new PackedLinear(output), new PackedLinear(strength), convolution.OverSpans(), norm.OverSpans());
        var (heads, width, size) = (_heads, outOf.Inputs, outOf.Inputs / _heads);
        return (x, y, state, work) =>
        {
            var parts = into.Apply(x, work); // q, k, v
            var beta = strengths.Apply(x, work);
            var read = work.Take(x.Count, width);
            var memory = work.Past(state, Memory, 1, heads, size, size);
            convolve(parts, state, work);
            for (var t = 0; t < x.Count; t++)
            {
                beta[t].Apply<Functions.Sigmoid>();
                for (var h = 0; h < heads; h++)
                {
                    parts[t].QueryKeyValue(h, heads, size, out var q, out var k, out var v);
                    UnitHeads.Normalize(q);
                    UnitHeads.Normalize(k);
                    q.Scale(1 / MathF.Sqrt(size));
                    DeltaRecurrence.Step(memory.Head(h, size * size), q, k, v, beta[t][h], decay: 1, read[t].Head(h, size));
                }
                normalize(read[t], []);
            }
            outOf.Apply(read, y);
        };
    }
}

/// <summary>DeltaNet in residual blocks. Yang et al., "Parallelizing linear transformers with the delta rule over sequence length", 2024.</summary>
public sealed record DeltaNetBackbone : MultiHeadBackbone
{
    internal override TokenMixer CreateMixer(int layer) => Directed(() => new DeltaNet(Width, Heads));
}

public abstract partial record Backbone
{
    /// <summary>DeltaNet (Schlag et al. 2021, Yang et al. 2024): before it writes at a key it takes away what is there, so that new facts replace old ones. Constant memory and cost per step.</summary>
    /// <inheritdoc cref="LinearAttention(int, int, int, double, bool)"/>
    public static DeltaNetBackbone DeltaNet(int width = 128, int depth = 2, int heads = 0, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, Heads = heads == 0 ? MultiHeadBackbone.DefaultHeads(width) : heads, Dropout = dropout, Bidirectional = bidirectional };
}
