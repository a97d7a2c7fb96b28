using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>How Mamba-2's mixer ends: <c>y = RMSNorm((o + D u) ∘ silu(z)) ∘ w</c>, the norm over all heads together. On CUDA one pass, and one for the gradient.</summary>
internal sealed class SkipNorm : OperatorFunction<SkipNorm>
{
    private const double Epsilon = 1e-5;

    /// <param name="o">What was read, [batch, time, heads, size].</param>
    /// <param name="u">What was written, [batch, time, heads, size].</param>
    /// <param name="skip">D, [heads].</param>
    /// <param name="gate">z, [batch, time, heads · size].</param>
    /// <param name="weight">w, [heads · size].</param>
    /// <returns>[batch, time, heads · size].</returns>
    public static Tensor Run(Tensor o, Tensor u, Tensor skip, Tensor gate, Tensor weight)
    {
        if (RowKernels.Serve(weight.numel(), o, u, skip, gate, weight)) return OperatorFunction<SkipNorm>.Run(o, u, skip, gate, weight)[0];
        var y = o.addcmul(u, skip.unsqueeze(-1), 1).MergeHeads() * nn.functional.silu(gate);
        return HeadNorm.Run(y.unsqueeze(2), weight, null);
    }

    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (o, skip, weight) = (((Tensor)inputs[0]!).contiguous(), (Tensor)inputs[2]!, (Tensor)inputs[4]!);
        var kernels = Kernels(o);
        var (u, gate) = (CudaElements.Positions(((Tensor)inputs[1]!).MergeHeads(), kernels.Aligned), CudaElements.Positions((Tensor)inputs[3]!, kernels.Aligned));
        var y = empty(gate.shape, o.dtype, o.device);
        var parameters = Common(o, u, skip, gate, weight) with { Y = CudaKernel.Address(y) };
        kernels.Get("skip_norm_forward").Launch(in parameters, (kernels.Blocks(parameters.Rows), 1, 1), RowKernels.Threads);
        return ([y], [o, u, skip, gate, weight]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (o, u, skip, gate, weight, dy) = (saved[0]!, saved[1]!, saved[2]!, saved[3]!, saved[4]!, gradients[0]!.contiguous());
        var kernels = Kernels(o);
        var blocks = kernels.Blocks(o.shape[0] * o.shape[1]);
        var (dO, du, dGate, sums) = (empty_like(o), empty_like(o), empty(dy.shape, o.dtype, o.device), empty([blocks, 2, weight.numel()], float32, o.device));
        var parameters = Common(o, u, skip, gate, weight) with
        {
            Dy = CudaKernel.Address(dy),
            DO = CudaKernel.Address(dO),
            Du = CudaKernel.Address(du),
            DGate = CudaKernel.Address(dGate),
            Sums = CudaKernel.Address(sums),
        };
        kernels.Get("skip_norm_backward").Launch(in parameters, (blocks, 1, 1), RowKernels.Threads, kernels.SharedBytes);
        var columns = kernels.Sum(sums, weight.dtype);
        return [dO, du, columns.select(0, 1).view(o.shape[2], o.shape[3]).sum([1L]), dGate, columns.select(0, 0)];
    }

    private static RowKernels Kernels(Tensor o) => new("SKIP", o, o.shape[2] * o.shape[3], o.shape[3]);

    private static Parameters Common(Tensor o, Tensor u, Tensor skip, Tensor gate, Tensor weight) => new()
    {
        O = CudaKernel.Address(o), U = CudaKernel.Address(u), Gate = CudaKernel.Address(gate), Weight = CudaKernel.Address(weight), Skip = CudaKernel.Address(skip),
        Rows = o.shape[0] * o.shape[1], UStride = u.stride(1), GateStride = gate.stride(1), Epsilon = (float)Epsilon,
    };

    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public nint O, U, Gate, Weight, Skip, Y, Dy, DO, Du, DGate, Sums;
        public long Rows, UStride, GateStride;
        public float Epsilon;
    }
}
