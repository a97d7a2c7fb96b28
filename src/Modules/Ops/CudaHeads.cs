using System.Runtime.InteropServices;
using MLSeq.Native;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What belongs to heads, [b, t, h, size] or [b, t, h], as CUDA kernels see it: where it begins, and the elements from batch to batch, from position to position and from head to head.</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly struct CudaHeads
{
    private const int RowBytes = 16; // at whose multiples rows begin: what the kernels copy at once

    private readonly nint _address;
    private readonly long _batch, _time, _head;

    /// <param name="x">[b, t, h, size], from <see cref="Rows"/>; [b, t, h]; or [h], alike at all positions. Null: there is none.</param>
    public CudaHeads(Tensor? x)
    {
        if (x is null) return;
        (_address, _head) = (CudaKernel.Address(x), x.stride(x.dim() == 1 ? 0 : 2));
        if (x.dim() > 1) (_batch, _time) = (x.stride(0), x.stride(1));
    }

    /// <summary>The tensor [b, t, h, size], or a copy of it where the elements of a row do not lie side by side, or rows not at multiples of 16 bytes.</summary>
    public static Tensor Rows(Tensor x)
    {
        var places = CudaKernel.Address(x);
        for (var dimension = 0; dimension < 3; dimension++)
            if (x.shape[dimension] > 1) places |= (nint)(x.stride(dimension) * x.ElementSize);
        return x.stride(3) == 1 && places % RowBytes == 0 ? x : x.is_contiguous() ? x.clone() : x.contiguous();
    }
}
