using System.Text.Json.Nodes;
using Microsoft.ML;
using Microsoft.ML.Runtime;

namespace MLSeq;

/// <summary>An image classifier as <see cref="ModelEntries"/>.</summary>
internal static class ImageClassificationModelFile
{
    private const int Format = 1;

    private sealed record Description(int Format, JsonObject Backbone, ImageInput Input, int Classes, ImageFlips TestTimeFlips, string Feature, string Score, string PredictedLabel);

    private static VersionInfo Version => ModelEntries.Version("MLSEQIMG", ImageClassificationTransformer.LoaderSignature);

    public static void Save(IHost host, ModelSaveContext ctx, ImageClassificationTransformer transformer, LabelColumn label)
    {
        host.CheckValue(ctx, nameof(ctx));
        ctx.CheckAtModel();
        ctx.SetVersionInfo(Version);
        var (model, columns) = (transformer.Model, transformer.Columns);
        var description = new Description(Format, JsonNode.Parse(model.Spec.Backbone.ToJson())!.AsObject(), model.Input, model.Spec.Classes, model.TestTimeFlips,
            columns.Feature, columns.Score, columns.PredictedLabel);
        ModelEntries.Save(host, ctx, description, model.Network, label);
    }

    public static ImageClassificationTransformer Load(IHostEnvironment env, ModelLoadContext ctx)
    {
        env.CheckValue(ctx, nameof(ctx));
        ctx.CheckAtModel(Version);
        var entries = new ModelEntries(env, ctx);
        var (description, spec) = entries.ReadDescription<Description, ImageClassifierSpec>(Specify);
        var label = entries.ReadLabel(spec.Classes);
        using var channel = env.Start("Loading an image classifier");
        var device = DeviceChoice.Resolve(env, null, text => channel.Warning(text));
        var network = entries.ReadNetwork(() => new ImageClassifier(spec), spec.Backbone.LeastParameters(spec.Channels) + (long)spec.Backbone.LeastFeatures * spec.Classes);
        network.MoveTo(device);
        return new ImageClassificationTransformer(env, new ImageClassificationModel(spec, description.Input, network, device, description.TestTimeFlips), label,
            new(description.Feature, description.Score, description.PredictedLabel));
    }

    private static ImageClassifierSpec Specify(Description description)
    {
        ModelEntries.CheckFormat(description.Format, Format);
        if (description.Classes is < 2 or > 1 << 20) throw new FormatException($"It has {description.Classes} classes.");
        ModelEntries.CheckNames(description.Feature, description.Score, description.PredictedLabel);
        if (description.Input is null || description.Backbone is null) throw new FormatException("Input or Backbone is missing.");
        ModelEntries.CheckFlips(description.TestTimeFlips);
        description.Input.Validate();
        if (description.Input.Height == 0) throw new FormatException("The image size is missing.");
        return new ImageClassifierSpec(VisionBackbone.FromJson(description.Backbone.ToJsonString()), description.Input.Channels, description.Classes);
    }
}
