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
        var states = StateScan(keys.Times(w), decay.Whole, keys.Times(values), initial);
        var corrected = values - w.Times(states.Edges); // U
        var output = decay.Scores(q, k).Times(corrected).PlusProduct(decay.FromStart(q), states.Edges);
        context.save_data("time", time);
        context.save_data("chunk", chunk);
        return ([Chunks.Join(output, time), states.Last.clone()], [q, k, v, beta, logDecay, initial, inverse, w, corrected, states.Edges, states.Last, .. decay.Parts]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (time, chunk) = ((long)context.get_data("time"), (long)context.get_data("chunk"));
        var (q, k, v, beta, logDecay, initial) = (saved[0]!, saved[1]!, saved[2]!, saved[3]!, saved[4], saved[5]);
        var (inverse, w, corrected, states) = (saved[6]!, saved[7]!, saved[8]!, new ChunkStates(saved[9]!, saved[10]!));
        var decay = ChunkDecay.Restore(saved[11..]!, q);
        var dOutput = gradients[0] is null ? zeros_like(v) : Chunks.Split(gradients[0]!, chunk);
        var (starts, writing, transposed, keys) = (states.Edges, k * beta, inverse.Transposed(), decay.ToEnd(k));

        // Backwards over the chunks: dS = Mᵀ dS' + (e^G ∘ Q)ᵀ dO − Wᵀ Pᵀ dO.
        var dCorrected = decay.Scores(q, k).Transposed().Times(dOutput); // Pᵀ dO, so far
        var dStarts = decay.FromStart(q).Transposed().Times(dOutput) - w.Transposed().Times(dCorrected);
        var dStates = StateScan(w.Transposed().Times(keys), decay.Whole, dStarts, gradients[1], reverse: true);
        var dNext = dStates.Edges; // of the states that follow each chunk
        dCorrected = dCorrected.PlusProduct(keys, dNext);

        // Output and next start.
        var (dq, dk) = decay.ScoreGradients(dOutput.Times(corrected.Transposed()), q, k);
        dq.add_(decay.FromStart(dOutput.Times(starts.Transposed())));
        dk.add_(decay.ToEnd(corrected.Times(dNext.Transposed())));

        // The triangular system.
        var dValues = transposed.Times(dCorrected); // of β ∘ V
        var dFromStart = transposed.Times(dCorrected.Times(starts.Transposed())).neg_(); // of β ∘ e^G ∘ K
        var dA = dValues.Times(inverse.Times(v * beta).Transposed()).add_(dFromStart.Times(w.Transposed())).neg_().tril_(-1);
        var (dWriting, dKeys) = decay.ScoreGradients(dA, writing, k);
        dWriting = dWriting + decay.FromStart(dFromStart);
        dk = dk + dKeys;

        Tensor? dLogDecay = null;
        if (logDecay is not null)
        {
            // As for the gated linear recurrence: G_t enters with the rows (q, β k) and leaves with the columns (k).
            var type = Chunks.StateType(q);
            Tensor Rows(Tensor x, Tensor dx) => (x * dx).sum([-1L], true, type);
            var dG = Chunks.ReverseCumulate(Rows(q, dq) + Rows(writing, dWriting) - Rows(k, dk));
            dLogDecay = Chunks.Join(dG + Chunks.AtEnd(states, dNext).sum([-1L], true).unsqueeze(3), time).squeeze(-1);
            dLogDecay = Chunks.FlooredGradient(dLogDecay, logDecay);
        }
        var dBeta = (k * dWriting).sum(-1, keepdim: true) + (v * dValues).sum(-1, keepdim: true);
        return
        [
            Chunks.Join(dq, time), Chunks.Join(dk.addcmul(dWriting, beta, 1), time), Chunks.Join(dValues * beta, time), Chunks.Join(dBeta, time).squeeze(-1),
            dLogDecay, initial is null ? null : dStates.Last.to(initial.dtype), null,
        ];
    }

    /// <summary>(I + A)^{−1} of the part of <paramref name="a"/> [.., n, n] below the diagonal, in the type of states.</summary>
    private static Tensor TriangularInverse(Tensor a)
    {
        a = a.to(Chunks.StateType(a));
        return linalg.solve_triangular(a, eye(a.shape[^1], dtype: a.dtype, device: a.device).expand(a.shape), upper: false, unitriangular: true);
    }

    /// <summary>
    /// <c>S_{n+1} = e^{a_n} S_n − R_n S_n + U_n</c> for all n (reverse: from S_{n+1} to S_n). S itself is carried in the type of states, products are in the type of the inputs. One step per chunk; a GPU,
    /// where there are many chunks, runs groups of them side by side and joins them, so that it waits for 2 √chunks steps instead.
    /// </summary>
    /// <param name="removal">R, [b, h, chunks, K, K].</param>
    /// <param name="logDecay">a, [b or 1, h, chunks, 1]; null for none.</param>
    /// <param name="updates">U, [b, h, chunks, K, V].</param>
    /// <param name="initial">The state to begin with; null for zero.</param>
    /// <param name="reverse">Whether to run from the last chunk to the first.</param>
    /// <param name="grouped">Whether to run groups side by side; null chooses.</param>
    internal static ChunkStates StateScan(Tensor removal, Tensor? logDecay, Tensor updates, Tensor? initial, bool reverse = false, bool? grouped = null)
    {
        var type = Chunks.StateType(updates);
        initial = initial?.to(type) ?? zeros_like(updates.select(2, 0), type);
        var decay = logDecay?.exp().unsqueeze(-1); // [.., chunks, 1, 1]
        var (chunks, rows, columns) = (updates.shape[2], updates.shape[3], updates.shape[4]);
        if (!(grouped ?? (chunks > 64 && updates.device_type == DeviceType.CUDA))) return Sequential(removal, decay, updates, initial, reverse);

        var group = (long)Math.Ceiling(Math.Sqrt(chunks));
        var groups = (chunks + group - 1) / group;
        var lacking = groups * group - chunks; // filled up with neutral chunks
        Tensor Grouped(Tensor x, double fill) => (lacking == 0 ? x : nn.functional.pad(x, [0, 0, 0, 0, 0, lacking], value: fill)).Unflatten(2, groups, group);
        // [what is left of the state at the group's edge, as a matrix | what the group itself adds]: [b, h, groups, group, K, K + V]
        var both = nn.functional.pad(Grouped(updates, 0), [rows, 0]);
        var edge = cat([eye(rows, dtype: type, device: updates.device).expand([.. both.shape[..3], rows, rows]), zeros([.. both.shape[..3], rows, columns], type, updates.device)], -1);
        var local = Sequential(Grouped(removal, 0).flatten(1, 2), decay is null ? null : Grouped(decay.expand(updates.shape[0], -1, -1, -1, -1), 1).flatten(1, 2), both.flatten(1, 2), edge.flatten(1, 2), reverse);
        Tensor Left(Tensor x) => x.narrow(-1, 0, rows);
        Tensor Added(Tensor x) => x.narrow(-1, rows, columns);
        var last = local.Last.Unflatten(1, updates.shape[1], groups); // [b, h, groups, K, K + V]
        var across = Sequential(eye(rows, dtype: type, device: updates.device) - Left(last), null, Added(last), initial, reverse);
        var edges = local.Edges.Unflatten(1, updates.shape[1], groups); // [b, h, groups, group, K, K + V]
        var joined = Added(edges) + Left(edges).Times(across.Edges.to(edges.dtype).unsqueeze(3));
        return new ChunkStates(joined.flatten(2, 3).narrow(2, 0, chunks), across.Last);
    }

    private static ChunkStates Sequential(Tensor removal, Tensor? decay, Tensor updates, Tensor initial, bool reverse)
    {
        var chunks = (int)updates.shape[2];
        var edges = new Tensor[chunks];
        var (r, u, d) = (removal.neg().flatten(0, 1), updates.flatten(0, 1), decay?.expand(updates.shape[0], -1, -1, -1, -1).flatten(0, 1));
        var state = initial.flatten(0, 1);
        for (var i = 0; i < chunks; i++)
        {
            var n = reverse ? chunks - 1 - i : i;
            edges[n] = state.to(updates.dtype);
            var change = u.select(1, n).PlusProduct(r.select(1, n), edges[n]);
            state = d is null ? state + change : (state * d.select(1, n)).add_(change);
        }
        return new ChunkStates(stack(edges, 1).Unflatten(0, updates.shape[0], updates.shape[1]), state.Unflatten(0, updates.shape[0], updates.shape[1]));
    }
}
