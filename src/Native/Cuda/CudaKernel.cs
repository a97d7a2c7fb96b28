using TorchSharp;

namespace MLSeq.Native;

/// <summary>An entry point of a kernel file (src/Native/cuda/*.cu), specialised by macros and compiled for the device at hand.</summary>
internal abstract class CudaKernel
{
    [ThreadStatic] private static Func<string, string, (string Name, string Value)[], CudaKernel>? _emulator;

    /// <summary>What compiles kernels on this thread; tests put an emulator here, which runs them on tensors of the CPU. Null: NVRTC, for tensors of a CUDA device.</summary>
    public static Func<string, string, (string Name, string Value)[], CudaKernel>? Emulator { get => _emulator; set => _emulator = value; }

    /// <summary>Whether kernels can run on a tensor: it lies on a CUDA device for which NVRTC works (said once in the log when it does not), or an emulator is in place.</summary>
    public static bool CanRunOn(torch.Tensor tensor)
        => tensor.device_type == DeviceType.CPU ? Emulator is not null : false;

    /// <summary>The kernel; compiled at the first call, cached afterwards.</summary>
    /// <param name="file">The kernel file without its extension.</param>
    /// <param name="entry">The name given to KERNEL.</param>
    /// <param name="defines">Macros, in a fixed order.</param>
    public static CudaKernel Get(string file, string entry, params ReadOnlySpan<(string Name, string Value)> defines)
        => Emulator?.Invoke(file, entry, defines.ToArray()) ?? throw new NotSupportedException();

    /// <summary>The address of a tensor's first element, on whichever device it lies; 0 when it has no elements. Valid as long as the tensor lives.</summary>
    public static nint Address(torch.Tensor tensor) => TensorAddress.Of(tensor);

    /// <summary>Starts the kernel on the current device's default stream, where libtorch's own work is.</summary>
    /// <param name="parameters">The struct of the kernel, laid out as in the kernel file.</param>
    /// <param name="grid">Blocks.</param>
    /// <param name="threads">Threads per block, a multiple of 32.</param>
    /// <param name="sharedBytes">Dynamic shared memory; beyond 48 KiB it is asked for as needed.</param>
    public abstract void Launch<T>(in T parameters, (int X, int Y, int Z) grid, int threads, int sharedBytes = 0) where T : unmanaged;
}
