using System.Runtime.InteropServices;
using MLSeq.Native;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>A tensor [b, t, h, d] as CUDA kernels take it: where it begins, and strides in elements; d is contiguous.</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly struct CudaRows
{
    private const int Alignment = 16; // bytes that a kernel copies at once

    private readonly nint _start;
    private readonly long _batch, _time, _head;

    /// <param name="x">As <see cref="Aligned"/> returns it.</param>
    public CudaRows(Tensor x)
    {
        var strides = x.stride();
        (_start, _batch, _time, _head) = (CudaKernel.Address(x), strides[0], strides[1], strides[2]);
    }

    /// <summary>The tensor itself where its rows are contiguous and begin at multiples of 16 bytes (parts of a projection, rows that several heads share), else a copy that is so.</summary>
    public static Tensor Aligned(Tensor x)
    {
        var (shape, strides) = (x.shape, x.stride());
        var aligned = strides[3] == 1 && CudaKernel.Address(x) % Alignment == 0;
        for (var dimension = 0; dimension < 3; dimension++) aligned &= shape[dimension] == 1 || strides[dimension] * x.element_size() % Alignment == 0;
        return aligned ? x : empty(shape, x.dtype, x.device).copy_(x);
    }
}
