using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// The chunked form of <see cref="SelectiveScan"/>. Its decay differs for every channel and state, so no matrix product expresses it; instead the sequence is cut into chunks that
/// advance side by side, one position at a time, as if each began with an empty state: as many steps as a chunk is long, each over all chunks. Then the chunks' starts follow
/// from one another, and what is left of each start, e^{A τ_t} with τ the steps Δ cumulated in the chunk, is added.
/// </summary>
/// <remarks>
/// Long sequences are worked off in segments of several chunks, to bound memory. The gradient keeps the inputs and each segment's start, and runs the same scan backwards:
/// <c>dh_t = e^{Δ_{t+1} A} ∘ dh_{t+1} + dy_t C_tᵀ</c>.
/// </remarks>
internal sealed class ChunkedSelectiveScan : OperatorFunction<ChunkedSelectiveScan>
{
    // Inputs: x, Δ, A, B, C, initialState?, chunk (0 chooses).
    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (x, delta, a, b, c, initial) = ((Tensor)inputs[0]!, (Tensor)inputs[1]!, (Tensor)inputs[2]!, (Tensor)inputs[3]!, (Tensor)inputs[4]!, (Tensor?)inputs[5]);
        var type = Chunks.StateType(x);
        var plan = Plan.For(x.shape[0], x.shape[1], a.numel(), (long)inputs[6]!, x.device_type);
        var rates = a.to(type);
        var (steps, values, maps, reads) = (plan.Arrange(delta, type), plan.Arrange(x, type), plan.Arrange(b, type), plan.Arrange(c, type));
        var state = initial?.to(type) ?? zeros([x.shape[0], .. a.shape], type, x.device);
        var starts = new List<Tensor> { state };
        var outputs = new List<Tensor>();
        for (var segment = 0; segment < plan.Segments; segment++)
        {
            using var scope = NewDisposeScope();
            var step = steps.select(0, segment);
            var decays = (step.unsqueeze(-1) * rates).exp_(); // e^{Δ A}, [chunk, b·chunks, c, n]
            var states = (step * values.select(0, segment)).unsqueeze(-1) * maps.select(0, segment).unsqueeze(-2); // Δ x Bᵀ, then h
            state = Advance(states, decays, step, rates, state, plan.Chunks, reverse: false);
            starts.Add(state.MoveToOuterDisposeScope());
            outputs.Add(states.Times(reads.select(0, segment).unsqueeze(-1)).squeeze(-1).MoveToOuterDisposeScope());
        }
        context.save_data("plan", plan);
        return ([plan.Restore(stack(outputs)).to(x.dtype), state.clone()], [x, delta, a, b, c, initial, stack(starts)]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var plan = (Plan)context.get_data("plan");
        var (x, delta, a, b, c, initial, starts) = (saved[0]!, saved[1]!, saved[2]!, saved[3]!, saved[4]!, saved[5], saved[6]!);
        var type = Chunks.StateType(x);
        var rates = a.to(type);
        var (steps, values, maps, reads) = (plan.Arrange(delta, type), plan.Arrange(x, type), plan.Arrange(b, type), plan.Arrange(c, type));
        var dOutput = plan.Arrange(gradients[0] ?? zeros_like(x), type);
        var dState = gradients[1]?.to(type) ?? zeros_like(starts.select(0, 0)); // of the segment's last state
        var (dValues, dSteps, dMaps, dReads) = (zeros_like(values), zeros_like(values), zeros_like(maps), zeros_like(maps));
        var dRates = zeros_like(rates);
        for (var segment = plan.Segments - 1; segment >= 0; segment--)
        {
            using var scope = NewDisposeScope();
            var (step, value, map, read, dy) = (steps.select(0, segment), values.select(0, segment), maps.select(0, segment), reads.select(0, segment), dOutput.select(0, segment));
            var decays = (step.unsqueeze(-1) * rates).exp_();
            var start = starts.select(0, segment);
            var input = step * value;
            var states = input.unsqueeze(-1) * map.unsqueeze(-2);
            var chunkStarts = ChunkStarts(states, decays, step, rates, start, plan.Chunks);
            dReads.select(0, segment).copy_(dy.unsqueeze(-2).Times(states).squeeze(-2));

            var dStates = dy.unsqueeze(-1) * read.unsqueeze(-2);
            dState = Advance(dStates, decays, step, rates, dState, plan.Chunks, reverse: true).MoveToOuterDisposeScope();
            var dInput = dStates.Times(map.unsqueeze(-1)).squeeze(-1); // of Δ x
            dMaps.select(0, segment).copy_(input.unsqueeze(-2).Times(dStates).squeeze(-2));
            // dh ∘ e^{Δ A} ∘ h_{t−1}: what Δ A earns
            var chunk = states.shape[0];
            dStates.mul_(decays);
            dStates.narrow(0, 1, chunk - 1).mul_(states.narrow(0, 0, chunk - 1));
            dStates.select(0, 0).mul_(chunkStarts);
            dRates.add_((dStates * step.unsqueeze(-1)).sum([0, 1]));
            dSteps.select(0, segment).copy_((dStates * rates).sum(-1).addcmul_(dInput, value, 1));
            dValues.select(0, segment).copy_(dInput * step);
        }
        return
        [
            plan.Restore(dValues).to(x.dtype), plan.Restore(dSteps).to(delta.dtype), dRates.to(a.dtype), plan.Restore(dMaps).to(b.dtype), plan.Restore(dReads).to(c.dtype),
            initial is null ? null : dState.to(initial.dtype), null,
        ];
    }

    // Forward: turns `states` (the additions) into the states, and returns the segment's last one. Reverse: turns additions of gradients into gradients of
    // states, given that of the segment's last state, and returns that of its start.
    private static Tensor Advance(Tensor states, Tensor decays, Tensor step, Tensor rates, Tensor edge, long chunks, bool reverse)
    {
        var chunk = (int)states.shape[0];
        if (!reverse)
        {
            ChunkStarts(states, decays, step, rates, edge, chunks);
            return states.select(0, chunk - 1).Unflatten(0, edge.shape[0], chunks).select(1, chunks - 1).clone();
        }
        for (var t = chunk - 2; t >= 0; t--) states.select(0, t).addcmul_(decays.select(0, t + 1), states.select(0, t + 1), 1);
        // From chunk to chunk: R_n, the gradient of chunk n's last state that comes from later ones.
        var (batch, shape) = (edge.shape[0], edge.shape);
        var whole = (step.sum([0]).unsqueeze(-1) * rates).exp_().Unflatten(0, batch, chunks); // e^{A τ_L}, [b, chunks, c, n]
        var first = (decays.select(0, 0) * states.select(0, 0)).Unflatten(0, batch, chunks); // of each chunk's start, alone
        var later = new Tensor[chunks];
        for (var n = (int)chunks - 1; n >= 0; n--)
        {
            later[n] = edge;
            edge = first.select(1, n).addcmul(whole.select(1, n), edge, 1);
        }
        var remaining = step.flip(0).cumsum(0).flip(0) - step; // τ_L − τ_t
        states.addcmul_((remaining.unsqueeze(-1) * rates).exp_(), stack(later, 1).flatten(0, 1), 1);
        return edge.clone();
    }

    // Turns additions into states and returns the state that each chunk began with, [b·chunks, c, n].
    private static Tensor ChunkStarts(Tensor states, Tensor decays, Tensor step, Tensor rates, Tensor start, long chunks)
    {
        var chunk = (int)states.shape[0];
        if (chunks == 1) states.select(0, 0).addcmul_(decays.select(0, 0), start, 1);
        for (var t = 1; t < chunk; t++) states.select(0, t).addcmul_(decays.select(0, t), states.select(0, t - 1), 1);
        if (chunks == 1) return start;
        var cumulated = step.cumsum(0);
        var whole = (cumulated.select(0, chunk - 1).unsqueeze(-1) * rates).exp_().Unflatten(0, start.shape[0], chunks);
        var last = states.select(0, chunk - 1).Unflatten(0, start.shape[0], chunks);
        var starts = new Tensor[chunks];
        for (var n = 0; n < chunks; n++)
        {
            starts[n] = start;
            start = last.select(1, n).addcmul(whole.select(1, n), start, 1);
        }
        var all = stack(starts, 1).flatten(0, 1);
        states.addcmul_((cumulated.unsqueeze(-1) * rates).exp_(), all, 1);
        return all;
    }

    /// <summary>How a sequence is cut: segments one after the other, the chunks of a segment side by side.</summary>
    private sealed record Plan(long Batch, long Time, long Segments, long Chunks, long Chunk)
    {
        /// <param name="batch">b.</param>
        /// <param name="time">t.</param>
        /// <param name="states">c n.</param>
        /// <param name="chunk">Positions per chunk, all of them side by side; 0 chooses by the device.</param>
        /// <param name="device">A step should fill the device, a segment stay in its caches (CPU) or memory (GPU).</param>
        public static Plan For(long batch, long time, long states, long chunk, DeviceType device)
        {
            if (chunk > 0) return new Plan(batch, time, 1, Parts(time, Math.Min(chunk, time)), Math.Min(chunk, time));
            var (stepSize, segmentSize) = device == DeviceType.CUDA ? (1L << 22, 1L << 29) : (1L << 14, 1L << 20);
            var chunks = Math.Clamp(stepSize / (batch * states), 1, Parts(time, ShortestChunk));
            chunk = Math.Clamp(segmentSize / (batch * states * chunks), ShortestChunk, Math.Max(ShortestChunk, Parts(time, chunks)));
            chunk = Math.Min(chunk, time);
            return new Plan(batch, time, Parts(time, chunk * chunks), chunks, chunk);
        }

        private const long ShortestChunk = 16;

        private static long Parts(long whole, long part) => (whole + part - 1) / part;

        /// <summary>[b, t, size] to [segments, chunk, b·chunks, size], filled up with zeros, which change nothing (Δ = 0).</summary>
        public Tensor Arrange(Tensor x, ScalarType type)
        {
            x = x.to(type);
            var lacking = Segments * Chunks * Chunk - Time;
            if (lacking > 0) x = nn.functional.pad(x, [0, 0, 0, lacking]);
            return x.Unflatten(1, Segments, Chunks, Chunk).permute(1, 3, 0, 2, 4).flatten(2, 3).contiguous();
        }

        /// <summary>The reverse of <see cref="Arrange"/>.</summary>
        public Tensor Restore(Tensor x)
            => x.Unflatten(2, Batch, Chunks).permute(2, 0, 3, 1, 4).flatten(1, 3).narrow(1, 0, Time).contiguous();
    }
}
