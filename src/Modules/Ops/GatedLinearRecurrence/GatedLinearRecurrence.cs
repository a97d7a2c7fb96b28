using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// <c>S_t = a_t S_{t−1} + k_t v_tᵀ</c>, <c>o_t = S_tᵀ q_t</c>: a memory S of the values v, written at the keys k, read at the queries q, fading by a.
/// </summary>
/// <remarks>
/// <para>The decay a makes the model: none is linear attention (Katharopoulos et al. 2020, equations 18 to 20); one constant per head is retention (RetNet, Sun et al.
/// 2023, equation 5); one scalar per head and step is gated retention (Sun et al. 2024, equation 7) and, with k = Δ B, v = x, q = C, Mamba-2's SSD (Dao and Gu 2024, equation 2); one per key
/// dimension is gated linear attention (Yang et al. 2023, equation 3).</para>
/// <para>Symbols: b batch, t time, h heads, K key size, V value size. Queries are used as given: divide them by √K beforehand where a paper does.</para>
/// </remarks>
public static partial class GatedLinearRecurrence
{
    /// <summary>Runs the recurrence in the form that suits the length.</summary>
    /// <param name="q">Queries, [b, t, h, K].</param>
    /// <param name="k">Keys, [b, t, h, K].</param>
    /// <param name="v">Values, [b, t, h, V].</param>
    /// <param name="logDecay">Natural logarithm of the decay, at most 0: null (none), [h] (constant; gets no gradient), [b, t, h] or [b, t, h, K]. Minus infinity forgets all.</param>
    /// <param name="initialState">S_0, [b, h, K, V]; null for zero.</param>
    /// <param name="padding">Positions that are not real neither write nor fade; null when all are real.</param>
    /// <returns>o, [b, t, h, V], in the type of the values; and S after the last real position of each row, [b, h, K, V], in float32 (float64 for float64).</returns>
    /// <exception cref="ArgumentException">Shapes do not fit.</exception>
    public static (Tensor Output, Tensor FinalState) Run(Tensor q, Tensor k, Tensor v, Tensor? logDecay = null, Tensor? initialState = null, SequencePadding? padding = null)
    {
        Check(q, k, v, logDecay, initialState);
        if (padding is not null)
        {
            var real = padding.Valid.view(padding.Valid.shape[0], padding.Time, 1, 1);
            k = k.masked_fill(real.logical_not(), 0);
            if (logDecay is not null) logDecay = PerStep(logDecay, q).masked_fill((logDecay.dim() == 4 ? real : real.squeeze(-1)).logical_not(), 0);
        }
        var fused = Fused(q, k, v, logDecay, initialState);
        return OperatorChoice.For(q.shape[1], hasFused: fused is not null) switch
        {
            OperatorForm.Naive => Naive(q, k, v, logDecay, initialState),
            OperatorForm.Fused => fused!(q, k, v, logDecay, initialState),
            _ => Chunked(q, k, v, logDecay, initialState),
        };
    }

    /// <summary>The specification: the equations, step by step.</summary>
    /// <inheritdoc cref="Run"/>
    public static (Tensor Output, Tensor FinalState) Naive(Tensor q, Tensor k, Tensor v, Tensor? logDecay = null, Tensor? initialState = null)
    {
        Check(q, k, v, logDecay, initialState);
        var type = Chunks.StateType(q);
        var state = initialState?.to(type) ?? zeros([q.shape[0], q.shape[2], q.shape[3], v.shape[3]], type, q.device);
        var decay = logDecay is null ? null : PerStep(logDecay, q).to(type).exp(); // [b, t, h(, K)]
        if (decay?.dim() == 3) decay = decay.unsqueeze(-1);
        var (queries, keys, values) = (q.to(type), k.to(type), v.to(type));
        var outputs = new Tensor[q.shape[1]];
        for (var t = 0; t < outputs.Length; t++)
        {
            if (decay is not null) state = decay.select(1, t).unsqueeze(-1) * state;
            state = state + keys.select(1, t).unsqueeze(-1) * values.select(1, t).unsqueeze(-2);
            outputs[t] = queries.select(1, t).unsqueeze(-2).Times(state).squeeze(-2);
        }
        return (stack(outputs, 1).to(v.dtype), state);
    }

    /// <summary>The form to train with: parallel within chunks and over chunks, matrix products throughout, with gradients of its own.</summary>
    /// <inheritdoc cref="Run"/>
    /// <param name="q">Queries, [b, t, h, K].</param>
    /// <param name="k">Keys, [b, t, h, K].</param>
    /// <param name="v">Values, [b, t, h, V].</param>
    /// <param name="logDecay">As for <see cref="Run"/>.</param>
    /// <param name="initialState">S_0, [b, h, K, V]; null for zero.</param>
    /// <param name="chunk">Positions per chunk; 0 chooses. A chunk costs chunk² per head, a boundary K V.</param>
    public static (Tensor Output, Tensor FinalState) Chunked(Tensor q, Tensor k, Tensor v, Tensor? logDecay = null, Tensor? initialState = null, int chunk = 0)
    {
        Check(q, k, v, logDecay, initialState);
        if (chunk == 0) chunk = logDecay is null && q.device_type == DeviceType.CUDA ? 128 : 64;
        var size = Math.Min(chunk, q.shape[1]);
        // A constant decays filled-up positions too, which the final state would show.
        if (logDecay?.dim() == 1 && q.shape[1] % size != 0) logDecay = PerStep(logDecay, q);
        if (logDecay?.dim() == 4) size = (long)System.Numerics.BitOperations.RoundUpToPowerOf2((ulong)size);
        return Both(ChunkedLinearRecurrence.Run(q, k, v, logDecay, initialState, size));
    }

    /// <summary>The kernel that serves such tensors; null when there is none.</summary>
    private static Func<Tensor, Tensor, Tensor, Tensor?, Tensor?, (Tensor Output, Tensor FinalState)>? Fused(Tensor q, Tensor k, Tensor v, Tensor? logDecay, Tensor? initialState)
        => FusedCudaLinearRecurrence.Serves(q, k, v, logDecay) ? FusedCudaLinearRecurrence.Run
            : FusedCudaVectorRecurrence.Serves(q, k, v, logDecay) ? (q, k, v, g, s) => Both(FusedCudaVectorRecurrence.Run(q, k, v, g, s))
            : CpuKernels.CanRunOn(q, k, v, logDecay, initialState) ? (q, k, v, g, s) => Both(FusedCpuLinearRecurrence.Run(q, k, v, g, s))
            : null;

    private static (Tensor Output, Tensor FinalState) Both(Tensor[] outputs) => (outputs[0], outputs[1]);

    /// <summary>[b, t, h] of a constant decay [h]; others as they are.</summary>
    private static Tensor PerStep(Tensor logDecay, Tensor q) => logDecay.dim() == 1 ? logDecay.expand(q.shape[0], q.shape[1], q.shape[2]) : logDecay;

    private static void Check(Tensor q, Tensor k, Tensor v, Tensor? logDecay, Tensor? initialState)
    {
        OperatorShapes.CheckHeads(q, k, v);
        var (b, t, h) = (q.shape[0], q.shape[1], q.shape[2]);
        if (logDecay is not null) OperatorShapes.Check(logDecay, nameof(logDecay), [h], [b, t, h], [b, t, h, q.shape[3]]);
        if (initialState is not null) OperatorShapes.Check(initialState, nameof(initialState), [b, h, q.shape[3], v.shape[3]]);
    }
}
