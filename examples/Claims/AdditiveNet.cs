using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq.Examples.Claims;

/// <summary>
/// The control to DeltaNet: the same projections, short convolution, unit keys, writing strengths and norm, but nothing is erased, <c>S_t = S_{t−1} + β_t k_t v_tᵀ</c>. What differs between the two is the delta
/// rule alone, while the library's linear attention (Katharopoulos et al. 2020) also lacks the convolution.
/// </summary>
internal sealed class AdditiveNet : TokenMixer
{
    private readonly Linear project, strength, output;
    private readonly ShortConvolution convolution;
    private readonly GatedHeadNorm norm;
    private readonly int _heads;

    public AdditiveNet(int width, int heads) : base(nameof(AdditiveNet))
    {
        _heads = heads;
        project = nn.Linear(width, 3 * width, hasBias: false);
        convolution = new ShortConvolution(3 * width);
        strength = nn.Linear(width, heads);
        norm = new GatedHeadNorm(width / heads);
        output = nn.Linear(width, width, hasBias: false);
        RegisterComponents();
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var width = x.shape[2];
        var parts = convolution.call(project.call(x), state).Parts(width, width, width); // q, k, v
        var (q, k, v) = (UnitHeads.Normalize(parts[0].SplitHeads(_heads)) / Math.Sqrt(width / _heads), UnitHeads.Normalize(parts[1].SplitHeads(_heads)), parts[2].SplitHeads(_heads));
        var beta = strength.call(x).sigmoid().unsqueeze(-1); // [batch, time, h, 1]
        var (read, memory) = GatedLinearRecurrence.Run(q, k * beta, v, initialState: state?["memory"]);
        state?.Set("memory", memory);
        return output.call(norm.call(read, null));
    }
}

/// <summary><see cref="AdditiveNet"/> in residual blocks.</summary>
internal sealed record AdditiveBackbone : MultiHeadBackbone
{
    internal override TokenMixer CreateMixer(int layer) => new AdditiveNet(Width, Heads);
}
