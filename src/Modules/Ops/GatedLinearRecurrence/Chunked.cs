using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// The chunked form of <see cref="GatedLinearRecurrence"/>. Within a chunk that starts at state S, with G_t the log-decays cumulated from its start (L: its end),
/// <c>o_t = e^{G_t} q_tᵀ S + Σ_{s ≤ t} P_ts v_s</c> with <c>P_ts = q_tᵀ e^{G_t − G_s} k_s</c>, and the next chunk starts at
/// <c>e^{G_L} S + Σ_s e^{G_L − G_s} k_s v_sᵀ</c>.
/// </summary>
/// <remarks>
/// Yang et al., "Gated linear attention transformers with hardware-efficient training", 2023, sections 2.3 and 4.1; Dao and Gu 2024, section 6. No exponent is positive,
/// so strong decay underflows to zero and nothing overflows. Gradient: with dS the gradient of the next chunk's start,
/// <c>dv_s = Σ_t P_ts do_t + dSᵀ e^{G_L − G_s} k_s</c>; dq and dk likewise with <c>dP = do vᵀ</c>; and because G_t enters with q_t and leaves with k_t,
/// <c>dG_t = q_t ∘ dq_t − k_t ∘ dk_t</c> (+ <c>S' ∘ dS</c> at the end, S' the next chunk's start), <c>dg_t = Σ_{j ≥ t} dG_j</c>.
/// </remarks>
internal sealed class ChunkedLinearRecurrence : OperatorFunction<ChunkedLinearRecurrence>
{
    // Inputs: q, k, v, logDecay?, initialState?, chunk (a power of two for decay per key dimension).
    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (logDecay, initial, chunk) = ((Tensor?)inputs[3], (Tensor?)inputs[4], (long)inputs[5]!);
        var time = ((Tensor)inputs[0]!).shape[1];
        var (q, k, v) = (Chunks.Split((Tensor)inputs[0]!, chunk), Chunks.Split((Tensor)inputs[1]!, chunk), Chunks.Split((Tensor)inputs[2]!, chunk));
        var decay = ChunkDecay.Create(logDecay, chunk, q);
        var scores = decay.Scores(q, k);
        var updates = decay.ToEnd(k).Transposed().Times(v);
        var states = ChunkScan.Run(updates, decay.Whole, initial); // [b, h, chunks + 1, K, V]
        var chunks = updates.shape[2];
        var output = scores.Times(v).PlusProduct(decay.FromStart(q), states.narrow(2, 0, chunks));
        context.save_data("time", time);
        context.save_data("chunk", chunk);
        return ([Chunks.Join(output, time), states.select(2, chunks).to(Chunks.StateType(q))], [q, k, v, logDecay, initial, states, scores]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (time, chunk) = ((long)context.get_data("time"), (long)context.get_data("chunk"));
        var (q, k, v, logDecay, initial, states, scores) = (saved[0]!, saved[1]!, saved[2]!, saved[3], saved[4], saved[5]!, saved[6]!);
        var chunks = q.shape[2];
        var decay = ChunkDecay.Create(logDecay, chunk, q);
        var dOutput = gradients[0] is null ? zeros_like(v) : Chunks.Split(gradients[0]!, chunk);
        var dUpdates = decay.FromStart(q).Transposed().Times(dOutput);
        var dStates = ChunkScan.Run(dUpdates, decay.Whole, gradients[1], reverse: true); // of S_0 … S_chunks
        var dNext = dStates.narrow(2, 1, chunks);

        var dScores = dOutput.Times(v.Transposed());
        var (dq, dk) = decay.ScoreGradients(dScores, q, k);
        dq = dq + decay.FromStart(dOutput.Times(states.narrow(2, 0, chunks).Transposed()));
        dk = dk + decay.ToEnd(v.Times(dNext.Transposed()));
        var dv = scores.Transposed().Times(dOutput).PlusProduct(decay.ToEnd(k), dNext);

        Tensor? dLogDecay = null;
        if (logDecay is not null && logDecay.dim() > 1)
        {
            var type = Chunks.StateType(q);
            var perKey = logDecay.dim() == 4;
            var dG = (q.to(type) * dq - k.to(type) * dk).to(type);
            var atEnd = (states.narrow(2, 1, chunks).to(type) * dNext).sum(-1); // [b, h, chunks, K]
            if (!perKey) (dG, atEnd) = (dG.sum(-1, keepdim: true), atEnd.sum(-1, keepdim: true));
            dLogDecay = Chunks.Join(Chunks.ReverseCumulate(dG, 3) + atEnd.unsqueeze(3), time);
            dLogDecay = Chunks.FlooredGradient(perKey ? dLogDecay : dLogDecay.squeeze(-1), logDecay);
        }
        return [Chunks.Join(dq, time), Chunks.Join(dk, time), Chunks.Join(dv, time), dLogDecay, initial is null ? null : dStates.select(2, 0).to(initial.dtype), null];
    }
}

/// <summary>How much remains between two positions of a chunk: e^{G_t − G_s}, in the three ways that the chunked form needs it.</summary>
internal abstract class ChunkDecay
{
    /// <summary>G_L, [.., chunks, 1 or K]; null without decay.</summary>
    public virtual Tensor? Whole => null;

    /// <summary>e^{G_t} x_t: what remains of the chunk's start at position t.</summary>
    public virtual Tensor FromStart(Tensor x) => x;

    /// <summary>e^{G_L − G_s} x_s: what remains of position s at the chunk's end.</summary>
    public virtual Tensor ToEnd(Tensor x) => x;

    /// <summary><c>P_ts = q_tᵀ e^{G_t − G_s} k_s</c> for s ≤ t, else 0: [.., t, s].</summary>
    public abstract Tensor Scores(Tensor q, Tensor k);

    /// <summary>The gradients of q and k through <see cref="Scores"/>.</summary>
    /// <param name="dScores">dP, also filled where P is 0; may be changed.</param>
    /// <param name="q">[.., t, K].</param>
    /// <param name="k">[.., s, K].</param>
    public abstract (Tensor Queries, Tensor Keys) ScoreGradients(Tensor dScores, Tensor q, Tensor k);

    /// <param name="logDecay">null, [h], [b, t, h] or [b, t, h, K].</param>
    /// <param name="chunk">Positions per chunk.</param>
    /// <param name="q">Gives the element type.</param>
    public static ChunkDecay Create(Tensor? logDecay, long chunk, Tensor q)
    {
        if (logDecay is null) return new None();
        var g = Chunks.Floored(logDecay);
        if (logDecay.dim() == 1)
            return new Scalar((g.unsqueeze(-1) * arange(1, chunk + 1, dtype: g.dtype, device: g.device)).view(1, g.shape[0], 1, chunk), q);
        if (logDecay.dim() == 3) return new Scalar(Chunks.Split(g.unsqueeze(-1), chunk).squeeze(-1).cumsum(-1), q);
        return new PerKey(Chunks.Split(g, chunk).cumsum(3), q.dtype);
    }

    private sealed class None : ChunkDecay
    {
        public override Tensor Scores(Tensor q, Tensor k) => q.Times(k.Transposed()).tril_();

        public override (Tensor Queries, Tensor Keys) ScoreGradients(Tensor dScores, Tensor q, Tensor k)
        {
            dScores.tril_();
            return (dScores.Times(k), dScores.Transposed().Times(q));
        }
    }

    /// <summary>One decay per position, G [.., chunk]: the matrix e^{G_t − G_s} multiplies the products.</summary>
    private sealed class Scalar(Tensor cumulated, Tensor q) : ChunkDecay
    {
        private readonly Tensor _matrix = Chunks.DecayMatrix(cumulated).to(q.dtype);
        private readonly Tensor _fromStart = cumulated.exp().to(q.dtype).unsqueeze(-1);
        private readonly Tensor _toEnd = (cumulated.narrow(-1, cumulated.shape[^1] - 1, 1) - cumulated).exp_().to(q.dtype).unsqueeze(-1);

        public override Tensor? Whole => cumulated.narrow(-1, cumulated.shape[^1] - 1, 1).expand(-1, -1, q.shape[2], -1); // a constant is alike in all chunks

        public override Tensor FromStart(Tensor x) => x * _fromStart;

        public override Tensor ToEnd(Tensor x) => x * _toEnd;

        public override Tensor Scores(Tensor q, Tensor k) => q.Times(k.Transposed()).mul_(_matrix);

        public override (Tensor Queries, Tensor Keys) ScoreGradients(Tensor dScores, Tensor q, Tensor k)
        {
            dScores.mul_(_matrix);
            return (dScores.Times(k), dScores.Transposed().Times(q));
        }
    }

    /// <summary>
    /// A decay per position and key dimension, G [.., chunk, K]. The chunk is halved again and again; for t in the second and s in the first half of a
    /// part, G is measured from the middle r: <c>P_ts = (q_t e^{G_t − G_r})ᵀ (k_s e^{G_r − G_s})</c>, a product of two factors of which neither can overflow.
    /// </summary>
    private sealed class PerKey(Tensor cumulated, ScalarType type) : ChunkDecay
    {
        private readonly Tensor _fromStart = cumulated.exp().to(type);
        private readonly Tensor _toEnd = (cumulated.narrow(-2, cumulated.shape[^2] - 1, 1) - cumulated).exp_().to(type);

        public override Tensor? Whole => cumulated.select(-2, cumulated.shape[^2] - 1);

        public override Tensor FromStart(Tensor x) => x * _fromStart;

        public override Tensor ToEnd(Tensor x) => x * _toEnd;

        public override Tensor Scores(Tensor q, Tensor k)
        {
            var chunk = cumulated.shape[^2];
            var scores = zeros([.. q.shape[..^1], chunk], q.dtype, q.device);
            scores.diagonal(0, -2, -1).copy_((q * k).sum(-1)); // t = s: nothing decays
            for (var half = chunk / 2; half >= 1; half /= 2)
            {
                var (toQuery, toKey) = FromMiddle(half);
                Block(scores, half).copy_((Halves(q, half).Second * toQuery).Times((Halves(k, half).First * toKey).Transposed()));
            }
            return scores;
        }

        public override (Tensor Queries, Tensor Keys) ScoreGradients(Tensor dScores, Tensor q, Tensor k)
        {
            var diagonal = dScores.diagonal(0, -2, -1).unsqueeze(-1);
            var (dq, dk) = (diagonal * k, diagonal * q);
            for (var half = cumulated.shape[^2] / 2; half >= 1; half /= 2)
            {
                var (toQuery, toKey) = FromMiddle(half);
                var block = Block(dScores, half);
                Halves(dq, half).Second.addcmul_(block.Times(Halves(k, half).First * toKey), toQuery, 1);
                Halves(dk, half).First.addcmul_(block.Transposed().Times(Halves(q, half).Second * toQuery), toKey, 1);
            }
            return (dq, dk);
        }

        // e^{G_t − G_r} of the second halves and e^{G_r − G_s} of the first: [.., parts, half, K]; r is the last position of the first half.
        private (Tensor ToQuery, Tensor ToKey) FromMiddle(long half)
        {
            var (first, second) = Halves(cumulated, half);
            var middle = first.narrow(-2, half - 1, 1);
            return ((second - middle).exp_().to(type), (middle - first).exp_().to(type));
        }

        // [.., chunk, K] as parts of two halves: 2 × [.., parts, half, K] (views).
        private static (Tensor First, Tensor Second) Halves(Tensor x, long half)
        {
            var parts = x.Unflatten(-2, x.shape[^2] / (2 * half), 2, half);
            return (parts.select(-3, 0), parts.select(-3, 1));
        }

        // Of [.., chunk, chunk]: for each part, the block of the second half's rows and the first half's columns, [.., parts, half, half] (a view).
        private static Tensor Block(Tensor scores, long half)
        {
            var parts = scores.shape[^1] / (2 * half);
            var blocks = scores.Unflatten(-1, parts, 2, half).Unflatten(-4, parts, 2, half); // [.., parts, 2, half, parts, 2, half]
            return blocks.select(-2, 0).select(-4, 1).diagonal(0, -4, -2).movedim([-1], [-3]);
        }
    }
}
