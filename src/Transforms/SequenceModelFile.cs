using System.Security.Cryptography;
using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML;
using Microsoft.ML.Runtime;
using TorchSharp;

namespace MLSeq;

/// <summary>
/// A sequence classifier inside ML.NET's model zip: <c>MLSeq.json</c> (what it is), <c>Weights.safetensors</c>, <c>Label</c> (the classes' names) and
/// <c>Checksums.json</c> (SHA-256 of the others, because zip readers do not notice a flipped bit).
/// </summary>
/// <remarks>Files come from anywhere: every entry is bounded and checked, the network is made only when the weights that are there can fill it, and any
/// fault ends in one <see cref="FormatException"/> with nothing loaded.</remarks>
internal static class SequenceModelFile
{
    private const int Format = 1;
    private const int MaxDescriptionBytes = 256 << 20; // a vocabulary may be inside
    private const int MaxLabelBytes = 256 << 20;
    private const int MaxChecksumBytes = 1 << 12;
    private const string DescriptionEntry = "MLSeq.json", WeightsEntry = "Weights.safetensors", LabelEntry = "Label", ChecksumEntry = "Checksums.json";

    private static readonly JsonSerializerOptions JsonOptions = new()
    {
        UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow,
        Converters = { new JsonStringEnumConverter() },
        MaxDepth = 16,
    };

    private sealed record Description(int Format, JsonObject Backbone, SequenceInput Input, SequencePooling Pooling, int Classes,
        string Feature, string Score, string PredictedLabel);

    private static VersionInfo GetVersionInfo() => new(
        modelSignature: "MLSEQCLS",
        verWrittenCur: 0x00010001,
        verReadableCur: 0x00010001,
        verWeCanReadBack: 0x00010001,
        loaderSignature: SequenceClassificationTransformer.LoaderSignature,
        loaderAssemblyName: typeof(SequenceClassificationTransformer).Assembly.GetName().Name); // the simple name survives version changes

    public static void Save(IHost host, ModelSaveContext ctx, SequenceClassificationTransformer transformer, LabelColumn label)
    {
        host.CheckValue(ctx, nameof(ctx));
        ctx.CheckAtModel();
        ctx.SetVersionInfo(GetVersionInfo());
        var (spec, columns) = (transformer.Model.Spec, transformer.Columns);
        var description = new Description(Format, JsonNode.Parse(spec.Backbone.ToJson())!.AsObject(), transformer.Model.Input, spec.Pooling, spec.Classes,
            columns.Feature, columns.Score, columns.PredictedLabel);
        var checksums = new Dictionary<string, string>();
        void Write(string entry, Action<Stream> write) => ctx.SaveBinaryStream(entry, writer =>
        {
            using var hash = SHA256.Create();
            using (var stream = new CryptoStream(writer.BaseStream, hash, CryptoStreamMode.Write, leaveOpen: true)) write(stream);
            checksums[entry] = Convert.ToHexStringLower(hash.Hash!);
        });
        Write(DescriptionEntry, stream => JsonSerializer.Serialize(stream, description, JsonOptions));
        Write(WeightsEntry, stream => SafeTensors.Write(stream, Weights(transformer.Model.Network)));
        Write(LabelEntry, stream => label.Save(host, stream));
        ctx.SaveBinaryStream(ChecksumEntry, writer => JsonSerializer.Serialize(writer.BaseStream, checksums));
    }

    public static SequenceClassificationTransformer Load(IHostEnvironment env, ModelLoadContext ctx)
    {
        env.CheckValue(ctx, nameof(ctx));
        ctx.CheckAtModel(GetVersionInfo());
        var checksums = Entry(env, ctx, ChecksumEntry, MaxChecksumBytes, null, stream => JsonSerializer.Deserialize<Dictionary<string, string>>(stream) ?? []);
        var description = Entry(env, ctx, DescriptionEntry, MaxDescriptionBytes, checksums, stream => JsonSerializer.Deserialize<Description>(stream, JsonOptions) ?? throw new FormatException("It is empty."));
        var spec = Checked(env, DescriptionEntry, () => Specify(description));
        var label = Entry(env, ctx, LabelEntry, MaxLabelBytes, checksums, stream => LabelColumn.Load(env, Copy(stream)));
        if (label.Count != (ulong)spec.Classes) throw Refusal(env, LabelEntry, $"It names {label.Count?.ToString() ?? "no"} classes; expected {spec.Classes}.", null);
        using var channel = env.Start("Loading a sequence classifier");
        var device = DeviceChoice.Resolve(env, null, text => channel.Warning(text));
        var network = Entry(env, ctx, WeightsEntry, long.MaxValue, checksums, stream => LoadNetwork(spec, stream));
        network.MoveTo(device);
        return new SequenceClassificationTransformer(env, new SequenceClassificationModel(spec, description.Input, network, device), label,
            new(description.Feature, description.Score, description.PredictedLabel));
    }

    private static SequenceClassifierSpec Specify(Description description)
    {
        if (description.Format != Format) throw new FormatException($"Its format is {description.Format}; this version of MLSeq reads {Format}.");
        if (description.Classes is < 2 or > 1 << 20) throw new FormatException($"It has {description.Classes} classes.");
        if (!Enum.IsDefined(description.Pooling)) throw new FormatException($"Pooling is {description.Pooling}.");
        foreach (var name in (string?[])[description.Feature, description.Score, description.PredictedLabel])
            if (string.IsNullOrEmpty(name)) throw new FormatException("A column has no name.");
        if (description.Input is null || description.Backbone is null) throw new FormatException("Input or Backbone is missing.");
        description.Input.Validate();
        return new SequenceClassifierSpec(Backbone.FromJson(description.Backbone.ToJsonString()), description.Input.Element, description.Pooling, description.Classes);
    }

    private static SequenceClassifier LoadNetwork(SequenceClassifierSpec spec, Stream stream)
    {
        // A description of a network larger than its weights must not make us allocate that network. The smallest any kind can be is an embedding, a
        // square matrix per block, and the head; sizes beyond that are bounded multiples (Backbone.Problems).
        long width = spec.Backbone.Width, rows = spec.Input switch { ElementKind.Tokens tokens => tokens.Count, ElementKind.Words words => words.Buckets, ElementKind.Series series => series.Channels, _ => 0 };
        var atLeast = sizeof(float) * (width * (rows + spec.Classes) + spec.Backbone.Depth * width * width);
        if (stream.Length < atLeast) throw new FormatException($"It has {stream.Length} bytes, but a network as described needs at least {atLeast}.");
        MLSeqRuntime.EnsureLoaded();
        var network = new SequenceClassifier(spec);
        try
        {
            SafeTensors.Read(stream, Weights(network));
            return network;
        }
        catch
        {
            network.Dispose();
            throw;
        }
    }

    /// <summary>All parameters by name, in the order of the modules.</summary>
    internal static IReadOnlyList<(string Name, torch.Tensor Value)> Weights(SequenceClassifier network)
        => [.. network.named_parameters().Select(parameter => (parameter.name, (torch.Tensor)parameter.parameter))];

    private static T Entry<T>(IHostEnvironment env, ModelLoadContext ctx, string name, long maxBytes, Dictionary<string, string>? checksums, Func<Stream, T> read)
    {
        T? result = default;
        var found = Checked(env, name, () => ctx.TryLoadBinaryStream(name, reader =>
        {
            var stream = reader.BaseStream;
            if (stream.Length > maxBytes) throw new FormatException($"It has {stream.Length} bytes; expected at most {maxBytes}.");
            if (checksums is not null)
            {
                if (Convert.ToHexStringLower(SHA256.HashData(stream)) != checksums.GetValueOrDefault(name)) throw new FormatException("Its checksum differs.");
                stream.Position = 0;
            }
            result = read(stream);
        }));
        return found ? result! : throw Refusal(env, name, "It is missing.", null);
    }

    private static T Checked<T>(IHostEnvironment env, string name, Func<T> read)
    {
        try
        {
            return read();
        }
        catch (Exception e) when (e is not (OutOfMemoryException or LibTorchLoadException))
        {
            throw Refusal(env, name, e.Message, e);
        }
    }

    private static Exception Refusal(IExceptionContext env, string entry, string reason, Exception? inner)
        => env.ExceptDecode(inner, $"The model cannot be loaded: its entry '{entry}' is damaged or was not written by MLSeq. {reason} Nothing was loaded; save the model again from its source.");

    private static MemoryStream Copy(Stream stream)
    {
        var copy = new MemoryStream(); // BinaryLoader keeps the stream
        stream.CopyTo(copy);
        copy.Position = 0;
        return copy;
    }
}
