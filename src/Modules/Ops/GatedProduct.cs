using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>SwiGLU's gate, <c>h = silu(a) ∘ b</c> with a and b the halves of one tensor; its CUDA kernels (swiglu.cu) read and write each number once.</summary>
internal sealed class GatedProduct : OperatorFunction<GatedProduct>
{
    private const int Threads = 256;

    /// <param name="x">[.., 2 · hidden]: a, b.</param>
    /// <returns>h, [.., hidden].</returns>
    public static Tensor Run(Tensor x)
    {
        if (CudaElements.Serves(x)) return OperatorFunction<GatedProduct>.Run(x)[0];
        var halves = x.chunk(2, -1);
        return nn.functional.silu(halves[0]) * halves[1];
    }

    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var x = ((Tensor)inputs[0]!).contiguous();
        var h = empty([.. x.shape[..^1], x.shape[^1] / 2], x.dtype, x.device);
        Launch("swiglu_forward", x, null, h);
        return ([h], [x]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var dx = empty_like(saved[0]!);
        Launch("swiglu_backward", saved[0]!, gradients[0]!.contiguous(), dx);
        return [dx];
    }

    private static void Launch(string entry, Tensor x, Tensor? dh, Tensor result)
    {
        var (hidden, pack) = (x.shape[^1] / 2, CudaElements.PerPack(x));
        var parameters = new Parameters { X = CudaKernel.Address(x), Dh = CudaElements.AddressOrNull(dh), Result = CudaKernel.Address(result), Rows = x.numel() / x.shape[^1] };
        CudaKernel.Get("swiglu", entry, ("TYPE", CudaElements.Name(x.dtype)!), ("WIDTH", $"{hidden}"), ("ALIGNED", hidden % pack == 0 ? "1" : "0"))
            .Launch(in parameters, (CudaElements.Blocks(parameters.Rows * ((hidden + pack - 1) / pack), Threads), 1, 1), Threads);
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public nint X, Dh, Result;
        public long Rows;
    }
}
