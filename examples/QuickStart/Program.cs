// DNA splice junctions: is the middle of these 60 bases a donor site, an acceptor site, or neither?
// Trains a backbone in an ML.NET pipeline, evaluates it, saves the model, loads it in a fresh process and compares.
using System.Diagnostics;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq;
using MLSeq.Examples;

const string ModelPath = "model.zip";
var command = new CommandLine(args, $"""
    usage: QuickStart [--backbone {string.Join('|', Backbone.Names)}] [--width N] [--depth N] [--epochs N] [--learning-rate X] [--dropout X] [--element-dropout X] [--head-dropout X] [--pooling NAME] [--ema X] [--seed N]
           QuickStart --predict model.zip
    """);

var ml = new MLContext(seed: (int)command.Get("--seed", 1));
var rows = ml.Data.CreateEnumerable<Junction>(
    ml.Data.LoadFromTextFile<Junction>(Path.Combine(AppContext.BaseDirectory, "data", "dna-splice.csv"), separatorChar: ',', hasHeader: true), reuseRowObject: false).ToList();
var test = ml.Data.LoadFromEnumerable(rows.Where((_, i) => i % 5 == 0)); // every fifth row

if (command.Has("--predict"))
{
    PrintScores(ml.Model.Load(command.Get("--predict", ModelPath), out _));
    return 0;
}

var train = ml.Data.LoadFromEnumerable(rows.Where((_, i) => i % 5 != 0));
var pipeline = ml.Transforms.Conversion.MapValueToKey("Label", nameof(Junction.Class))
    .Append(ml.MulticlassClassification.Trainers.SequenceClassification(new SequenceClassificationTrainer.Options
    {
        LabelColumnName = "Label",
        FeatureColumnName = nameof(Junction.Sequence),
        Backbone = command.Backbone("cnn", width: 64) with { Dropout = command.Get("--dropout", 0.2) },
        TextEncoding = TextEncoding.Utf8Bytes(), // one position per base
        Epochs = (int)command.Get("--epochs", 20),
        LearningRate = command.Get("--learning-rate", 2e-3),
        Ema = command.Get("--ema", 0.99),
        ElementDropout = command.Get("--element-dropout", 0.2),
        HeadDropout = command.Get("--head-dropout", 0.2),
        Pooling = Enum.Parse<SequencePooling>(command.Get("--pooling", "LearnedQuery")),
        LabelSmoothing = 0.05,
        WeightDecay = 0.05,
        Progress = new ConsoleProgress(),
    }))
    .Append(ml.Transforms.Conversion.MapKeyToValue("Predicted", "PredictedLabel"));

Console.WriteLine($"{rows.Count} junctions; training on four rows of five");
var clock = Stopwatch.StartNew();
var model = pipeline.Fit(train);
var trainSeconds = clock.Elapsed.TotalSeconds;

var metrics = ml.MulticlassClassification.Evaluate(model.Transform(test));
Console.WriteLine($"\naccuracy {metrics.MicroAccuracy:F4}, per class {metrics.MacroAccuracy:F4}, log loss {metrics.LogLoss:F4}");
Console.WriteLine(metrics.ConfusionMatrix.GetFormattedConfusionTable());

ml.Model.Save(model, train.Schema, ModelPath);
Console.WriteLine($"saved {Path.GetFullPath(ModelPath)} ({new FileInfo(ModelPath).Length / 1024} KiB); loading it in a fresh process");
var expected = new StringWriter();
Console.SetOut(expected);
PrintScores(model);
Console.SetOut(new StreamWriter(Console.OpenStandardOutput()) { AutoFlush = true });
var identical = RunFresh("--predict", ModelPath) == expected.ToString();

foreach (var junction in rows.Take(3))
{
    using var engine = ml.Model.CreatePredictionEngine<Junction, Prediction>(model, new PredictionEngineOptions { OwnsTransformer = false });
    var prediction = engine.Predict(junction);
    Console.WriteLine($"{junction.Sequence}  is {junction.Class}, predicted {prediction.Predicted} ({prediction.Score.Max():P1})");
}
Console.WriteLine($"RESULT accuracy={metrics.MicroAccuracy:F4} train_seconds={trainSeconds:F1} reload_identical={(identical ? "true" : "false")}");
return identical ? 0 : 1;

// Every bit of every score of the test rows, as text.
void PrintScores(ITransformer scorer)
{
    foreach (var row in ml.Data.CreateEnumerable<Prediction>(scorer.Transform(test), reuseRowObject: true))
        Console.WriteLine($"{row.Predicted} {string.Join(' ', row.Score.Select(score => BitConverter.SingleToInt32Bits(score).ToString("x8")))}");
}

static string RunFresh(params string[] arguments)
{
    var start = new ProcessStartInfo(Environment.ProcessPath!, Environment.GetCommandLineArgs()[0].EndsWith(".dll", StringComparison.Ordinal) && Path.GetFileNameWithoutExtension(Environment.ProcessPath) == "dotnet"
        ? [Environment.GetCommandLineArgs()[0], .. arguments]
        : arguments)
    { RedirectStandardOutput = true };
    using var process = Process.Start(start)!;
    var output = process.StandardOutput.ReadToEnd();
    process.WaitForExit();
    return output;
}

internal sealed class Junction
{
    [LoadColumn(0)] public string Class { get; set; } = "";

    [LoadColumn(1)] public string Sequence { get; set; } = "";
}

internal sealed class Prediction
{
    public string Predicted { get; set; } = "";

    public float[] Score { get; set; } = [];
}
