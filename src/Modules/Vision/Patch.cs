using System.Text.Json.Serialization;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// An image as a sequence of patches: <c>x = W · patch + position</c>, then a sequence backbone's residual blocks and a last norm. With attention, a vision transformer.
/// </summary>
/// <remarks>
/// Dosovitskiy et al. 2021, equations 1 to 4, without a class token. Positions are sines and cosines of row and column (Chen et al. 2021, "An empirical study of training self-supervised vision transformers"), so that any image size will do.
/// </remarks>
internal sealed class PatchStack : VisionStack
{
    private readonly Conv2d embedding;
    private readonly ModuleList<ResidualBlock> blocks;
    private readonly LayerNorm norm;
    private readonly int _size;
    private readonly VisionScan _scan;

    public PatchStack(PatchBackbone patches, int channels) : base(nameof(PatchStack))
    {
        patches.Validate();
        (_size, _scan) = (patches.PatchSize, patches.Scan);
        var backbone = patches.Backbone;
        embedding = nn.Conv2d(channels, backbone.Width, _size, stride: _size);
        blocks = nn.ModuleList(Enumerable.Range(0, backbone.Depth)
            .Select(layer => new ResidualBlock(backbone, layer, ResidualUpdate.DropPath(patches.DropPath, layer, backbone.Depth), patches.LayerScale)).ToArray());
        norm = nn.LayerNorm(backbone.Width);
        Levels = [new FeatureLevel(backbone.Width, _size)];
        RegisterComponents();
    }

    public override IReadOnlyList<FeatureLevel> Levels { get; }

    public override Tensor[] forward(Tensor images)
    {
        var (right, bottom) = (Missing(images.shape[3]), Missing(images.shape[2]));
        if (right + bottom > 0) images = nn.functional.pad(images, [0, right, 0, bottom]);
        var x = embedding.Apply(images, _size, padding: 0).permute(0, 2, 3, 1); // [batch, height, width, features]
        var (height, width) = (x.shape[1], x.shape[2]);
        x = x + Positions(height, width, x);
        for (var layer = 0; layer < blocks.Count; layer++)
        {
            // All but the mixer of a block looks at one place, so that the whole block may have the mixer's order.
            var direction = _scan.Direction(layer);
            var (sequence, update) = blocks[layer].call(ScanOrder.Sequence(x, direction), null, null, null);
            x = ScanOrder.Map(sequence + update, direction, height, width);
        }
        return [norm.call(x).permute(0, 3, 1, 2)];
    }

    private long Missing(long pixels) => (_size - pixels % _size) % _size;

    // sin(ω_i column), cos(ω_i column), sin(ω_i row), cos(ω_i row) with ω_i = 10000^(−4i / features): [height, width, features].
    private static Tensor Positions(long height, long width, Tensor like)
    {
        var quarter = like.shape[3] / 4;
        var frequency = pow(10000.0, arange(0, quarter, dtype: float32, device: like.device) / -(double)quarter);
        Tensor Waves(long places)
        {
            var angle = outer(arange(0, places, dtype: float32, device: like.device), frequency); // [places, quarter]
            return cat([angle.sin(), angle.cos()], -1).to(like.dtype);
        }
        return cat([Waves(width).unsqueeze(0).expand(height, -1, -1), Waves(height).unsqueeze(1).expand(-1, width, -1)], -1);
    }
}

/// <summary>A sequence backbone over the patches of an image. Dosovitskiy et al., "An image is worth 16x16 words: transformers for image recognition at scale", 2021.</summary>
public sealed record PatchBackbone : VisionBackbone
{
    /// <summary>The residual blocks.</summary>
    [JsonConverter(typeof(Backbone.NestedJson))]
    public Backbone Backbone { get; init; } = Backbone.Transformer(bidirectional: true);

    /// <summary>Pixels of a patch in each direction. An image that is no multiple is padded with zeros at the right and at the bottom.</summary>
    public int PatchSize { get; init; } = 16;

    /// <summary>The order in which mixers read the patches.</summary>
    [JsonConverter(typeof(JsonStringEnumConverter<VisionScan>))]
    public VisionScan Scan { get; init; }

    // The width and depth of ViT-Tiny (Touvron et al. 2021, DeiT, table 1).
    internal static IEnumerable<(string, Func<VisionBackbone>)> ReadyMade
        => Backbone.Names.Select(name => ($"patch-{name}", (Func<VisionBackbone>)(() => Patch(Backbone.Create(name, width: 192, depth: 12, bidirectional: true) with { Dropout = 0 }))));

    internal override long LeastParameters(int channels) => (long)Backbone.Depth * Backbone.Width * Backbone.Width + (long)PatchSize * PatchSize * channels * Backbone.Width;

    internal override int LeastFeatures => Backbone.Width;

    internal override VisionStack CreateStack(int channels) => new PatchStack(this, channels);

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (PatchSize is < 1 or > 256) yield return $"PatchSize is {PatchSize}; expected 1 to 256.";
        if (!Enum.IsDefined(Scan)) yield return $"Scan is {Scan}; expected {string.Join(" or ", Enum.GetNames<VisionScan>())}.";
        if (Backbone.Width % 4 != 0) yield return $"Backbone has Width {Backbone.Width}; expected a multiple of 4, for sines and cosines of two coordinates.";
        foreach (var problem in Backbone.Problems()) yield return $"Backbone: {problem}";
    }
}

public abstract partial record VisionBackbone
{
    /// <summary>A sequence backbone over the patches of an image; with attention, a vision transformer (Dosovitskiy et al. 2021).</summary>
    /// <param name="backbone">The blocks. Rotary positions are turned off, because patches carry the sines and cosines of their place.</param>
    /// <param name="patchSize">Pixels of a patch in each direction.</param>
    /// <param name="scan">The order in which mixers read the patches.</param>
    /// <param name="dropPath">Largest probability of leaving out a residual update while training.</param>
    public static PatchBackbone Patch(Backbone backbone, int patchSize = 16, VisionScan scan = VisionScan.RowMajor, double dropPath = 0)
    {
        ArgumentNullException.ThrowIfNull(backbone);
        return new() { Backbone = backbone.WithoutRotary(), PatchSize = patchSize, Scan = scan, DropPath = dropPath };
    }
}
