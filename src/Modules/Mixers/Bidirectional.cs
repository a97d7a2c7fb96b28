using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Makes a bidirectional mixer of two causal ones: <c>y = past(x) + reverse(future(reverse(x)))</c>.</summary>
/// <remarks>After Schuster and Paliwal 1997. Each row is reversed within its own length, so padding stays out of both directions.</remarks>
internal sealed class Bidirectional : TokenMixer
{
    private readonly TokenMixer past, future;

    public Bidirectional(Func<TokenMixer> causal) : base(nameof(Bidirectional))
    {
        past = causal();
        future = causal();
        RegisterComponents();
    }

    public override bool IsCausal => false;

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
        => past.call(x, padding, null) + Reverse(future.call(Reverse(x, padding), padding, null), padding);

    internal override SpanMixer? OverSpans()
    {
        if (past.OverSpans() is not { } forwards || future.OverSpans() is not { } backwards) return null;
        return (x, y, _, work) =>
        {
            var reversed = work.Take(x.Count, x.Width);
            var ahead = work.Take(x.Count, x.Width);
            for (var t = 0; t < x.Count; t++) x[t].CopyTo(reversed[x.Count - 1 - t]);
            forwards(x, y, null, work);
            backwards(reversed, ahead, null, work);
            for (var t = 0; t < x.Count; t++) y[t].Add(ahead[x.Count - 1 - t]);
        };
    }

    private static Tensor Reverse(Tensor x, SequencePadding? padding) => padding?.Reverse(x) ?? x.flip(1);
}
