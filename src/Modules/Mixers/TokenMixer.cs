using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Exchanges information between the positions of a sequence: the part in which recurrent networks, attention and convolution differ.
/// </summary>
/// <remarks>
/// Seen as a recurrence it is <c>H_t = fA(H_{t-1}) + fB(x_t)</c>, <c>y_t = fC(H_t)</c>; H is the <see cref="MixerState"/>. A mixer promises that real positions never depend on
/// padded ones (what it returns at padded positions is arbitrary but finite), and, when it is causal, that a sequence may be given in pieces.
/// </remarks>
public abstract class TokenMixer(string name) : nn.Module<Tensor, SequencePadding?, MixerState?, Tensor>(name)
{
    /// <summary>Whether no position depends on a later one, so that the mixer can go on from a state.</summary>
    public virtual bool IsCausal => true;

    /// <summary>Mixes over time.</summary>
    /// <param name="x">[batch, time, width].</param>
    /// <param name="padding">Which positions are real; null when all are.</param>
    /// <param name="state">What precedes the sequence; afterwards it includes the sequence. Null: nothing precedes, and nothing is kept.</param>
    /// <returns>[batch, time, width].</returns>
    /// <exception cref="ArgumentException">Both a padding and a state are given: rows of different length would end at different times.</exception>
    /// <exception cref="NotSupportedException">A state is given and the mixer is not causal.</exception>
    public sealed override Tensor forward(Tensor x, SequencePadding? padding, MixerState? state)
    {
        if (state is null) return Mix(x, padding, null);
        if (padding is not null) throw new ArgumentException("A sequence that goes on from a state cannot be padded; give rows of one length.", nameof(padding));
        if (!IsCausal) throw new NotSupportedException($"{GetName()} looks ahead and cannot go on from a state; use a backbone with Bidirectional = false.");
        var y = Mix(x, null, state);
        state.Position += x.shape[1];
        return y;
    }

    /// <summary>One element: <see cref="forward"/> of a sequence of length 1.</summary>
    /// <param name="x">[batch, width].</param>
    /// <param name="state">What precedes; afterwards it includes x.</param>
    /// <returns>[batch, width].</returns>
    public Tensor Step(Tensor x, MixerState state)
    {
        ArgumentNullException.ThrowIfNull(x);
        return call(x.unsqueeze(1), null, state).squeeze(1);
    }

    /// <summary>The mixing itself. With a state, it reads what precedes from it, leaves there what comes next, and does not touch the position.</summary>
    /// <inheritdoc cref="forward"/>
    protected internal abstract Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state);

    /// <summary>The form over spans of <see cref="Mix"/>, for one sequence on the CPU; it must leave in the state what Mix would. Null: there is none, and Mix serves.</summary>
    internal virtual SpanMixer? OverSpans() => null;
}
