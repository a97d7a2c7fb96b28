using System.Text.Json.Nodes;
using Microsoft.ML;
using Microsoft.ML.Runtime;

namespace MLSeq;

/// <summary>A segmenter as <see cref="ModelEntries"/>.</summary>
internal static class SegmentationModelFile
{
    private const int Format = 1;

    private sealed record Description(int Format, JsonObject Backbone, ImageInput Input, SegmentationScoring Scoring, int HeadWidth, string Feature, string PredictedMask, string? Score);

    private static VersionInfo Version => ModelEntries.Version("MLSEQSEG", SemanticSegmentationTransformer.LoaderSignature);

    public static void Save(IHost host, ModelSaveContext ctx, SemanticSegmentationTransformer transformer)
    {
        host.CheckValue(ctx, nameof(ctx));
        ctx.CheckAtModel();
        ctx.SetVersionInfo(Version);
        var (model, columns) = (transformer.Model, transformer.Columns);
        var description = new Description(Format, JsonNode.Parse(model.Spec.Backbone.ToJson())!.AsObject(), model.Input, model.Scoring, model.Spec.HeadWidth,
            columns.Feature, columns.PredictedMask, columns.Score);
        ModelEntries.Save(host, ctx, description, model.Network, label: null);
    }

    public static SemanticSegmentationTransformer Load(IHostEnvironment env, ModelLoadContext ctx)
    {
        env.CheckValue(ctx, nameof(ctx));
        ctx.CheckAtModel(Version);
        var entries = new ModelEntries(env, ctx);
        var (description, spec) = entries.ReadDescription<Description, ImageSegmenterSpec>(Specify);
        using var channel = env.Start("Loading a segmenter");
        var device = DeviceChoice.Resolve(env, null, text => channel.Warning(text));
        var network = entries.ReadNetwork(() => new ImageSegmenter(spec), spec.Backbone.LeastParameters(spec.Channels) + (long)spec.HeadWidth * spec.HeadWidth);
        network.MoveTo(device);
        return new SemanticSegmentationTransformer(env, new SegmentationModel(spec, description.Input, description.Scoring, network, device),
            new(description.Feature, description.PredictedMask, description.Score));
    }

    private static ImageSegmenterSpec Specify(Description description)
    {
        ModelEntries.CheckFormat(description.Format, Format);
        ModelEntries.CheckNames(description.Feature, description.PredictedMask, description.Score ?? "none");
        if (description.Input is null || description.Backbone is null || description.Scoring is null) throw new FormatException("Input, Backbone or Scoring is missing.");
        description.Input.Validate();
        if (description.Input.Kind == ImageColumnKind.File) throw new FormatException("A segmenter reads no files.");
        ModelEntries.CheckFlips(description.Scoring.TestTimeFlips);
        if (string.Join(" ", description.Scoring.Problems()) is { Length: > 0 } problems) throw new FormatException(problems);
        if (description.Score is not null && description.Scoring.Height == 0) throw new FormatException("Scores need a size.");
        if (description.HeadWidth is < 4 or > 4096) throw new FormatException($"HeadWidth is {description.HeadWidth}.");
        return new ImageSegmenterSpec(VisionBackbone.FromJson(description.Backbone.ToJsonString()), description.Input.Channels, description.Scoring.ClassNames.Length, description.HeadWidth);
    }
}
