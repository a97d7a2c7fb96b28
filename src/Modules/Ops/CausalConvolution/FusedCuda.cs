using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>The fused form of <see cref="CausalConvolution"/> on CUDA (short_convolution.cu): each number is read and written once, and the gradient computes z again instead of keeping it.</summary>
internal sealed class FusedCudaConvolution : OperatorFunction<FusedCudaConvolution>
{
    private const int Threads = 128, MostTaps = 8; // of a block; that fit into a thread's registers

    /// <summary>What a thread does, forward and for the gradient: its neighbouring channels (fewer where they are not aligned), the elements of time that it walks along, those that it takes at once. The fastest on an H200.</summary>
    private static readonly (int Channels, int Strip, int Group) ForwardWalk = (8, 32, 4), GradientWalk = (4, 64, 4);

    /// <summary>Whether the kernels serve these tensors.</summary>
    public static bool Serves(Tensor x, Tensor weight) => CudaElements.Name(x.dtype) is not null && weight.shape[0] <= MostTaps && x.numel() > 0 && CudaKernel.CanRunOn(x);

    /// <param name="x">[b, t, c].</param>
    /// <param name="weight">[taps, c].</param>
    /// <param name="past">[b, taps − 1, c], or null.</param>
    /// <returns>[b, t, c].</returns>
    public static Tensor Run(Tensor x, Tensor weight, Tensor? past) => OperatorFunction<FusedCudaConvolution>.Run(x, weight.to(x.dtype), past?.to(x.dtype))[0];

    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (x, weight, past) = (CudaElements.Rows((Tensor)inputs[0]!), ((Tensor)inputs[1]!).contiguous(), inputs[2] is Tensor given ? CudaElements.Rows(given) : null);
        var y = empty(x.shape, x.dtype, x.device);
        Launch("forward", ForwardWalk, new Convolution(x, weight, past) { Y = CudaKernel.Address(y), Strips = CudaElements.Blocks(x.shape[1], ForwardWalk.Strip) }, weight, CudaSequence.Alignment(x, weight, past));
        return ([y], [x, weight, past]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (x, weight, past, dy) = (saved[0]!, saved[1]!, saved[2], CudaElements.Rows(gradients[0]!));
        var strips = CudaElements.Blocks(x.shape[1], GradientWalk.Strip - (int)weight.shape[0] + 1); // a strip's last elements are its neighbour's
        var (dx, dPast, dWeight) = (empty(x.shape, x.dtype, x.device), past is null ? null : empty(past.shape, x.dtype, x.device), empty([x.shape[0] * strips, .. weight.shape], float32, x.device));
        Launch("backward", GradientWalk, new Convolution(x, weight, past)
        {
            Dy = new(dy),
            Dx = CudaKernel.Address(dx),
            DPast = CudaElements.AddressOrNull(dPast),
            DWeight = CudaKernel.Address(dWeight),
            Strips = strips,
        }, weight, CudaSequence.Alignment(x, weight, past, dy));
        return [dx, dWeight.sum([0L]).to(weight.dtype), dPast];
    }

    private static void Launch(string pass, (int Channels, int Strip, int Group) walk, Convolution convolution, Tensor weight, int alignment)
    {
        var vector = Math.Min(walk.Channels, alignment / (int)weight.ElementSize);
        CudaKernel.Get("short_convolution", $"short_convolution_{pass}",
                ("TYPE", CudaElements.Name(weight.dtype)!), ("TAPS", $"{weight.shape[0]}"), ("VECTOR", $"{vector}"), ("STRIP", $"{walk.Strip}"), ("GROUP", $"{walk.Group}"))
            .Launch(in convolution, (CudaElements.Blocks((long)convolution.Batch * convolution.Strips * (convolution.Channels / vector), Threads), 1, 1), Threads);
    }

    /// <summary>Convolution of the kernel file, which says what the fields are.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct Convolution
    {
        public CudaSequence X, Past;
        public nint Weight, Y;
        public CudaSequence Dy;
        public nint Dx, DPast, DWeight;
        public int Batch, Time, Channels, Strips;

        public Convolution(Tensor x, Tensor weight, Tensor? past)
        {
            (X, Past, Weight) = (new(x), new(past), CudaKernel.Address(weight));
            (Batch, Time, Channels) = ((int)x.shape[0], (int)x.shape[1], (int)x.shape[2]);
        }
    }
}
