using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary><c>y = RMSNorm(o) ∘ w ∘ silu(g)</c>, the norm over each head. On CUDA one pass, and one for the gradient.</summary>
internal sealed class HeadNorm : OperatorFunction<HeadNorm>
{
    /// <summary>Added to the mean square.</summary>
    public const double Epsilon = 1e-5;

    /// <param name="o">[batch, time, heads, size].</param>
    /// <param name="weight">w, [size].</param>
    /// <param name="gate">g, [batch, time, heads · size], or null.</param>
    /// <returns>[batch, time, heads · size].</returns>
    public static Tensor Run(Tensor o, Tensor weight, Tensor? gate)
    {
        if (RowKernels.Serve(o.shape[^1], o, weight, gate)) return OperatorFunction<HeadNorm>.Run(o, weight, gate)[0];
        var type = Chunks.StateType(o);
        var y = (o * (o.to(type).square().mean([-1L], keepdim: true) + Epsilon).rsqrt().to(o.dtype) * weight).MergeHeads();
        return gate is null ? y : y * nn.functional.silu(gate);
    }

    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (o, weight, gate) = (((Tensor)inputs[0]!).contiguous(), (Tensor)inputs[1]!, (Tensor?)inputs[2]);
        var kernels = new RowKernels("HEADS", o, o.shape[^1]);
        if (gate is not null) gate = CudaElements.Positions(gate, kernels.Aligned);
        var y = empty([o.shape[0], o.shape[1], o.shape[2] * o.shape[3]], o.dtype, o.device);
        var parameters = Common(o, weight, gate) with { Y = CudaKernel.Address(y) };
        kernels.Get("head_norm_forward").Launch(in parameters, (kernels.Blocks(parameters.Rows * parameters.Heads), 1, 1), RowKernels.Threads);
        return ([y], [o, weight, gate]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (o, weight, gate, dy) = (saved[0]!, saved[1]!, saved[2], gradients[0]!.contiguous());
        var kernels = new RowKernels("HEADS", o, o.shape[^1]);
        var blocks = kernels.Blocks(o.numel() / o.shape[^1]);
        var (dO, dGate, sums) = (empty_like(o), gate is null ? null : empty(dy.shape, o.dtype, o.device), empty([blocks, o.shape[^1]], float32, o.device));
        var parameters = Common(o, weight, gate) with { Dy = CudaKernel.Address(dy), DO = CudaKernel.Address(dO), DGate = CudaElements.AddressOrNull(dGate), Sums = CudaKernel.Address(sums) };
        kernels.Get("head_norm_backward").Launch(in parameters, (blocks, 1, 1), RowKernels.Threads, kernels.SharedBytes);
        return [dO, kernels.Sum(sums, weight.dtype), dGate];
    }

    private static Parameters Common(Tensor o, Tensor weight, Tensor? gate) => new()
    {
        O = CudaKernel.Address(o), Gate = CudaElements.AddressOrNull(gate), Weight = CudaKernel.Address(weight),
        Rows = o.shape[0] * o.shape[1], GateStride = gate?.stride(1) ?? 0, Heads = (int)o.shape[2], Epsilon = (float)Epsilon,
    };

    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public nint O, Gate, Weight, Y, Dy, DO, DGate, Sums;
        public long Rows, GateStride;
        public int Heads;
        public float Epsilon;
    }
}
