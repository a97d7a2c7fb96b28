using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// A gated convolutional block: <c>(g, i, c) = W₁ norm(x)</c>, <c>y = x + W₂ (gelu(g) ∘ [i, conv(c)])</c>, conv a depthwise convolution of 7×7: Mamba's block with a convolution where the state-space model was.
/// With a token mixer, which puts one there again, <c>c' = conv(c)</c>, <c>[i, c' + mixer(norm(c'))]</c> instead.
/// </summary>
/// <remarks>Yu and Wang 2024, figure 1a and algorithm 1 (after Dauphin et al. 2017). g has 8/3 of the width, i 5/3, and c as many features as x. Without the mixer, MambaOut.</remarks>
internal sealed class GatedCnnBlock : nn.Module<Tensor, Tensor>
{
    private const double Epsilon = 1e-6;
    private const int Kernel = 7;

    private readonly LayerNorm norm;
    private readonly Linear project, output;
    private readonly Conv2d convolution;
    private readonly LayerNorm? mixerNorm;
    private readonly TokenMixer? mixer;
    private readonly ResidualUpdate update;
    private readonly int _width, _hidden, _direction;

    /// <param name="width">Features.</param>
    /// <param name="mixer">Mixes all places; null: none.</param>
    /// <param name="direction">The order in which it reads them, see <see cref="ScanOrder"/>.</param>
    /// <param name="dropPath">See <see cref="ResidualUpdate"/>, like <paramref name="layerScale"/>.</param>
    /// <param name="layerScale">0: none.</param>
    public GatedCnnBlock(int width, TokenMixer? mixer = null, int direction = 0, double dropPath = 0, double layerScale = 0) : base(nameof(GatedCnnBlock))
    {
        (_width, _hidden, _direction) = (width, width * 8 / 3, direction);
        norm = nn.LayerNorm(width, Epsilon);
        project = VisionInit.Normal(nn.Linear(width, 2 * _hidden));
        convolution = VisionInit.Normal(nn.Conv2d(width, width, Kernel, padding: Kernel / 2, groups: width));
        if (mixer is not null) (mixerNorm, this.mixer) = (nn.LayerNorm(width, Epsilon), mixer);
        output = VisionInit.Normal(nn.Linear(_hidden, width));
        update = new ResidualUpdate(width, dropPath: dropPath, layerScale: layerScale);
        RegisterComponents();
    }

    /// <param name="x">[batch, height, width of the map, width].</param>
    public override Tensor forward(Tensor x)
    {
        var parts = project.call(norm.call(x)).Parts(_hidden, _hidden - _width, _width); // g, i, c
        var c = convolution.call(parts[2].permute(0, 3, 1, 2)).permute(0, 2, 3, 1);
        if (mixer is not null) c = c + Mix(mixerNorm!.call(c));
        return x + update.call(output.call(nn.functional.gelu(parts[0]) * cat([parts[1], c], -1)));
    }

    private Tensor Mix(Tensor map) => ScanOrder.Map(mixer!.call(ScanOrder.Sequence(map, _direction), null, null), _direction, map.shape[1], map.shape[2]);
}

/// <summary>Makes a map smaller: a 3×3 convolution with stride, then layer norm. [batch, height, width, inputs] to [batch, ⌈height / stride⌉, ⌈width / stride⌉, outputs].</summary>
internal sealed class Downsampling : nn.Module<Tensor, Tensor>
{
    private readonly Conv2d convolution;
    private readonly LayerNorm norm;
    private readonly int _stride;

    public Downsampling(int inputs, int outputs, int stride) : base(nameof(Downsampling))
    {
        _stride = stride;
        convolution = VisionInit.Normal(nn.Conv2d(inputs, outputs, 3, stride, padding: 1));
        norm = nn.LayerNorm(outputs, 1e-6);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x) => norm.call(convolution.Apply(x.permute(0, 3, 1, 2), _stride, padding: 1).permute(0, 2, 3, 1));
}

/// <summary>Stages of gated convolutional blocks, with or without token mixers: a stem of two convolutions, and a convolution of stride 2 between stages.</summary>
/// <remarks>After Yu and Wang 2024, section 4. Maps have their features last throughout; convolutions see a permuted view, which is libtorch's channels-last format.</remarks>
internal sealed class GatedCnn : VisionStack
{
    private readonly Downsampling stem;
    private readonly ModuleList<Downsampling> downsamplings; // before each stage
    private readonly ModuleList<ModuleList<GatedCnnBlock>> stages;

    public GatedCnn(GatedCnnBackbone backbone, int channels) : base(nameof(GatedCnn))
    {
        backbone.Validate();
        var (widths, depths) = (backbone.Widths, backbone.Depths);
        stem = new Downsampling(channels, widths[0] / 2, stride: backbone.StemStride > 1 ? 2 : 1);
        downsamplings = new ModuleList<Downsampling>();
        stages = new ModuleList<ModuleList<GatedCnnBlock>>();
        var (layer, layers) = (0, depths.Sum());
        for (var stage = 0; stage < depths.Count; stage++)
        {
            downsamplings.Add(stage == 0 ? new Downsampling(widths[0] / 2, widths[0], stride: backbone.StemStride > 2 ? 2 : 1) : new Downsampling(widths[stage - 1], widths[stage], stride: 2));
            var blocks = new ModuleList<GatedCnnBlock>();
            for (var i = 0; i < depths[stage]; i++, layer++)
            {
                var (mixer, direction) = backbone.CreateMixer(stage, layer);
                blocks.Add(new GatedCnnBlock(widths[stage], mixer, direction, ResidualUpdate.DropPath(backbone.DropPath, layer, layers), backbone.LayerScale));
            }
            stages.Add(blocks);
        }
        Levels = [.. widths.Select((width, stage) => new FeatureLevel(width, backbone.StemStride << stage))];
        RegisterComponents();
    }

    public override IReadOnlyList<FeatureLevel> Levels { get; }

    public override Tensor[] forward(Tensor images)
    {
        var x = nn.functional.gelu(stem.call(images.permute(0, 2, 3, 1)));
        var maps = new Tensor[stages.Count];
        for (var stage = 0; stage < maps.Length; stage++)
        {
            x = downsamplings[stage].call(x);
            foreach (var block in stages[stage]) x = block.call(x);
            maps[stage] = x.permute(0, 3, 1, 2);
        }
        return maps;
    }
}

/// <summary>Depths and widths of MambaOut, as published with the code of Yu and Wang 2024.</summary>
public enum MambaOutSize
{
    /// <summary>7.3 million parameters with a head of 1000 classes.</summary>
    Femto,

    /// <summary>9.1 million parameters.</summary>
    Kobe,

    /// <summary>26.5 million parameters.</summary>
    Tiny,

    /// <summary>48.5 million parameters.</summary>
    Small,

    /// <summary>84.8 million parameters.</summary>
    Base,
}

/// <summary>A vision backbone made of gated convolutional blocks.</summary>
public abstract record GatedCnnBackbone : StagedVisionBackbone
{
    /// <summary>Pixels per place of the first stage: 4, or 2 or 1 for small images.</summary>
    public int StemStride { get; init; } = 4;

    internal override double HeadRatio => 4;

    /// <summary>The mixer of block <paramref name="layer"/>, counted through all stages, and the direction in which it reads a map; null: none.</summary>
    internal virtual (TokenMixer? Mixer, int Direction) CreateMixer(int stage, int layer) => (null, 0);

    internal sealed override VisionStack CreateStack(int channels) => new GatedCnn(this, channels);

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (StemStride is not (1 or 2 or 4)) yield return $"StemStride is {StemStride}; expected 4, 2 or 1.";
    }

    /// <exception cref="ArgumentOutOfRangeException">There is no such size.</exception>
    internal static (IntList Depths, IntList Widths) Of(MambaOutSize size) => size switch
    {
        MambaOutSize.Femto => ([3, 3, 9, 3], [48, 96, 192, 288]),
        MambaOutSize.Kobe => ([3, 3, 15, 3], [48, 96, 192, 288]),
        MambaOutSize.Tiny => ([3, 3, 9, 3], [96, 192, 384, 576]),
        MambaOutSize.Small => ([3, 4, 27, 3], [96, 192, 384, 576]),
        MambaOutSize.Base => ([3, 4, 27, 3], [128, 256, 512, 768]),
        _ => throw new ArgumentOutOfRangeException(nameof(size), size, "Unknown size."),
    };
}

/// <summary>MambaOut: Mamba's blocks without the state-space model. Yu and Wang, "MambaOut: do we really need Mamba for vision?", 2024.</summary>
public sealed record MambaOutBackbone : GatedCnnBackbone
{
    internal static IEnumerable<(string, Func<VisionBackbone>)> ReadyMade
        => Enum.GetValues<MambaOutSize>().Select(size => ($"mambaout-{size.ToString().ToLowerInvariant()}", (Func<VisionBackbone>)(() => MambaOut(size))));
}

public abstract partial record VisionBackbone
{
    /// <summary>MambaOut (Yu and Wang 2024): stages of gated convolutional blocks, at strides 4, 8, 16 and 32.</summary>
    /// <param name="size">Its depths and widths.</param>
    /// <param name="dropPath">Largest probability of leaving out a residual update while training.</param>
    public static MambaOutBackbone MambaOut(MambaOutSize size = MambaOutSize.Femto, double dropPath = 0)
    {
        var (depths, widths) = GatedCnnBackbone.Of(size);
        return new() { Depths = depths, Widths = widths, DropPath = dropPath };
    }
}
