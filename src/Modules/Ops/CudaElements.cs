using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What the CUDA kernels that work element by element need to know of tensors.</summary>
internal static class CudaElements
{
    /// <summary>The bytes that a thread reads and writes at once where it can.</summary>
    public const int PackBytes = 16;

    /// <summary>The kernels' name of an element type; null where they have none.</summary>
    public static string? Name(ScalarType type) => type switch
    {
        ScalarType.BFloat16 => "bf16",
        ScalarType.Float16 => "fp16",
        ScalarType.Float32 => "fp32",
        _ => null,
    };

    /// <summary>Blocks of a number of threads that serve so many of them.</summary>
    public static int Blocks(long threads, int perBlock) => (int)((threads + perBlock - 1) / perBlock);

    public static nint AddressOrNull(Tensor? x) => x is null ? 0 : CudaKernel.Address(x);
}
