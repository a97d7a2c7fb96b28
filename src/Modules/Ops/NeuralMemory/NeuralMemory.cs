using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// A memory that learns while it reads: a small network f, trained by gradient descent with momentum on <c>ℓ = ½ ‖f(k_t) − v_t‖²</c>, forgetting as it goes:
/// <c>S_t = η_t S_{t−1} − θ_t ∇ℓ</c>, <c>M_t = (1 − α_t) M_{t−1} + S_t</c>, <c>o_t = f_{M_t}(q_t)</c>.
/// </summary>
/// <remarks>
/// <para>Behrouz et al., "Titans: learning to memorize at test time", 2024, equations 8 to 15. As there (section 3.2), the gradients of a chunk of b elements are all taken at the memory the chunk began with, which
/// lets the chunk be computed at once; b = 1 is plain descent. With one layer, f(k) = Mᵀ k. With more, SiLU stands between them, drawn into the unit ball,
/// a = s / √(1 + ‖s‖²): steps with θ b ≤ 1 − η on a layer with
/// inputs of at most unit length cannot overshoot, so the memory cannot run away, whatever the sequence.</para>
/// <para>Symbols: b batch, t time, h heads, K key size, V value size. The chunk is part of the model, not only of its computation: both forms here respect it.</para>
/// </remarks>
public static partial class NeuralMemory
{
    /// <summary>Runs the memory in the form that suits the length.</summary>
    /// <param name="q">Queries, [b, t, h, K].</param>
    /// <param name="k">Keys, [b, t, h, K].</param>
    /// <param name="v">Values, [b, t, h, V].</param>
    /// <param name="gates">How fast to learn, to forget, and for how long to go on.</param>
    /// <param name="state">The memory to go on from; see <see cref="NeuralMemoryState.Start"/>.</param>
    /// <param name="chunk">Elements whose gradients are taken at the same memory.</param>
    /// <returns>o, [b, t, h, V], in the type of the values, and the memory afterwards.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit.</exception>
    public static (Tensor Output, NeuralMemoryState State) Run(Tensor q, Tensor k, Tensor v, NeuralMemoryGates gates, NeuralMemoryState state, int chunk)
        => q.shape[1] == 1 ? Naive(q, k, v, gates, state, chunk) : Chunked(q, k, v, gates, state, chunk);

    /// <summary>The specification: the equations, element by element.</summary>
    /// <inheritdoc cref="Run"/>
    public static (Tensor Output, NeuralMemoryState State) Naive(Tensor q, Tensor k, Tensor v, NeuralMemoryGates gates, NeuralMemoryState state, int chunk)
    {
        Check(q, k, v, gates, state, chunk);
        var (time, type) = ((int)q.shape[1], Chunks.StateType(q));
        var (memory, momentum, start, seen) = ((Tensor[])[.. state.Memory], (Tensor[])[.. state.Momentum], (Tensor[])[.. state.ChunkStart], state.Seen);
        var outputs = new Tensor[time];
        Tensor At(Tensor x, int t) => x.to(type).narrow(1, t, 1).transpose(1, 2); // [b, h, 1, size]
        for (var t = 0; t < time; t++)
        {
            if (seen++ % chunk == 0) start = [.. memory];
            var (inputs, errors) = Gradient(start, At(k, t), At(v, t));
            Tensor Gate(Tensor gate) => At(gate.unsqueeze(-1), t);
            for (var layer = 0; layer < memory.Length; layer++)
            {
                var gradient = inputs[layer].Transposed().Times(errors[layer]); // ∇ℓ of a layer is an outer product
                momentum[layer] = Gate(gates.LogMomentum).exp() * momentum[layer] - Gate(gates.Rate) * gradient;
                memory[layer] = Gate(gates.LogKeep).exp() * memory[layer] + momentum[layer];
            }
            outputs[t] = Read(At(q, t), memory).squeeze(2);
        }
        return (stack(outputs, 1).to(v.dtype), new NeuralMemoryState(memory, momentum, start, seen));
    }

    /// <summary>
    /// The form to train with, chunk by chunk. Within a chunk M_t is a sum of the chunk's gradients, which are outer products of layer inputs a_s and errors e_s; so a layer reads, without M_t ever being formed,
    /// <c>x_tᵀ M_t = A_t x_tᵀ M + C_t x_tᵀ S − Σ_s W_ts (x_tᵀ a_s) e_sᵀ</c>: attention over the chunk.
    /// </summary>
    /// <inheritdoc cref="Run"/>
    public static (Tensor Output, NeuralMemoryState State) Chunked(Tensor q, Tensor k, Tensor v, NeuralMemoryGates gates, NeuralMemoryState state, int chunk)
    {
        Check(q, k, v, gates, state, chunk);
        var type = Chunks.StateType(q);
        Tensor Heads(Tensor x) => x.to(type).transpose(1, 2); // [b, h, t, size]
        var (queries, keys, values) = (Heads(q), Heads(k), Heads(v));
        Tensor[] sequences = [queries, keys, values, Heads(gates.Rate), Heads(Chunks.Floored(gates.LogMomentum)), Heads(Chunks.Floored(gates.LogKeep))]; // the gates: [b, h, t]
        var outputs = new List<Tensor>();
        for (long from = 0, count; from < q.shape[1]; from += count)
        {
            count = Math.Min(ChunksPerStretch * chunk - state.Seen % chunk, q.shape[1] - from);
            Tensor[] parts = [.. sequences.Select(x => x.narrow(2, from, count))];
            (var output, state) = count <= chunk ? Stretch(parts, state, chunk) : RecomputedMemory.Run(parts, state, chunk);
            outputs.Add(output);
        }
        return (cat(outputs, 2).transpose(1, 2).contiguous().to(v.dtype), state);
    }

    private const int ChunksPerStretch = 8;

    /// <summary>Chunk by chunk, layout [b, h, t, ..].</summary>
    /// <param name="sequences">q, k, v, θ, log η, log (1 − α).</param>
    /// <param name="state">The memory to go on from.</param>
    /// <param name="chunk">b.</param>
    internal static (Tensor Output, NeuralMemoryState State) Stretch(Tensor[] sequences, NeuralMemoryState state, int chunk)
    {
        var (outputs, time) = (new List<Tensor>(), sequences[0].shape[2]);
        for (long from = 0, count; from < time; from += count)
        {
            count = Math.Min(chunk - state.Seen % chunk, time - from);
            Tensor Part(int i) => sequences[i].narrow(2, from, count);
            outputs.Add(Advance(ref state, Part(0), Part(1), Part(2), Part(3), Part(4), Part(5), chunk));
        }
        return (cat(outputs, 2), state);
    }

    private static Tensor Advance(ref NeuralMemoryState state, Tensor q, Tensor k, Tensor v, Tensor rate, Tensor logMomentum, Tensor logKeep, int chunk)
    {
        var (memory, momentum) = (state.Memory, state.Momentum);
        var start = state.Seen % chunk == 0 ? memory : state.ChunkStart;
        var (inputs, errors) = Gradient(start, k, v);
        var (kept, carried) = (logKeep.cumsum(-1), logMomentum.cumsum(-1)); // [b, h, count]
        var (keep, carry) = (Chunks.DecayMatrix(kept), Chunks.DecayMatrix(carried));
        var rates = rate.unsqueeze(-2);
        var fromMemory = kept.exp().unsqueeze(-1); // A_t = Π (1 − α)
        var fromMomentum = keep.Times(carried.exp().unsqueeze(-1)); // C_t = Σ_j (Π_{j..t} (1 − α)) (Π_{..j} η)
        var weights = keep.Times(carry) * rates; // W_ts: gradient s enters S, S enters M
        var output = Network(q, (layer, x) => (x.Times(memory[layer]) * fromMemory).addcmul(x.Times(momentum[layer]), fromMomentum, 1)
            - (x.Times(inputs[layer].Transposed()) * weights).Times(errors[layer]), memory.Count);

        var last = q.shape[2] - 1;
        Tensor Last(Tensor x) => x.narrow(2, last, 1); // [b, h, 1, ..]
        var next = new (Tensor Memory, Tensor Momentum)[memory.Count];
        for (var layer = 0; layer < next.Length; layer++)
        {
            Tensor Gradients(Tensor weight) => (inputs[layer] * weight.Transposed()).Transposed().Times(errors[layer]); // Σ_s weight_s a_s e_sᵀ
            next[layer] = (Last(fromMemory) * memory[layer] + Last(fromMomentum) * momentum[layer] - Gradients(Last(weights)),
                Last(carried.exp().unsqueeze(-1)) * momentum[layer] - Gradients(Last(carry) * rates));
        }
        state = new NeuralMemoryState([.. next.Select(layer => layer.Memory)], [.. next.Select(layer => layer.Momentum)], start, state.Seen + q.shape[2]);
        return output;
    }

    /// <summary>f_M(q) of a memory at rest, [b, h, t, V].</summary>
    /// <param name="q">Queries, [b, h, t, K].</param>
    /// <param name="memory">M, [b, h, inputs, outputs] per layer.</param>
    internal static Tensor Read(Tensor q, IReadOnlyList<Tensor> memory) => LastInput(q, memory).Times(memory[^1]);

    /// <summary>What the last layer is given for q, [b, h, t, inputs]: q itself in a memory of one layer.</summary>
    /// <inheritdoc cref="Read"/>
    internal static Tensor LastInput(Tensor q, IReadOnlyList<Tensor> memory) => memory.SkipLast(1).Aggregate(q, (x, layer) => Activation(x.Times(layer)));

    /// <summary>Inputs a and errors e of every layer at the given memory: the gradient of ℓ by a layer's weights is Σ a eᵀ. All [b, h, count, size].</summary>
    private static (Tensor[] Inputs, Tensor[] Errors) Gradient(IReadOnlyList<Tensor> memory, Tensor k, Tensor v)
    {
        var (inputs, sums, errors) = (new Tensor[memory.Count], new Tensor[memory.Count], new Tensor[memory.Count]);
        Network(k, (layer, x) => sums[layer] = (inputs[layer] = x).Times(memory[layer]), memory.Count);
        errors[^1] = sums[^1] - v;
        for (var layer = memory.Count - 2; layer >= 0; layer--)
        {
            var (z, a, back) = (sums[layer], inputs[layer + 1], errors[layer + 1].Times(memory[layer + 1].Transposed()));
            var gate = z.sigmoid(); // silu(z) = z σ(z), silu'(z) = σ(z) (1 + z (1 − σ(z)))
            back = (back - a * (a * back).sum([-1L], keepdim: true)) * Shortening(z * gate);
            errors[layer] = back * (gate * (1 + z * (1 - gate)));
        }
        return (inputs, errors);
    }

    private static Tensor Network(Tensor x, Func<int, Tensor, Tensor> layer, int layers)
    {
        for (var i = 0; i < layers; i++)
        {
            x = layer(i, x);
            if (i < layers - 1) x = Activation(x);
        }
        return x;
    }

    /// <summary><c>a = s / √(1 + ‖s‖²)</c>, s = silu(z): what stands between layers.</summary>
    private static Tensor Activation(Tensor z)
    {
        var s = nn.functional.silu(z);
        return s * Shortening(s);
    }

    private static Tensor Shortening(Tensor s) => (1 + s.square().sum([-1L], keepdim: true)).rsqrt();

    private static void Check(Tensor q, Tensor k, Tensor v, NeuralMemoryGates gates, NeuralMemoryState state, int chunk)
    {
        OperatorShapes.CheckHeads(q, k, v);
        ArgumentOutOfRangeException.ThrowIfLessThan(chunk, 1);
        long[] perStep = [q.shape[0], q.shape[1], q.shape[2]];
        OperatorShapes.Check(gates.Rate, nameof(gates.Rate), perStep);
        OperatorShapes.Check(gates.LogMomentum, nameof(gates.LogMomentum), perStep);
        OperatorShapes.Check(gates.LogKeep, nameof(gates.LogKeep), perStep);
        OperatorShapes.Check(state.Memory[0], "memory", [q.shape[0], q.shape[2], q.shape[3], state.Memory[0].shape[3]]);
        OperatorShapes.Check(state.Memory[^1], "memory", [q.shape[0], q.shape[2], state.Memory[^1].shape[2], v.shape[3]]);
    }
}

/// <summary>What each element tells the memory. All [b, t, h].</summary>
/// <param name="Rate">θ, the learning rate, not negative.</param>
/// <param name="LogMomentum">log η, at most 0: how much of the last step is repeated.</param>
/// <param name="LogKeep">log (1 − α), at most 0: how much of the memory is kept.</param>
public sealed record NeuralMemoryGates(Tensor Rate, Tensor LogMomentum, Tensor LogKeep);

/// <summary>A memory at work. One tensor [b, h, inputs, outputs] per layer of the network.</summary>
/// <param name="Memory">M, the weights.</param>
/// <param name="Momentum">S, the running step.</param>
/// <param name="ChunkStart">The weights that the open chunk began with.</param>
/// <param name="Seen">Elements so far; a chunk begins at every multiple of its length.</param>
public sealed record NeuralMemoryState(IReadOnlyList<Tensor> Memory, IReadOnlyList<Tensor> Momentum, IReadOnlyList<Tensor> ChunkStart, long Seen)
{
    /// <summary>A memory that has seen nothing.</summary>
    /// <param name="weights">The weights to begin with, [h, inputs, outputs] per layer; learned by the network around it.</param>
    /// <param name="batch">b.</param>
    public static NeuralMemoryState Start(IEnumerable<Tensor> weights, long batch)
    {
        Tensor[] memory = [.. weights.Select(weight => weight.to(Chunks.StateType(weight)).unsqueeze(0).expand(batch, -1, -1, -1))];
        return new NeuralMemoryState(memory, [.. memory.Select(layer => zeros_like(layer))], memory, 0);
    }
}
