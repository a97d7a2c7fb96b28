using System.Diagnostics;
using System.Globalization;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq.Examples;
using TorchSharp;

namespace MLSeq.Benchmarks;

/// <summary>Training throughput through <c>Fit</c>: images of 224², 1000 classes, kept on the device, or decoded from JPEG files anew in every epoch.</summary>
internal static class VisionBenchmark
{
    /// <summary>Images per second of eager PyTorch on an H200 (bfloat16 autocast, channels last, fused AdamW, batch 128).</summary>
    private static readonly (string Name, Func<VisionBackbone> Make, double Reference)[] Models =
    [
        ("resnet18", () => VisionBackbone.ResNet(18), 11_739),
        ("resnet50", () => VisionBackbone.ResNet(50), 3_429),
        ("vit-b16", () => VisionBackbone.Patch(Backbone.Transformer(width: 768, depth: 12, heads: 12, bidirectional: true, dropout: 0)), 2_138),
        ("mambaout-femto", () => VisionBackbone.MambaOut(MambaOutSize.Femto), 3_415),
        ("mambaout-tiny", () => VisionBackbone.MambaOut(MambaOutSize.Tiny), 2_140),
    ];

    public static void Run(CommandLine command)
    {
        MLSeqRuntime.EnsureLoaded();
        var quick = command.Has("--quick");
        var device = command.Get("--device", torch.cuda.is_available() ? "cuda" : "cpu");
        int size = (int)command.Get("--image-size", quick ? 32 : 224), batch = (int)command.Get("--batch", quick ? 4 : 128);
        var fed = command.Get("--fed", "resident");
        var count = batch * (quick ? 2 : (int)command.Get("--steps", 16)); // per epoch
        var wanted = command.Get("--models", string.Join(',', Models.Select(model => model.Name))).Split(',');
        using var folder = fed == "files" ? new TemporaryFiles(count, size) : null;
        foreach (var (name, make, reference) in Models.Where(model => wanted.Contains(model.Name)))
        {
            var ml = new MLContext(seed: 1);
            var data = folder is null ? Resident(ml, count, size) : Files(ml, folder, count);
            var ends = new List<TimeSpan>();
            var clock = Stopwatch.StartNew();
            var options = new ImageClassificationTrainer.Options
            {
                Backbone = make(), FeatureColumnName = "Image", BatchSize = batch, Epochs = quick ? 2 : (int)command.Get("--epochs", 6), Device = device, LearningRate = 1e-4, HeadDropout = 0,
                DeviceDataBudget = fed == "memory" || fed == "files" ? 0 : 64L << 30, HostDataBudget = fed == "files" ? 0 : long.MaxValue, ImageHeight = size, ImageWidth = size,
                Augmentation = fed == "files" ? ImageAugmentation.Standard : ImageAugmentation.None, CropFraction = fed == "files" ? 0.875 : 1,
                Progress = new AtEpochs(() => ends.Add(clock.Elapsed)),
            };
            var model = ml.MulticlassClassification.Trainers.ImageClassification(options).Fit(ml.Transforms.Conversion.MapValueToKey("Label").Fit(data).Transform(data));
            // The first epoch chooses kernels and fills caches; an epoch's last report has waited for the device.
            var rates = ends.Zip(ends.Skip(1), (from, to) => count / (to - from).TotalSeconds).Order().ToArray();
            var rate = rates[rates.Length / 2];
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"RESULT benchmark=vision model={name} fed={fed} device={model.Device} image={size} batch={batch} parameters={model.ParameterCount} images_per_second={rate:F0} ratio_to_table={rate / reference:F2} read_seconds={ends[0].TotalSeconds:F1}"));
        }
        if (folder is not null)
        {
            var clock = Stopwatch.StartNew();
            Parallel.ForEach(Directory.GetFiles(folder.Path), path => MLImage.CreateFromFile(path).Dispose());
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"RESULT benchmark=decode cores={Environment.ProcessorCount} images_per_second={count / clock.Elapsed.TotalSeconds:F0}"));
        }
    }

    // 1000 classes; each image of one colour, so that there is something to learn.
    private static IDataView Resident(MLContext ml, int count, int size)
    {
        var schema = SchemaDefinition.Create(typeof(PixelRow));
        schema["Image"].ColumnType = new VectorDataViewType(NumberDataViewType.Byte, 3, size, size);
        var random = new Random(1);
        return ml.Data.LoadFromEnumerable(Enumerable.Range(0, count).Select(i =>
        {
            var row = new PixelRow { Label = i % 1000, Image = new byte[3 * size * size] };
            random.NextBytes(row.Image);
            return row;
        }), schema);
    }

    private static IDataView Files(MLContext ml, TemporaryFiles folder, int count)
        => ml.Data.LoadFromEnumerable(Enumerable.Range(0, count).Select(i => new FileRow { Label = i % 1000, Image = Path.Combine(folder.Path, $"{i}.jpg") }));

    private sealed class PixelRow
    {
        public int Label { get; set; }

        public byte[] Image { get; set; } = [];
    }

    private sealed class FileRow
    {
        public int Label { get; set; }

        public string Image { get; set; } = "";
    }

    private sealed class AtEpochs(Action end) : IProgress<TrainingProgress>
    {
        public void Report(TrainingProgress value)
        {
            if (value.IsEpochEnd) end();
        }
    }

    /// <summary>JPEG files of about the size of ImageNet's, 500 × 375 for 224.</summary>
    private sealed class TemporaryFiles : IDisposable
    {
        public TemporaryFiles(int count, int size)
        {
            int width = size * 500 / 224, height = size * 375 / 224;
            Parallel.For(0, count, i =>
            {
                var random = new Random(i);
                var pixels = new byte[width * height * 4];
                double a = random.NextDouble() / 20, b = random.NextDouble() / 20;
                for (var p = 0; p < width * height; p++)
                {
                    int x = p % width, y = p / width;
                    pixels[4 * p] = (byte)(127 + 60 * Math.Sin(a * x) + random.Next(40));
                    pixels[4 * p + 1] = (byte)(127 + 60 * Math.Sin(b * y) + random.Next(40));
                    pixels[4 * p + 2] = (byte)(127 + 60 * Math.Sin(a * x + b * y) + random.Next(40));
                    pixels[4 * p + 3] = 255;
                }
                using var image = MLImage.CreateFromPixels(width, height, MLPixelFormat.Bgra32, pixels);
                image.Save(System.IO.Path.Combine(Path, $"{i}.jpg"));
            });
        }

        public string Path { get; } = Directory.CreateTempSubdirectory("mlseq-vision-").FullName;

        public void Dispose() => Directory.Delete(Path, recursive: true);
    }
}
