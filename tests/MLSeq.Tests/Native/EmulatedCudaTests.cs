using System.Runtime.InteropServices;
using MLSeq.Native;
using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Native;

/// <summary>The emulator, with a matrix product made as all kernels make it: asynchronous copies, ldmatrix, mma.</summary>
public sealed class EmulatedCudaTests
{
    // c [m, N] = a [m, K] b [K, N]; one block per 16 rows, two warps, each with half of the columns.
    private const string Product = """
        struct Params { const TYPE* a; const TYPE* b; float* c; int m; };

        KERNEL(product, Params, 64)
        {
            SHARED_MEMORY(memory);
            constexpr int A = K + 8, B = N + 8; // padded rows: no bank conflicts
            TYPE* a = (TYPE*)memory;
            TYPE* b = a + 16 * A;
            int row = blockIdx.x * 16, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
            for (int i = threadIdx.x; i < 16 * K / 8; i += 64) copy_async(a + i / (K / 8) * A + i % (K / 8) * 8, p.a + (i64)(row + i / (K / 8)) * K + i % (K / 8) * 8, row + i / (K / 8) < p.m);
            for (int i = threadIdx.x; i < K * N / 8; i += 64) copy_async(b + i / (N / 8) * B + i % (N / 8) * 8, p.b + i * 8, true);
            copy_commit();
            copy_wait<0>();
        #if BARRIER
            __syncthreads();
        #endif
            for (int n = warp * N / 2; n < (warp + 1) * N / 2; n += 16)
            {
                float c[2][4] = {};
                for (int k = 0; k < K; k += 16)
                {
                    u32 left[4], right[4];
                    load_matrices(left, a + lane % 16 * A + k + lane / 16 * 8);
                    load_matrices_transposed(right, b + (k + lane % 16) * B + n + lane / 16 * 8);
                    mma<TYPE>(c[0], left, right[0], right[1]);
                    mma<TYPE>(c[1], left, right[2], right[3]);
                }
                for (int tile = 0; tile < 2; tile++)
                    for (int half = 0; half < 2; half++)
                    {
                        int r = row + lane / 4 + half * 8, column = n + tile * 8 + lane % 4 * 2;
                        if (r < p.m) *(float2*)(p.c + (i64)r * N + column) = make_float2(c[tile][half * 2], c[tile][half * 2 + 1]);
                    }
            }
        }
        """;

    [StructLayout(LayoutKind.Sequential)]
    private struct Params
    {
        public nint A, B, C;
        public int M;
    }

    [EmulatedCudaTheory]
    [InlineData("bf16", 1)]
    [InlineData("bf16", 2)]
    [InlineData("fp16", 3)]
    [NoTensorLeaks]
    public void An_emulated_kernel_computes_on_tensors_of_the_CPU(string type, int seed)
        => Assert.InRange(ErrorOf(type, seed, barrier: true), 0, 1e-6);

    [EmulatedCudaFact]
    public void A_missing_barrier_shows_under_some_seed()
        => Assert.Contains(Enumerable.Range(1, 4), seed => !(ErrorOf("bf16", seed, barrier: false) < 1e-6));

    [EmulatedCudaFact]
    public void What_a_device_would_refuse_is_refused()
    {
        using var emulated = EmulatedCuda.Begin(source: _ => Product);
        var kernel = CudaKernel.Get("product", "product", ("TYPE", "bf16"), ("K", "64"), ("N", "32"), ("BARRIER", "1"));
        var parameters = new Params();
        foreach (var (grid, threads, sharedBytes) in (((int, int, int), int, int)[])[((1, 1, 1), 2048, 0), ((1, 65536, 1), 64, 0), ((0, 1, 1), 64, 0), ((1, 1, 1), 64, 228 << 10)])
            Assert.Contains("product: ", Assert.ThrowsAny<Exception>(() => kernel.Launch(in parameters, grid, threads, sharedBytes)).Message);
    }

    [EmulatedCudaFact]
    public void Emulation_ends_with_its_scope_and_stays_on_its_thread()
    {
        using var scope = NewDisposeScope();
        var x = zeros(2);
        using (EmulatedCuda.Begin())
        {
            Assert.True(CudaKernel.CanRunOn(x, sharedBytes: 227 << 10));
            Assert.False(CudaKernel.CanRunOn(x, sharedBytes: 228 << 10));
            var elsewhere = new Thread(() => Assert.False(CudaKernel.CanRunOn(x)));
            elsewhere.Start();
            elsewhere.Join();
            using (EmulatedCuda.Begin(2)) Assert.True(CudaKernel.CanRunOn(x));
            Assert.True(CudaKernel.CanRunOn(x));
        }
        Assert.False(CudaKernel.CanRunOn(x));
    }

    private static double ErrorOf(string type, int seed, bool barrier)
    {
        const int m = 37, k = 64, n = 32;
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin(seed, _ => Product);
        manual_seed(seed);
        var element = type == "bf16" ? bfloat16 : float16;
        Tensor a = randn(m, k, element), b = randn(k, n, element), c = zeros(m, n);
        Assert.True(CudaKernel.CanRunOn(a));
        var parameters = new Params { A = CudaKernel.Address(a), B = CudaKernel.Address(b), C = CudaKernel.Address(c), M = m };
        CudaKernel.Get("product", "product", ("TYPE", type), ("K", $"{k}"), ("N", $"{n}"), ("BARRIER", barrier ? "1" : "0")).Launch(in parameters, ((m + 15) / 16, 1, 1), 64, 2 * (16 * (k + 8) + k * (n + 8)));
        var expected = a.to(float64).mm(b.to(float64));
        return ((c - expected).norm() / expected.norm()).item<double>();
    }
}
