using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>How layers of vision transformers and their kin begin: weights normal with deviation 0.02, biases zero. Touvron et al. 2021 (DeiT), section 6.</summary>
/// <remarks>The truncation at ±2 that papers mention never happens at this deviation, and TorchSharp's trunc_normal_ leaves zeros.</remarks>
internal static class VisionInit
{
    private const double Deviation = 0.02;

    public static Linear Normal(Linear layer)
    {
        Fill(layer.weight, layer.bias);
        return layer;
    }

    public static Conv2d Normal(Conv2d layer)
    {
        Fill(layer.weight, layer.bias);
        return layer;
    }

    private static void Fill(Tensor weight, Tensor? bias)
    {
        using var _ = no_grad();
        weight.normal_(0, Deviation);
        bias?.zero_();
    }
}
