using System.Numerics;
using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>The kernels of norms.cu for rows of one width and element type.</summary>
internal readonly struct RowKernels
{
    public const int Threads = 256;
    private const int MostBlocks = 528; // a weight's gradient has a partial sum per block
    private const long LargestWidth = 2048;            // a warp holds a row in registers

    private readonly string _kind, _head, _type, _width, _lanes, _aligned;
    private readonly int _rowsPerBlock;

    /// <param name="kind">The norm: ADD, HEADS, SKIP or UNIT.</param>
    /// <param name="like">Gives the element type.</param>
    /// <param name="width">Elements of a row.</param>
    /// <param name="head">Of SKIP: elements of a head.</param>
    public RowKernels(string kind, Tensor like, long width, long head = 1)
    {
        var pack = CudaElements.PerPack(like);
        var lanes = (int)Math.Min(32, BitOperations.RoundUpToPowerOf2((ulong)((width + pack - 1) / pack)));
        Aligned = width % pack == 0;
        (_kind, _head, _type, _width, _lanes, _aligned) = (kind, $"{head}", CudaElements.Name(like.dtype)!, $"{width}", $"{lanes}", Aligned ? "1" : "0");
        _rowsPerBlock = Threads / lanes;
        SharedBytes = (int)((width + lanes * pack - 1) / (lanes * pack)) * pack * Threads * sizeof(float);
    }

    /// <summary>Whether all rows must begin at multiples of 16 bytes.</summary>
    public bool Aligned { get; }

    /// <summary>Shared memory of a kernel that sums the gradient of a weight.</summary>
    public int SharedBytes { get; }

    /// <summary>Whether there are kernels for rows of this width.</summary>
    public static bool Serve(long width, Tensor first, params ReadOnlySpan<Tensor?> others) => width <= LargestWidth && CudaElements.Serves(first, others);

    /// <summary>Blocks for so many rows.</summary>
    public int Blocks(long rows) => (int)Math.Clamp((rows + _rowsPerBlock - 1) / _rowsPerBlock, 1, MostBlocks);

    public CudaKernel Get(string entry) => CudaKernel.Get("norms", entry, ("TYPE", _type), ("WIDTH", _width), ("LANES", _lanes), ("ALIGNED", _aligned), (_kind, "1"), ("HEAD", _head));

    /// <summary>Sums over the first dimension of a float32 tensor, in the rows' element type: the end of a weight's gradient.</summary>
    public Tensor Sum(Tensor parts, ScalarType type)
    {
        var y = empty(parts.shape[1..], type, parts.device);
        var parameters = new ColumnSums { X = CudaKernel.Address(parts), Y = CudaKernel.Address(y), Rows = (int)parts.shape[0], Columns = (int)y.numel() };
        Get("column_sums").Launch(in parameters, (CudaElements.Blocks(parameters.Columns, 32), 1, 1), Threads, Threads * sizeof(float));
        return y;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct ColumnSums
    {
        public nint X, Y;
        public int Rows, Columns;
    }
}
