using System.Numerics;
using System.Runtime.InteropServices;
using MLSeq.Native;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>A sequence [b, t, features] as CUDA kernels see it (their <c>Sequence</c>): where it begins, and the elements from batch to batch and from position to position.</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly struct CudaSequence
{
    private readonly nint _address;
    private readonly long _batch, _time;

    /// <param name="x">From <see cref="CudaElements.Rows"/>; null: there is none.</param>
    public CudaSequence(Tensor? x)
    {
        if (x is not null) (_address, _batch, _time) = (CudaKernel.Address(x), x.stride(0), x.stride(1));
    }

    /// <summary>The most bytes (a power of two, up to 16) at whose multiples all rows of all these tensors begin and end.</summary>
    public static int Alignment(params ReadOnlySpan<Tensor?> all)
    {
        long places = CudaElements.PackBytes;
        foreach (var x in all)
        {
            if (x is null) continue;
            places |= CudaKernel.Address(x) | x.shape[^1] * x.ElementSize;
            for (var dimension = 0; dimension < x.dim() - 1; dimension++)
                if (x.shape[dimension] > 1) places |= x.stride(dimension) * x.ElementSize;
        }
        return 1 << BitOperations.TrailingZeroCount(places);
    }
}
