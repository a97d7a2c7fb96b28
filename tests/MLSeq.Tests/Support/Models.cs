using System.Diagnostics;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace MLSeq.Tests.Support;

/// <summary>Small data and models that many tests use.</summary>
internal static class Models
{
    public static MLContext Context() => new(seed: 1);

    /// <summary>A series problem: which third of the row has the bump?</summary>
    public static IDataView Series(MLContext ml, int rows = 120, int time = 12, int channels = 2, int seed = 1, bool fixedLength = true, int classes = 3)
    {
        var random = new Random(seed);
        var data = Enumerable.Range(0, rows).Select(i =>
        {
            var length = fixedLength ? time : random.Next(3, time + 1);
            var label = random.Next(classes);
            var values = new float[length * channels];
            for (var k = 0; k < values.Length; k++) values[k] = (float)(random.NextDouble() * 0.2);
            values[Math.Min(length - 1, label * length / classes) * channels] += 2;
            return new SeriesRow { Label = $"class {label}", Features = values, Id = i };
        }).ToList();
        return ml.Data.LoadFromEnumerable(data, SeriesSchema(fixedLength ? time : 0, channels));
    }

    public static SchemaDefinition SeriesSchema(params int[] dimensions)
    {
        var schema = SchemaDefinition.Create(typeof(SeriesRow));
        schema[nameof(SeriesRow.Features)].ColumnType = new VectorDataViewType(NumberDataViewType.Single, dimensions);
        return schema;
    }

    public static SequenceClassificationTrainer.Options Options(Backbone? backbone = null, int epochs = 3) => new()
    {
        Backbone = backbone ?? Backbone.Gru(width: 16, depth: 1),
        Epochs = epochs,
        BatchSize = 16,
        LearningRate = 5e-3,
        Device = "cpu",
    };

    public static IEstimator<ITransformer> Pipeline(MLContext ml, SequenceClassificationTrainer.Options options)
        => ml.Transforms.Conversion.MapValueToKey("Label")
            .Append(ml.MulticlassClassification.Trainers.SequenceClassification(options))
            .Append(ml.Transforms.Conversion.MapKeyToValue("Predicted", "PredictedLabel"));

    public static IEstimator<ITransformer> Pipeline(MLContext ml, Backbone? backbone = null, int epochs = 3) => Pipeline(ml, Options(backbone, epochs));

    public static List<ScoredRow> Score(MLContext ml, ITransformer model, IDataView view)
        => [.. ml.Data.CreateEnumerable<ScoredRow>(model.Transform(view), reuseRowObject: false)];

    public static SequenceClassificationTransformer Classifier(ITransformer model)
        => model as SequenceClassificationTransformer ?? ((IEnumerable<ITransformer>)model).OfType<SequenceClassificationTransformer>().Single();

    /// <summary>A chain's transformers, those of chains in it included.</summary>
    public static IEnumerable<ITransformer> Parts(ITransformer model) => model is IEnumerable<ITransformer> chain ? chain.SelectMany(Parts) : [model];

    /// <summary>Frees a model's network, which otherwise lives until the collector finds the model.</summary>
    public static void Release(params ITransformer[] models)
    {
        foreach (var part in models.SelectMany(Parts))
        {
            var network = part switch
            {
                SequenceClassificationTransformer sequences => sequences.Model.Network,
                ImageClassificationTransformer images => images.Model.Network,
                SemanticSegmentationTransformer masks => (TorchSharp.torch.nn.Module)masks.Model.Network,
                _ => null,
            };
            network?.Dispose();
        }
    }

    public static List<string> Warnings(MLContext ml)
    {
        var warnings = new List<string>();
        ml.Log += (_, entry) =>
        {
            if (entry.Kind == ChannelMessageKind.Warning) warnings.Add(entry.RawMessage);
        };
        return warnings;
    }

    public sealed class SeriesRow
    {
        public string Label { get; set; } = "";

        public float[] Features { get; set; } = [];

        public int Id { get; set; }
    }

    public sealed class ScoredRow
    {
        public string Predicted { get; set; } = "";

        public float[] Score { get; set; } = [];

        public int Id { get; set; }
    }
}

/// <summary>Runs the test host.</summary>
internal static class Host
{
    public static readonly string Folder = AppContext.BaseDirectory;

    public static (int ExitCode, string Output) Run(string[] arguments, Dictionary<string, string?>? environment = null, string? folder = null)
    {
        var start = new ProcessStartInfo("dotnet", [Path.Combine(folder ?? Folder, "MLSeq.TestHost.dll"), .. arguments]) { RedirectStandardOutput = true, RedirectStandardError = true };
        foreach (var (name, value) in environment ?? [])
            if (value is null) start.Environment.Remove(name);
            else start.Environment[name] = value;
        using var process = Process.Start(start)!;
        var errors = process.StandardError.ReadToEndAsync();
        var output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return (process.ExitCode, output + errors.Result);
    }
}

/// <summary>A folder that goes away with the test.</summary>
internal sealed class TemporaryFolder : IDisposable
{
    public string Path { get; } = Directory.CreateTempSubdirectory("mlseq-test-").FullName;

    public string File(string name) => System.IO.Path.Combine(Path, name);

    public void Dispose() => Directory.Delete(Path, recursive: true);
}

internal static class TensorExtensions
{
    /// <summary>Whether two tensors have the same shape and the same values, to the bit (not-a-number differs from itself).</summary>
    public static bool Same(this TorchSharp.torch.Tensor a, TorchSharp.torch.Tensor b) => a.shape.SequenceEqual(b.shape) && a.eq(b).all().item<bool>();
}
