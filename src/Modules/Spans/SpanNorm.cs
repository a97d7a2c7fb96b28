using TorchSharp.Modules;

namespace MLSeq;

/// <summary>The layer norm over spans.</summary>
internal static class SpanNorm
{
    /// <summary>x = w ∘ (x − mean) / √(variance + ε) + b, row by row.</summary>
    public static SpanUpdate OverSpans(this LayerNorm norm)
    {
        var (weight, bias, epsilon) = (norm.weight!.Numbers(), norm.bias!.Numbers(), (float)norm.eps);
        return (x, _, _) =>
        {
            for (var t = 0; t < x.Count; t++)
            {
                var row = x[t];
                TensorPrimitives.Subtract(row, TensorPrimitives.Sum<float>(row) / row.Length, row);
                row.Scale(1 / MathF.Sqrt(TensorPrimitives.SumOfSquares<float>(row) / row.Length + epsilon));
                TensorPrimitives.MultiplyAdd(row, weight, bias, row);
            }
        };
    }
}
