using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What stands between two parts of a residual network: <c>s = x + u</c>, <c>y = LayerNorm(s)</c>. On CUDA one pass, and one for the gradient.</summary>
internal sealed class AddNorm : OperatorFunction<AddNorm>
{
    private const double Epsilon = 1e-5; // nn.LayerNorm's own

    /// <param name="x">[.., width].</param>
    /// <param name="update">u, [.., width]; null: there is none, and s is x.</param>
    /// <param name="norm">Over the width, with nn.LayerNorm's default ε.</param>
    /// <returns>s and y.</returns>
    public static (Tensor Sum, Tensor Norm) Run(Tensor x, Tensor? update, LayerNorm norm) => Run(x, update, norm.weight, norm.bias!);

    /// <param name="x">[.., width].</param>
    /// <param name="update">u.</param>
    /// <param name="weight">Of the norm, [width].</param>
    /// <param name="bias">Of the norm, [width].</param>
    /// <returns>s and y.</returns>
    public static (Tensor Sum, Tensor Norm) Run(Tensor x, Tensor? update, Tensor weight, Tensor bias)
    {
        if (!RowKernels.Serve(x.shape[^1], x, update, weight, bias))
        {
            var sum = update is null ? x : x + update;
            return (sum, nn.functional.layer_norm(sum, [x.shape[^1]], weight, bias, Epsilon));
        }
        var outputs = OperatorFunction<AddNorm>.Run(x, update, weight, bias);
        return (update is null ? x : outputs[1], outputs[0]);
    }

    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (x, update, weight, bias) = (((Tensor)inputs[0]!).contiguous(), ((Tensor?)inputs[1])?.contiguous(), (Tensor)inputs[2]!, (Tensor)inputs[3]!);
        var kernels = new RowKernels("ADD", x, x.shape[^1]);
        var (y, sum) = (empty_like(x), update is null ? x : empty_like(x));
        var parameters = new Parameters
        {
            X = CudaKernel.Address(x), Update = CudaElements.AddressOrNull(update), Weight = CudaKernel.Address(weight), Bias = CudaKernel.Address(bias),
            Sum = CudaKernel.Address(sum), Y = CudaKernel.Address(y), Rows = x.numel() / x.shape[^1], Epsilon = (float)Epsilon,
        };
        kernels.Get("add_norm_forward").Launch(in parameters, (kernels.Blocks(parameters.Rows), 1, 1), RowKernels.Threads);
        return (update is null ? [y] : [y, sum], [sum, weight]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (sum, weight, dy, dSum) = (saved[0]!, saved[1]!, gradients[0], gradients.Length > 1 ? gradients[1] : null);
        if (dy is null) return [dSum?.alias(), dSum?.alias(), null, null];
        (dy, dSum) = (dy.contiguous(), dSum?.contiguous());
        var kernels = new RowKernels("ADD", sum, sum.shape[^1]);
        var (rows, width) = (sum.numel() / sum.shape[^1], sum.shape[^1]);
        var blocks = kernels.Blocks(rows);
        var (dx, sums) = (empty_like(sum), empty([blocks, 2, width], float32, sum.device));
        var parameters = new Parameters
        {
            X = CudaKernel.Address(sum), Weight = CudaKernel.Address(weight), Dy = CudaKernel.Address(dy), DSum = CudaElements.AddressOrNull(dSum),
            Dx = CudaKernel.Address(dx), Sums = CudaKernel.Address(sums), Rows = rows, Epsilon = (float)Epsilon,
        };
        kernels.Get("add_norm_backward").Launch(in parameters, (blocks, 1, 1), RowKernels.Threads, kernels.SharedBytes);
        var dWeights = kernels.Sum(sums, weight.dtype);
        return [dx, gradients.Length > 1 ? dx : null, dWeights.select(0, 0), dWeights.select(0, 1)];
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public nint X, Update, Weight, Bias, Sum, Y, Dy, DSum, Dx, Sums;
        public long Rows;
        public float Epsilon;
    }
}
