using System.Text.Json.Serialization;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>How a residual block of a ResNet is built.</summary>
public enum ResNetBlock
{
    /// <summary>Two 3×3 convolutions.</summary>
    Basic,

    /// <summary>1×1, 3×3 (which has the stride, as in the widespread version 1.5) and 1×1 to four times the stage's width.</summary>
    Bottleneck,
}

/// <summary>What a ResNet begins with.</summary>
public enum ResNetStem
{
    /// <summary>A 7×7 convolution of stride 2 and max pooling: the first stage has stride 4. For photographs.</summary>
    Pooled,

    /// <summary>A 3×3 convolution: the first stage has stride 1. For images of some 32 pixels.</summary>
    Plain,
}

/// <summary><c>y = relu(x + F(x))</c>: F is two or three normed convolutions with ReLUs between. Where the shape changes, x goes through a normed 1×1 convolution.</summary>
/// <remarks>
/// He et al. 2016, equations 1 and 2 and figure 5, with projection shortcuts (option B) in all variants. The last norm of F starts with scale 0, so that the block starts as the identity
/// (Goyal et al. 2017, section 5.1), or with the layer scale where one is given, which here is that very norm's.
/// </remarks>
internal sealed class ResNetUnit : nn.Module<Tensor, Tensor>
{
    private readonly ModuleList<NormedConvolution> convolutions;
    private readonly NormedConvolution? shortcut;
    private readonly ResidualUpdate update;

    public ResNetUnit(ResNetBlock block, int inputs, int width, int outputs, int stride, double dropPath, double layerScale) : base(nameof(ResNetUnit))
    {
        convolutions = block == ResNetBlock.Basic
            ? new(new NormedConvolution(inputs, width, 3, stride), new NormedConvolution(width, outputs, 3, scale: layerScale))
            : new(new NormedConvolution(inputs, width, 1), new NormedConvolution(width, width, 3, stride), new NormedConvolution(width, outputs, 1, scale: layerScale));
        if (inputs != outputs || stride != 1) shortcut = new NormedConvolution(inputs, outputs, 1, stride);
        update = new ResidualUpdate(outputs, dropPath: dropPath);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x)
    {
        var y = convolutions[0].call(x);
        for (var i = 1; i < convolutions.Count; i++) y = convolutions[i].call(nn.functional.relu(y));
        return nn.functional.relu((shortcut?.call(x) ?? x) + update.call(y));
    }
}

/// <summary>A residual network: a stem and stages of residual blocks; every stage but the first begins with stride 2.</summary>
/// <remarks>He et al. 2016, table 1 and section 4.2.</remarks>
internal sealed class ResNet : VisionStack
{
    private readonly NormedConvolution stem;
    private readonly ModuleList<ModuleList<ResNetUnit>> stages;
    private readonly bool _pooled;

    public ResNet(ResNetBackbone backbone, int channels) : base(nameof(ResNet))
    {
        backbone.Validate();
        _pooled = backbone.Stem == ResNetStem.Pooled;
        var inputs = backbone.Widths[0];
        stem = _pooled ? new NormedConvolution(channels, inputs, 7, stride: 2) : new NormedConvolution(channels, inputs, 3);
        stages = new ModuleList<ModuleList<ResNetUnit>>();
        var (block, blocks) = (0, backbone.Depths.Sum());
        for (var stage = 0; stage < backbone.Depths.Count; stage++)
        {
            var (units, outputs) = (new ModuleList<ResNetUnit>(), backbone.Outputs(stage));
            for (var i = 0; i < backbone.Depths[stage]; i++)
            {
                var dropPath = ResidualUpdate.DropPath(backbone.DropPath, block++, blocks);
                units.Add(new ResNetUnit(backbone.Block, inputs, backbone.Widths[stage], outputs, stage > 0 && i == 0 ? 2 : 1, dropPath, backbone.LayerScale));
                inputs = outputs;
            }
            stages.Add(units);
        }
        Levels = [.. Enumerable.Range(0, stages.Count).Select(stage => new FeatureLevel(backbone.Outputs(stage), (_pooled ? 4 : 1) << stage))];
        RegisterComponents();
    }

    public override IReadOnlyList<FeatureLevel> Levels { get; }

    public override Tensor[] forward(Tensor x)
    {
        x = nn.functional.relu(stem.call(x));
        if (_pooled) x = nn.functional.max_pool2d(x, 3, stride: 2, padding: 1);
        var maps = new List<Tensor>();
        foreach (var stage in stages)
        {
            foreach (var unit in stage) x = unit.call(x);
            maps.Add(x);
        }
        return [.. maps];
    }
}

/// <summary>A residual network. He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016.</summary>
public sealed record ResNetBackbone : StagedVisionBackbone
{
    private const int BottleneckExpansion = 4;

    /// <summary>How a block is built.</summary>
    [JsonConverter(typeof(JsonStringEnumConverter<ResNetBlock>))]
    public ResNetBlock Block { get; init; }

    /// <summary>What comes before the first stage.</summary>
    [JsonConverter(typeof(JsonStringEnumConverter<ResNetStem>))]
    public ResNetStem Stem { get; init; }

    internal static IEnumerable<(string, Func<VisionBackbone>)> ReadyMade =>
    [
        ("resnet18", () => ResNet(18)), ("resnet34", () => ResNet(34)), ("resnet50", () => ResNet(50)),
        ("resnet20", () => ResNet(20)), ("resnet56", () => ResNet(56)), ("resnet18-plainstem", () => ResNet(18, ResNetStem.Plain)),
    ];

    /// <summary>Features of a stage's map.</summary>
    internal int Outputs(int stage) => Widths[stage] * (Block == ResNetBlock.Bottleneck ? BottleneckExpansion : 1);

    internal override VisionStack CreateStack(int channels) => new ResNet(this, channels);

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (!Enum.IsDefined(Block)) yield return $"Block is {Block}; expected {string.Join(" or ", Enum.GetNames<ResNetBlock>())}.";
        if (!Enum.IsDefined(Stem)) yield return $"Stem is {Stem}; expected {string.Join(" or ", Enum.GetNames<ResNetStem>())}.";
    }
}

public abstract partial record VisionBackbone
{
    /// <summary>A residual network (He et al. 2016): 18, 34 or 50 layers for photographs, 20 or 56 layers for images of some 32 pixels.</summary>
    /// <param name="layers">18, 34, 50, 20 or 56.</param>
    /// <param name="stem">What it begins with; null: what the paper gives this network. <see cref="ResNetStem.Plain"/> fits the large ones to small images.</param>
    /// <exception cref="ArgumentException">There is no network of so many layers.</exception>
    public static ResNetBackbone ResNet(int layers = 18, ResNetStem? stem = null)
    {
        ResNetBackbone network = layers switch
        {
            18 => new() { Depths = [2, 2, 2, 2], Widths = [64, 128, 256, 512] },
            34 => new() { Depths = [3, 4, 6, 3], Widths = [64, 128, 256, 512] },
            50 => new() { Depths = [3, 4, 6, 3], Widths = [64, 128, 256, 512], Block = ResNetBlock.Bottleneck },
            20 => new() { Depths = [3, 3, 3], Widths = [16, 32, 64], Stem = ResNetStem.Plain },
            56 => new() { Depths = [9, 9, 9], Widths = [16, 32, 64], Stem = ResNetStem.Plain },
            _ => throw new ArgumentException($"There is no ResNet of {layers} layers; expected 18, 34, 50, 20 or 56, or vary one with Depths and Widths.", nameof(layers)),
        };
        return network with { Stem = stem ?? network.Stem };
    }
}
