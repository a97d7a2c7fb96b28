using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// The chunked form of <see cref="DeltaRecurrence"/>. Writing <c>S_t = a_t S_{t−1} + k_t u_tᵀ</c>, the corrected values u of a chunk that starts at state S solve one triangular
/// system, <c>(I + A) U = β ∘ (V − e^G ∘ K S)</c> with <c>A_ts = β_t e^{G_t − G_s} k_tᵀ k_s</c> for s &lt; t. With <c>T = (I + A)^{−1}</c>, <c>Ũ = T (β ∘ V)</c> and <c>W = T (β ∘ e^G ∘ K)</c>,
/// all of which know no state, <c>U = Ũ − W S</c>, and the rest is as for the gated linear recurrence with U as values. Between chunks, with <c>K̂ = e^{G_L − G} ∘ K</c>,
/// <c>S' = M S + K̂ᵀ Ũ</c>, <c>M = e^{G_L} I − K̂ᵀ W</c>.
/// </summary>
/// <remarks>
/// Yang et al., "Parallelizing linear transformers with the delta rule over sequence length", 2024, equations 7 to 11; with decay Yang et al., "Gated delta networks", 2024, section 3.3.
/// Gradient: the starts' gradients run backwards through Mᵀ; then everything is parallel, with <c>dA = −Tᵀ (dŨ Ũᵀ + dW Wᵀ)</c> below the diagonal.
/// </remarks>
internal sealed class ChunkedDeltaRecurrence : OperatorFunction<ChunkedDeltaRecurrence>
{
    // Inputs: q, k, v, β, logDecay?, initialState?, chunk.
    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (logDecay, initial, chunk) = ((Tensor?)inputs[4], (Tensor?)inputs[5], (long)inputs[6]!);
        var time = ((Tensor)inputs[0]!).shape[1];
        var (q, k, v) = (Chunks.Split((Tensor)inputs[0]!, chunk), Chunks.Split((Tensor)inputs[1]!, chunk), Chunks.Split((Tensor)inputs[2]!, chunk));
        var beta = Chunks.Split(((Tensor)inputs[3]!).unsqueeze(-1), chunk).to(q.dtype); // [b, h, chunks, chunk, 1]
        var decay = ChunkDecay.Create(logDecay, chunk, q);

        var writing = k * beta;
        var inverse = TriangularInverse(decay.Scores(writing, k)).to(q.dtype); // T
        var (values, w) = (inverse.Times(v * beta), inverse.Times(decay.FromStart(writing))); // Ũ and W
        var keys = decay.ToEnd(k).Transposed(); // K̂ᵀ
        var states = MatrixScan(Transitions(decay, keys, w), keys.Times(values), initial);
        var chunks = q.shape[2];
        var starts = states.narrow(2, 0, chunks).to(q.dtype);
        var corrected = values - w.Times(starts); // U
        var output = decay.Scores(q, k).Times(corrected).PlusProduct(decay.FromStart(q), starts);
        context.save_data("time", time);
        context.save_data("chunk", chunk);
        return ([Chunks.Join(output, time), states.select(2, chunks).clone()], [q, k, v, beta, logDecay, initial, inverse, w, corrected, states]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (time, chunk) = ((long)context.get_data("time"), (long)context.get_data("chunk"));
        var (q, k, v, beta, logDecay, initial) = (saved[0]!, saved[1]!, saved[2]!, saved[3]!, saved[4], saved[5]);
        var (inverse, w, corrected, states) = (saved[6]!, saved[7]!, saved[8]!, saved[9]!);
        var (type, chunks) = (q.dtype, q.shape[2]);
        var decay = ChunkDecay.Create(logDecay, chunk, q);
        var dOutput = gradients[0] is null ? zeros_like(v) : Chunks.Split(gradients[0]!, chunk);
        var starts = states.narrow(2, 0, chunks).to(type);
        var (writing, transposed) = (k * beta, inverse.Transposed());
        var keys = decay.ToEnd(k);

        // Backwards over the chunks: dS = Mᵀ dS' + (e^G ∘ Q)ᵀ dO − Wᵀ Pᵀ dO.
        var dCorrected = decay.Scores(q, k).Transposed().Times(dOutput); // Pᵀ dO, so far
        var dStarts = decay.FromStart(q).Transposed().Times(dOutput) - w.Transposed().Times(dCorrected);
        var dStates = MatrixScan(Transitions(decay, keys.Transposed(), w), dStarts, gradients[1], reverse: true);
        var dNext = dStates.narrow(2, 1, chunks).to(type);
        dCorrected = dCorrected.PlusProduct(keys, dNext);

        // Output and next start.
        var (dq, dk) = decay.ScoreGradients(dOutput.Times(corrected.Transposed()), q, k);
        dq = dq + decay.FromStart(dOutput.Times(starts.Transposed()));
        dk = dk + decay.ToEnd(corrected.Times(dNext.Transposed()));

        // The triangular system.
        var dValues = transposed.Times(dCorrected); // of β ∘ V
        var dFromStart = transposed.Times(dCorrected.Times(starts.Transposed())).neg_(); // of β ∘ e^G ∘ K
        var dA = dValues.Times((inverse.Times(v * beta)).Transposed()).add_(dFromStart.Times(w.Transposed())).neg_().tril_(-1);
        var (dWriting, dKeys) = decay.ScoreGradients(dA, writing, k);
        dWriting = dWriting + decay.FromStart(dFromStart);
        dk = dk + dKeys;

        Tensor? dLogDecay = null;
        if (logDecay is not null)
        {
            // As for the gated linear recurrence: G_t enters with the rows (q, β k) and leaves with the columns (k).
            var state = Chunks.StateType(q);
            var dG = (q.to(state) * dq + writing.to(state) * dWriting - k.to(state) * dk).sum(-1, keepdim: true);
            var atEnd = (states.narrow(2, 1, chunks) * dStates.narrow(2, 1, chunks)).sum([-2, -1]); // [b, h, chunks]
            dLogDecay = Chunks.Join(Chunks.ReverseCumulate(dG, 3) + atEnd.unsqueeze(-1).unsqueeze(-1), time).squeeze(-1);
            dLogDecay = Chunks.FlooredGradient(dLogDecay, logDecay);
        }
        var dBeta = (k * dWriting).sum(-1, keepdim: true) + (v * dValues).sum(-1, keepdim: true);
        return
        [
            Chunks.Join(dq, time), Chunks.Join(dk.addcmul(dWriting, beta, 1), time), Chunks.Join(dValues * beta, time), Chunks.Join(dBeta, time).squeeze(-1),
            dLogDecay, initial is null ? null : dStates.select(2, 0).to(initial.dtype), null,
        ];
    }

    /// <summary>M = e^{G_L} I − K̂ᵀ W, [b, h, chunks, K, K], in the type of states: products of many of them must stay exact.</summary>
    private static Tensor Transitions(ChunkDecay decay, Tensor keys, Tensor w)
    {
        var transitions = keys.Times(w).to(Chunks.StateType(w)).neg_();
        var diagonal = transitions.diagonal(0, -2, -1);
        if (decay.Whole is { } whole) diagonal.add_(whole.exp());
        else diagonal.add_(1);
        return transitions;
    }

    /// <summary>(I + A)^{−1} of the part of <paramref name="a"/> [.., n, n] below the diagonal, in the type of states.</summary>
    private static Tensor TriangularInverse(Tensor a)
    {
        a = a.to(Chunks.StateType(a));
        return linalg.solve_triangular(a, eye(a.shape[^1], dtype: a.dtype, device: a.device).expand(a.shape), upper: false, unitriangular: true);
    }

    /// <summary>
    /// <c>S_{n+1} = M_n S_n + B_n</c> for all n (reverse: <c>S_n = M_nᵀ S_{n+1} + B_n</c>): one product per chunk; where there are many, all groups of chunks run at once and are
    /// joined afterwards, so that a GPU waits for 2 √chunks products instead of for as many as there are chunks.
    /// </summary>
    private static Tensor MatrixScan(Tensor transitions, Tensor updates, Tensor? initial, bool reverse = false)
    {
        if (reverse) transitions = transitions.Transposed();
        updates = updates.to(transitions.dtype);
        initial = initial?.to(transitions.dtype) ?? zeros_like(updates.select(2, 0));
        var chunks = updates.shape[2];
        if (chunks <= 32 || updates.device_type != DeviceType.CUDA) return Sequential(transitions, updates, initial, reverse);

        var group = (long)Math.Ceiling(Math.Sqrt(chunks));
        var groups = (chunks + group - 1) / group;
        var rows = updates.shape[3];
        if (groups * group > chunks) // filled up with neutral chunks
        {
            var neutral = eye(rows, dtype: transitions.dtype, device: transitions.device).expand(transitions.shape[0], transitions.shape[1], groups * group - chunks, rows, rows);
            transitions = cat([transitions, neutral], 2);
            updates = nn.functional.pad(updates, [0, 0, 0, 0, 0, groups * group - chunks]);
        }
        // [product of transitions | state], both from the group's edge on: [b, h, groups, group, K, K + V]
        var m = transitions.Unflatten(2, groups, group);
        var both = nn.functional.pad(updates.Unflatten(2, groups, group), [rows, 0]);
        var edge = cat([eye(rows, dtype: m.dtype, device: m.device).expand(m.shape[0], m.shape[1], groups, rows, rows), zeros([.. m.shape[..2], groups, rows, updates.shape[^1]], m.dtype, m.device)], -1);
        var local = Sequential(m.flatten(1, 2), both.flatten(1, 2), edge.flatten(1, 2), reverse).Unflatten(1, m.shape[1], groups); // [b, h, groups, group + 1, K, K + V]
        var (products, states) = (local.narrow(-1, 0, rows), local.narrow(-1, rows, updates.shape[^1]));
        var across = reverse ? 0 : group;
        var starts = Sequential(products.select(3, across), states.select(3, across), initial, reverse); // [b, h, groups + 1, K, V]
        var from = starts.narrow(2, reverse ? 1 : 0, groups).unsqueeze(3);
        var joined = states + products.Times(from);
        return cat([joined.narrow(3, 0, group).flatten(2, 3), joined.select(2, groups - 1).narrow(2, group, 1)], 2).narrow(2, 0, chunks + 1);
    }

    private static Tensor Sequential(Tensor transitions, Tensor updates, Tensor initial, bool reverse)
    {
        var chunks = (int)updates.shape[2];
        var states = new Tensor[chunks + 1];
        var (batch, heads) = (updates.shape[0], updates.shape[1]);
        var (m, u) = (transitions.flatten(0, 1), updates.flatten(0, 1));
        var state = initial.flatten(0, 1);
        states[reverse ? chunks : 0] = state;
        for (var i = 0; i < chunks; i++)
        {
            var n = reverse ? chunks - 1 - i : i;
            state = u.select(1, n).PlusProduct(m.select(1, n), state);
            states[reverse ? n : n + 1] = state;
        }
        return stack(states, 1).Unflatten(0, batch, heads);
    }
}
