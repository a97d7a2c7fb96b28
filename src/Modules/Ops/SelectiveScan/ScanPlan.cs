using System.Numerics;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>How the kernels of one pass in selective_scan.cu are specialised, and how many blocks share a sequence. The numbers are those that served best on an H200.</summary>
/// <param name="Type">Of x, B, C and y, as the kernels name it.</param>
/// <param name="Bytes">Of an element of x.</param>
/// <param name="Delta">The type of Δ.</param>
/// <param name="DeltaBytes">Of an element of Δ.</param>
/// <param name="States">n.</param>
/// <param name="Gradient">Whether the pass is the gradient's.</param>
internal sealed record ScanPlan(string Type, int Bytes, string Delta, int DeltaBytes, int States, bool Gradient)
{
    /// <summary>The most states that a warp can hold, 4 per lane.</summary>
    public const int MostStates = 128;

    private const int Channels = 2, Steps = 4, Stages = 1, GradientBlocks = 3; // per thread; positions that the gradient holds in registers; chunks that it holds in shared memory; per multiprocessor
    private const int EnoughWarps = 768, FillingWarps = 2048; // with so many time is not cut, since that costs a pass more; if it is cut, there should be so many
    private const int ShortestSegment = 4; // chunks

    private readonly int _lanes = (int)BitOperations.RoundUpToPowerOf2((uint)(States + 3) / 4); // that share a channel

    public static ScanPlan For(Tensor x, Tensor delta, Tensor a, bool gradient)
        => new(CudaElements.Name(x.dtype)!, (int)x.ElementSize, CudaElements.Name(delta.dtype)!, (int)delta.ElementSize, (int)a.shape[1], gradient);

    private int Warps => States > 16 ? 4 : Math.Max(1, _lanes * (Gradient ? 4 : 2) / 4); // of a block; fewer states, as many channels

    private int Width => Warps * 32 / _lanes * Channels; // channels of a block

    /// <summary>Threads of a block.</summary>
    public int Threads => 32 * Warps;

    /// <summary>States, with the idle ones of a channel's last lane.</summary>
    public int Padded => 4 * _lanes;

    /// <summary>Positions between the states that are kept for the gradient: so many that shared memory suffices.</summary>
    public int Chunk => States <= 32 ? 32 : 16;

    /// <summary>Macros of the kernel file.</summary>
    public (string, string)[] Defines =>
    [
        ("TYPE", Type), ("DELTA", Delta), ("STATES", $"{States}"), ("CHANNELS", $"{Channels}"), ("WARPS", $"{Warps}"), ("CHUNK", $"{Chunk}"), ("STEPS", $"{Steps}"), ("STAGES", $"{Stages}"), ("BLOCKS", $"{GradientBlocks}"),
    ];

    private int TileBytes => Chunk * (Width * (Bytes + DeltaBytes) + 2 * Padded * sizeof(float)); // Tile of the kernel file

    /// <summary>Shared memory of every kernel but the gradient's: two tiles.</summary>
    public int SharedBytes => 2 * TileBytes;

    /// <summary>Shared memory of the gradient's kernel: its Workspace. At most 97.5 KiB; every device has 99.</summary>
    public int GradientSharedBytes => Stages * (TileBytes + Chunk * Width * Bytes) + (Chunk / Steps * Channels * Threads * 4 + Chunk * Warps * 2 * Padded) * sizeof(float);

    /// <summary>Blocks side by side that serve the channels of a sequence [b, t, c].</summary>
    public int Blocks(Tensor x) => CudaElements.Blocks(x.shape[2], Width);

    /// <summary>Chunks that a block walks through: all of them, unless batch and channels are too few to fill the device.</summary>
    /// <param name="x">[b, t, c].</param>
    /// <param name="chunks">Of its time.</param>
    public int Segment(Tensor x, int chunks)
    {
        var warps = x.shape[0] * Blocks(x) * Warps;
        var segments = warps >= EnoughWarps ? 1 : (int)Math.Clamp(FillingWarps / warps, 1, Math.Max(1, chunks / ShortestSegment));
        return (chunks + segments - 1) / segments;
    }
}
