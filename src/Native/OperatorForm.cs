namespace MLSeq;

/// <summary>The forms in which a recurrence can be computed. All of them give the same numbers but for rounding.</summary>
public enum OperatorForm
{
    /// <summary>The fastest that suits device, element type and shape.</summary>
    Auto,

    /// <summary>The equations, step by step: the specification.</summary>
    Naive,

    /// <summary>Parallel over chunks of time, in libtorch's operators.</summary>
    Chunked,

    /// <summary>MLSeq's own kernels, C++ on a CPU and CUDA on a GPU; where there is none for a case, the chunked form.</summary>
    Fused,
}
