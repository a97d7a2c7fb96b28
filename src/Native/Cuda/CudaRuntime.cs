using System.Collections.Concurrent;
using System.Diagnostics;

namespace MLSeq.Native;

/// <summary>Compiles kernels with NVRTC for the devices of the driver, once per process and, through the cache, once per machine.</summary>
internal sealed class CudaRuntime(CudaDriver driver, Nvrtc nvrtc, KernelCache cache)
{
    /// <summary>The first capability with what the kernels are made of: mma.sync on bfloat16 and cp.async.</summary>
    public const int LowestCapability = 80;

    private const int CacheFormat = 1;

    private static readonly Lazy<(CudaRuntime? Runtime, string? WhyNot)> Found = new(Find);

    private readonly ConcurrentDictionary<int, Lazy<(CudaDevice? Device, string? WhyNot)>> _devices = new();
    private readonly ConcurrentDictionary<KernelName, CudaKernel> _kernels = new(new KernelName.Comparer());
    private readonly Dictionary<(string File, string Macros, int Device), nint> _modules = [];

    /// <summary>This machine's, or null.</summary>
    public static CudaRuntime? Instance => Found.Value.Runtime;

    /// <summary>Why there is none.</summary>
    public static string? WhyNone => Found.Value.WhyNot;

    public CudaDriver Driver => driver;

    public Nvrtc Nvrtc => nvrtc;

    public KernelCache Cache => cache;

    /// <summary>A device that kernels can run on (one was compiled and loaded), or why they cannot; found out once, and then said in the trace.</summary>
    public (CudaDevice? Device, string? WhyNot) Device(int ordinal) => _devices.GetOrAdd(ordinal, static (ordinal, self) => new(() => self.Examine(ordinal)), this).Value;

    /// <summary>A line for each kind of device, for people. One device of a kind is tried, because that takes memory there.</summary>
    public static IReadOnlyList<string> Describe(int devices, CudaRuntime? runtime)
    {
        if (devices == 0) return [];
        if (runtime is null) return [$"CUDA: none; {WhyNone}"];
        try
        {
            return [.. Enumerable.Range(0, devices).Select(runtime.Driver.Device).GroupBy(device => (device.Name, device.Capability)).Select(runtime.Describe)];
        }
        catch (InvalidOperationException e)
        {
            return [$"CUDA: none; {e.Message}"];
        }
    }

    private string Describe(IGrouping<(string Name, int Capability), CudaDevice> kind)
    {
        var names = $"{string.Join(", ", kind.Select(device => $"cuda:{device.Ordinal}"))} ({kind.Key.Name}, sm_{kind.Key.Capability})";
        return Device(kind.First().Ordinal).WhyNot is { } whyNot ? $"{names}: none; {whyNot}" : $"{names}: compiled by {nvrtc} for a driver of CUDA {driver.Version}, kept {cache.State}";
    }

    /// <summary>A kernel; nothing is compiled before it is launched.</summary>
    public CudaKernel Kernel(string file, string entry, ReadOnlySpan<(string Name, string Value)> defines)
    {
        var view = new KernelName.View(file, entry, defines);
        return _kernels.GetAlternateLookup<KernelName.View>().TryGetValue(view, out var kernel) ? kernel : _kernels.GetOrAdd(new(file, entry, defines.ToArray()), name => new NvrtcKernel(this, name));
    }

    /// <summary>Compiles a kernel's file for a device, unless that was done before, and finds its entry point there.</summary>
    /// <exception cref="InvalidOperationException">It cannot; the message says which kernel, what the compiler or driver says, and what to do.</exception>
    public nint Function(KernelName name, CudaDevice device)
    {
        var failure = $"{name} does not load on {device}";
        using var _ = driver.MakeCurrent(device.Context);
        try
        {
            string[] macros = [.. name.Defines.Select(define => $"-D{define.Name}={define.Value}")];
            var key = (name.File, string.Join(' ', macros), device.Ordinal);
            lock (_modules)
            {
                if (!_modules.TryGetValue(key, out var module)) _modules[key] = module = driver.LoadModule(Compile(name, macros, device), failure);
                return driver.Function(module, name.Entry, failure);
            }
        }
        catch (InvalidOperationException e)
        {
            throw new InvalidOperationException($"{e.Message}\n{Remedy}", e);
        }
    }

    internal static string Remedy => $"Please report this. {MLSeqRuntime.OperatorsVariable}=chunked or MLSeqRuntime.Operators = OperatorForm.Chunked computes without MLSeq's kernels.";

    private byte[] Compile(KernelName name, string[] macros, CudaDevice device)
    {
        // A compiler older than the device gives PTX for the latest architecture it knows, and the driver goes on from there.
        var ptx = !nvrtc.Architectures.Contains(device.Capability);
        var architecture = ptx ? nvrtc.Architectures.Where(known => known <= device.Capability).DefaultIfEmpty(LowestCapability).Max() : device.Capability;
        string[] options = [$"--gpu-architecture={(ptx ? "compute" : "sm")}_{architecture}", "--std=c++17", "-default-device", .. macros];
        var source = KernelSource.Program(name.File);
        return cache.Get([$"{CacheFormat}", $"NVRTC {nvrtc.Version}", $"driver {driver.Version}", $"sm_{device.Capability}", .. options, source], () =>
        {
            try
            {
                return nvrtc.Compile(source, "primitives.cuh", options, ptx);
            }
            catch (InvalidOperationException e)
            {
                throw new InvalidOperationException($"{name} does not compile for {device} with {nvrtc}: {e.Message}", e);
            }
        });
    }

    private (CudaDevice?, string?) Examine(int ordinal)
    {
        try
        {
            var device = driver.Device(ordinal);
            if (device.Capability < LowestCapability) return (null, Said($"{device} is older than the kernels need (sm_{LowestCapability}, NVIDIA's Ampere)"));
            device = device with { Context = driver.Context(device) };
            Function(new("probe", "probe", []), device);
            return (device, null);
        }
        catch (Exception e) when (e is not OutOfMemoryException) // whatever it is, libtorch's operators go on to work
        {
            return (null, Said(e.Message));
        }
    }

    private static (CudaRuntime?, string?) Find()
    {
        try
        {
            if (!CudaDriver.TryLoad(null, out var driver, out var whyNot) || !Nvrtc.TryFind(driver.Version, out var nvrtc, out whyNot)) return (null, Said(whyNot));
            return (new CudaRuntime(driver, nvrtc, new KernelCache()), null);
        }
        catch (Exception e) when (e is not OutOfMemoryException)
        {
            return (null, Said(e.Message));
        }
    }

    private static string Said(string whyNot)
    {
        Trace.TraceWarning($"MLSeq's CUDA kernels are not used: {whyNot}");
        return whyNot;
    }
}
