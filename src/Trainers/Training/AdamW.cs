using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// AdamW on flat parameters: <c>m = β₁ m + (1 − β₁) g</c>, <c>v = β₂ v + (1 − β₂) g²</c>,
/// <c>w = (1 − η λ) w − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)</c>.
/// </summary>
/// <remarks>Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2. Nothing here waits for the device.</remarks>
internal sealed class AdamW(FlatParameters parameters, double weightDecay, double clipping) : IDisposable
{
    private const double Beta1 = 0.9, Beta2 = 0.98, Epsilon = 1e-8;

    /// <summary>Running mean of the gradients, m.</summary>
    public Tensor Mean { get; } = zeros_like(parameters.Master).DetachFromDisposeScope();

    /// <summary>Running mean of their squares, v.</summary>
    public Tensor Square { get; } = zeros_like(parameters.Master).DetachFromDisposeScope();

    /// <summary>Changes the weights by the accumulated gradients and clears these.</summary>
    /// <param name="step">t, from 1.</param>
    /// <param name="learningRate">η.</param>
    /// <param name="gradientScale">Multiplies the gradients first: 1 / accumulated batches.</param>
    public void Step(long step, double learningRate, double gradientScale)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        if (CudaElements.Serves(parameters.Low ?? parameters.Master))
        {
            Launch(step, learningRate, gradientScale);
            parameters.PublishApart();
            return;
        }
        var gradients = parameters.Gradients();
        if (clipping > 0)
            gradients.mul_((clipping / (gradients.norm() * gradientScale + 1e-6)).clamp_max_(1).mul_(gradientScale));
        else if (gradientScale != 1)
            gradients.mul_(gradientScale);
        Mean.mul_(Beta1).add_(gradients, 1 - Beta1);
        Square.mul_(Beta2).addcmul_(gradients, gradients, 1 - Beta2);
        var denominator = Square.sqrt().div_(Math.Sqrt(1 - Math.Pow(Beta2, step))).add_(Epsilon);
        if (weightDecay > 0) parameters.Master.narrow(0, 0, parameters.DecayedSize).mul_(1 - learningRate * weightDecay);
        parameters.Master.addcdiv_(Mean, denominator, -learningRate / (1 - Math.Pow(Beta1, step)));
        parameters.Publish();
        parameters.ZeroGradients();
    }

    // The same in two launches (adamw.cu): the norm of the gradients, then everything else in one pass.
    private void Launch(long step, double learningRate, double gradientScale)
    {
        const int threads = 256, mostBlocks = 512, sharedBytes = threads * sizeof(float);
        var type = parameters.Low ?? parameters.Master;
        var blocks = CudaElements.Blocks(parameters.Size / CudaElements.PerPack(type), threads);
        var parts = empty([Math.Min(blocks, mostBlocks)], float32, parameters.Master.device);
        var all = new Parameters
        {
            Weights = CudaKernel.Address(parameters.Master), Mean = CudaKernel.Address(Mean), Square = CudaKernel.Address(Square), Gradients = CudaKernel.Address(parameters.OtherGradients),
            LowWeights = CudaElements.AddressOrNull(parameters.Low), LowGradients = CudaElements.AddressOrNull(parameters.LowGradients), Parts = CudaKernel.Address(parts),
            Size = parameters.Size, LowSize = parameters.Low?.numel() ?? 0, DecayedSize = parameters.DecayedSize, PartCount = (int)parts.numel(),
            Clipping = (float)clipping, GradientScale = (float)gradientScale, Beta1 = (float)Beta1, Beta2 = (float)Beta2, Epsilon = (float)Epsilon,
            SquareScale = (float)(1 / Math.Sqrt(1 - Math.Pow(Beta2, step))), Rate = (float)(learningRate / (1 - Math.Pow(Beta1, step))), Decay = (float)(learningRate * weightDecay),
        };
        CudaKernel Kernel(string entry) => CudaKernel.Get("adamw", entry, ("TYPE", CudaElements.Name(type.dtype)!));
        if (clipping > 0) Kernel("square_sums").Launch(in all, (all.PartCount, 1, 1), threads, sharedBytes);
        Kernel("adamw").Launch(in all, (blocks, 1, 1), threads, sharedBytes);
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public nint Weights, Mean, Square, Gradients, LowWeights, LowGradients, Parts;
        public long Size, LowSize, DecayedSize;
        public int PartCount;
        public float Clipping, GradientScale, Beta1, Beta2, Epsilon, SquareScale, Rate, Decay;
    }

    public void Dispose()
    {
        Mean.Dispose();
        Square.Dispose();
    }
}
