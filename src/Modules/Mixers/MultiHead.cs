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

    /// <summary>Cuts features into parts of the given sizes (views).</summary>
    public static Tensor[] Parts(this Tensor x, params long[] sizes) => x.split(sizes, -1);
}

/// <summary>What linear recurrences put after reading: <c>y = RMSNorm(o) ∘ w ∘ silu(g)</c>, the norm over each head. Zhang and Sennrich 2019; the gate as in RetNet, equation 8.</summary>
internal sealed class GatedHeadNorm : nn.Module<Tensor, Tensor?, Tensor>
{
    private const double Epsilon = 1e-5;

    private readonly Parameter weight;

    public GatedHeadNorm(long size) : base(nameof(GatedHeadNorm))
    {
        weight = nn.Parameter(ones(size));
        RegisterComponents();
    }

    /// <param name="o">[batch, time, heads, size].</param>
    /// <param name="gate">[batch, time, heads · size], or null.</param>
    /// <returns>[batch, time, heads · size].</returns>
    public override Tensor forward(Tensor o, Tensor? gate)
    {
        var type = Chunks.StateType(o);
        var y = (o * (o.to(type).square().mean([-1L], keepdim: true) + Epsilon).rsqrt().to(o.dtype) * weight).MergeHeads();
        return gate is null ? y : y * nn.functional.silu(gate);
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
}
