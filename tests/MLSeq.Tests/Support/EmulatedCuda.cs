using System.Collections.Concurrent;
using System.Diagnostics;
using System.Runtime.InteropServices;
using MLSeq.Native;
using Xunit;

namespace MLSeq.Tests.Support;

/// <summary>
/// Runs CUDA kernels on tensors of the CPU (tests/cuda-emulator), so that the operators that use them are tested where there is no GPU:
/// <c>using var emulated = EmulatedCuda.Begin(seed);</c>, on this thread until disposed.
/// </summary>
internal sealed class EmulatedCuda : IDisposable
{
    private static readonly ConcurrentDictionary<string, Lazy<Module>> Modules = new();
    private static readonly Lazy<string?> FoundCompiler = new(() => RuntimeInformation.ProcessArchitecture == Architecture.X64 && OperatingSystem.IsLinux() ? Find("g++") ?? Find("clang++") : null);

    private readonly Func<string, string, (string, string)[], CudaKernel>? _before = CudaKernel.Emulator;

    /// <summary>The C++ compiler that the emulator needs, or null.</summary>
    public static string? Compiler => FoundCompiler.Value;

    private EmulatedCuda()
    {
    }

    /// <summary>Kernels run emulated from here on.</summary>
    /// <param name="seed">Of the order in which warps go on: a missing barrier shows under some seed.</param>
    /// <param name="source">Gives the text of a kernel file; null: those of the library.</param>
    public static EmulatedCuda Begin(int seed = 1, Func<string, string>? source = null)
    {
        var emulated = new EmulatedCuda();
        CudaKernel.Emulator = (file, entry, defines) => new Kernel(ModuleOf(file, (source ?? KernelSource.Kernel)(file), defines), entry, seed);
        return emulated;
    }

    public void Dispose() => CudaKernel.Emulator = _before;

    private static Module ModuleOf(string file, string text, (string Name, string Value)[] defines)
    {
        var macros = string.Join(' ', defines.Select(define => $"-D{define.Name}={define.Value}"));
        return Modules.GetOrAdd($"{macros}\n{text}", _ => new Lazy<Module>(() => Compile(file, text, macros))).Value;
    }

    private static Module Compile(string file, string text, string macros)
    {
        using var folder = new TemporaryFolder();
        using (var emulator = typeof(EmulatedCuda).Assembly.GetManifestResourceStream("emulator.h")!)
        using (var copy = File.Create(folder.File("emulator.h"))) emulator.CopyTo(copy);
        File.WriteAllText(folder.File($"{file}.cu"), text);
        var start = new ProcessStartInfo(Compiler ?? throw new InvalidOperationException($"The emulator needs g++ on Linux (x64); mark the test with [{nameof(EmulatedCudaFactAttribute)[..^9]}]."))
        {
            WorkingDirectory = folder.Path,
            RedirectStandardError = true,
        };
        foreach (var argument in $"-std=c++17 -O2 -w -shared -fPIC -x c++ -include emulator.h {macros} {file}.cu -o {file}.so".Split(' ', StringSplitOptions.RemoveEmptyEntries)) start.ArgumentList.Add(argument);
        using var process = Process.Start(start)!;
        var errors = process.StandardError.ReadToEnd();
        process.WaitForExit();
        Assert.True(process.ExitCode == 0, $"{file}.cu {macros}\n{errors}");
        return new Module(NativeLibrary.Load(folder.File($"{file}.so"))); // stays mapped when the file goes
    }

    private static string? Find(string program)
        => (Environment.GetEnvironmentVariable("PATH") ?? "").Split(Path.PathSeparator).Select(folder => Path.Combine(folder, program)).FirstOrDefault(File.Exists);

    /// <summary>A compiled kernel file. The emulator's state is static: one launch at a time.</summary>
    private sealed class Module(nint library)
    {
        public Lock Gate { get; } = new();

        public nint Launch { get; } = NativeLibrary.GetExport(library, "emulator_launch");

        public nint Entry(string name) => NativeLibrary.GetExport(library, name);
    }

    private sealed unsafe class Kernel(Module module, string entry, int seed) : CudaKernel
    {
        private readonly nint _entry = module.Entry(entry);

        public override void Launch<T>(in T parameters, (int X, int Y, int Z) grid, int threads, int sharedBytes = 0)
        {
            Assert.True(grid is { X: > 0, Y: > 0 and < 65536, Z: > 0 and < 65536 } && threads is > 0 and <= 1024 && sharedBytes is >= 0 and <= 227 << 10, $"{entry}: grid {grid}, {threads} threads, {sharedBytes} bytes of shared memory");
            fixed (T* p = &parameters)
            {
                lock (module.Gate) ((delegate* unmanaged[Cdecl]<nint, void*, uint, uint, uint, uint, uint, uint, void>)module.Launch)(_entry, p, (uint)grid.X, (uint)grid.Y, (uint)grid.Z, (uint)threads, (uint)sharedBytes, (uint)seed);
            }
        }
    }
}

/// <summary>A test that needs <see cref="EmulatedCuda"/>; skipped, and said so, where there is no C++ compiler for it.</summary>
public sealed class EmulatedCudaFactAttribute : FactAttribute
{
    public EmulatedCudaFactAttribute() => Skip = EmulatedCudaTheoryAttribute.Reason;
}

/// <summary>Likewise, with data.</summary>
public sealed class EmulatedCudaTheoryAttribute : TheoryAttribute
{
    internal static string? Reason => EmulatedCuda.Compiler is null ? "Emulating CUDA kernels needs g++ on Linux (x64)." : null;

    public EmulatedCudaTheoryAttribute() => Skip = Reason;
}
