using System.Runtime.CompilerServices;
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

    /// <summary>Whether kernels serve these tensors: all of the first one's element type, where kernels run.</summary>
    public static bool Serves(Tensor first, params ReadOnlySpan<Tensor?> others)
    {
        if (Name(first.dtype) is null || first.numel() == 0 || OperatorChoice.For(first.numel(), CudaKernel.CanRunOn(first)) != OperatorForm.Fused) return false;
        foreach (var other in others)
            if (other is not null && (other.dtype != first.dtype || other.device_type != first.device_type)) return false;
        return true;
    }

    /// <summary>Elements in 16 bytes.</summary>
    public static int PerPack(Tensor x) => PackBytes / (int)x.ElementSize;

    /// <summary>Blocks of a number of threads that serve so many of them.</summary>
    public static int Blocks(long threads, int perBlock) => (int)((threads + perBlock - 1) / perBlock);

    /// <summary>The tensor, or a copy of it, with features without gaps and all rows of them at multiples of 16 bytes, if <paramref name="aligned"/>.</summary>
    public static Tensor Rows(Tensor x, bool aligned = false)
    {
        bool Fits(long elements) => !aligned || elements * x.ElementSize % PackBytes == 0;
        if (x.stride(-1) != 1 && x.shape[^1] > 1) return x.contiguous();
        for (var dimension = 0; dimension < x.dim() - 1; dimension++)
            if (x.shape[dimension] > 1 && !Fits(x.stride(dimension))) return x.contiguous();
        return aligned && CudaKernel.Address(x) % PackBytes != 0 ? x.clone() : x;
    }

    /// <summary>The same, with batch and time [batch, time, …] as one dimension.</summary>
    public static Tensor Positions(Tensor x, bool aligned)
    {
        x = Rows(x, aligned);
        return x.shape[0] == 1 || x.stride(0) == x.shape[1] * x.stride(1) ? x : x.contiguous();
    }

    public static nint AddressOrNull(Tensor? x) => x is null ? 0 : CudaKernel.Address(x);
}

/// <summary>Up to four parts of a projection, in its order.</summary>
[InlineArray(4)]
internal struct HeadParts
{
    private CudaHeads _first;
}

/// <summary>A factor for each.</summary>
[InlineArray(4)]
internal struct Scales
{
    private float _first;
}
