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
        var states = ChunkScan.Run(decay.ToEnd(k).Transposed().Times(v), decay.Whole, initial);
        var output = scores.Times(v).PlusProduct(decay.FromStart(q), states.Edges);
        context.save_data("time", time);
        context.save_data("chunk", chunk);
        return ([Chunks.Join(output, time), states.Last.to(Chunks.StateType(q))], [q, k, v, logDecay, initial, states.Edges, states.Last, scores, .. decay.Parts]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (time, chunk) = ((long)context.get_data("time"), (long)context.get_data("chunk"));
        var (q, k, v, logDecay, initial, scores) = (saved[0]!, saved[1]!, saved[2]!, saved[3], saved[4], saved[7]!);
        var states = new ChunkStates(saved[5]!, saved[6]!);
        var decay = ChunkDecay.Restore(saved[8..]!, q);
        var dOutput = gradients[0] is null ? zeros_like(v) : Chunks.Split(gradients[0]!, chunk);
        var dStates = ChunkScan.Run(decay.FromStart(q).Transposed().Times(dOutput), decay.Whole, gradients[1], reverse: true);
        var dNext = dStates.Edges; // of the states that follow each chunk

        var (dq, dk) = decay.ScoreGradients(dOutput.Times(v.Transposed()), q, k);
        dq.add_(decay.FromStart(dOutput.Times(states.Edges.Transposed())));
        dk.add_(decay.ToEnd(v.Times(dNext.Transposed())));
        var dv = scores.Transposed().Times(dOutput).PlusProduct(decay.ToEnd(k), dNext);

        Tensor? dLogDecay = null;
        if (logDecay is not null && logDecay.dim() > 1)
        {
            var type = Chunks.StateType(q);
            var atEnd = Chunks.AtEnd(states, dNext); // [b, h, chunks, K]
            dLogDecay = logDecay.dim() == 4
                ? Chunks.Join(Chunks.ReverseCumulate((q * dq - k * dk).to(type)) + atEnd.unsqueeze(3), time)
                : Chunks.Join(Chunks.ReverseCumulate((q * dq).sum([-1L], true, type) - (k * dk).sum([-1L], true, type)) + atEnd.sum([-1L], true).unsqueeze(3), time).squeeze(-1);
            dLogDecay = Chunks.FlooredGradient(dLogDecay, logDecay);
        }
        return [Chunks.Join(dq, time), Chunks.Join(dk, time), Chunks.Join(dv, time), dLogDecay, initial is null ? null : dStates.Last.to(initial.dtype), null];
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

    /// <summary>What the backward pass needs again.</summary>
    public abstract Tensor[] Parts { get; }

    /// <param name="logDecay">null, [h], [b, t, h] or [b, t, h, K].</param>
    /// <param name="chunk">Positions per chunk.</param>
    /// <param name="q">Gives element type and chunks.</param>
    public static ChunkDecay Create(Tensor? logDecay, long chunk, Tensor q)
    {
        if (logDecay is null) return new None();
        var g = Chunks.Floored(logDecay);
        if (logDecay.dim() == 1)
            return Scalar.Of((g.unsqueeze(-1) * arange(1, chunk + 1, dtype: g.dtype, device: g.device)).view(1, g.shape[0], 1, chunk), q);
        if (logDecay.dim() == 3) return Scalar.Of(Chunks.Split(g.unsqueeze(-1), chunk).squeeze(-1).cumsum(-1), q);
        return PerKey.Of(Chunks.Split(g, chunk).cumsum(3), q);
    }

    /// <summary>A decay from its <see cref="Parts"/>.</summary>
    public static ChunkDecay Restore(Tensor[] parts, Tensor q)
        => parts.Length == 0 ? new None() : parts.Length == 4 ? new Scalar(parts[0], parts[1], parts[2], parts[3], q.shape[2]) : new PerKey(parts[0], parts[1], parts[2]);

    private sealed class None : ChunkDecay
    {
        public override Tensor[] Parts => [];

        public override Tensor Scores(Tensor q, Tensor k) => q.Times(k.Transposed()).tril_();

        public override (Tensor Queries, Tensor Keys) ScoreGradients(Tensor dScores, Tensor q, Tensor k)
        {
            dScores.tril_();
            return (dScores.Times(k), dScores.Transposed().Times(q));
        }
    }

    /// <summary>One decay per position, G [.., chunk]: the matrix e^{G_t − G_s} multiplies the products.</summary>
    private sealed class Scalar(Tensor cumulated, Tensor matrix, Tensor fromStart, Tensor toEnd, long chunks) : ChunkDecay
    {
        public static Scalar Of(Tensor cumulated, Tensor q)
        {
            var end = cumulated.narrow(-1, cumulated.shape[^1] - 1, 1);
            return new Scalar(cumulated, Chunks.DecayMatrix(cumulated).to(q.dtype), cumulated.exp().to(q.dtype).unsqueeze(-1), (end - cumulated).exp_().to(q.dtype).unsqueeze(-1), q.shape[2]);
        }

        public override Tensor[] Parts => [cumulated, matrix, fromStart, toEnd];

        public override Tensor? Whole => cumulated.narrow(-1, cumulated.shape[^1] - 1, 1).expand(-1, -1, chunks, -1); // a constant is alike in all chunks

        public override Tensor FromStart(Tensor x) => x * fromStart;

        public override Tensor ToEnd(Tensor x) => x * toEnd;

        public override Tensor Scores(Tensor q, Tensor k) => q.Times(k.Transposed()).mul_(matrix);

        public override (Tensor Queries, Tensor Keys) ScoreGradients(Tensor dScores, Tensor q, Tensor k)
        {
            dScores.mul_(matrix);
            return (dScores.Times(k), dScores.Transposed().Times(q));
        }
    }

    /// <summary>
    /// A decay per position and key dimension, G [.., chunk, K]. The chunk is halved again and again; for t in the second and s in the first half of a
    /// part, G is measured from the middle r: <c>P_ts = (q_t e^{G_t − G_r})ᵀ (k_s e^{G_r − G_s})</c>, a product of two factors of which neither can overflow. Blocks of eight positions are
    /// one such product as a whole: there an exponent is at most four steps of the floor (see <see cref="Chunks.Floored"/>), e^80, which a float holds.
    /// </summary>
    private sealed class PerKey(Tensor cumulated, Tensor fromStart, Tensor toEnd) : ChunkDecay
    {
        private const long Smallest = 8;

        public static PerKey Of(Tensor cumulated, Tensor q)
            => new(cumulated, cumulated.exp().to(q.dtype), (cumulated.narrow(-2, cumulated.shape[^2] - 1, 1) - cumulated).exp_().to(q.dtype));

        public override Tensor[] Parts => [cumulated, fromStart, toEnd];

        public override Tensor? Whole => cumulated.select(-2, cumulated.shape[^2] - 1);

        public override Tensor FromStart(Tensor x) => x * fromStart;

        public override Tensor ToEnd(Tensor x) => x * toEnd;

        private long Block => Math.Min(Smallest, cumulated.shape[^2]);

        public override Tensor Scores(Tensor q, Tensor k)
        {
            var scores = zeros([.. q.shape[..^1], cumulated.shape[^2]], q.dtype, q.device);
            var (toQuery, toKey) = FromMiddle();
            Diagonal(scores).copy_((Blocks(q, Block) * toQuery).Times((Blocks(k, Block) * toKey).Transposed()).tril_());
            for (var half = cumulated.shape[^2] / 2; half >= Smallest; half /= 2)
            {
                (toQuery, toKey) = FromMiddle(half);
                Below(scores, half).copy_((Halves(q, half).Second * toQuery).Times((Halves(k, half).First * toKey).Transposed()));
            }
            return scores;
        }

        public override (Tensor Queries, Tensor Keys) ScoreGradients(Tensor dScores, Tensor q, Tensor k)
        {
            var (toQuery, toKey) = FromMiddle();
            var block = Diagonal(dScores).contiguous().tril_();
            var dq = (block.Times(Blocks(k, Block) * toKey) * toQuery).view(q.shape);
            var dk = (block.Transposed().Times(Blocks(q, Block) * toQuery) * toKey).view(k.shape);
            for (var half = cumulated.shape[^2] / 2; half >= Smallest; half /= 2)
            {
                (toQuery, toKey) = FromMiddle(half);
                block = Below(dScores, half).contiguous();
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
            return ((second - middle).exp_().to(fromStart.dtype), (middle - first).exp_().to(fromStart.dtype));
        }

        // The same of whole blocks, each from its own middle: [.., blocks, block, K].
        private (Tensor ToQuery, Tensor ToKey) FromMiddle()
        {
            var blocks = Blocks(cumulated, Block);
            var difference = blocks - blocks.narrow(-2, (Block - 1) / 2, 1);
            return (difference.exp().to(fromStart.dtype), difference.neg_().exp_().to(fromStart.dtype));
        }

        private static Tensor Blocks(Tensor x, long block) => x.Unflatten(-2, x.shape[^2] / block, block);

        // [.., chunk, K] as parts of two halves: 2 × [.., parts, half, K] (views).
        private static (Tensor First, Tensor Second) Halves(Tensor x, long half)
        {
            var parts = x.Unflatten(-2, x.shape[^2] / (2 * half), 2, half);
            return (parts.select(-3, 0), parts.select(-3, 1));
        }

        // Of [.., chunk, chunk]: the blocks along the diagonal, [.., blocks, block, block] (a view).
        private Tensor Diagonal(Tensor scores)
        {
            var blocks = scores.shape[^1] / Block;
            return scores.Unflatten(-1, blocks, Block).Unflatten(-3, blocks, Block).diagonal(0, -4, -2).movedim([-1], [-3]); // of [.., blocks, block, blocks, block]
        }

        // Of [.., chunk, chunk]: for each part, the block of the second half's rows and the first half's columns, [.., parts, half, half] (a view).
        private static Tensor Below(Tensor scores, long half)
        {
            var parts = scores.shape[^1] / (2 * half);
            var blocks = scores.Unflatten(-1, parts, 2, half).Unflatten(-4, parts, 2, half); // [.., parts, 2, half, parts, 2, half]
            return blocks.select(-2, 0).select(-4, 1).diagonal(0, -4, -2).movedim([-1], [-3]);
        }
    }
}
