using TorchSharp;

namespace MLSeq.Native;

/// <summary>An entry point of a kernel file (src/Native/cuda/*.cu), specialised by macros and compiled for the device at hand.</summary>
internal abstract class CudaKernel
{
    /// <summary>An emulator has as much shared memory as an H100.</summary>
    internal const int SharedBytesOfEmulator = 227 << 10;

    [ThreadStatic] private static Func<string, string, (string Name, string Value)[], CudaKernel>? _emulator;
    [ThreadStatic] private static int _device;

    /// <summary>What compiles kernels on this thread; tests put an emulator here, which runs them on tensors of the CPU. Null: NVRTC, for tensors of a CUDA device.</summary>
    public static Func<string, string, (string Name, string Value)[], CudaKernel>? Emulator { get => _emulator; set => _emulator = value; }

    /// <summary>The device of the tensor whose <see cref="Address"/> this thread took last, where launches go: libtorch makes a device current only within its own operators.</summary>
    internal static int CurrentDevice { get => _device; set => _device = value; }

    /// <summary>Whether kernels can run on a tensor: it lies on a CUDA device that they work on (<see cref="WhyNot"/> tells, and the trace told once), or an emulator is in place.</summary>
    /// <param name="tensor">Any tensor there.</param>
    /// <param name="sharedBytes">The most dynamic shared memory that a launch will need: an H100 has 227 KiB per block, an A100 163, others 99.</param>
    public static bool CanRunOn(torch.Tensor tensor, int sharedBytes = 0) => tensor.device_type switch
    {
        DeviceType.CPU => _emulator is not null && sharedBytes <= SharedBytesOfEmulator,
        DeviceType.CUDA => CudaRuntime.Instance?.Device(tensor.device_index).Device is { } device && sharedBytes <= device.SharedBytes,
        _ => false,
    };

    /// <summary>Why kernels cannot run on a CUDA device; null: they can.</summary>
    public static string? WhyNot(int device) => CudaRuntime.Instance is { } runtime ? runtime.Device(device).WhyNot : CudaRuntime.WhyNone;

    /// <summary>The kernel. It is compiled when it is first launched on a device (or found in the cache on disk); asking again for the same one costs a look into a dictionary and no memory.</summary>
    /// <param name="file">The kernel file without its extension.</param>
    /// <param name="entry">The name given to KERNEL.</param>
    /// <param name="defines">Macros, in a fixed order.</param>
    public static CudaKernel Get(string file, string entry, params ReadOnlySpan<(string Name, string Value)> defines)
        => _emulator is { } emulator ? emulator(file, entry, defines.ToArray())
            : CudaRuntime.Instance is { } runtime ? runtime.Kernel(file, entry, defines)
            : throw new InvalidOperationException($"CUDA kernels cannot run: {CudaRuntime.WhyNone}.");

    /// <summary>The address of a tensor's first element, on whichever device it lies; 0 when it has no elements. Valid as long as the tensor lives. Launches that follow on this thread go to its device.</summary>
    public static nint Address(torch.Tensor tensor)
    {
        if (tensor.device_type == DeviceType.CUDA) _device = tensor.device_index;
        return TensorAddress.Of(tensor);
    }

    /// <summary>Starts the kernel on the default stream of its tensors' device, where libtorch's own work is; does not wait for it.</summary>
    /// <param name="parameters">The struct of the kernel, laid out as in the kernel file.</param>
    /// <param name="grid">Blocks.</param>
    /// <param name="threads">Threads per block, a multiple of 32.</param>
    /// <param name="sharedBytes">Dynamic shared memory; beyond 48 KiB it is asked for as needed.</param>
    public abstract void Launch<T>(in T parameters, (int X, int Y, int Z) grid, int threads, int sharedBytes = 0) where T : unmanaged;
}
