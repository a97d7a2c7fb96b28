using System.Diagnostics;
using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Benchmarks;

/// <summary>Whether CUDA kernels work on this machine, and what they cost beside their work: compiling, loading from the cache, launching.</summary>
internal static class KernelBenchmark
{
    // As in src/Native/cuda/probe.cu.
    [StructLayout(LayoutKind.Sequential)]
    private struct Params
    {
        public nint X, Y;
        public float Scale;
        public int N;
    }

    public static void Run()
    {
        Console.WriteLine(MLSeqRuntime.Diagnose());
        if (!cuda.is_available() || CudaKernel.WhyNot(0) is not null)
        {
            Console.WriteLine($"RESULT benchmark=kernels usable=false reason=\"{CudaKernel.WhyNot(0) ?? "libtorch can use no CUDA device"}\"");
            return;
        }
        for (var device = 0; device < cuda.device_count(); device++) Run(device);
    }

    private static void Run(int device)
    {
        using var scope = NewDisposeScope();
        var found = CudaRuntime.Instance!;
        var x = randn(1_000_003, device: torch.device(DeviceType.CUDA, device));
        var y = zeros_like(x);

        void Launch(CudaKernel kernel, int n, int sharedBytes = 0)
            => kernel.Launch(new Params { X = CudaKernel.Address(x), Y = CudaKernel.Address(y), Scale = 3, N = n }, ((n + 255) / 256, 1, 1), 256, sharedBytes);

        // A folder of its own: compiled for the first runtime, found there by the second.
        var folder = Directory.CreateTempSubdirectory("mlseq-kernels-");
        var milliseconds = new double[2];
        for (var i = 0; i < 2; i++)
        {
            var runtime = new CudaRuntime(found.Driver, found.Nvrtc, new KernelCache(folder.FullName));
            runtime.Device(device);
            cuda.synchronize();
            var clock = Stopwatch.StartNew();
            Launch(runtime.Kernel("probe", "probe", [("AGAIN", "1")]), 1);
            milliseconds[i] = clock.Elapsed.TotalMilliseconds;
        }
        folder.Delete(recursive: true);

        CudaKernel Kernel() => CudaKernel.Get("probe", "probe", ("K", "64"), ("V", "64"), ("TYPE", "bf16")); // macros as other kernels have
        Launch(Kernel(), (int)x.shape[0]);
        var correct = (y == x * 3).all().item<bool>();
        y.zero_();
        var thread = new Thread(() => Launch(Kernel(), (int)x.shape[0], found.Device(device).Device!.SharedBytes)); // as autograd's, without a context; and all shared memory there is
        thread.Start();
        thread.Join();
        correct &= (y == x * 3).all().item<bool>();

        double Microseconds(Action action)
        {
            const int count = 500;
            var times = new List<double>();
            for (var round = 0; round < 11; round++)
            {
                cuda.synchronize();
                var clock = Stopwatch.StartNew();
                for (var i = 0; i < count; i++) action();
                times.Add(clock.Elapsed.TotalMicroseconds / count);
            }
            times.Sort();
            return times[times.Count / 2];
        }
        var few = x[..256];
        var launch = Microseconds(() => Launch(Kernel(), 256));
        var lookup = Microseconds(() => Kernel());
        var libtorch = Microseconds(() => few.mul_(1));
        Console.WriteLine($"RESULT benchmark=kernels device=cuda:{device} usable=true correct={correct.ToString().ToLowerInvariant()} compile_ms={milliseconds[0]:F1} cached_ms={milliseconds[1]:F2} launch_us={launch:F2} lookup_us={lookup:F2} libtorch_us={libtorch:F2}");
    }
}
