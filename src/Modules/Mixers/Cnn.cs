using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Dilated convolution over time: <c>y_t = b + Σ_j W_j x_{t − j·dilation}</c>, looking back only (causal) or to both sides.</summary>
/// <remarks>Bai, Kolter and Koltun, "An empirical evaluation of generic convolutional and recurrent networks for sequence modeling", 2018, equation 2.</remarks>
internal sealed class DilatedConvolution : TokenMixer
{
    private const string Past = "past";

    private readonly Conv1d convolution;
    private readonly int _before, _after;

    public DilatedConvolution(int width, int kernel, int dilation, bool causal) : base(nameof(DilatedConvolution))
    {
        var reach = (kernel - 1) * dilation;
        (_before, _after) = causal ? (reach, 0) : (reach - reach / 2, reach / 2);
        convolution = nn.Conv1d(width, width, kernel, dilation: dilation);
        RegisterComponents();
    }

    public override bool IsCausal => _after == 0;

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        if (padding is not null) x = padding.Fill(x, 0); // padded positions read as the zeros beyond the ends
        var all = state?[Past] is { } past ? cat([past, x], 1) : nn.functional.pad(x, [0, 0, _before, _after]);
        state?.Set(Past, all.narrow(1, x.shape[1], _before).clone());
        return nn.functional.gelu(convolution.call(all.transpose(1, 2))).transpose(1, 2);
    }

    internal override SpanMixer OverSpans()
    {
        var taps = (int)convolution.weight.shape[2];
        var map = new PackedLinear(convolution.weight.transpose(1, 2).flatten(1), convolution.bias); // W of all taps side by side
        var (before, dilation) = (_before, taps == 1 ? 1 : (_before + _after) / (taps - 1));
        return (x, y, state, work) =>
        {
            var width = x.Width;
            var past = work.Past(state, Past, 1, before, width);
            var seen = work.Take(x.Count, taps * width);
            for (var t = 0; t < x.Count; t++)
                for (var tap = 0; tap < taps; tap++)
                {
                    var at = t - before + tap * dilation;
                    var to = seen[t].Slice(tap * width, width);
                    if (at < 0) past.Slice((before + at) * width, width).CopyTo(to);
                    else if (at < x.Count) x[at].CopyTo(to);
                    else to.Clear();
                }
            map.Apply(seen, y);
            for (var t = 0; t < x.Count; t++) y[t].Apply<Functions.Gelu>();
            if (state is null) return;
            var kept = Math.Max(0, before - x.Count);
            past[((before - kept) * width)..].CopyTo(past);
            for (var i = kept; i < before; i++) x[x.Count - before + i].CopyTo(past.Slice(i * width, width));
        };
    }
}

/// <summary>A residual convolutional network over time whose reach doubles from block to block. Bai, Kolter and Koltun 2018.</summary>
public sealed record CnnBackbone : Backbone
{
    /// <summary>Taps of each convolution.</summary>
    public int Kernel { get; init; } = 5;

    /// <summary>Dilations double from 1 up to 2^(DilationCycle − 1), then start again.</summary>
    public int DilationCycle { get; init; } = 8;

    internal override TokenMixer CreateMixer(int layer) => new DilatedConvolution(Width, Kernel, 1 << (layer % DilationCycle), causal: !Bidirectional);

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (Kernel is < 1 or > 1024) yield return $"Kernel is {Kernel}; expected 1 to 1024.";
        if (DilationCycle is < 1 or > 16) yield return $"DilationCycle is {DilationCycle}; expected 1 to 16.";
    }
}

public abstract partial record Backbone
{
    /// <summary>A residual, dilated 1-D convolutional network (Bai, Kolter and Koltun 2018) in pre-norm residual blocks.</summary>
    /// <param name="width">Features per position.</param>
    /// <param name="depth">Blocks; the dilation doubles from block to block.</param>
    /// <param name="kernel">Taps of each convolution.</param>
    /// <param name="dropout">Probability of dropping a feature of a block's update while training.</param>
    /// <param name="bidirectional">Centres the kernels. Better for whole sequences; a causal model can also be streamed.</param>
    public static CnnBackbone Cnn(int width = 128, int depth = 4, int kernel = 5, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, Kernel = kernel, Dropout = dropout, Bidirectional = bidirectional };
}
