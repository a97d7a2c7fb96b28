// Japanese Vowels: which of nine speakers said this vowel? 12 channels, 7 to 29 samples: a variable-length multivariate series.
using System.Diagnostics;
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
var pipeline = ml.Transforms.Conversion.MapValueToKey(nameof(LabelledSeries.Label))
    .Append(ml.MulticlassClassification.Trainers.SequenceClassification(new SequenceClassificationTrainer.Options
    {
        FeatureColumnName = nameof(LabelledSeries.Samples),
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
    var schema = SchemaDefinition.Create(typeof(LabelledSeries));
    schema[nameof(LabelledSeries.Samples)].ColumnType = new VectorDataViewType(NumberDataViewType.Single, 0, Channels);
    return ml.Data.LoadFromEnumerable(TimeSeriesFile.Read(Path.Combine(AppContext.BaseDirectory, "data", file)).ToList(), schema);
}
