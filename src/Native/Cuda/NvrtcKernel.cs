namespace MLSeq.Native;

/// <summary>A kernel that NVRTC compiles; one function per device, loaded at the first launch there.</summary>
internal sealed class NvrtcKernel(CudaRuntime runtime, KernelName name) : CudaKernel
{
    private readonly Lock _gate = new();
    private Function?[] _functions = [];

    private sealed class Function(CudaDevice device, nint handle)
    {
        public readonly CudaDevice Device = device;
        public readonly nint Handle = handle;
        public int SharedBytes = CudaDriver.UsualSharedBytes; // that launches may ask for so far
    }

    public override unsafe void Launch<T>(in T parameters, (int X, int Y, int Z) grid, int threads, int sharedBytes = 0)
    {
        var (functions, ordinal) = (Volatile.Read(ref _functions), CurrentDevice);
        var function = (ordinal < functions.Length ? functions[ordinal] : null) ?? Load(ordinal);
        using var _ = runtime.Driver.MakeCurrent(function.Device.Context);
        var error = sharedBytes > function.SharedBytes ? AllowSharedBytes(function, sharedBytes) : 0;
        if (error == 0)
            fixed (T* p = &parameters) error = runtime.Driver.Launch(function.Handle, grid, threads, sharedBytes, p);
        if (error != 0) throw Failed(error, function.Device, grid, threads, sharedBytes);
    }

    private Function Load(int ordinal)
    {
        lock (_gate)
        {
            if (ordinal < _functions.Length && _functions[ordinal] is { } known) return known;
            var (device, whyNot) = runtime.Device(ordinal);
            if (device is null) throw new InvalidOperationException($"{name} cannot run: {whyNot}.");
            var function = new Function(device, runtime.Function(name, device));
            var functions = new Function?[Math.Max(_functions.Length, ordinal + 1)];
            _functions.CopyTo(functions, 0);
            functions[ordinal] = function;
            Volatile.Write(ref _functions, functions);
            return function;
        }
    }

    private int AllowSharedBytes(Function function, int bytes)
    {
        lock (_gate)
        {
            var error = runtime.Driver.AllowSharedBytes(function.Handle, bytes);
            if (error == 0) function.SharedBytes = Math.Max(function.SharedBytes, bytes);
            return error;
        }
    }

    private InvalidOperationException Failed(int error, CudaDevice device, (int X, int Y, int Z) grid, int threads, int sharedBytes)
        => new($"{name} does not start on {device} with {grid.X} x {grid.Y} x {grid.Z} blocks of {threads} threads and {sharedBytes} bytes of shared memory: {runtime.Driver.Describe(error)}. " +
               $"The cause may be an earlier kernel: CUDA_LAUNCH_BLOCKING=1 shows which. {CudaRuntime.Remedy}");
}
