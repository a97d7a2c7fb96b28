using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>The fused form of <see cref="CausalConvolution"/> on a CPU (src/Native/cpu/convolution.cpp): each number is read and written once, and the gradient computes z again instead of keeping it.</summary>
internal sealed class FusedCpuConvolution : OperatorFunction<FusedCpuConvolution>
{
    /// <summary>ConvolutionParameters of the kernel.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public int Batch, Time, Channels, Taps, Threads, Reserved;
        public CpuView X, Past, Y;
        public nint Weight;
        public CpuView DY, DX, DPast;
        public nint DWeight;

        public Parameters(Tensor x, Tensor weight, Tensor? past)
        {
            (Batch, Time, Channels, Taps, Threads) = ((int)x.shape[0], (int)x.shape[1], (int)x.shape[2], (int)weight.shape[0], get_num_threads());
            (X, Past, Weight) = (CpuView.OfRows(x), CpuView.OfRows(past), CpuKernels.Address(weight));
        }
    }

    /// <param name="x">[b, t, c].</param>
    /// <param name="weight">[taps, c].</param>
    /// <param name="past">[b, taps − 1, c], or null.</param>
    /// <returns>[b, t, c].</returns>
    public static Tensor Run(Tensor x, Tensor weight, Tensor? past) => OperatorFunction<FusedCpuConvolution>.Run(x, weight, past)[0];

    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (x, weight, past) = (((Tensor)inputs[0]!).WithRows(), ((Tensor)inputs[1]!).contiguous(), ((Tensor?)inputs[2])?.WithRows());
        var y = empty(x.shape, float32);
        CpuKernels.Run("convolution_forward", new Parameters(x, weight, past) { Y = CpuView.OfRows(y) });
        return ([y], [x, weight, past]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (x, weight, past, dy) = (saved[0]!, saved[1]!, saved[2], gradients[0]!.WithRows());
        var (dx, dPast, dWeight) = (empty(x.shape, float32), past is null ? null : empty(past.shape, float32), empty([x.shape[0], .. weight.shape], float32));
        CpuKernels.Run("convolution_backward", new Parameters(x, weight, past)
        {
            DY = CpuView.OfRows(dy),
            DX = CpuView.OfRows(dx),
            DPast = CpuView.OfRows(dPast),
            DWeight = CpuKernels.Address(dWeight),
        });
        return [dx, dWeight.sum([0L]), dPast];
    }
}
