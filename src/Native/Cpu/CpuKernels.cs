using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Native;

/// <summary>A tensor as the kernels see it: [batch, time, heads, size] with a contiguous last dimension. src/Native/cpu/abi.h, View.</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly struct CpuView
{
    public readonly nint Data;
    public readonly long Batch, Time, Head;

    private CpuView(nint data, long batch, long time, long head) => (Data, Batch, Time, Head) = (data, batch, time, head);

    /// <summary>[b, t, h, size], or [b, t, size] as one head, as <see cref="CpuKernels.WithRows"/> gives it; null: none.</summary>
    public static CpuView OfRows(Tensor? x) => x is null ? default : new CpuView(CpuKernels.Address(x), x.stride(0), x.stride(1), x.dim() > 3 ? x.stride(2) : 0);

    /// <summary>One number per batch, time and head, [b, t, h], or per head, [h]; null: none.</summary>
    public static CpuView OfNumbers(Tensor? x)
        => x is null ? default : x.dim() == 1 ? new CpuView(CpuKernels.Address(x), 0, 0, x.stride(0)) : new CpuView(CpuKernels.Address(x), x.stride(0), x.stride(1), x.stride(2));
}

/// <summary>The library of C++ kernels, mlseq_cpu, which the build makes of src/Native/cpu where it finds cmake and a compiler: finds it, loads it, and picks the instruction set.</summary>
internal static unsafe class CpuKernels
{
    /// <summary>The environment variable that leaves the kernels out (off) or names the instruction set (generic, avx2, avx512).</summary>
    public const string Variable = "MLSEQ_CPU_KERNELS";

    private const string Off = "off";

    private static readonly Lazy<(nint Handle, string? Reason)> Library = new(() =>
    {
        LibTorchLoader.EnsureLoaded(); // first: the kernels then find the OpenMP library that libtorch has brought, and share its threads
        return Load(LibTorchLoader.NativeFolders());
    });

    private static readonly Dictionary<string, nint> Functions = [];

    /// <summary>The instruction sets of this processor for which there are kernels, the best last.</summary>
    public static IReadOnlyList<string> Supported { get; } = [.. Sets()];

    /// <summary>What the variable says; null or empty: the best.</summary>
    public static string? Choice { get; set; } = Environment.GetEnvironmentVariable(Variable);

    /// <summary>Why the kernels cannot be used; null when they can.</summary>
    public static string? Reason
        => Choice == Off ? $"{Variable} is {Off}"
            : !Supported.Contains(InstructionSet) ? $"{Variable} is '{Choice}', and this processor has {string.Join(", ", Supported)}"
            : Library.Value.Reason;

    /// <summary>Whether the kernels can be used.</summary>
    public static bool IsAvailable => Reason is null;

    /// <summary>The instruction set whose kernels run.</summary>
    public static string InstructionSet => string.IsNullOrEmpty(Choice) ? Supported[^1] : Choice;

    /// <summary>For <see cref="MLSeqRuntime.Diagnose"/>: what runs, or why nothing does.</summary>
    public static string Status => Reason is { } reason ? $"none ({reason}); the chunked form computes" : InstructionSet;

    /// <summary>Whether the kernels serve these tensors (null: absent): float32 on a CPU.</summary>
    public static bool CanRunOn(params ReadOnlySpan<Tensor?> tensors)
    {
        foreach (var tensor in tensors)
            if (tensor is not null && (tensor.dtype != float32 || tensor.device_type != DeviceType.CPU)) return false;
        return IsAvailable;
    }

    /// <summary>The tensor itself, or a copy where its last dimension is not contiguous.</summary>
    public static Tensor WithRows(this Tensor x) => x.shape[^1] == 1 || x.stride((int)x.dim() - 1) == 1 ? x : x.contiguous();

    /// <summary>The address of a tensor's first element; 0 for none.</summary>
    public static nint Address(Tensor? x) => x is null ? 0 : TensorAddress.Of(x);

    /// <summary>Runs a kernel.</summary>
    /// <param name="name">Its name without prefix and instruction set: linear_forward.</param>
    /// <param name="parameters">Its struct, laid out as in the kernel's file.</param>
    public static void Run<T>(string name, in T parameters) where T : unmanaged
    {
        fixed (T* pointer = &parameters) ((delegate* unmanaged<T*, void>)Function($"mlseq_{name}_{InstructionSet}"))(pointer);
    }

    private static nint Function(string name)
    {
        lock (Functions)
            return Functions.TryGetValue(name, out var known) ? known : Functions[name] = NativeLibrary.GetExport(Library.Value.Handle, name);
    }

    private static IEnumerable<string> Sets()
    {
        yield return "generic";
        if (!Avx2.IsSupported || !Fma.IsSupported) yield break;
        yield return "avx2";
        if (Avx512F.VL.IsSupported && Avx512BW.IsSupported && Avx512DQ.IsSupported) yield return "avx512";
    }

    /// <summary>Loads the library from the first folder that has it; else says why there is none.</summary>
    internal static (nint Handle, string? Reason) Load(IEnumerable<string> folders)
    {
        var file = LibTorchLoader.FileName("mlseq_cpu");
        var path = folders.Select(folder => Path.Combine(folder, file)).FirstOrDefault(File.Exists);
        if (path is null) return (0, $"{file} is not beside the application: MLSeq was built without cmake or a C++ compiler");
        try
        {
            return (NativeLibrary.Load(path), null);
        }
        catch (Exception e) when (e is DllNotFoundException or BadImageFormatException)
        {
            return (0, $"{path} cannot be loaded: {e.Message.Split('\n')[0]}");
        }
    }
}
