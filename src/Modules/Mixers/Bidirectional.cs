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

    private static Tensor Reverse(Tensor x, SequencePadding? padding) => padding?.Reverse(x) ?? x.flip(1);
}
