using System.Runtime.InteropServices;
using MLSeq.Native;
using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Native;

/// <summary>How kernels are compiled, kept and launched, on a driver and a compiler that only tell what they were told (tests/cuda-emulator/driver.cpp).</summary>
public sealed unsafe class CudaKernelTests : IDisposable
{
    private static readonly Lazy<string> FakeCuda = new(() => CppCompiler.Compile("driver.cpp", CppCompiler.EmulatorFile("driver.cpp"), []));

    private readonly TemporaryFolder _folder = new();

    [EmulatedCudaFact]
    public void A_kernel_is_compiled_once_and_launched_on_the_device_of_its_tensors()
    {
        var runtime = Runtime();
        var x = runtime.Kernel("probe", "probe", [("K", "64"), ("TYPE", "bf16")]);
        Assert.Same(x, runtime.Kernel("probe", "probe", [("K", "6" + 4.ToString()), ("TYPE", "bf16")]));
        Assert.NotSame(x, runtime.Kernel("probe", "probe", [("K", "32"), ("TYPE", "bf16")]));
        Assert.Equal("", Events());
        Launch(x, 7);
        Launch(x, 8);
        Launch(runtime.Kernel("probe", "another", [("K", "64"), ("TYPE", "bf16")]), 9);
        const string options = "--gpu-architecture=sm_90 --std=c++17 -default-device";
        Assert.Equal($"""
            compile {options}
            load on 0: CUBIN {options}
            compile {options} -DK=64 -DTYPE=bf16
            load on 0: CUBIN {options} -DK=64 -DTYPE=bf16
            launch probe on 0: 2 3 4, 128, 0, 7
            launch probe on 0: 2 3 4, 128, 0, 8
            launch another on 0: 2 3 4, 128, 0, 9

            """, Events());
        Launch(x, 10, device: 1); // newer than the compiler: PTX of the latest architecture it knows
        Assert.EndsWith("load on 1: PTX --gpu-architecture=compute_90 --std=c++17 -default-device -DK=64 -DTYPE=bf16\nlaunch probe on 1: 2 3 4, 128, 0, 10\n", Events());
    }

    [EmulatedCudaFact]
    public void Another_process_finds_the_compiled_kernel_on_disk()
    {
        Launch(Runtime().Kernel("probe", "probe", [("K", "64")]), 1);
        Assert.Contains("compile", Events());
        Launch(Runtime().Kernel("probe", "probe", [("K", "64")]), 1);
        Assert.DoesNotContain("compile", Events());
        Launch(Runtime().Kernel("probe", "probe", [("K", "32")]), 1);
        Assert.Contains("-DK=32", Events());
    }

    [EmulatedCudaFact]
    public void Shared_memory_beyond_the_usual_is_asked_for_once()
    {
        var kernel = Runtime().Kernel("probe", "probe", [("K", "64")]);
        foreach (var bytes in (int[])[100, 48 << 10, 60000, 50000, 60000, 70000]) Launch(kernel, 1, sharedBytes: bytes);
        Assert.Equal(["shared 60000", "shared 70000"], Events().Split('\n').Where(line => line.StartsWith("shared", StringComparison.Ordinal)));
        var e = Assert.Throws<InvalidOperationException>(() => Launch(kernel, 1, sharedBytes: 227 << 10, device: 1));
        Assert.Contains("probe.probe (K=64) does not start on cuda:1 (Fake 1, sm_120) with 2 x 3 x 4 blocks of 128 threads and 232448 bytes of shared memory: CUDA_ERROR_INVALID_VALUE (invalid argument).", e.Message);
    }

    [EmulatedCudaFact]
    public void A_launch_and_its_lookup_allocate_nothing()
    {
        var runtime = Runtime();
        void Once() => Launch(runtime.Kernel("probe", "probe", [("K", "64"), ("TYPE", "bf16")]), -1); // a negative number is not told
        for (var i = 0; i < 100; i++) Once();
        var before = GC.GetAllocatedBytesForCurrentThread();
        for (var i = 0; i < 1000; i++) Once();
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 1000); // not one object per launch
    }

    [EmulatedCudaFact]
    public void Many_threads_compile_a_kernel_once()
    {
        var runtime = Runtime();
        Parallel.For(0, 32, _ => Launch(runtime.Kernel("probe", "probe", [("K", "64")]), 1));
        var events = Events().Split('\n');
        Assert.Single(events, line => line.StartsWith("compile", StringComparison.Ordinal) && line.Contains("-DK=64", StringComparison.Ordinal));
        Assert.Equal(32, events.Count(line => line.StartsWith("launch", StringComparison.Ordinal)));
    }

    [EmulatedCudaFact]
    public void Errors_say_which_kernel_what_the_compiler_says_and_what_to_do()
    {
        var runtime = Runtime();
        var e = Assert.Throws<InvalidOperationException>(() => Launch(runtime.Kernel("probe", "probe", [("FAIL", "1"), ("K", "64")]), 1));
        foreach (var part in (string[])["probe.probe (FAIL=1 K=64)", "cuda:0 (Fake 0, sm_90)", "NVRTC 12.4", "NVRTC_ERROR_COMPILATION", "probe.cu(3): error: identifier", "MLSEQ_OPERATORS=chunked"]) Assert.Contains(part, e.Message);
        e = Assert.Throws<InvalidOperationException>(() => Launch(runtime.Kernel("probe", "missing", []), 1));
        Assert.Contains("probe.missing () does not load on cuda:0 (Fake 0, sm_90): CUDA_ERROR_NOT_FOUND", e.Message);
        e = Assert.Throws<InvalidOperationException>(() => Launch(runtime.Kernel("probe", "probe", []), 1, device: 2));
        Assert.Contains("older than the kernels need", e.Message);
        Assert.Contains("there are ", Assert.Throws<ArgumentException>(() => Launch(runtime.Kernel("nothing", "probe", []), 1)).Message);
    }

    [EmulatedCudaFact]
    public void A_device_that_cannot_be_used_has_a_reason()
    {
        var runtime = Runtime();
        Assert.Null(runtime.Device(0).WhyNot);
        Assert.Equal(227 << 10, runtime.Device(0).Device!.SharedBytes);
        Assert.Equal("cuda:2 (Fake 2, sm_75) is older than the kernels need (sm_80, NVIDIA's Ampere)", runtime.Device(2).WhyNot);
        Assert.Equal("cuda:3 cannot be used: CUDA_ERROR_INVALID_DEVICE (something else).", runtime.Device(3).WhyNot);
    }

    [EmulatedCudaFact]
    public void The_report_has_a_line_for_each_kind_of_device()
        => Assert.Equal([$"cuda:0 (Fake 0, sm_90): compiled by NVRTC 12.4 ({FakeCuda.Value}) for a driver of CUDA 12.8, kept in {_folder.File("kernels")}",
            $"cuda:1 (Fake 1, sm_120): compiled by NVRTC 12.4 ({FakeCuda.Value}) for a driver of CUDA 12.8, kept in {_folder.File("kernels")}",
            "cuda:2 (Fake 2, sm_75): none; cuda:2 (Fake 2, sm_75) is older than the kernels need (sm_80, NVIDIA's Ampere)"], CudaRuntime.Describe(3, Runtime()));

    [Fact]
    public void Without_CUDA_there_is_a_reason_and_nothing_runs_on_a_tensor_of_the_CPU()
    {
        MLSeqRuntime.EnsureLoaded();
        using var x = zeros(2);
        Assert.False(CudaKernel.CanRunOn(x));
        if (cuda.is_available()) return;
        Assert.False(string.IsNullOrEmpty(CudaKernel.WhyNot(0)));
        Assert.Contains(CudaKernel.WhyNot(0)!, Assert.Throws<InvalidOperationException>(() => CudaKernel.Get("probe", "probe")).Message);
    }

    [Fact]
    public void The_compiler_is_found_in_the_folders_of_PyTorch_and_of_packages()
    {
        if (!OperatingSystem.IsLinux()) return; // the names are those of Linux
        string Made(string path)
        {
            var full = _folder.File(path);
            Directory.CreateDirectory(Path.GetDirectoryName(full)!);
            File.WriteAllText(full, "");
            return full;
        }
        var torch = Path.GetDirectoryName(Made("site-packages/torch/lib/libcaffe2_nvrtc.so"))!;
        string[] expected = [Made("site-packages/torch/lib/libnvrtc-08c4863f.so.12"), Made("site-packages/nvidia/cu13/lib/libnvrtc.so.13")];
        foreach (var other in (string[])["libnvrtc-builtins.so.13.0", "libnvrtc.alt.so.13", "libnvrtc-builtins.alt.so.13.0", "libcudart.so.13"]) Made($"site-packages/nvidia/cu13/lib/{other}");
        Assert.Equal(expected, Nvrtc.FilesIn([torch, .. Nvrtc.NvidiaFolders(torch)]));
    }

    [Fact]
    public void The_primitives_compile_where_there_is_NVRTC()
    {
        if (!Nvrtc.TryFind(new Version(99, 0), out var nvrtc, out _)) return;
        foreach (var architecture in (int[])[80, 90])
            Assert.NotEmpty(nvrtc.Compile(KernelSource.Program("probe"), "primitives.cuh", [$"--gpu-architecture=sm_{architecture}", "--std=c++17", "-default-device"], ptx: false));
        var e = Assert.Throws<InvalidOperationException>(() => nvrtc.Compile("KERNEL", "primitives.cuh", ["--gpu-architecture=sm_80"], ptx: false));
        Assert.Contains("primitives.cuh(1): error", e.Message);
    }

    [Fact]
    public void The_address_is_that_of_the_first_element_of_any_type_and_view()
    {
        MLSeqRuntime.EnsureLoaded();
        using var scope = NewDisposeScope();
        foreach (var (type, size) in ((ScalarType, int)[])[(bfloat16, 2), (float16, 2), (float32, 4), (float64, 8), (int64, 8), (uint8, 1), (@bool, 1)])
        {
            var x = arange(12).reshape(3, 4).to(type);
            Assert.Equal(CudaKernel.Address(x) + 6 * size, CudaKernel.Address(x[1, 2..]));
        }
        Assert.Equal(3f, *(float*)CudaKernel.Address(tensor(new[] { 3f, 4f })));
        Assert.Equal(0x4040, *(ushort*)CudaKernel.Address(tensor(new[] { 3f, 4f }).to(bfloat16)));
        Assert.Equal(0, CudaKernel.Address(zeros(0)));
    }

    public void Dispose() => _folder.Dispose();

    [StructLayout(LayoutKind.Sequential)]
    private struct Params
    {
        public int First;
        public nint Rest;
    }

    private static void Launch(CudaKernel kernel, int first, int sharedBytes = 0, int device = 0)
    {
        var parameters = new Params { First = first };
        CudaKernel.CurrentDevice = device;
        try
        {
            kernel.Launch(in parameters, (2, 3, 4), 128, sharedBytes);
        }
        finally
        {
            CudaKernel.CurrentDevice = 0;
        }
    }

    private static string Events() => Marshal.PtrToStringUTF8(((delegate* unmanaged[Cdecl]<nint>)NativeLibrary.GetExport(NativeLibrary.Load(FakeCuda.Value), "fake_events"))())!;

    /// <summary>What a process begins with.</summary>
    private CudaRuntime Runtime()
    {
        Events();
        Assert.True(CudaDriver.TryLoad(FakeCuda.Value, out var driver, out var whyNot), whyNot);
        Assert.True(Nvrtc.TryLoad(FakeCuda.Value, out var nvrtc, out whyNot), whyNot);
        return new CudaRuntime(driver, nvrtc, new KernelCache(_folder.File("kernels")));
    }
}
