using System.Numerics;
using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>How linear.cu is specialised for a size of keys and values. The numbers are those that served best on an H200.</summary>
/// <param name="Keys">K, rounded up.</param>
/// <param name="Tile">Columns of the values that a block serves.</param>
/// <param name="Warps">Per block.</param>
/// <param name="Blocks">Per multiprocessor.</param>
internal sealed record LinearPlan(int Keys, int Tile, int Warps, int Blocks)
{
    /// <summary>Positions of a chunk; chunks between edges, where the sums of the gate's gradient begin anew.</summary>
    public const int Chunk = 64, EdgeChunks = 4;

    /// <summary>What a row may be at most.</summary>
    public const int MostKeys = 256;

    private const int Multiprocessors = 132, ShortestSegment = 4; // that segments should fill; chunks
    private const int ScoreBytes = 10 * 512, DecayBytes = 2 * (64 * 4 + 64 * 4 + 32 * 4 + 64 * 4 + 16), DotBytes = 64 * 4; // SCORE_BLOCKS, two of Decays and a warp's dots in the kernel file

    /// <summary>The plan for a device; null: none fits into its shared memory.</summary>
    /// <param name="device">Any tensor there.</param>
    /// <param name="keys">K.</param>
    /// <param name="values">V.</param>
    public static LinearPlan? For(Tensor device, long keys, long values)
    {
        var (k, v) = (Rounded(keys), Rounded(values));
        foreach (var (tile, warps, blocks) in Candidates(k, v))
        {
            var plan = new LinearPlan(k, Math.Min(tile, v), Math.Min(warps, v / 16), blocks);
            if (CudaKernel.CanRunOn(device, plan.SharedBytes(gate: true, dots: true))) return plan;
        }
        return null;
    }

    // The best first.
    private static (int Tile, int Warps, int Blocks)[] Candidates(int keys, int values) => (keys, values) switch
    {
        (256, _) => [(64, 4, 1)],
        (128, >= 128) => [(128, 8, 1), (64, 4, 2)],
        (128, _) => [(64, 4, 2)],
        (64, >= 128) => [(128, 4, 2), (64, 4, 4)],
        _ => [(64, 4, 4)],
    };

    /// <summary>Chunks of a segment: all of them, unless heads and tiles are too few to fill the device.</summary>
    public int SegmentChunks(Tensor values)
    {
        var (blocks, chunks) = (values.shape[0] * values.shape[2] * Parts(values.shape[3], Tile), Parts(values.shape[1], Chunk));
        var segments = Math.Clamp((int)(Multiprocessors * Blocks / blocks), 1, Math.Max(1, chunks / ShortestSegment));
        return Parts(chunks, segments);
    }

    /// <summary>Shared memory of the kernel linear; the others need less.</summary>
    public int SharedBytes(bool gate, bool dots)
    {
        var (key, value) = (Chunk * Keys * 2, Chunk * Tile * 2);
        return 2 * ((dots ? Math.Max(key, value) : key) + key + value) + ScoreBytes + (gate ? DecayBytes : 0) + (dots ? Warps * DotBytes : 0);
    }

    /// <summary>Shared memory of the kernel segment_states.</summary>
    public int StateSharedBytes(bool gate) => 2 * Chunk * (Keys + Tile) * 2 + (gate ? DecayBytes : 0);

    /// <summary>How many parts of a size make a whole.</summary>
    public static int Parts(long whole, int size) => (int)((whole + size - 1) / size);

    private static int Rounded(long size) => (int)Math.Max(16, BitOperations.RoundUpToPowerOf2((ulong)size));
}

/// <summary>
/// The function of linear.cu, F(q, k, v), which is the recurrence (forwards) and, with other operands, each of its gradients; strides say where everything lies, so that nothing is copied.
/// </summary>
internal sealed class LinearPass
{
    private const int JoinThreads = 256;

    /// <summary>How the kernel is specialised for K and V.</summary>
    public required LinearPlan Plan { get; init; }

    /// <summary>Chunks that a block walks through.</summary>
    public required int SegmentChunks { get; init; }

    /// <summary>q and k [b, t, h, K], v [b, t, h, V].</summary>
    public required (Tensor Q, Tensor K, Tensor V) Operands { get; init; }

    /// <summary>g, float32 [b, t, h] or [h]; null for none.</summary>
    public Tensor? LogDecay { get; init; }

    /// <summary>From the last position to the first.</summary>
    public bool Reverse { get; init; }

    /// <summary>The state at which it begins, [b, h, K, V]; null for zero.</summary>
    public Tensor? Start { get; init; }

    /// <summary>Where the state at which it ends is to be written, [b, h, K, V].</summary>
    public Tensor? End { get; init; }

    /// <summary>The state at which each segment begins, [b, h, segments, K, V]. Given, by another pass over the same states, or found; null while there is one segment.</summary>
    public Tensor? Starts { get; set; }

    /// <summary>What the rows of the output are multiplied by, [b, t, h, V]: gives <see cref="Dots"/>.</summary>
    public Tensor? Other { get; init; }

    /// <summary>The states at the edges, as the pass that writes them leaves them for the one that multiplies its own by them: gives <see cref="Crossings"/>.</summary>
    public Tensor? Edges { get; private set; }

    /// <summary>The pass whose <see cref="Edges"/> these are.</summary>
    public LinearPass? Before { get; init; }

    /// <summary>Output times <see cref="Other"/>, by row: [tiles, b, h, t].</summary>
    public Tensor? Dots { get; private set; }

    /// <summary>States times states at the edges, in parts: [b, h, edges, parts].</summary>
    public Tensor? Crossings { get; private set; }

    private (int Batch, int Time, int Heads, int Keys, int Values) Sizes
        => ((int)Operands.Q.shape[0], (int)Operands.Q.shape[1], (int)Operands.Q.shape[2], (int)Operands.Q.shape[3], (int)Operands.V.shape[3]);

    /// <summary>The output, [b, t, h, V].</summary>
    public Tensor Run()
    {
        var (q, k, v) = Operands;
        var (batch, time, heads, keys, values) = Sizes;
        var (chunks, tiles) = (LinearPlan.Parts(time, LinearPlan.Chunk), LinearPlan.Parts(values, Plan.Tile));
        var (segments, edges) = (LinearPlan.Parts(chunks, SegmentChunks), LinearPlan.Parts(chunks, LinearPlan.EdgeChunks));
        Tensor Floats(params long[] shape) => empty(shape, float32, v.device);

        var output = empty(v.shape, v.dtype, v.device);
        var p = new Linear
        {
            Q = new(q), K = new(k), V = new(v), O = new(output), Gate = new(LogDecay), Other = new(Other),
            Time = time, Keys = keys, Values = values, Segments = segments, SegmentChunks = SegmentChunks, EdgeChunks = LinearPlan.EdgeChunks,
        };
        var grid = (tiles, heads, batch * segments);
        if (segments > 1 && Starts is null)
        {
            Starts = Floats(batch, heads, segments, values, keys).transpose(-1, -2);
            var totals = Floats(batch, heads, segments);
            (p.Start, p.End, p.Totals) = (new(Start), new(Starts), CudaKernel.Address(totals));
            Kernel("segment_states").Launch(in p, grid, 32 * Plan.Warps, Plan.StateSharedBytes(LogDecay is not null));
            Kernel("join_segments").Launch(in p, (LinearPlan.Parts((long)keys * values, JoinThreads), heads, batch), JoinThreads);
        }
        (p.Start, p.End) = (new(segments > 1 ? Starts : Start), new(End));
        if (Other is not null)
        {
            Dots = Floats(tiles, batch, heads, time);
            Edges = Before?.Edges ?? empty([batch, heads, edges, tiles, Plan.Tile, Plan.Keys], bfloat16, v.device);
            if (Before is not null) Crossings = Floats(batch, heads, edges, tiles * Plan.Warps);
            (p.Dots, p.Edges, p.Crossings) = (CudaKernel.Address(Dots), CudaKernel.Address(Edges), Crossings is null ? 0 : CudaKernel.Address(Crossings));
        }
        Kernel("linear").Launch(in p, grid, 32 * Plan.Warps, Plan.SharedBytes(LogDecay is not null, Other is not null));
        return output;
    }

    /// <summary>dg, [b, t, h], from the dots that the passes of dq (before) and dk (this) leave.</summary>
    public Tensor GateGradient()
    {
        var (batch, time, heads, _, _) = Sizes;
        var gradient = empty(LogDecay!.shape, float32, LogDecay.device);
        var p = new GateGradientParameters
        {
            Queries = CudaKernel.Address(Before!.Dots!), Keys = CudaKernel.Address(Dots!), Crossings = CudaKernel.Address(Crossings!), Gate = new(LogDecay), Gradient = new(gradient),
            Time = time, Tiles = (int)Dots!.shape[0], Parts = (int)Crossings!.shape[3],
        };
        CudaKernel.Get("gate_gradient", "gate_gradient", ("EDGE_CHUNKS", $"{LinearPlan.EdgeChunks}")).Launch(in p, ((int)Crossings.shape[2], heads, batch), 32);
        return gradient;
    }

    private CudaKernel Kernel(string entry)
    {
        static string Flag(bool flag) => flag ? "1" : "0";
        var (alone, dots) = (entry == "linear", entry == "linear" && Other is not null);
        return CudaKernel.Get("linear", entry, ("TYPE", Operands.V.dtype == bfloat16 ? "bf16" : "fp16"), ("K", $"{Plan.Keys}"), ("V", $"{Plan.Tile}"), ("WARPS", $"{Plan.Warps}"), ("BLOCKS", $"{Plan.Blocks}"),
            ("GATE", Flag(LogDecay is not null)), ("REVERSE", Flag(Reverse)), ("STRICT", "0"), ("DOTS", Flag(dots)), ("EDGES", !dots ? "0" : Before is null ? "1" : "2"), ("SEGMENTS", Flag(!alone)));
    }

    /// <summary>Linear of the kernel file, which says what the fields are.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct Linear
    {
        public CudaHeads Q, K, V, O, Other, Gate;
        public States Start, End;
        public nint Totals, Dots, Edges, Crossings;
        public int Time, Keys, Values, Segments, SegmentChunks, EdgeChunks;
    }

    /// <summary>GateGradient of the kernel file.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct GateGradientParameters
    {
        public nint Queries, Keys, Crossings;
        public CudaHeads Gate, Gradient;
        public int Time, Tiles, Parts;
    }

    /// <summary>States [b, h, K, V] or [b, h, segments, K, V] as the kernel sees them.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private readonly struct States
    {
        private readonly nint _address;
        private readonly long _batch, _head, _segment, _value, _key;

        public States(Tensor? x)
        {
            if (x is null) return;
            var last = (int)x.dim() - 1;
            (_address, _batch, _head, _segment, _value, _key) = (CudaKernel.Address(x), x.stride(0), x.stride(1), last == 4 ? x.stride(2) : 0, x.stride(last), x.stride(last - 1));
        }
    }
}
