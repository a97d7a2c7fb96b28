using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What an image segmenter is made of; with its weights, all there is to know.</summary>
/// <param name="Backbone">The stack.</param>
/// <param name="Channels">Channels of an image.</param>
/// <param name="Classes">Classes of a pixel.</param>
/// <param name="HeadWidth">Features of each level of the pyramid; half as many, and a quarter for details, at full resolution.</param>
internal sealed record ImageSegmenterSpec(VisionBackbone Backbone, int Channels, int Classes, int HeadWidth = 64);

/// <summary>
/// Backbone, feature pyramid, and a detail branch: images [batch, channels, height, width] to Single logits of every pixel, [batch, classes, height, width].
/// </summary>
/// <remarks>
/// The pyramid (Xiao et al., "Unified perceptual parsing for scene understanding", 2018) knows what is where, down to its finest stride; two convolutions of the image itself, at full resolution, know where
/// exactly edges are. A last convolution joins both.
/// </remarks>
internal sealed class ImageSegmenter : nn.Module<Tensor, Tensor>
{
    private readonly VisionStack backbone;
    private readonly FeaturePyramid pyramid;
    private readonly ModuleList<NormedConvolution> details;
    private readonly NormedConvolution join;
    private readonly Linear head;
    private readonly int _stride;

    public ImageSegmenter(ImageSegmenterSpec spec) : base(nameof(ImageSegmenter))
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(spec.HeadWidth, 4);
        var (coarse, fine) = (spec.HeadWidth / 2, spec.HeadWidth / 4);
        var stack = spec.Backbone.CreateStack(spec.Channels);
        backbone = stack.Levels.Count > 1 ? stack : new LevelPyramid(stack);
        _stride = backbone.Levels[0].Stride;
        pyramid = new FeaturePyramid(backbone.Levels, spec.HeadWidth, coarse);
        details = new(new NormedConvolution(spec.Channels, fine, 3), new NormedConvolution(fine, fine, 3));
        join = new NormedConvolution(coarse + fine, coarse, 3);
        head = nn.Linear(coarse, spec.Classes);
        RegisterComponents();
    }

    public override Tensor forward(Tensor images)
    {
        images = images.to(head.weight.dtype);
        var what = FeaturePyramid.Enlarge(pyramid.call(backbone.call(images)), _stride, images.shape[2], images.shape[3]);
        var where = images;
        foreach (var convolution in details) where = nn.functional.relu(convolution.call(where));
        var pixels = nn.functional.relu(join.call(cat([what, where], 1)));
        return head.call(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).to(float32);
    }
}
