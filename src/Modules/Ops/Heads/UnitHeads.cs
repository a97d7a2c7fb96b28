using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Cuts a projection into queries, keys and values whose queries and keys have length 1. On CUDA one pass, and one that writes the gradient of the whole projection.</summary>
internal sealed class UnitHeads : OperatorFunction<UnitHeads>
{
    private const int Parts = 3, Unit = 2;
    private const double Shortest = 1e-6; // vectors are not divided by less
    private const string Divisor = "divisor";

    /// <param name="projection">[batch, time, 3 · heads · size]: q, k, v.</param>
    /// <param name="heads">Heads.</param>
    /// <param name="queryDivisor">The queries are divided by it afterwards.</param>
    /// <returns>q, k and v, [batch, time, heads, size].</returns>
    public static (Tensor Q, Tensor K, Tensor V) Run(Tensor projection, long heads, double queryDivisor)
    {
        var width = projection.shape[^1] / Parts;
        if (RowKernels.Serve(width / heads, projection))
        {
            var fused = OperatorFunction<UnitHeads>.Run(projection, heads, queryDivisor);
            return (fused[0], fused[1], fused[2]);
        }
        var parts = projection.Parts(width, width, width);
        return (Normalize(parts[0].SplitHeads(heads)) / queryDivisor, Normalize(parts[1].SplitHeads(heads)), parts[2].SplitHeads(heads));
    }

    /// <summary>x / |x|, over the last dimension.</summary>
    public static Tensor Normalize(Tensor x) => nn.functional.normalize(x, dim: -1, eps: Shortest);

    /// <summary>One vector, in place.</summary>
    public static void Normalize(Span<float> x) => x.Scale(1 / MathF.Max(System.Numerics.Tensors.TensorPrimitives.Norm<float>(x), (float)Shortest));

    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (x, heads, divisor) = ((Tensor)inputs[0]!, (long)inputs[1]!, (double)inputs[2]!);
        context.save_data(Divisor, divisor);
        var size = x.shape[^1] / (Parts * heads);
        x = CudaElements.Positions(x, new RowKernels("UNIT", x, size).Aligned).Unflatten(-1, Parts, heads, size);
        var outputs = new Tensor[Parts];
        for (var part = 0; part < Unit; part++) outputs[part] = empty([x.shape[0], x.shape[1], heads, size], x.dtype, x.device);
        outputs[Unit] = x.select(2, Unit);
        Launch("unit_forward", x, null, outputs.AsSpan(0, Unit), divisor);
        return (outputs, [x]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var x = saved[0]!;
        var (dx, aligned) = (empty(x.shape, x.dtype, x.device), new RowKernels("UNIT", x, x.shape[^1]).Aligned);
        for (var part = 0; part < Parts; part++) gradients[part] = gradients[part] is { } gradient ? CudaElements.Rows(gradient, aligned) : null;
        Launch("unit_backward", x, dx, gradients, (double)context.get_data(Divisor));
        return [dx.flatten(2), null, null];
    }

    // x: [batch, time, parts, heads, size].
    private static void Launch(string entry, Tensor x, Tensor? dx, ReadOnlySpan<Tensor?> parts, double divisor)
    {
        var kernels = new RowKernels("UNIT", x, x.shape[^1]);
        var parameters = new Parameters
        {
            X = CudaKernel.Address(x), Dx = CudaElements.AddressOrNull(dx), Rows = x.shape[0] * x.shape[1], Time = x.shape[1], XStride = x.stride(1), Heads = (int)x.shape[3], PartCount = Parts, Unit = Unit,
        };
        for (var part = 0; part < parts.Length; part++) (parameters.Parts[part], parameters.Scales[part]) = (new CudaHeads(parts[part]), part == 0 ? (float)(1 / divisor) : 1);
        kernels.Get(entry).Launch(in parameters, (kernels.Blocks(parameters.Rows * parameters.Heads), parts.Length, 1), RowKernels.Threads);
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public nint X, Dx;
        public HeadParts Parts;
        public long Rows, Time, XStride;
        public int Heads, PartCount;
        public Scales Scales;
        public int Unit;
    }
}
