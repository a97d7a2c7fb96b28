using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Attention without the softmax: <c>y_t = S_tᵀ φ(q_t) / (z_tᵀ φ(q_t))</c> with <c>S_t = S_{t−1} + φ(k_t) v_tᵀ</c>, <c>z_t = z_{t−1} + φ(k_t)</c> and <c>φ(x) = elu(x) + 1</c>.
/// </summary>
/// <remarks>
/// Katharopoulos et al. 2020, equations 16 to 20. Features are turned by their position in the numerator (Su et al. 2021, equation 19); the normalizer z stays positive without.
/// h: heads, d: features per head. State: S and z.
/// </remarks>
internal sealed class LinearAttention : TokenMixer
{
    private const string Memory = "memory", Normalizer = "normalizer";

    private readonly Linear project, output;
    private readonly int _heads;
    private readonly bool _rotary;

    public LinearAttention(int width, int heads, bool rotary) : base(nameof(LinearAttention))
    {
        (_heads, _rotary) = (heads, rotary);
        project = nn.Linear(width, 3 * width, hasBias: false);
        output = nn.Linear(width, width, hasBias: false);
        RegisterComponents();
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var projected = project.call(x);
        if (state is null && NormalizedFeatures.Serve(projected, _heads))
        {
            var features = NormalizedFeatures.Run(projected, _heads, _rotary);
            return output.call(GatedLinearRecurrence.Run(features.Q, features.K, features.V).Output.MergeHeads());
        }
        var qkv = projected.Parts(x.shape[2], x.shape[2], x.shape[2]);
        var (q, k, v) = (Feature(qkv[0].SplitHeads(_heads)), Feature(qkv[1].SplitHeads(_heads)), qkv[2].SplitHeads(_heads)); // [batch, time, h, d]
        var type = Chunks.StateType(x);
        var z = k.to(type).cumsum(1); // [batch, time, h, d]
        if (state?[Normalizer] is { } before) z = z + before.unsqueeze(1);
        var weight = (q.to(type) * z).sum([-1L], keepdim: true);

        if (_rotary)
        {
            var rotary = new Rotary(x.shape[1], q.shape[3], x, state?.Position ?? 0);
            (q, k) = (rotary.Apply(q), rotary.Apply(k));
        }
        var (read, memory) = GatedLinearRecurrence.Run(q, k, v, initialState: state?[Memory]);
        state?.Set(Memory, memory);
        state?.Set(Normalizer, z.select(1, x.shape[1] - 1).clone());
        return output.call((read / weight.to(read.dtype)).MergeHeads());
    }

    internal override SpanMixer OverSpans()
    {
        var (into, outOf) = (new PackedLinear(project), new PackedLinear(output));
        var (heads, width, size) = (_heads, outOf.Inputs, outOf.Inputs / _heads);
        var rotary = _rotary ? new Rotary.OverSpans(size) : null;
        return (x, y, state, work) =>
        {
            var qkv = into.Apply(x, work);
            var read = work.Take(x.Count, width);
            var memory = work.Past(state, Memory, 1, heads, size, size);
            var z = work.Past(state, Normalizer, 1, heads, size);
            var weights = work.Take(heads);
            for (var t = 0; t < x.Count; t++)
            {
                using var frame = work.Open();
                var features = qkv[t][..(2 * width)]; // q, k
                features.Apply<Functions.EluPlusOne>();
                z.Add(features[width..]);
                for (var h = 0; h < heads; h++) weights[h] = TensorPrimitives.Dot<float>(features.Head(h, size), z.Head(h, size));
                if (rotary is not null) Rotary.OverSpans.Turn(features, rotary.At((state?.Position ?? 0) + t, work));
                for (var h = 0; h < heads; h++)
                {
                    qkv[t].QueryKeyValue(h, heads, size, out var q, out var k, out var v);
                    var o = read[t].Head(h, size);
                    GatedLinearRecurrence.Step(memory.Head(h, size * size), q, k, v, decay: [1], o);
                    o.Scale(1 / weights[h]);
                }
            }
            outOf.Apply(read, y);
        };
    }

    private static Tensor Feature(Tensor x) => nn.functional.elu(x, 1) + 1;
}

/// <summary>Linear attention in residual blocks. Katharopoulos et al., "Transformers are RNNs: fast autoregressive transformers with linear attention", 2020.</summary>
public sealed record LinearAttentionBackbone : MultiHeadBackbone
{
    /// <summary>Whether queries and keys are turned by their position.</summary>
    public bool Rotary { get; init; } = true;

    internal override TokenMixer CreateMixer(int layer) => Directed(() => new LinearAttention(Width, Heads, Rotary));

    internal override Backbone WithoutRotary() => this with { Rotary = false };
}

public abstract partial record Backbone
{
    /// <summary>Linear attention (Katharopoulos et al. 2020): attention as a recurrence that only ever adds. Constant memory and cost per step.</summary>
    /// <param name="width">Features per position.</param>
    /// <param name="depth">Blocks.</param>
    /// <param name="heads">Heads; 0 chooses one per 32 features. The state has width² / heads numbers per block.</param>
    /// <param name="dropout">Probability of dropping a feature of a block's update while training.</param>
    /// <param name="bidirectional">Reads both ways. Better for whole sequences; a one-way model can also be streamed.</param>
    public static LinearAttentionBackbone LinearAttention(int width = 128, int depth = 2, int heads = 0, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, Heads = heads == 0 ? MultiHeadBackbone.DefaultHeads(width) : heads, Dropout = dropout, Bidirectional = bidirectional };
}
