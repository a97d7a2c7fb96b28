namespace MLSeq;

/// <summary>Decides in which form an operator runs: the one place that does.</summary>
internal static class OperatorChoice
{
    private const long NaiveUpTo = 2; // streaming: a chunk of one element would only be overhead

    /// <summary>The form for a sequence.</summary>
    /// <param name="time">Elements.</param>
    /// <param name="hasFused">Whether a fused kernel serves the tensors' device, element type and shape.</param>
    /// <returns>Naive, Chunked or Fused.</returns>
    public static OperatorForm For(long time, bool hasFused)
        => MLSeqRuntime.Operators switch
        {
            OperatorForm.Naive => OperatorForm.Naive,
            OperatorForm.Chunked => OperatorForm.Chunked,
            _ when hasFused => OperatorForm.Fused,
            _ => time <= NaiveUpTo ? OperatorForm.Naive : OperatorForm.Chunked,
        };
}
