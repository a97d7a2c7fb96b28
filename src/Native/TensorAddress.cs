using System.Runtime.InteropServices;
using TorchSharp;

namespace MLSeq.Native;

/// <summary>The address of a tensor's elements, for every element type and device (TorchSharp's own accessors know neither bfloat16 nor CUDA).</summary>
internal static unsafe class TensorAddress
{
    // The wrapper as TorchSharp loaded it, cured or not: asked for in its name, the runtime returns the same module.
    private static readonly delegate* unmanaged[Cdecl]<nint, nint> Data =
        (delegate* unmanaged[Cdecl]<nint, nint>)NativeLibrary.GetExport(NativeLibrary.Load("LibTorchSharp", typeof(torch).Assembly, null), "THSTensor_data");

    public static nint Of(torch.Tensor tensor)
    {
        var address = Data(tensor.Handle);
        GC.KeepAlive(tensor);
        return address;
    }
}
