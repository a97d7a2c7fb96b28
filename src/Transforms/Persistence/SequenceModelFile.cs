using System.Text.Json.Nodes;
using Microsoft.ML;
using Microsoft.ML.Runtime;

namespace MLSeq;

/// <summary>A sequence classifier as <see cref="ModelEntries"/>.</summary>
internal static class SequenceModelFile
{
    private const int Format = 1;

    private sealed record Description(int Format, JsonObject Backbone, SequenceInput Input, SequencePooling Pooling, int Classes,
        string Feature, string Score, string PredictedLabel);

    private static VersionInfo Version => ModelEntries.Version("MLSEQCLS", SequenceClassificationTransformer.LoaderSignature);

    public static void Save(IHost host, ModelSaveContext ctx, SequenceClassificationTransformer transformer, LabelColumn label)
    {
        host.CheckValue(ctx, nameof(ctx));
        ctx.CheckAtModel();
        ctx.SetVersionInfo(Version);
        var (spec, columns) = (transformer.Model.Spec, transformer.Columns);
        var description = new Description(Format, JsonNode.Parse(spec.Backbone.ToJson())!.AsObject(), transformer.Model.Input, spec.Pooling, spec.Classes,
            columns.Feature, columns.Score, columns.PredictedLabel);
        ModelEntries.Save(host, ctx, description, transformer.Model.Network, label);
    }

    public static SequenceClassificationTransformer Load(IHostEnvironment env, ModelLoadContext ctx)
    {
        env.CheckValue(ctx, nameof(ctx));
        ctx.CheckAtModel(Version);
        var entries = new ModelEntries(env, ctx);
        var (description, spec) = entries.ReadDescription<Description, SequenceClassifierSpec>(Specify);
        var label = entries.ReadLabel(spec.Classes);
        using var channel = env.Start("Loading a sequence classifier");
        var device = DeviceChoice.Resolve(env, null, text => channel.Warning(text));
        var network = entries.ReadNetwork(() => new SequenceClassifier(spec), LeastParameters(spec));
        network.MoveTo(device);
        return new SequenceClassificationTransformer(env, new SequenceClassificationModel(spec, description.Input, network, device), label,
            new(description.Feature, description.Score, description.PredictedLabel));
    }

    private static SequenceClassifierSpec Specify(Description description)
    {
        ModelEntries.CheckFormat(description.Format, Format);
        if (description.Classes is < 2 or > 1 << 20) throw new FormatException($"It has {description.Classes} classes.");
        if (!Enum.IsDefined(description.Pooling)) throw new FormatException($"Pooling is {description.Pooling}.");
        ModelEntries.CheckNames(description.Feature, description.Score, description.PredictedLabel);
        if (description.Input is null || description.Backbone is null) throw new FormatException("Input or Backbone is missing.");
        description.Input.Validate();
        return new SequenceClassifierSpec(Backbone.FromJson(description.Backbone.ToJsonString()), description.Input.Element, description.Pooling, description.Classes);
    }

    // The smallest any kind can be is an embedding, a square matrix per block, and the head; sizes beyond that are bounded multiples (Backbone.Problems).
    private static long LeastParameters(SequenceClassifierSpec spec)
    {
        long width = spec.Backbone.Width, rows = spec.Input switch { ElementKind.Tokens tokens => tokens.Count, ElementKind.Words words => words.Buckets, ElementKind.Series series => series.Channels, _ => 0 };
        return width * (rows + spec.Classes) + spec.Backbone.Depth * width * width;
    }
}
