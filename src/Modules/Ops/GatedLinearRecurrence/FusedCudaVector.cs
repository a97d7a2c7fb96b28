using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>The fused form of <see cref="GatedLinearRecurrence"/> for a decay per key dimension on CUDA. The equations are in src/Native/cuda/linear_vector.cu.</summary>
/// <remarks>
/// Operands of products are bfloat16, sums and the states at both ends float32. Between chunks of 64 positions a decay of zero forgets all. Within a chunk, where decays are subtracted, a step's is taken to be 2^−14 at least:
/// what a zero lets through there, 6e-5, is below the rounding of bfloat16; such a decay gets no gradient. The states at the edges of chunks, K V elements of bfloat16 each, are kept for the backward pass.
/// </remarks>
internal sealed class FusedCudaVectorRecurrence : OperatorFunction<FusedCudaVectorRecurrence>
{
    private const int Chunk = 64, JoinThreads = 256, LargestHead = 128, Unit = 8; // a kernel copies eight elements at once

    /// <summary>Whether these kernels are for tensors as <see cref="GatedLinearRecurrence.Run"/> takes them.</summary>
    public static bool Serves(Tensor q, Tensor k, Tensor v, Tensor? logDecay)
        => logDecay?.dim() == 4 && q.dtype is ScalarType.BFloat16 or ScalarType.Float16 && k.dtype == q.dtype && v.dtype == q.dtype && q.numel() > 0
           && Serves(q.shape[3]) && Serves(v.shape[3]) && CudaKernel.CanRunOn(q, new Tiles(q.shape[3], v.shape[3]).GradientBytes);

    private static bool Serves(long head) => head is >= Unit and <= LargestHead && head % Unit == 0;

    // Inputs: q, k, v, logDecay, initialState?.
    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (logDecay, initial) = ((Tensor)inputs[3]!, (Tensor?)inputs[4]);
        context.save_data("types", (logDecay.dtype, initial?.dtype));
        var (q, k, v, g) = (CudaElements.Rows((Tensor)inputs[0]!, aligned: true), CudaElements.Rows((Tensor)inputs[1]!, aligned: true), CudaElements.Rows((Tensor)inputs[2]!, aligned: true), CudaElements.Rows(logDecay.to(float32), aligned: true));
        var kernels = new Kernels(q, v);
        var (states, last) = kernels.States(k, v, g, initial?.to(float32).contiguous(), kernels.Chunks + 1, backwards: false);
        return ([kernels.Output(q, k, v, g, states), last], [q, k, v, g, states]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (q, k, v, g, states) = (saved[0]!, saved[1]!, saved[2]!, saved[3]!, saved[4]!);
        var (decayType, initialType) = ((ScalarType, ScalarType?))context.get_data("types");
        var dOutput = gradients[0] is { } given ? CudaElements.Rows(given, aligned: true) : zeros(v.shape, v.dtype, v.device);
        var kernels = new Kernels(q, v);
        var (dStates, dInitial) = kernels.States(q, dOutput, g, gradients[1]?.contiguous(), kernels.Chunks, backwards: true); // dS_{t−1} = a_t dS_t + …: the same recurrence
        var (dq, dk, dv, dLogDecay) = kernels.Gradient(q, k, v, g, dOutput, states, dStates);
        return [dq, dk, dv, dLogDecay.to(decayType), initialType is { } type ? dInitial.to(type) : null];
    }

    /// <summary>How the kernels' work is cut for heads of K and V dimensions. What was fastest on an H200 for heads of 64 and 128, and within the limits that the kernels set (32 columns per warp, K and V at most twice one another).</summary>
    private readonly record struct Tiles
    {
        private const int FullGrid = 256, FewestSegments = 3, FewestChunks = 4;

        public Tiles(long keys, long values)
        {
            static int Rounded(long head) => head <= 32 ? 32 : head <= 64 ? 64 : 128;
            (K, V) = (Math.Max(Rounded(keys), Rounded(values) / 2), Math.Max(Rounded(values), Rounded(keys) / 2));
        }

        /// <summary>The dimensions, filled up.</summary>
        public int K { get; }

        public int V { get; }

        /// <summary>The key dimensions of a state that a block carries through time, with all V columns.</summary>
        public int StateKeys => Math.Min(K, 64);

        public int OutputWarps => Math.Max(V / 32, 2);

        public int GradientWarps => Math.Min(K, V) / 16;

        // Blocks per multiprocessor: how many registers the compiler may give to a thread.
        public int OutputBlocks => 2;

        public int GradientBlocks => Math.Max(K, V) <= 64 ? 3 : 2;

        // Shared memory, laid out at the beginning of each kernel.
        public int StatesBytes => 2 * (2 * Chunk * (V + 8) + Chunk * (StateKeys + 8)) + 4 * 5 * StateKeys;

        public int OutputBytes => 10 * 512 + 2 * Chunk * (2 * (K + 8) + V + 8) + 4 * (8 + 6 + 2) * K;

        public int GradientBytes => 30 * 512 + 2 * Chunk * (2 * (K + 8) + 2 * (V + 8)) + 4 * Chunk * (K / 2 + 4) + 4 * (6 + 2) * K;

        /// <summary>Into how many parts time is cut for the states. That doubles their work, so it pays only where the sequences are so few that three parts or more still find room beside one another.</summary>
        public int Segments(int sequences, int chunks)
        {
            var segments = Math.Min(FullGrid / (sequences * (K / StateKeys)), chunks / FewestChunks);
            return segments < FewestSegments ? 1 : segments;
        }
    }

    /// <summary>The kernels for tensors of one shape.</summary>
    private sealed class Kernels
    {
        private readonly Tiles _tiles;
        private readonly (string Name, string Value)[] _macros;
        private readonly int _batch, _time, _heads, _keys, _values;

        public Kernels(Tensor q, Tensor v)
        {
            (_batch, _time, _heads, _keys, _values) = ((int)q.shape[0], (int)q.shape[1], (int)q.shape[2], (int)q.shape[3], (int)v.shape[3]);
            Chunks = (_time + Chunk - 1) / Chunk;
            _tiles = new Tiles(_keys, _values);
            _macros =
            [
                ("TYPE", CudaElements.Name(q.dtype)!), ("K", $"{_tiles.K}"), ("V", $"{_tiles.V}"), ("STATE_K", $"{_tiles.StateKeys}"), ("STATE_V", $"{_tiles.V}"),
                ("OUTPUT_WARPS", $"{_tiles.OutputWarps}"), ("OUTPUT_BLOCKS", $"{_tiles.OutputBlocks}"), ("GRADIENT_WARPS", $"{_tiles.GradientWarps}"), ("GRADIENT_BLOCKS", $"{_tiles.GradientBlocks}"),
            ];
        }

        public int Chunks { get; }

        private int Sequences => _batch * _heads;

        /// <summary>Runs the states through time.</summary>
        /// <param name="keys">[b, t, h, K]; backwards: the queries.</param>
        /// <param name="values">[b, t, h, V]; backwards: the gradients of the outputs.</param>
        /// <param name="g">Log-decays, [b, t, h, K].</param>
        /// <param name="initial">The state to begin with, [b, h, K, V]; null for zero.</param>
        /// <param name="edges">Chunks, or one more to keep the last state too.</param>
        /// <param name="backwards">Whether time runs backwards.</param>
        /// <returns>The states at the chunks' edges in the kernels' own layout; the state at the end.</returns>
        public (Tensor Edges, Tensor Last) States(Tensor keys, Tensor values, Tensor g, Tensor? initial, int edges, bool backwards)
        {
            var segmentChunks = (Chunks + _tiles.Segments(Sequences, Chunks) - 1) / _tiles.Segments(Sequences, Chunks);
            var segments = (Chunks + segmentChunks - 1) / segmentChunks;
            var parameters = new StatesParams
            {
                Keys = new(keys), Values = new(values), Decays = new(g), Initial = CudaElements.AddressOrNull(initial), Time = _time, Heads = _heads, KeyDimension = _keys, ValueDimension = _values,
                Chunks = Chunks, Segments = segments, SegmentChunks = segmentChunks, Edges = edges, Backwards = backwards ? 1 : 0,
            };
            if (segments > 1)
            {
                // What each segment adds to a state of zero, and how much it leaves of one; from these, the state that each begins with.
                Tensor local = Floats(g, Sequences, segments, _keys, _values), whole = Floats(g, Sequences, segments, _keys), starts = Floats(g, Sequences, segments, _keys, _values);
                Launch("vector_states", parameters with { Initial = 0, Last = CudaKernel.Address(local), Whole = CudaKernel.Address(whole) }, segments);
                var elements = (long)Sequences * _keys * _values;
                var join = new JoinParams
                {
                    Local = CudaKernel.Address(local), Whole = CudaKernel.Address(whole), Initial = parameters.Initial, Starts = CudaKernel.Address(starts), Elements = elements,
                    KeyDimension = _keys, ValueDimension = _values, Segments = segments, Backwards = parameters.Backwards,
                };
                Kernel("vector_join").Launch(join, (CudaElements.Blocks(elements, JoinThreads), 1, 1), JoinThreads);
                parameters.Initial = CudaKernel.Address(starts);
            }
            Tensor states = empty([Sequences, edges, _tiles.K, _tiles.V], bfloat16, g.device), last = Floats(g, _batch, _heads, _keys, _values);
            Launch("vector_states", parameters with { Last = CudaKernel.Address(last), States = CudaKernel.Address(states) }, segments);
            return (states, last);
        }

        /// <summary>The outputs, [b, t, h, V].</summary>
        public Tensor Output(Tensor q, Tensor k, Tensor v, Tensor g, Tensor states)
        {
            var output = empty(v.shape, v.dtype, v.device);
            var parameters = new OutputParams
            {
                Queries = new(q), Keys = new(k), Values = new(v), Decays = new(g), Output = new(output), States = CudaKernel.Address(states),
                Time = _time, Heads = _heads, KeyDimension = _keys, ValueDimension = _values, Chunks = Chunks, Edges = Chunks + 1,
            };
            Kernel("vector_output").Launch(parameters, (Sequences * Chunks, 1, 1), 32 * _tiles.OutputWarps, _tiles.OutputBytes);
            return output;
        }

        /// <summary>The gradients of q, k, v and g.</summary>
        public (Tensor Queries, Tensor Keys, Tensor Values, Tensor Decays) Gradient(Tensor q, Tensor k, Tensor v, Tensor g, Tensor dOutput, Tensor states, Tensor dStates)
        {
            Tensor dq = empty(q.shape, q.dtype, q.device), dk = empty(k.shape, k.dtype, k.device), dv = empty(v.shape, v.dtype, v.device), dg = Floats(g, g.shape);
            var parameters = new GradientParams
            {
                Queries = new(q), Keys = new(k), Values = new(v), Decays = new(g), DOutput = new(dOutput), DQueries = new(dq), DKeys = new(dk), DValues = new(dv), DDecays = new(dg),
                States = CudaKernel.Address(states), DStates = CudaKernel.Address(dStates), Time = _time, Heads = _heads, KeyDimension = _keys, ValueDimension = _values, Chunks = Chunks,
            };
            Kernel("vector_gradient").Launch(parameters, (Sequences * Chunks, 1, 1), 32 * _tiles.GradientWarps, _tiles.GradientBytes);
            return (dq, dk, dv, dg);
        }

        private void Launch(string entry, in StatesParams parameters, int segments)
            => Kernel(entry).Launch(parameters, (Sequences * (_tiles.K / _tiles.StateKeys), segments, 1), 2 * _tiles.StateKeys, _tiles.StatesBytes);

        private CudaKernel Kernel(string entry) => CudaKernel.Get("linear_vector", entry, _macros);

        private static Tensor Floats(Tensor like, params long[] shape) => empty(shape, float32, like.device);
    }

    // The parameters of the kernels, as linear_vector.cu has them.

    [StructLayout(LayoutKind.Sequential)]
    private struct StatesParams
    {
        public CudaHeads Keys, Values, Decays;
        public nint Initial, Last, Whole, States;
        public int Time, Heads, KeyDimension, ValueDimension, Chunks, Segments, SegmentChunks, Edges, Backwards;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct JoinParams
    {
        public nint Local, Whole, Initial, Starts;
        public long Elements;
        public int KeyDimension, ValueDimension, Segments, Backwards;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct OutputParams
    {
        public CudaHeads Queries, Keys, Values, Decays, Output;
        public nint States;
        public int Time, Heads, KeyDimension, ValueDimension, Chunks, Edges;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct GradientParams
    {
        public CudaHeads Queries, Keys, Values, Decays, DOutput, DQueries, DKeys, DValues, DDecays;
        public nint States, DStates;
        public int Time, Heads, KeyDimension, ValueDimension, Chunks;
    }
}
