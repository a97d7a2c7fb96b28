using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Mamba's selective state space: <c>h_t = e^{Δ_t A} ∘ h_{t−1} + Δ_t x_t B_tᵀ</c>, <c>y_t = h_t C_t</c>, where step Δ, input B and output C depend on the input; every channel has its
/// own small state.
/// </summary>
/// <remarks>Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023, equation 2 and algorithm 2. Symbols: b batch, t time, c channels, n states per channel.</remarks>
public static partial class SelectiveScan
{
    /// <summary>Runs the recurrence in the form that suits the length.</summary>
    /// <param name="x">Input, [b, t, c].</param>
    /// <param name="delta">Step Δ, not negative, [b, t, c].</param>
    /// <param name="a">A, negative, [c, n].</param>
    /// <param name="inputMap">B, [b, t, n].</param>
    /// <param name="outputMap">C, [b, t, n].</param>
    /// <param name="initialState">h_0, [b, c, n]; null for zero.</param>
    /// <param name="padding">Positions that are not real neither write nor fade; null when all are real.</param>
    /// <returns>y, [b, t, c], in the type of x; and h after the last real position of each row, [b, c, n], in float32 (float64 for float64).</returns>
    /// <exception cref="ArgumentException">Shapes do not fit.</exception>
    public static (Tensor Output, Tensor FinalState) Run(Tensor x, Tensor delta, Tensor a, Tensor inputMap, Tensor outputMap, Tensor? initialState = null, SequencePadding? padding = null)
    {
        Check(x, delta, a, inputMap, outputMap, initialState);
        if (padding is not null) delta = padding.Fill(delta, 0);
        var onCuda = FusedCudaSelectiveScan.Serves(x, a);
        return OperatorChoice.For(x.shape[1], hasFused: onCuda || CpuKernels.CanRunOn(x, delta, a, inputMap, outputMap, initialState)) switch
        {
            OperatorForm.Naive => Naive(x, delta, a, inputMap, outputMap, initialState),
            OperatorForm.Fused => onCuda ? FusedCudaSelectiveScan.Run(x, delta, a, inputMap, outputMap, initialState) : FusedCpuSelectiveScan.Run(x, delta, a, inputMap, outputMap, initialState),
            _ => Chunked(x, delta, a, inputMap, outputMap, initialState),
        };
    }

    /// <summary>The specification: the equations, step by step.</summary>
    /// <inheritdoc cref="Run"/>
    public static (Tensor Output, Tensor FinalState) Naive(Tensor x, Tensor delta, Tensor a, Tensor inputMap, Tensor outputMap, Tensor? initialState = null)
    {
        Check(x, delta, a, inputMap, outputMap, initialState);
        var type = Chunks.StateType(x);
        var state = initialState?.to(type) ?? zeros([x.shape[0], x.shape[2], a.shape[1]], type, x.device);
        var (steps, inputs, b, c, rates) = (delta.to(type), x.to(type), inputMap.to(type), outputMap.to(type), a.to(type));
        var outputs = new Tensor[x.shape[1]];
        for (var t = 0; t < outputs.Length; t++)
        {
            var step = steps.select(1, t).unsqueeze(-1);
            state = (step * rates).exp() * state + step * inputs.select(1, t).unsqueeze(-1) * b.select(1, t).unsqueeze(1);
            outputs[t] = state.Times(c.select(1, t).unsqueeze(-1)).squeeze(-1);
        }
        return (stack(outputs, 1).to(x.dtype), state);
    }

    /// <summary>The form to train with: many chunks of the sequence advance together, nothing is stored for the gradient but the inputs and a few states.</summary>
    /// <inheritdoc cref="Run"/>
    /// <param name="x">Input, [b, t, c].</param>
    /// <param name="delta">Step Δ, [b, t, c].</param>
    /// <param name="a">A, [c, n].</param>
    /// <param name="inputMap">B, [b, t, n].</param>
    /// <param name="outputMap">C, [b, t, n].</param>
    /// <param name="initialState">h_0, [b, c, n]; null for zero.</param>
    /// <param name="chunk">Positions per chunk; 0 chooses.</param>
    public static (Tensor Output, Tensor FinalState) Chunked(Tensor x, Tensor delta, Tensor a, Tensor inputMap, Tensor outputMap, Tensor? initialState = null, int chunk = 0)
    {
        Check(x, delta, a, inputMap, outputMap, initialState);
        return Both(ChunkedSelectiveScan.Run(x, delta, a, inputMap, outputMap, initialState, (long)chunk));
    }

    private static (Tensor Output, Tensor FinalState) Both(Tensor[] outputs) => (outputs[0], outputs[1]);

    private static void Check(Tensor x, Tensor delta, Tensor a, Tensor inputMap, Tensor outputMap, Tensor? initialState)
    {
        if (x.dim() != 3 || x.shape[1] < 1) throw new ArgumentException($"x is [{string.Join(", ", x.shape)}]; expected [batch, time, channels] with at least one position.", nameof(x));
        if (a.dim() != 2 || a.shape[0] != x.shape[2]) throw new ArgumentException($"a is [{string.Join(", ", a.shape)}]; expected [{x.shape[2]}, states].", nameof(a));
        OperatorShapes.Check(delta, nameof(delta), x.shape);
        OperatorShapes.Check(inputMap, nameof(inputMap), [x.shape[0], x.shape[1], a.shape[1]]);
        OperatorShapes.Check(outputMap, nameof(outputMap), inputMap.shape);
        if (initialState is not null) OperatorShapes.Check(initialState, nameof(initialState), [x.shape[0], x.shape[2], a.shape[1]]);
    }
}
