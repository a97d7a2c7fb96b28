using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using MLSeq.Native;
using Xunit;

namespace MLSeq.Tests.Support;

/// <summary>
/// Runs CUDA kernels on tensors of the CPU, so that the operators that use them are tested where there is no GPU: <c>using var emulated = EmulatedCuda.Begin(seed);</c>, on this thread until disposed.
/// </summary>
internal sealed unsafe class EmulatedCuda : IDisposable
{
    private static readonly ConcurrentDictionary<string, Lazy<Module>> Modules = new();

    private readonly Func<string, string, (string, string)[], CudaKernel>? _before = CudaKernel.Emulator;

    private EmulatedCuda()
    {
    }

    /// <summary>Kernels run emulated from here on.</summary>
    /// <param name="seed">Of the order in which warps go on: a missing barrier shows under some seed.</param>
    /// <param name="source">Gives the text of a kernel file; null: those of the library.</param>
    public static EmulatedCuda Begin(int seed = 1, Func<string, string>? source = null)
    {
        var emulated = new EmulatedCuda();
        CudaKernel.Emulator = (file, entry, defines) => new Kernel(Compiled(file, (source ?? KernelSource.Kernel)(file), [.. defines.Select(define => $"-D{define.Item1}={define.Item2}")]), entry, seed);
        return emulated;
    }

    public void Dispose() => CudaKernel.Emulator = _before;

    private static Module Compiled(string file, string text, string[] macros)
        => Modules.GetOrAdd($"{string.Join(' ', macros)}\n{text}", _ => new(() => new Module(NativeLibrary.Load(CppCompiler.Compile($"{file}.cu", text, macros, "emulator.h"))))).Value;

    /// <summary>A compiled kernel file. The emulator's state is static: one launch at a time.</summary>
    private sealed class Module(nint library)
    {
        private readonly nint _launch = NativeLibrary.GetExport(library, "emulator_launch");
        private readonly Lock _gate = new();

        public nint Entry(string name) => NativeLibrary.GetExport(library, name);

        public void Launch(nint entry, void* parameters, (int X, int Y, int Z) grid, int threads, int sharedBytes, int seed)
        {
            lock (_gate) ((delegate* unmanaged[Cdecl]<nint, void*, uint, uint, uint, uint, uint, uint, void>)_launch)(entry, parameters, (uint)grid.X, (uint)grid.Y, (uint)grid.Z, (uint)threads, (uint)sharedBytes, (uint)seed);
        }
    }

    private sealed class Kernel(Module module, string entry, int seed) : CudaKernel
    {
        private readonly nint _entry = module.Entry(entry);

        public override void Launch<T>(in T parameters, (int X, int Y, int Z) grid, int threads, int sharedBytes = 0)
        {
            // What a device would refuse.
            Assert.True(grid is { X: > 0, Y: > 0 and < 65536, Z: > 0 and < 65536 } && threads is > 0 and <= 1024 && sharedBytes is >= 0 and <= SharedBytesOfEmulator, $"{entry}: {grid} blocks of {threads} threads, {sharedBytes} bytes of shared memory");
            fixed (T* p = &parameters) module.Launch(_entry, p, grid, threads, sharedBytes, seed);
        }
    }
}
