using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Maps of several levels become one at the finest: <c>P_l = lateral(C_l) + enlarge(P_{l+1})</c>, pyramid pooling at the top, then all levels enlarged, joined and fused.</summary>
/// <remarks>Lin et al. 2017, figure 3 (the pyramid); Xiao et al. 2018, figure 4 (pooling at its top, and the fusion).</remarks>
internal sealed class FeaturePyramid : nn.Module<Tensor[], Tensor>
{
    private readonly ModuleList<NormedConvolution> laterals, smoothings; // of all levels but the top
    private readonly PyramidPooling top;
    private readonly NormedConvolution fusion;
    private readonly int[] _strides;

    /// <param name="levels">Of the maps, finest first.</param>
    /// <param name="width">Features of each level.</param>
    /// <param name="outputs">Features of the result.</param>
    public FeaturePyramid(IReadOnlyList<FeatureLevel> levels, int width, int outputs) : base(nameof(FeaturePyramid))
    {
        _strides = [.. levels.Select(level => level.Stride)];
        var lower = levels.SkipLast(1).ToList();
        laterals = new([.. lower.Select(level => new NormedConvolution(level.Width, width, 1))]);
        smoothings = new([.. lower.Select(_ => new NormedConvolution(width, width, 3))]);
        top = new PyramidPooling(levels[^1].Width, width);
        fusion = new NormedConvolution(levels.Count * width, outputs, 3);
        RegisterComponents();
    }

    /// <param name="maps">[batch, width, height, width of the map], finest first.</param>
    /// <returns>[batch, outputs, height, width of the map] of the finest map.</returns>
    public override Tensor forward(Tensor[] maps)
    {
        var levels = new Tensor[maps.Length];
        levels[^1] = top.call(maps[^1]);
        for (var i = maps.Length - 2; i >= 0; i--)
            levels[i] = nn.functional.relu(laterals[i].call(maps[i])) + Enlarge(levels[i + 1], _strides[i + 1] / _strides[i], maps[i].shape[2], maps[i].shape[3]);
        for (var i = 0; i < smoothings.Count; i++) levels[i] = nn.functional.relu(smoothings[i].call(levels[i]));
        var (height, width) = (maps[0].shape[2], maps[0].shape[3]);
        return nn.functional.relu(fusion.call(cat([.. levels.Select((level, i) => Enlarge(level, _strides[i] / _strides[0], height, width))], 1)));
    }

    /// <summary>Bilinear interpolation by a whole factor; what reaches beyond the finer map, because sizes are rounded up, is cut off, so that places stay where they are.</summary>
    public static Tensor Enlarge(Tensor map, int factor, long height, long width)
    {
        if (factor > 1) map = Resize(map, map.shape[2] * factor, map.shape[3] * factor);
        return map.narrow(2, 0, height).narrow(3, 0, width);
    }

    /// <summary>Bilinear interpolation to any size.</summary>
    public static Tensor Resize(Tensor map, long height, long width) => nn.functional.interpolate(map, [height, width], mode: InterpolationMode.Bilinear, align_corners: false);
}

/// <summary>Lets every place know its surroundings: means over the whole map and over 2×2, 3×3 and 6×6 parts of it, each mapped to a few features, beside the map itself.</summary>
/// <remarks>Zhao et al., "Pyramid scene parsing network", 2017, section 3.2; without norms in the branches, where the whole map is one value.</remarks>
internal sealed class PyramidPooling : nn.Module<Tensor, Tensor>
{
    private static readonly int[] Parts = [1, 2, 3, 6];

    private readonly ModuleList<Linear> branches;
    private readonly NormedConvolution fusion;

    public PyramidPooling(int inputs, int outputs) : base(nameof(PyramidPooling))
    {
        var branch = Math.Max(1, outputs / Parts.Length);
        branches = new([.. Parts.Select(_ => nn.Linear(inputs, branch))]);
        fusion = new NormedConvolution(inputs + Parts.Length * branch, outputs, 3);
        RegisterComponents();
    }

    public override Tensor forward(Tensor map)
    {
        var all = new List<Tensor> { map };
        for (var i = 0; i < Parts.Length; i++)
        {
            var pooled = nn.functional.adaptive_avg_pool2d(map, Parts[i]).permute(0, 2, 3, 1);
            all.Add(FeaturePyramid.Resize(nn.functional.relu(branches[i].call(pooled)).permute(0, 3, 1, 2), map.shape[2], map.shape[3]));
        }
        return nn.functional.relu(fusion.call(cat(all, 1)));
    }
}

/// <summary>Makes levels of a stack that has one: transposed convolutions double it once and twice, as far as the stride can be halved, and pooling halves it.</summary>
/// <remarks>Li et al., "Exploring plain vision transformer backbones for object detection", 2022 (ViTDet), section 3.</remarks>
internal sealed class LevelPyramid : VisionStack
{
    private const int MostDoublings = 2;

    private readonly VisionStack stack;
    private readonly ModuleList<ConvTranspose2d> doublings; // coarsest first; each halves the features
    private readonly ModuleList<BatchNorm> norms;

    public LevelPyramid(VisionStack stack) : base(nameof(LevelPyramid))
    {
        this.stack = stack;
        doublings = new ModuleList<ConvTranspose2d>();
        norms = new ModuleList<BatchNorm>();
        var level = stack.Levels.Single();
        var levels = new List<FeatureLevel> { level with { Stride = level.Stride * 2 }, level };
        while (level.Stride % 2 == 0 && level.Width > 1 && doublings.Count < MostDoublings)
        {
            var finer = new FeatureLevel(level.Width / 2, level.Stride / 2);
            doublings.Add(nn.ConvTranspose2d(level.Width, finer.Width, 2, stride: 2, bias: false));
            norms.Add(new BatchNorm(finer.Width));
            levels.Add(level = finer);
        }
        levels.Reverse();
        Levels = levels;
        RegisterComponents();
    }

    public override IReadOnlyList<FeatureLevel> Levels { get; }

    public override Tensor[] forward(Tensor images)
    {
        var map = stack.call(images)[0];
        var maps = new List<Tensor> { nn.functional.max_pool2d(map, 2, stride: 2, ceil_mode: true), map };
        for (var i = 0; i < doublings.Count; i++)
        {
            map = nn.functional.relu(norms[i].call(doublings[i].call(map)));
            var stride = Levels[doublings.Count - 1 - i].Stride;
            map = map.narrow(2, 0, Places(images.shape[2], stride)).narrow(3, 0, Places(images.shape[3], stride));
            maps.Add(map);
        }
        maps.Reverse();
        return [.. maps];
    }

    private static long Places(long pixels, int stride) => (pixels + stride - 1) / stride;
}
