// DNA splice junctions: is the middle of these 60 bases a donor site, an acceptor site, or neither?
// Trains a backbone in an ML.NET pipeline, evaluates it, saves the model, loads it in a fresh process and compares.
using System.Diagnostics;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq;
using MLSeq.Examples;

const string ModelPath = "model.zip";
var command = new CommandLine(args, $"""
    usage: QuickStart [--backbone {string.Join('|', Backbone.Names)}] [--width N] [--depth N] [--epochs N] [--seed N] [--quick]
           QuickStart --predict model.zip
    """);

var ml = new MLContext(seed: (int)command.Get("--seed", 1));
var rows = ml.Data.CreateEnumerable<Junction>(
    ml.Data.LoadFromTextFile<Junction>(Path.Combine(AppContext.BaseDirectory, "data", "dna-splice.csv"), separatorChar: ',', hasHeader: true), reuseRowObject: false).ToList();
var test = ml.Data.LoadFromEnumerable(rows.Where((_, i) => i % 5 == 0)); // every fifth row

if (command.Has("--predict"))
{
    PrintScores(ml.Model.Load(command.Get("--predict", ModelPath), out _), Console.Out);
    return 0;
}

var train = ml.Data.LoadFromEnumerable(rows.Where((_, i) => i % 5 != 0));
var pipeline = ml.Transforms.Conversion.MapValueToKey("Label", nameof(Junction.Class))
    .Append(ml.MulticlassClassification.Trainers.SequenceClassification(new SequenceClassificationTrainer.Options
    {
        LabelColumnName = "Label",
        FeatureColumnName = nameof(Junction.Sequence),
        TextEncoding = TextEncoding.Utf8Bytes(), // one position per base
        Backbone = command.Backbone("lstm", width: 64) with { Dropout = 0.2, MlpRatio = 0 },
        Epochs = (int)command.Get("--epochs", command.Has("--quick") ? 2 : 20),
        BatchSize = 32,
        LearningRate = 3e-3,
        // 2,549 rows are soon learned by heart; these hold against it.
        WeightDecay = 0.05,
        ElementDropout = 0.2,
        HeadDropout = 0.2,
        LabelSmoothing = 0.05,
        Ema = 0.998,
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
using var expected = new StringWriter();
PrintScores(model, expected);
var identical = RunFresh("--predict", ModelPath) == expected.ToString();

using var engine = ml.Model.CreatePredictionEngine<Junction, Prediction>(ml.Model.Load(ModelPath, out _));
foreach (var junction in (Junction[])[rows[0], rows[1000], rows[2000]])
{
    var prediction = engine.Predict(junction);
    Console.WriteLine($"{junction.Sequence} is {junction.Class,-2}: predicted {prediction.Predicted,-2} ({prediction.Score.Max():P1})");
}
Console.WriteLine($"RESULT accuracy={metrics.MicroAccuracy:F4} train_seconds={trainSeconds:F1} reload_identical={(identical ? "true" : "false")}");
return identical ? 0 : 1;

// Every bit of every score of the test rows.
void PrintScores(ITransformer scorer, TextWriter to)
{
    foreach (var row in ml.Data.CreateEnumerable<Prediction>(scorer.Transform(test), reuseRowObject: true))
        to.WriteLine($"{row.Predicted} {string.Join(' ', row.Score.Select(score => BitConverter.SingleToInt32Bits(score).ToString("x8")))}");
}

// This program again, as `dotnet QuickStart.dll …` or as its own executable.
static string RunFresh(params string[] arguments)
{
    var ownHost = Path.GetFileNameWithoutExtension(Environment.ProcessPath) != "dotnet";
    var start = new ProcessStartInfo(Environment.ProcessPath!, ownHost ? arguments : [Environment.GetCommandLineArgs()[0], .. arguments]) { RedirectStandardOutput = true };
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
