using MLSeq.Native;
using TorchSharp;

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

    /// <summary>Whether networks may run in their forms over spans, where they have one.</summary>
    public static bool AllowsSpans => MLSeqRuntime.Operators is OperatorForm.Auto or OperatorForm.Fused;

    /// <summary>What a user should know about the form in which operators run on a device; null: nothing.</summary>
    public static string? Remark(DeviceType type, int index)
    {
        if (MLSeqRuntime.Operators is OperatorForm.Naive or OperatorForm.Chunked) return $"The recurrences run in their {MLSeqRuntime.Operators.ToString().ToLowerInvariant()} form, as MLSeqRuntime.Operators or {MLSeqRuntime.OperatorsVariable} says.";
        return type == DeviceType.CUDA && CudaKernel.WhyNot(Math.Max(index, 0)) is { } whyNot ? $"The recurrences run in libtorch's operators; MLSeq's CUDA kernels, which are faster, cannot be used: {whyNot}." : null;
    }
}
