using System.Diagnostics.CodeAnalysis;
using System.Runtime.InteropServices;
using System.Text;

namespace MLSeq.Native;

/// <summary>NVIDIA's driver library (libcuda), which is where libtorch's own CUDA calls end: devices, contexts, modules, launches. Needs no toolkit.</summary>
internal sealed unsafe class CudaDriver
{
    /// <summary>The dynamic shared memory that a kernel has without asking.</summary>
    public const int UsualSharedBytes = 48 << 10;

    private const int CapabilityMajor = 75, CapabilityMinor = 76, SharedBytesPerBlockOnRequest = 97; // CUdevice_attribute
    private const int MaxDynamicSharedBytes = 8; // CUfunction_attribute

    private readonly nint _library;
    private readonly delegate* unmanaged[Cdecl]<nint*, int> _ctxGetCurrent, _ctxPopCurrent;
    private readonly delegate* unmanaged[Cdecl]<nint, int> _ctxPushCurrent;
    private readonly delegate* unmanaged[Cdecl]<nint, int, int, int> _funcSetAttribute;
    private readonly delegate* unmanaged[Cdecl]<nint, uint, uint, uint, uint, uint, uint, uint, nint, void**, void**, int> _launchKernel;

    private CudaDriver(nint library)
    {
        _library = library;
        _ctxGetCurrent = (delegate* unmanaged[Cdecl]<nint*, int>)Export("cuCtxGetCurrent");
        _ctxPopCurrent = (delegate* unmanaged[Cdecl]<nint*, int>)Export("cuCtxPopCurrent_v2");
        _ctxPushCurrent = (delegate* unmanaged[Cdecl]<nint, int>)Export("cuCtxPushCurrent_v2");
        _funcSetAttribute = (delegate* unmanaged[Cdecl]<nint, int, int, int>)Export("cuFuncSetAttribute");
        _launchKernel = (delegate* unmanaged[Cdecl]<nint, uint, uint, uint, uint, uint, uint, uint, nint, void**, void**, int>)Export("cuLaunchKernel");
        Check(((delegate* unmanaged[Cdecl]<uint, int>)Export("cuInit"))(0), "The CUDA driver does not start");
        int version;
        Check(((delegate* unmanaged[Cdecl]<int*, int>)Export("cuDriverGetVersion"))(&version), "The CUDA driver does not tell its version");
        Version = new Version(version / 1000, version % 1000 / 10);
    }

    /// <summary>The version of CUDA that the driver serves.</summary>
    public Version Version { get; }

    /// <summary>Finds and starts the driver.</summary>
    /// <param name="library">Its file, or null for the system's.</param>
    /// <param name="driver">The driver.</param>
    /// <param name="whyNot">Why there is none.</param>
    public static bool TryLoad(string? library, [NotNullWhen(true)] out CudaDriver? driver, [NotNullWhen(false)] out string? whyNot)
    {
        library ??= OperatingSystem.IsWindows() ? "nvcuda.dll" : "libcuda.so.1";
        (driver, whyNot) = (null, null);
        if (!NativeLibrary.TryLoad(library, out var handle))
        {
            whyNot = $"NVIDIA's driver library {library} is not found";
            return false;
        }
        try
        {
            driver = new CudaDriver(handle);
            return true;
        }
        catch (Exception e) when (e is EntryPointNotFoundException or InvalidOperationException)
        {
            whyNot = e.Message;
            return false;
        }
    }

    /// <summary>What a device is; nothing is done there yet.</summary>
    public CudaDevice Device(int ordinal)
    {
        int device, major, minor, shared;
        var name = stackalloc byte[256];
        var what = $"cuda:{ordinal} cannot be used";
        var attribute = (delegate* unmanaged[Cdecl]<int*, int, int, int>)Export("cuDeviceGetAttribute");
        Check(((delegate* unmanaged[Cdecl]<int*, int, int>)Export("cuDeviceGet"))(&device, ordinal), what);
        Check(((delegate* unmanaged[Cdecl]<byte*, int, int, int>)Export("cuDeviceGetName"))(name, 256, device), what);
        Check(attribute(&major, CapabilityMajor, device), what);
        Check(attribute(&minor, CapabilityMinor, device), what);
        Check(attribute(&shared, SharedBytesPerBlockOnRequest, device), what);
        return new CudaDevice(ordinal, Text(name), 10 * major + minor, shared);
    }

    /// <summary>The context of a device that libtorch works in, the primary one; it stays until the process ends.</summary>
    public nint Context(CudaDevice of)
    {
        int device;
        nint context;
        var what = $"{of} cannot be used";
        Check(((delegate* unmanaged[Cdecl]<int*, int, int>)Export("cuDeviceGet"))(&device, of.Ordinal), what);
        Check(((delegate* unmanaged[Cdecl]<nint*, int, int>)Export("cuDevicePrimaryCtxRetain"))(&context, device), what);
        return context;
    }

    /// <summary>Makes a context current on this thread until disposed; libtorch's choice of the current device is restored then. Costs next to nothing when it is current already.</summary>
    public Currency MakeCurrent(nint context)
    {
        nint current;
        Check(_ctxGetCurrent(&current), "The CUDA driver does not tell the current context");
        if (current == context) return default;
        Check(_ctxPushCurrent(context), "The CUDA context cannot be made current");
        return new Currency(this);
    }

    public readonly ref struct Currency(CudaDriver? driver)
    {
        public void Dispose()
        {
            nint context;
            if (driver is not null) driver._ctxPopCurrent(&context);
        }
    }

    /// <summary>Loads a CUBIN or PTX into the current context.</summary>
    public nint LoadModule(ReadOnlySpan<byte> image, string what)
    {
        nint module;
        fixed (byte* data = image) Check(((delegate* unmanaged[Cdecl]<nint*, void*, int>)Export("cuModuleLoadData"))(&module, data), what);
        return module;
    }

    /// <summary>An entry point of a module.</summary>
    public nint Function(nint module, string entry, string what)
    {
        nint function;
        fixed (byte* name = Encoding.UTF8.GetBytes(entry + '\0')) Check(((delegate* unmanaged[Cdecl]<nint*, nint, byte*, int>)Export("cuModuleGetFunction"))(&function, module, name), what);
        return function;
    }

    /// <summary>Lets launches of a function have this much dynamic shared memory.</summary>
    /// <returns>0, or an error for <see cref="Describe"/>.</returns>
    public int AllowSharedBytes(nint function, int bytes) => _funcSetAttribute(function, MaxDynamicSharedBytes, bytes);

    /// <summary>Launches a function on the default stream of the current context, where libtorch's work is.</summary>
    /// <returns>0, or an error for <see cref="Describe"/>.</returns>
    public int Launch(nint function, (int X, int Y, int Z) grid, int threads, int sharedBytes, void* parameters)
        => _launchKernel(function, (uint)grid.X, (uint)grid.Y, (uint)grid.Z, (uint)threads, 1, 1, (uint)sharedBytes, 0, &parameters, null);

    /// <summary>The name of an error and what it means.</summary>
    public string Describe(int error)
    {
        byte* name = null, text = null;
        ((delegate* unmanaged[Cdecl]<int, byte**, int>)Export("cuGetErrorName"))(error, &name);
        ((delegate* unmanaged[Cdecl]<int, byte**, int>)Export("cuGetErrorString"))(error, &text);
        return name is null ? $"CUDA error {error}" : $"{Text(name)} ({Text(text)})";
    }

    private void Check(int error, string what)
    {
        if (error != 0) throw new InvalidOperationException($"{what}: {Describe(error)}.");
    }

    private nint Export(string name) => NativeLibrary.GetExport(_library, name);

    private static string Text(byte* text) => Marshal.PtrToStringUTF8((nint)text) ?? "";
}

/// <summary>A CUDA device as kernels see it.</summary>
/// <param name="Ordinal">Its number, as in <c>cuda:0</c>.</param>
/// <param name="Name">Its name.</param>
/// <param name="Capability">Ten times the major and once the minor compute capability: 90 for an H100.</param>
/// <param name="SharedBytes">The most dynamic shared memory of a block.</param>
internal sealed record CudaDevice(int Ordinal, string Name, int Capability, int SharedBytes)
{
    /// <summary>The context that libtorch works in there; 0 until something is done there.</summary>
    public nint Context { get; init; }

    public override string ToString() => $"cuda:{Ordinal} ({Name}, sm_{Capability})";
}
