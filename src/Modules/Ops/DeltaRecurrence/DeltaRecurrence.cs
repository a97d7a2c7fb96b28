using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// <c>S_t = a_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ</c>, <c>o_t = S_tᵀ q_t</c>: a memory that takes away what key k holds before it writes v there. Each step
/// is one of gradient descent, with rate β, on <c>½ ‖S_{t−1}ᵀ k − v‖²</c>.
/// </summary>
/// <remarks>
/// Without decay a it is DeltaNet (Schlag et al. 2021, equation 24; Yang et al. 2024, equation 1), with it Gated DeltaNet (Yang et al. 2024b, equation 10). Keys should have length 1 and
/// β lie in [0, 1] (up to 2 keeps it stable). Symbols: b batch, t time, h heads, K key size, V value size. Queries are used as given.
/// </remarks>
public static partial class DeltaRecurrence
{
    /// <summary>Runs the recurrence in the form that suits the length.</summary>
    /// <param name="q">Queries, [b, t, h, K].</param>
    /// <param name="k">Keys, [b, t, h, K].</param>
    /// <param name="v">Values, [b, t, h, V].</param>
    /// <param name="beta">Writing strength β, [b, t, h].</param>
    /// <param name="logDecay">Natural logarithm of the decay a, at most 0, [b, t, h]; null for none. Minus infinity forgets all.</param>
    /// <param name="initialState">S_0, [b, h, K, V]; null for zero.</param>
    /// <param name="padding">Positions that are not real neither write nor fade; null when all are real.</param>
    /// <returns>o, [b, t, h, V], in the type of the values; and S after the last real position of each row, [b, h, K, V], in float32 (float64 for float64).</returns>
    /// <exception cref="ArgumentException">Shapes do not fit.</exception>
    public static (Tensor Output, Tensor FinalState) Run(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? logDecay = null, Tensor? initialState = null, SequencePadding? padding = null)
    {
        Check(q, k, v, beta, logDecay, initialState);
        if (padding is not null)
        {
            var padded = padding.Valid.unsqueeze(-1).logical_not();
            beta = beta.masked_fill(padded, 0);
            logDecay = logDecay?.masked_fill(padded, 0);
        }
        var plan = DeltaPlan.For(q, k, v, beta, logDecay);
        return OperatorChoice.For(q.shape[1], hasFused: plan is not null || CpuKernels.CanRunOn(q, k, v, beta, logDecay, initialState)) switch
        {
            OperatorForm.Naive => Naive(q, k, v, beta, logDecay, initialState),
            OperatorForm.Fused => plan is null ? FusedCpuDeltaRecurrence.Run(q, k, v, beta, logDecay, initialState) : FusedCudaDeltaRecurrence.Run(q, k, v, beta, logDecay, initialState, plan),
            _ => Chunked(q, k, v, beta, logDecay, initialState),
        };
    }

    /// <summary>The specification: the equations, step by step.</summary>
    /// <inheritdoc cref="Run"/>
    public static (Tensor Output, Tensor FinalState) Naive(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? logDecay = null, Tensor? initialState = null)
    {
        Check(q, k, v, beta, logDecay, initialState);
        var type = Chunks.StateType(q);
        var state = initialState?.to(type) ?? zeros([q.shape[0], q.shape[2], q.shape[3], v.shape[3]], type, q.device);
        var (queries, keys, values, strength, decay) = (q.to(type), k.to(type), v.to(type), beta.to(type).unsqueeze(-1), logDecay?.to(type).exp());
        var outputs = new Tensor[q.shape[1]];
        for (var t = 0; t < outputs.Length; t++)
        {
            if (decay is not null) state = decay.select(1, t).unsqueeze(-1).unsqueeze(-1) * state;
            var key = keys.select(1, t);
            var held = key.unsqueeze(-2).Times(state).squeeze(-2); // Sᵀ k
            state = state + key.unsqueeze(-1) * (strength.select(1, t) * (values.select(1, t) - held)).unsqueeze(-2);
            outputs[t] = queries.select(1, t).unsqueeze(-2).Times(state).squeeze(-2);
        }
        return (stack(outputs, 1).to(v.dtype), state);
    }

    /// <summary>The form to train with: parallel within chunks, matrix products throughout, with gradients of its own.</summary>
    /// <inheritdoc cref="Run"/>
    /// <param name="q">Queries, [b, t, h, K].</param>
    /// <param name="k">Keys, [b, t, h, K].</param>
    /// <param name="v">Values, [b, t, h, V].</param>
    /// <param name="beta">Writing strength, [b, t, h].</param>
    /// <param name="logDecay">As for <see cref="Run"/>.</param>
    /// <param name="initialState">S_0, [b, h, K, V]; null for zero.</param>
    /// <param name="chunk">Positions per chunk.</param>
    public static (Tensor Output, Tensor FinalState) Chunked(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? logDecay = null, Tensor? initialState = null, int chunk = 64)
    {
        Check(q, k, v, beta, logDecay, initialState);
        var outputs = ChunkedDeltaRecurrence.Run(q, k, v, beta, logDecay, initialState, Math.Min(chunk, q.shape[1]));
        return (outputs[0], outputs[1]);
    }

    private static void Check(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? logDecay, Tensor? initialState)
    {
        OperatorShapes.CheckHeads(q, k, v);
        var (b, t, h) = (q.shape[0], q.shape[1], q.shape[2]);
        OperatorShapes.Check(beta, nameof(beta), [b, t, h]);
        if (logDecay is not null) OperatorShapes.Check(logDecay, nameof(logDecay), [b, t, h]);
        if (initialState is not null) OperatorShapes.Check(initialState, nameof(initialState), [b, h, q.shape[3], v.shape[3]]);
    }
}
