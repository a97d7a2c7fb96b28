using MLSeq.Native;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>How the kernels of delta.cu are specialised, the shared memory that they take, and the segments into which they cut time. The numbers are those that were fastest on an H200.</summary>
internal sealed class DeltaPlan
{
    /// <summary>Positions of a chunk.</summary>
    public const int Chunk = 64;

    private const int Multiple = 16, LargestHead = 128; // of head sizes
    private const int Multiprocessors = 132, SharedBytesOfEach = 227 << 10, ThreadsOfEach = 512; // that have 128 registers
    private const int FewestSegments = 3, FewestChunks = 16; // to cut time doubles the work

    private readonly int _sequentialBlocks, _stages, _gates;
    private readonly bool _cutsTime;

    /// <param name="type">Of q, k and v, as the kernels name it.</param>
    /// <param name="beta">Of β.</param>
    /// <param name="decay">Of log a; null for none.</param>
    /// <param name="keys">K.</param>
    /// <param name="values">V.</param>
    /// <param name="lean">For devices with little shared memory: slower, and of few heads much slower.</param>
    public DeltaPlan(string type, string beta, string? decay, long keys, long values, bool lean = false)
    {
        (K, V, _gates) = (RoundedUp(keys), RoundedUp(values), decay is null ? 1 : 4);
        KeyTile = lean ? Math.Min(K, K % 32 == 0 ? 32 : 16) : K % 64 == 0 ? 64 : K % 48 == 0 ? 48 : K;
        _sequentialBlocks = Math.Max(1, (K <= 64 ? ThreadsOfEach : ThreadsOfEach / 2) / (2 * V));
        _stages = 1; // of what sequential kernels have in shared memory; a second one where there is room
        if (!lean && (SequentialBytes + StageBytes) * _sequentialBlocks <= SharedBytesOfEach) _stages = 2;
        _cutsTime = !lean;
        Defines =
        [
            ("TYPE", type), ("BETA", beta), ("DECAY", decay ?? beta), ("GATED", decay is null ? "0" : "1"), ("K", $"{K}"), ("V", $"{V}"),
            ("STAGES", $"{_stages}"), ("SEQUENTIAL_BLOCKS", $"{_sequentialBlocks}"), ("K_TILE", $"{KeyTile}"), ("GRADIENT_BLOCKS", KeyTile <= 64 ? "2" : "1"),
        ];
    }

    /// <summary>The plan for tensors as given to <see cref="DeltaRecurrence.Run"/>; null where the kernels do not serve them.</summary>
    public static DeltaPlan? For(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? logDecay)
    {
        if (q.dtype is not (ScalarType.BFloat16 or ScalarType.Float16) || k.dtype != q.dtype || v.dtype != q.dtype || !CudaKernel.CanRunOn(q)) return null;
        if (q.numel() == 0 || v.numel() == 0 || q.shape[3] > LargestHead || v.shape[3] > LargestHead) return null;
        if (CudaElements.Name(beta.dtype) is not { } betaType || (logDecay is not null && CudaElements.Name(logDecay.dtype) is null)) return null;
        foreach (var lean in (ReadOnlySpan<bool>)[false, true])
        {
            var plan = new DeltaPlan(CudaElements.Name(q.dtype)!, betaType, logDecay is null ? null : CudaElements.Name(logDecay.dtype), q.shape[3], v.shape[3], lean);
            if (CudaKernel.CanRunOn(q, plan.SharedBytes)) return plan;
        }
        return null;
    }

    /// <summary>Macros of the kernel file.</summary>
    public (string, string)[] Defines { get; }

    /// <summary>Head sizes, multiples of 16.</summary>
    public int K { get; }

    /// <inheritdoc cref="K"/>
    public int V { get; }

    /// <summary>Keys per block of the kernel of gradients.</summary>
    public int KeyTile { get; }

    public int KeyTiles => K / KeyTile;

    /// <summary>Numbers per position that delta_inverse prepares.</summary>
    public int Gates => _gates;

    // INVERSE_BYTES, STAGE_BYTES and so on of the kernel file, which says what lies there.
    public int InverseBytes => Tile(Chunk, K) + 2 * Tile(Chunk, Chunk) + (4 * Chunk + 64 * 20) * sizeof(float);

    private int StageBytes => 2 * Tile(Chunk, K) + Tile(Chunk, V) + Tile(Chunk, Chunk) + _gates * Chunk * sizeof(float);

    public int SequentialBytes => _stages * StageBytes + Tile(Chunk, Chunk);

    public int JoinBytes => 4 * Tile(K, K);

    public int GradientBytes
        => 2 * Math.Max(Tile(Chunk, V), Tile(Chunk, Chunk)) + Tile(Chunk, V) + 2 * Tile(Chunk, KeyTile)
           + Math.Max(Tile(V, KeyTile), Chunk * KeyTile * sizeof(float)) + Tile(V, KeyTile) + (_gates + 2) * Chunk * sizeof(float) + 32;

    /// <summary>The most that a launch takes.</summary>
    private int SharedBytes => Math.Max(Math.Max(InverseBytes, SequentialBytes), Math.Max(GradientBytes, _cutsTime ? JoinBytes : 0));

    /// <summary>Chunks of a segment: all of them, unless the heads are too few to fill a device. More segments than 2 √chunks would wait longer for joining them than for running them.</summary>
    /// <param name="chunks">Of the sequence.</param>
    /// <param name="heads">Of the whole batch.</param>
    public int Segment(int chunks, long heads)
    {
        var segments = (int)Math.Min(Multiprocessors * _sequentialBlocks / heads, 2 * Math.Sqrt(chunks));
        return _cutsTime && chunks >= FewestChunks && segments >= FewestSegments ? (chunks + segments - 1) / segments : chunks;
    }

    private static int RoundedUp(long size) => (int)(size + Multiple - 1) / Multiple * Multiple;

    // Bytes of 16-bit elements in shared memory: rows are 16 bytes apart.
    private static int Tile(int rows, int width) => rows * (2 * width + 16);
}
