// Image segmentation: land and water on NASA's Blue Marble, or any folder of images and masks.
// Trains a backbone in an ML.NET pipeline, evaluates it pixel by pixel, and paints what it found over the test images as PNG files.
using System.Diagnostics;
using System.Drawing;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq;
using MLSeq.Examples;

var command = new CommandLine(args, """
    usage: Segmentation [--data FOLDER] [--classes a,b,...] [--backbone NAME] [--epochs N] [--batch N] [--rate X] [--crop N] [--device cpu|cuda] [--seed N] [--out FOLDER] [--quick]
           --data FOLDER    images/ and masks/ with files of the same names, and, if there is one, split.csv that tells which are for testing; else every fifth is
           --classes        names of the mask's values 0, 1, ...; a mask of two classes may be black and white
           --crop           side of the parts that training sees; needed when images differ in size
           --out            where to write the painted test images (default: painted)
    """);

var ml = new MLContext(seed: (int)command.Get("--seed", 1));
var quick = command.Has("--quick");
var own = command.Get("--data", "");
var files = ImageFolder.Masks(own.Length > 0 ? own : Path.Combine(AppContext.BaseDirectory, "data", "blue-marble")).ToArray();
var split = files.Any(file => file.Split == "test");
var isTest = files.Select((file, i) => split ? file.Split == "test" : i % 5 == 0).ToArray();
var train = ml.Data.LoadFromEnumerable(files.Where((_, i) => !isTest[i]).Take(quick ? 24 : int.MaxValue));
var testFiles = files.Where((_, i) => isTest[i]).Take(quick ? 12 : int.MaxValue).ToArray();
var test = ml.Data.LoadFromEnumerable(testFiles);
var classes = command.Get("--classes", own.Length > 0 ? "background,object" : "land,water").Split(',');
var crop = (int)command.Get("--crop", 0);

var options = new SemanticSegmentationTrainer.Options
{
    Backbone = command.VisionBackbone(VisionBackbone.Cnn(widths: [16, 32, 64, 128, 160])),
    ClassNames = classes,
    CropHeight = crop, CropWidth = crop, MaskAsImage = true,
    Epochs = (int)command.Get("--epochs", quick ? 1 : 30), BatchSize = (int)command.Get("--batch", 8), LearningRate = command.Get("--rate", 3e-3),
    WeightDecay = 0.05, Ema = 0.99, Augmentation = ImageAugmentation.Overhead, TestTimeFlips = ImageFlips.Horizontal | ImageFlips.Vertical,
    Device = command.Get("--device", "") is { Length: > 0 } device ? device : null,
    Progress = new ConsoleProgress(),
};
var images = ml.Transforms.LoadImages("Image", "", nameof(MaskedFile.ImagePath)).Append(ml.Transforms.LoadImages("Label", "", nameof(MaskedFile.MaskPath)));
var pipeline = images.Append(ml.ImageSegmentation.Trainers.SemanticSegmentation(options));

Console.WriteLine($"{isTest.Count(value => !value)} images to train on, {testFiles.Length} to test on");
var clock = Stopwatch.StartNew();
var model = pipeline.Fit(train);
var seconds = clock.Elapsed.TotalSeconds;
Console.WriteLine($"{options.Backbone.ToJson()}: {model.LastTransformer.ParameterCount:N0} parameters, {seconds:F1} s on {model.LastTransformer.Device}");

var metrics = ml.ImageSegmentation.Evaluate(model.Transform(test));
Console.WriteLine($"\n{metrics}");
if (own.Length == 0)
{
    // What one line of code achieves: water is bluer than it is red.
    var byRule = ml.Data.LoadFromEnumerable(testFiles.Select(file => new RuleRow { MaskPath = file.MaskPath, PredictedMask = BlueRule(file.ImagePath) }));
    var rule = ml.ImageSegmentation.Evaluate(ml.Transforms.LoadImages("Label", "", nameof(RuleRow.MaskPath)).Fit(byRule).Transform(byRule), classNames: classes);
    Console.WriteLine($"for comparison, the rule 'blue > red + 8 is water': mean IoU {rule.MeanIoU:F4}, pixel accuracy {rule.PixelAccuracy:F4}");
    Console.WriteLine($"RESULT method=color_rule mean_iou={rule.MeanIoU:F4} pixel_accuracy={rule.PixelAccuracy:F4}");
}

// Saved, loaded, and asked to paint.
ml.Model.Save(model, train.Schema, "model.zip");
var loaded = ml.Model.Load("model.zip", out _);
var painter = ml.ImageSegmentation.PaintMask("Painted", "Image", "PredictedMask", new PaintOptions { Scale = 3, Opacity = 0.35, Colors = own.Length > 0 ? null : [Color.Goldenrod, Color.RoyalBlue] });
var shown = ml.Data.LoadFromEnumerable(testFiles.Take(quick ? 2 : 12));
var painted = loaded.Append(painter.Fit(loaded.Transform(shown)));
var folder = Directory.CreateDirectory(command.Get("--out", "painted")).FullName;
foreach (var row in ml.Data.CreateEnumerable<PaintedRow>(painted.Transform(shown), reuseRowObject: false))
    row.Painted!.Save(Path.Combine(folder, Path.GetFileNameWithoutExtension(row.ImagePath) + ".png"));
Console.WriteLine($"painted test images are in {folder}");
Console.WriteLine($"RESULT data={(own.Length > 0 ? Path.GetFileName(own.TrimEnd('/')) : "blue-marble")} mean_iou={metrics.MeanIoU:F4} iou_last_class={metrics.PerClassIoU[^1]:F4} dice_last_class={metrics.PerClassDice[^1]:F4} " +
    $"pixel_accuracy={metrics.PixelAccuracy:F4} mean_image_iou={metrics.MeanImageIoU:F4} train_seconds={seconds:F1} parameters={model.LastTransformer.ParameterCount} device={model.LastTransformer.Device}");
return 0;

static byte[] BlueRule(string path)
{
    using var image = MLImage.CreateFromFile(path);
    var pixels = image.GetBGRPixels;
    return [.. Enumerable.Range(0, pixels.Length / 3).Select(i => (byte)(pixels[3 * i] > pixels[3 * i + 2] + 8 ? 1 : 0))];
}

internal sealed class RuleRow
{
    public string MaskPath { get; set; } = "";

    [VectorType(128, 128)]
    public byte[] PredictedMask { get; set; } = [];
}

internal sealed class PaintedRow
{
    public string ImagePath { get; set; } = "";

    public MLImage? Painted { get; set; }
}
