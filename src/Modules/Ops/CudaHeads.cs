using System.Runtime.InteropServices;
using MLSeq.Native;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What belongs to heads, [b, t, h, size] or [b, t, h], as CUDA kernels see it: where it begins, and the elements from batch to batch, from position to position and from head to head.</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly struct CudaHeads
{
    private readonly nint _address;
    private readonly long _batch, _time, _head;

    /// <param name="x">[b, t, h, size], from <see cref="CudaElements.Rows"/>; [b, t, h]; or [h], alike at all positions. Null: there is none.</param>
    public CudaHeads(Tensor? x)
    {
        if (x is null) return;
        (_address, _head) = (CudaKernel.Address(x), x.stride(x.dim() == 1 ? 0 : 2));
        if (x.dim() > 1) (_batch, _time) = (x.stride(0), x.stride(1));
    }
}
