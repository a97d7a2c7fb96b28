// Text classification of any delimited file with a label column and a text column; without --data: SMS messages, ham or spam.
using System.Diagnostics;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq;
using MLSeq.Examples;

var command = new CommandLine(args, $"""
    usage: Text [--backbone {string.Join('|', Backbone.Names)}] [--width N] [--depth N] [--epochs N] [--seed N] [--quick]
                [--data FILE] [--test FILE] [--separator tab|comma|semicolon] [--header] [--label INDEX] [--text INDEX]
    Without --test, every fifth row of --data is the test set.
    """);
var ml = new MLContext(seed: (int)command.Get("--seed", 1));
var path = command.Get("--data", Path.Combine(AppContext.BaseDirectory, "data", "sms-spam.tsv"));

var rows = Read(path);
var testPath = command.Get("--test", "");
var train = ml.Data.LoadFromEnumerable(testPath.Length > 0 ? rows : [.. rows.Where((_, i) => i % 5 != 0)]);
var test = ml.Data.LoadFromEnumerable(testPath.Length > 0 ? Read(testPath) : [.. rows.Where((_, i) => i % 5 == 0)]);

var pipeline = ml.Transforms.Conversion.MapValueToKey("Label", nameof(Message.Class))
    .Append(ml.MulticlassClassification.Trainers.SequenceClassification(new SequenceClassificationTrainer.Options
    {
        FeatureColumnName = nameof(Message.Text),
        Backbone = command.Backbone("gru", width: 64, depth: 1) with { Dropout = 0.2 },
        Epochs = (int)command.Get("--epochs", command.Has("--quick") ? 1 : 6),
        LearningRate = 2e-3,
        WeightDecay = 0.05,
        LabelSmoothing = 0.05,
        ElementDropout = 0.3,
        HeadDropout = 0.2,
        Ema = 0.99,
        Progress = new ConsoleProgress(),
    }))
    .Append(ml.Transforms.Conversion.MapKeyToValue("Predicted", "PredictedLabel"));

var clock = Stopwatch.StartNew();
var model = pipeline.Fit(train);
var trainSeconds = clock.Elapsed.TotalSeconds;
var metrics = ml.MulticlassClassification.Evaluate(model.Transform(test));
Console.WriteLine($"\naccuracy {metrics.MicroAccuracy:F4}, per class {metrics.MacroAccuracy:F4}, log loss {metrics.LogLoss:F4}");
Console.WriteLine(metrics.ConfusionMatrix.GetFormattedConfusionTable());
Console.WriteLine($"RESULT accuracy={metrics.MicroAccuracy:F4} train_seconds={trainSeconds:F1}");

List<Message> Read(string file)
{
    var separator = command.Get("--separator", "tab") switch { "comma" => ',', "semicolon" => ';', _ => '\t' };
    var columns = new[]
    {
        new TextLoader.Column(nameof(Message.Class), DataKind.String, (int)command.Get("--label", 0)),
        new TextLoader.Column(nameof(Message.Text), DataKind.String, (int)command.Get("--text", 1)),
    };
    var view = ml.Data.LoadFromTextFile(file, columns, separator, command.Has("--header"), allowQuoting: true);
    return [.. ml.Data.CreateEnumerable<Message>(view, reuseRowObject: false)];
}

internal sealed class Message
{
    public string Class { get; set; } = "";

    public string Text { get; set; } = "";
}
