using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Depthwise causal convolution over a few elements, then SiLU: <c>z_t = Σ_j w_j ∘ x_{t − reach + j}</c>, <c>y_t = z_t σ(z_t)</c>, with reach = taps − 1.</summary>
internal static class CausalConvolution
{
    /// <summary>Convolves in the form that suits the length.</summary>
    /// <param name="x">[b, t, c].</param>
    /// <param name="weight">[taps, c]; the last tap belongs to the present.</param>
    /// <param name="past">What precedes, [b, reach, c]; null for zeros.</param>
    /// <returns>y, [b, t, c]; and what will precede the next element, [b, reach, c], where possible a view.</returns>
    /// <exception cref="ArgumentException">Shapes do not fit.</exception>
    public static (Tensor Output, Tensor Past) Run(Tensor x, Tensor weight, Tensor? past = null)
    {
        Check(x, weight, past);
        var onCuda = FusedCudaConvolution.Serves(x, weight);
        return OperatorChoice.For(x.shape[1], hasFused: onCuda || CpuKernels.CanRunOn(x, weight, past)) switch
        {
            OperatorForm.Naive => Naive(x, weight, past),
            OperatorForm.Fused => (onCuda ? FusedCudaConvolution.Run(x, weight, past) : FusedCpuConvolution.Run(x, weight, past), Next(x, weight, past)),
            _ => Shifted(x, weight, past),
        };
    }

    /// <summary>The specification: the equations, step by step.</summary>
    /// <inheritdoc cref="Run"/>
    public static (Tensor Output, Tensor Past) Naive(Tensor x, Tensor weight, Tensor? past = null)
    {
        Check(x, weight, past);
        var all = WithPast(x, weight, past);
        var (taps, type) = (weight.shape[0], Chunks.StateType(x));
        var (elements, weights, outputs) = (all.to(type), weight.to(type), new Tensor[x.shape[1]]);
        for (var t = 0; t < outputs.Length; t++) outputs[t] = nn.functional.silu((elements.narrow(1, t, taps) * weights).sum([1L], keepdim: true)).to(x.dtype);
        return (outputs.Length == 1 ? outputs[0] : cat(outputs, 1), Last(all, weight));
    }

    /// <summary>All elements at once, as a sum of shifted products.</summary>
    /// <inheritdoc cref="Run"/>
    public static (Tensor Output, Tensor Past) Shifted(Tensor x, Tensor weight, Tensor? past = null)
    {
        Check(x, weight, past);
        var all = WithPast(x, weight, past);
        return (nn.functional.silu(ShiftedProducts.Run(all, weight)[0]), Last(all, weight));
    }

    private static Tensor Next(Tensor x, Tensor weight, Tensor? past) => Last(x.shape[1] < weight.shape[0] - 1 ? WithPast(x, weight, past) : x, weight);

    private static Tensor WithPast(Tensor x, Tensor weight, Tensor? past) => past is null ? nn.functional.pad(x, [0, 0, weight.shape[0] - 1, 0]) : cat([past, x], 1);

    private static Tensor Last(Tensor x, Tensor weight)
    {
        var reach = weight.shape[0] - 1;
        return x.narrow(1, x.shape[1] - reach, reach);
    }

    private static void Check(Tensor x, Tensor weight, Tensor? past)
    {
        if (x.dim() != 3 || x.shape[1] < 1) throw new ArgumentException($"x is [{string.Join(", ", x.shape)}]; expected [batch, time, channels] with at least one position.", nameof(x));
        if (weight.dim() != 2 || weight.shape[0] < 1 || weight.shape[1] != x.shape[2]) throw new ArgumentException($"weight is [{string.Join(", ", weight.shape)}]; expected [taps, {x.shape[2]}].", nameof(weight));
        if (past is not null) OperatorShapes.Check(past, nameof(past), [x.shape[0], weight.shape[0] - 1, x.shape[2]]);
    }
}
