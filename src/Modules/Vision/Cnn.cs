using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// A plain convolutional network: <c>x = relu(norm(W ∗ x))</c> over and over with kernels of 3×3; every stage but the first begins with stride 2.
/// </summary>
/// <remarks>Simonyan and Zisserman 2015, with batch norm (Ioffe and Szegedy 2015), and strides for max pooling (Springenberg et al. 2015).</remarks>
internal sealed class PlainCnn : VisionStack
{
    private readonly ModuleList<ModuleList<NormedConvolution>> stages;

    public PlainCnn(PlainCnnBackbone backbone, int channels) : base("Cnn")
    {
        backbone.Validate();
        stages = new ModuleList<ModuleList<NormedConvolution>>();
        for (var stage = 0; stage < backbone.Depths.Count; stage++)
        {
            var convolutions = new ModuleList<NormedConvolution>();
            for (var i = 0; i < backbone.Depths[stage]; i++)
            {
                convolutions.Add(new NormedConvolution(channels, backbone.Widths[stage], kernel: 3, stride: stage > 0 && i == 0 ? 2 : 1));
                channels = backbone.Widths[stage];
            }
            stages.Add(convolutions);
        }
        Levels = [.. backbone.Widths.Select((width, stage) => new FeatureLevel(width, 1 << stage))];
        RegisterComponents();
    }

    public override IReadOnlyList<FeatureLevel> Levels { get; }

    public override Tensor[] forward(Tensor x)
    {
        var maps = new List<Tensor>();
        foreach (var stage in stages)
        {
            foreach (var convolution in stage) x = nn.functional.relu(convolution.call(x));
            maps.Add(x);
        }
        return [.. maps];
    }
}

/// <summary>A plain convolutional network for small images. Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015.</summary>
public sealed record PlainCnnBackbone : StagedVisionBackbone
{
    internal static IEnumerable<(string, Func<VisionBackbone>)> ReadyMade => [("cnn", () => Cnn())];

    internal override long LeastParameters(int channels)
    {
        long count = 0, inputs = channels;
        for (var stage = 0; stage < Depths.Count; stage++)
        {
            count += 9L * Widths[stage] * (inputs + (Depths[stage] - 1L) * Widths[stage]);
            inputs = Widths[stage];
        }
        return count;
    }

    internal override VisionStack CreateStack(int channels) => new PlainCnn(this, channels);

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (DropPath != 0 || LayerScale != 0) yield return $"DropPath is {DropPath} and LayerScale {LayerScale}; expected 0, there are no residual updates.";
    }
}

public abstract partial record VisionBackbone
{
    /// <summary>A plain convolutional network (Simonyan and Zisserman 2015) with batch norm, for small images. Stages come at strides 1, 2, 4 and so on.</summary>
    /// <param name="widths">Features per stage; null: 32, 64, 128.</param>
    /// <param name="depths">Convolutions per stage; null: two in each.</param>
    public static PlainCnnBackbone Cnn(IntList? widths = null, IntList? depths = null)
    {
        widths ??= [32, 64, 128];
        return new() { Widths = widths, Depths = depths ?? [.. widths.Select(_ => 2)] };
    }
}
