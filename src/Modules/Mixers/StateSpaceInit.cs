using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>How state-space models begin: steps Δ spread evenly in logarithm from 0.001 to 0.1, decay rates A from 1 to 16.</summary>
/// <remarks>Gu and Dao 2023, section 3.6; Dao and Gu 2024, appendix. These parameters are vectors, so that weight decay leaves them alone.</remarks>
internal static class StateSpaceInit
{
    private const double ShortestStep = 1e-3, LongestStep = 1e-1;

    /// <summary>Fills the bias b so that softplus(b) = Δ.</summary>
    public static void StepBias(Parameter bias)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var step = (rand(bias.shape) * Math.Log(LongestStep / ShortestStep) + Math.Log(ShortestStep)).exp();
        bias.copy_(step + (-(-step).expm1()).log()); // the inverse of softplus: Δ + log(1 − e^{−Δ})
    }

    /// <summary>log A, A uniform in [1, 16], one per head.</summary>
    public static Parameter LogRates(long heads) => nn.Parameter((rand(heads) * 15 + 1).log());
}
