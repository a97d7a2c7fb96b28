using System.Numerics;
using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Linear attention's queries and keys, normalized beforehand: <c>q̂_t = R_t φ(q_t) / (φ(q_t) · z_t)</c>, <c>k̂_t = R_t φ(k_t)</c> with <c>φ(x) = elu(x) + 1</c>, <c>z_t = Σ_{s ≤ t} φ(k_s)</c> and R_t the
/// rotation of position t. Reading <c>Σ k̂_s v_sᵀ</c> with q̂_t then gives what <see cref="LinearAttention"/> divides afterwards. Kernels for CUDA only (normalizer.cu), for sequences that nothing precedes.
/// </summary>
internal sealed class NormalizedFeatures : OperatorFunction<NormalizedFeatures>
{
    private const int Threads = 128, Parts = 3, Piece = 16;
    private const long LargestSize = 256;
    private const string Key = "rotated";

    /// <summary>Whether there are kernels for this projection.</summary>
    public static bool Serve(Tensor projection, long heads) => projection.dtype != float16 && projection.shape[^1] / (Parts * heads) <= LargestSize && CudaElements.Serves(projection); // 1 / w leaves the range of float16

    /// <param name="projection">[batch, time, 3 · heads · size]: q, k, v.</param>
    /// <param name="heads">Heads.</param>
    /// <param name="rotated">Whether R turns; otherwise it is 1.</param>
    /// <returns>q̂, k̂ and v, [batch, time, heads, size].</returns>
    public static (Tensor Q, Tensor K, Tensor V) Run(Tensor projection, long heads, bool rotated)
    {
        var outputs = OperatorFunction<NormalizedFeatures>.Run(projection, heads, rotated);
        return (outputs[0], outputs[1], outputs[2]);
    }

    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (x, heads, rotated) = ((Tensor)inputs[0]!, (long)inputs[1]!, (bool)inputs[2]!);
        context.save_data(Key, rotated);
        var size = x.shape[^1] / (Parts * heads);
        x = CudaElements.Positions(x, IsAligned(x, size)).Unflatten(-1, Parts, heads, size);
        Tensor Heads() => empty([x.shape[0], x.shape[1], heads, size], x.dtype, x.device);
        var (q, k, z, w) = (Heads(), Heads(), Sums(x), Weights(x));
        var parameters = Common(x, z, w, rotated) with { Q = new CudaHeads(q), K = new CudaHeads(k) };
        Launch("normalizer_sums", x, parameters);
        Scan(z, reverse: false, x);
        Launch("normalizer_forward", x, parameters);
        return ([q, k, x.select(2, 2)], [x, z, w]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (x, z, w) = (saved[0]!, saved[1]!, saved[2]!);
        Tensor? Rows(Tensor? gradient) => gradient is null ? null : CudaElements.Rows(gradient, IsAligned(x, x.shape[4]));
        var (dq, dk, dv, dx, g, dw) = (Rows(gradients[0]), Rows(gradients[1]), Rows(gradients[2]), empty(x.shape, x.dtype, x.device), Sums(x), Weights(x));
        var parameters = Common(x, z, w, (bool)context.get_data(Key)) with
        {
            Q = new CudaHeads(dq),
            K = new CudaHeads(dk),
            V = new CudaHeads(dv),
            G = CudaKernel.Address(g),
            Dw = CudaKernel.Address(dw),
            Dx = CudaKernel.Address(dx),
        };
        Launch("normalizer_gradient_sums", x, parameters);
        Scan(g, reverse: true, x);
        Launch("normalizer_backward", x, parameters);
        return [dx.flatten(2), null, null];
    }

    private static bool IsAligned(Tensor x, long size) => size / 2 % CudaElements.PerPack(x) == 0;

    private static int Pieces(Tensor x) => CudaElements.Blocks(x.shape[1], Piece);

    private static Tensor Sums(Tensor x) => empty([x.shape[0], x.shape[3], Pieces(x), x.shape[4]], float32, x.device);

    private static Tensor Weights(Tensor x) => empty([x.shape[0], x.shape[3], x.shape[1]], float32, x.device);

    private static int Lanes(Tensor x)
    {
        var pack = CudaElements.PerPack(x);
        return (int)Math.Min(32, BitOperations.RoundUpToPowerOf2((ulong)((x.shape[4] / 2 + pack - 1) / pack)));
    }

    private static CudaKernel Kernel(string entry, Tensor x)
        => CudaKernel.Get("normalizer", entry, ("TYPE", CudaElements.Name(x.dtype)!), ("WIDTH", $"{x.shape[4]}"), ("LANES", $"{Lanes(x)}"), ("ALIGNED", IsAligned(x, x.shape[4]) ? "1" : "0"), ("PIECE", $"{Piece}"));

    private static void Launch(string entry, Tensor x, in Parameters parameters)
        => Kernel(entry, x).Launch(in parameters, (CudaElements.Blocks(x.shape[0] * x.shape[3] * Pieces(x) * Lanes(x), Threads), 1, 1), Threads);

    // In place: each piece's sum becomes that of the pieces before it, or (reverse) of itself and the pieces after it.
    private static void Scan(Tensor sums, bool reverse, Tensor x)
    {
        const int threads = 256, columns = 32;
        var parameters = new ScanParameters { X = CudaKernel.Address(sums), Pieces = Pieces(x), Reverse = reverse ? 1 : 0 };
        Kernel("scan_pieces", x).Launch(in parameters, ((int)(x.shape[0] * x.shape[3]), CudaElements.Blocks(x.shape[4], columns), 1), threads, threads * sizeof(float));
    }

    private static Parameters Common(Tensor x, Tensor z, Tensor w, bool rotated) => new()
    {
        X = CudaKernel.Address(x), Z = CudaKernel.Address(z), W = CudaKernel.Address(w), XStride = x.stride(1),
        Batch = (int)x.shape[0], Time = (int)x.shape[1], Heads = (int)x.shape[3], Pieces = Pieces(x), Rotated = rotated ? 1 : 0,
    };

    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public nint X;
        public CudaHeads Q, K, V;
        public nint Z, W, G, Dw, Dx;
        public long XStride;
        public int Batch, Time, Heads, Pieces, Rotated;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct ScanParameters
    {
        public nint X;
        public int Pieces, Reverse;
    }
}
