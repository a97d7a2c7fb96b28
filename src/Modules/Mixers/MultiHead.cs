using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>A backbone whose mixer works in heads that see width / heads features each.</summary>
public abstract record MultiHeadBackbone : Backbone
{
    /// <summary>Heads; must divide the width into even parts.</summary>
    public int Heads { get; init; } = 4;

    internal override Backbone WithWidth(int width) => this with { Width = width, Heads = DefaultHeads(width) };

    /// <summary>One head per 32 features.</summary>
    internal static int DefaultHeads(int width) => Math.Max(1, width / 32);

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (Heads < 1 || Width % (2 * Heads) != 0)
            yield return $"Heads is {Heads} with Width {Width}; expected a positive number that divides the width into even parts.";
    }
}

/// <summary>[batch, time, width] and [batch, time, heads, width / heads].</summary>
internal static class HeadViews
{
    public static Tensor SplitHeads(this Tensor x, long heads) => x.unflatten(x.dim() - 1, heads, x.shape[^1] / heads);

    public static Tensor MergeHeads(this Tensor x) => x.flatten(-2);

    /// <summary>The features of one head, of [heads · size].</summary>
    public static Span<float> Head(this Span<float> x, int head, int size) => x.Slice(head * size, size);

    /// <summary>The parts of one head, of [3 · heads · size] or more: all queries, all keys, all values.</summary>
    public static void QueryKeyValue(this Span<float> x, int head, int heads, int size, out Span<float> q, out Span<float> k, out Span<float> v)
    {
        q = x.Head(head, size);
        k = x.Head(heads + head, size);
        v = x.Head(2 * heads + head, size);
    }

    /// <summary>Cuts features into parts of the given sizes (views).</summary>
    public static Tensor[] Parts(this Tensor x, params long[] sizes) => x.split(sizes, -1);
}

/// <summary>What linear recurrences put after reading: <c>y = RMSNorm(o) ∘ w ∘ silu(g)</c>, the norm over each head. Zhang and Sennrich 2019; the gate as in RetNet, equation 8.</summary>
internal sealed class GatedHeadNorm : nn.Module<Tensor, Tensor?, Tensor>
{
    private readonly Parameter weight;

    public GatedHeadNorm(long size) : base(nameof(GatedHeadNorm))
    {
        weight = nn.Parameter(ones(size));
        RegisterComponents();
    }

    /// <summary>w, [size].</summary>
    public Tensor Weight => weight;

    /// <param name="o">[batch, time, heads, size].</param>
    /// <param name="gate">[batch, time, heads · size], or null.</param>
    /// <returns>[batch, time, heads · size].</returns>
    public override Tensor forward(Tensor o, Tensor? gate) => HeadNorm.Run(o, weight, gate);

    /// <summary>One position of <see cref="forward"/>: o, [heads · size], in place; the gate, likewise or empty, is used up.</summary>
    internal delegate void SpanNorm(Span<float> o, Span<float> gate);

    internal SpanNorm OverSpans()
    {
        var scale = weight.Numbers();
        return (o, gate) =>
        {
            for (var heads = o; !heads.IsEmpty; heads = heads[scale.Length..])
            {
                var head = heads[..scale.Length];
                head.Scale(1 / MathF.Sqrt(TensorPrimitives.SumOfSquares<float>(head) / head.Length + (float)HeadNorm.Epsilon));
                head.Multiply(scale);
            }
            if (gate.IsEmpty) return;
            gate.Apply<Functions.Silu>();
            o.Multiply(gate);
        };
    }
}

/// <summary>Depthwise causal convolution over a few elements, then SiLU: what lets a recurrence compare neighbours before it writes.</summary>
internal sealed class ShortConvolution : nn.Module<Tensor, MixerState?, Tensor>
{
    private const string Past = "conv";

    private readonly Parameter weight; // [taps, channels]

    public ShortConvolution(long channels, long taps = 4) : base(nameof(ShortConvolution))
    {
        weight = nn.Parameter((rand(taps, channels) * 2 - 1) / Math.Sqrt(taps));
        RegisterComponents();
    }

    /// <param name="x">[batch, time, channels].</param>
    /// <param name="state">Keeps the last taps − 1 elements as <c>conv</c>.</param>
    public override Tensor forward(Tensor x, MixerState? state)
    {
        var (y, past) = CausalConvolution.Run(x, weight, state?[Past]);
        state?.Set(Past, past.clone());
        return y;
    }

    internal SpanUpdate OverSpans()
    {
        var (taps, channels, weights) = ((int)weight.shape[0], (int)weight.shape[1], weight.Numbers());
        return (x, state, work) =>
        {
            using var frame = work.Open();
            var (reach, time) = (taps - 1, x.Count);
            var past = work.Past(state, Past, 1, reach, channels);
            var before = work.Take(reach + time, channels); // what precedes each element, as it was
            new Rows(past, reach, channels).CopyTo(before);
            x.CopyTo(before.Range(reach, time));
            before.Range(time, reach).CopyTo(new Rows(past, reach, channels));
            for (var t = 0; t < time; t++)
            {
                x[t].Multiply(weights.AsSpan(reach * channels));
                for (var tap = 0; tap < reach; tap++) x[t].AddProduct(before[t + tap], weights.AsSpan(tap * channels, channels));
                x[t].Apply<Functions.Silu>();
            }
        };
    }
}
