using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What an image segmenter is made of; with its weights, all there is to know.</summary>
/// <param name="Backbone">The stack.</param>
/// <param name="Channels">Channels of an image.</param>
/// <param name="Classes">Classes of a pixel.</param>
/// <param name="HeadWidth">Features of each level of the pyramid; at full resolution half as many, and a quarter for details.</param>
internal sealed record ImageSegmenterSpec(VisionBackbone Backbone, int Channels, int Classes, int HeadWidth = 64);

/// <summary>
/// Backbone, feature pyramid, and a detail branch: images [batch, channels, height, width] to Single logits of every pixel, [batch, classes, height, width].
/// </summary>
/// <remarks>
/// The pyramid (Xiao et al., "Unified perceptual parsing for scene understanding", 2018) knows what is where, down to stride 4. Levels that are finer than that join it one by one with few features, as in a U-Net
/// (Ronneberger et al. 2015), because wide layers at full resolution would cost more than all the rest. Two convolutions of the image itself know where exactly edges are; a last convolution joins them.
/// </remarks>
internal sealed class ImageSegmenter : nn.Module<Tensor, Tensor>
{
    private const int PyramidStride = 4;

    private readonly VisionStack backbone;
    private readonly FeaturePyramid pyramid;
    private readonly ModuleList<NormedConvolution> finer; // of the levels below the pyramid, coarsest first
    private readonly ModuleList<NormedConvolution> details;
    private readonly NormedConvolution join;
    private readonly Linear head;

    public ImageSegmenter(ImageSegmenterSpec spec) : base(nameof(ImageSegmenter))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(spec.HeadWidth, 4);
        var (coarse, fine) = (spec.HeadWidth / 2, spec.HeadWidth / 4);
        var stack = spec.Backbone.CreateStack(spec.Channels);
        backbone = stack.Levels.Count > 1 ? stack : new LevelPyramid(stack);
        var levels = backbone.Levels;
        var below = Math.Min(levels.Count(level => level.Stride < PyramidStride), levels.Count - 1);
        pyramid = new FeaturePyramid([.. levels.Skip(below)], spec.HeadWidth, coarse);
        finer = new ModuleList<NormedConvolution>();
        var width = coarse;
        foreach (var level in levels.Take(below).Reverse())
        {
            var outputs = level.Stride > 1 ? coarse : fine;
            finer.Add(new NormedConvolution(width + level.Width, outputs, 3));
            width = outputs;
        }
        details = new(new NormedConvolution(spec.Channels, fine, 3), new NormedConvolution(fine, fine, 3));
        join = new NormedConvolution(width + fine, coarse, 3);
        head = nn.Linear(coarse, spec.Classes);
        RegisterComponents();
    }

    public override Tensor forward(Tensor images)
    {
        images = images.to(head.weight.dtype);
        var maps = backbone.call(images);
        var level = finer.Count;
        var what = pyramid.call(maps[level..]);
        foreach (var convolution in finer)
        {
            var map = maps[--level];
            what = FeaturePyramid.Enlarge(what, backbone.Levels[level + 1].Stride / backbone.Levels[level].Stride, map.shape[2], map.shape[3]);
            what = nn.functional.relu(convolution.call(cat([what, map], 1)));
        }
        what = FeaturePyramid.Enlarge(what, backbone.Levels[0].Stride, images.shape[2], images.shape[3]);
        var where = images;
        foreach (var convolution in details) where = nn.functional.relu(convolution.call(where));
        var pixels = nn.functional.relu(join.call(cat([what, where], 1)));
        return head.call(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).to(float32);
    }
}
