namespace MLSeq;

public static partial class DeltaRecurrence
{
    /// <summary>One element of one head, over spans, the state in place: <c>S = a S + k (β (v − a Sᵀ k))ᵀ</c>.</summary>
    /// <param name="state">S, [K, V].</param>
    /// <param name="q">The query, [K].</param>
    /// <param name="k">The key, [K].</param>
    /// <param name="v">The value, [V].</param>
    /// <param name="beta">β.</param>
    /// <param name="decay">a (not its logarithm).</param>
    /// <param name="output">o, [V].</param>
    internal static void Step(Span<float> state, ReadOnlySpan<float> q, ReadOnlySpan<float> k, ReadOnlySpan<float> v, float beta, float decay, Span<float> output)
    {
        var written = output;
        Products.WeightedSum(k, new Rows(state, k.Length, v.Length), written); // Sᵀ k
        TensorPrimitives.MultiplyAdd(written, -decay, v, written);
        written.Scale(beta);
        GatedLinearRecurrence.Step(state, q, k, written, [decay], output);
    }
}
