// Japanese Vowels: which of nine speakers said this vowel? 12 channels, 7 to 29 samples: a variable-length multivariate series.
using System.Diagnostics;
using System.Globalization;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq;
using MLSeq.Examples;

var command = new CommandLine(args, $"""
    usage: TimeSeries [--backbone {string.Join('|', Backbone.Names)}] [--width N] [--depth N] [--epochs N] [--seed N] [--quick]
    """);
var ml = new MLContext(seed: (int)command.Get("--seed", 1));
const int Channels = 12;

var train = Load("JapaneseVowels_TRAIN.ts");
var test = Load("JapaneseVowels_TEST.ts");
var pipeline = ml.Transforms.Conversion.MapValueToKey("Label", nameof(Utterance.Speaker))
    .Append(ml.MulticlassClassification.Trainers.SequenceClassification(new SequenceClassificationTrainer.Options
    {
        FeatureColumnName = nameof(Utterance.Samples),
        Backbone = command.Backbone("gru", width: 64) with { Dropout = 0.2 },
        Epochs = (int)command.Get("--epochs", command.Has("--quick") ? 5 : 60),
        BatchSize = 16,
        LearningRate = 2e-3,
        WeightDecay = 0.05,
        LabelSmoothing = 0.05,
        ElementDropout = 0.2,
        HeadDropout = 0.2,
        Ema = 0.99,
        Progress = new ConsoleProgress(),
    }))
    .Append(ml.Transforms.Conversion.MapKeyToValue("Predicted", "PredictedLabel"));

var clock = Stopwatch.StartNew();
var model = pipeline.Fit(train);
var trainSeconds = clock.Elapsed.TotalSeconds;
var metrics = ml.MulticlassClassification.Evaluate(model.Transform(test));
Console.WriteLine($"\naccuracy {metrics.MicroAccuracy:F4}, log loss {metrics.LogLoss:F4} on the official test split");
Console.WriteLine(metrics.ConfusionMatrix.GetFormattedConfusionTable());
Console.WriteLine($"RESULT accuracy={metrics.MicroAccuracy:F4} train_seconds={trainSeconds:F1}");

// A variable number of times, 12 channels each.
IDataView Load(string file)
{
    var schema = SchemaDefinition.Create(typeof(Utterance));
    schema[nameof(Utterance.Samples)].ColumnType = new VectorDataViewType(NumberDataViewType.Single, 0, Channels);
    return ml.Data.LoadFromEnumerable(Read(Path.Combine(AppContext.BaseDirectory, "data", file)).ToList(), schema);
}

// The .ts format of the UEA archive: channels separated by colons, the class last.
static IEnumerable<Utterance> Read(string path)
{
    foreach (var line in File.ReadLines(path).Where(line => line.Length > 0 && line[0] is not ('@' or '#')))
    {
        var parts = line.Split(':');
        var channels = parts[..^1].Select(part => part.Split(',').Select(number => float.Parse(number, CultureInfo.InvariantCulture)).ToArray()).ToArray();
        var samples = new float[channels[0].Length * channels.Length];
        for (var time = 0; time < channels[0].Length; time++)
            for (var channel = 0; channel < channels.Length; channel++)
                samples[time * channels.Length + channel] = channels[channel][time];
        yield return new Utterance { Speaker = parts[^1], Samples = samples };
    }
}

internal sealed class Utterance
{
    public string Speaker { get; set; } = "";

    public float[] Samples { get; set; } = [];
}
