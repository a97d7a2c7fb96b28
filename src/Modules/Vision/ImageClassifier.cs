using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What an image classifier is made of; with its weights, all there is to know.</summary>
/// <param name="Backbone">The stack.</param>
/// <param name="Channels">Channels of an image.</param>
/// <param name="Classes">Classes to tell apart.</param>
/// <param name="HeadDropout">Probability of dropping a feature before the last layer while training.</param>
internal sealed record ImageClassifierSpec(VisionBackbone Backbone, int Channels, int Classes, double HeadDropout = 0);

/// <summary>Backbone, mean over the places of its last map, and a head: images [batch, channels, height, width] to Single logits [batch, classes].</summary>
internal sealed class ImageClassifier : nn.Module<Tensor, Tensor>
{
    private readonly VisionStack backbone;
    private readonly MlpHead? mlp;
    private readonly Linear head;
    private readonly double _headDropout;

    public ImageClassifier(ImageClassifierSpec spec) : base(nameof(ImageClassifier))
    {
        backbone = spec.Backbone.CreateStack(spec.Channels);
        var width = backbone.Levels[^1].Width;
        if (spec.Backbone.HeadRatio > 0)
        {
            mlp = new MlpHead(width, (int)(width * spec.Backbone.HeadRatio));
            width = (int)(width * spec.Backbone.HeadRatio);
        }
        head = nn.Linear(width, spec.Classes);
        if (mlp is not null) VisionInit.Normal(head);
        _headDropout = spec.HeadDropout;
        RegisterComponents();
    }

    public override Tensor forward(Tensor images)
    {
        var map = backbone.call(images.to(head.weight.dtype))[^1];
        var features = map.mean([2, 3]);
        if (mlp is not null) features = mlp.call(features);
        if (training && _headDropout > 0) features = nn.functional.dropout(features, _headDropout);
        return head.call(features).to(float32);
    }
}

/// <summary>What MambaOut puts before the last layer: <c>y = norm(gelu(W norm(x)))</c>. Yu and Wang 2024.</summary>
internal sealed class MlpHead : nn.Module<Tensor, Tensor>
{
    private readonly LayerNorm norm, hiddenNorm;
    private readonly Linear hidden;

    public MlpHead(int width, int hiddenWidth) : base(nameof(MlpHead))
    {
        norm = nn.LayerNorm(width, 1e-6);
        hidden = VisionInit.Normal(nn.Linear(width, hiddenWidth));
        hiddenNorm = nn.LayerNorm(hiddenWidth, 1e-6);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x) => hiddenNorm.call(nn.functional.gelu(hidden.call(norm.call(x))));
}
