// (f) "When is Mamba needed? For classifying images a gated CNN without the state-space model is as good or better; for segmenting them, which is longer and denser work, models with one, or with
// attention, still win." (Yu and Wang 2024.) One hierarchical network, with nothing, an SSM, attention or a delta rule in its last two stages, everything else alike; trained to classify and to segment.
using System.Diagnostics;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq.Examples.Charts;
using ScottPlot;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq.Examples.Claims;

internal static class MambaOut
{
    private static readonly (string Name, Backbone? Mixer)[] Mixers =
    [
        ("none (MambaOut)", null),
        ("mamba2", Backbone.Mamba2(bidirectional: true)),
        ("attention", Backbone.Transformer(bidirectional: true)),
        ("gateddeltanet", Backbone.GatedDeltaNet(bidirectional: true)),
    ];

    private sealed record Outcome(double Value, double ImagesPerSecond, long Parameters, double GigaFlops);

    public static void Run(Lab lab)
    {
        var chosen = lab.Mixers.Length > 0 ? Mixers.Where(mixer => lab.Mixers.Split(',').Any(name => mixer.Name.StartsWith(name, StringComparison.Ordinal))).ToArray() : Mixers;
        var seeds = lab.Numbers("--seeds", [1]);
        var (images, masks) = (lab.Text("--cifar", ""), lab.Text("--masks", ""));
        var (classifying, segmenting) = (images.Length > 0 ? "CIFAR-10" : "digits", masks.Length > 0 ? Path.GetFileName(masks.TrimEnd('/')) : "land and water");
        var rows = new List<string[]>();
        var bars = new List<(string Name, double Accuracy, double IoU)>();
        foreach (var (name, mixer) in chosen)
        {
            var classified = seeds.Select(seed => Classify(lab, mixer, images, seed)).ToArray();
            var segmented = seeds.Select(seed => Segment(lab, mixer, masks, seed)).ToArray();
            var (accuracy, iou) = (classified.Average(outcome => outcome.Value), segmented.Average(outcome => outcome.Value));
            bars.Add((name, accuracy, iou));
            rows.Add([name, (classified[0].Parameters / 1e6).Text(2), classified[0].GigaFlops.Text(2), accuracy.Text(4), Spread(classified), classified[0].ImagesPerSecond.Text(0),
                (segmented[0].Parameters / 1e6).Text(2), segmented[0].GigaFlops.Text(2), iou.Text(4), Spread(segmented), segmented[0].ImagesPerSecond.Text(0)]);
            lab.Result($"claim=f mixer={name.Compact()} accuracy={accuracy:F4} classifier_parameters={classified[0].Parameters} classifier_gflops={classified[0].GigaFlops:F3} classifier_images_per_second={classified[0].ImagesPerSecond:F0}",
                $"mean_iou={iou:F4} segmenter_gflops={segmented[0].GigaFlops:F3} segmenter_images_per_second={segmented[0].ImagesPerSecond:F0} seeds={seeds.Length}");
        }
        lab.Table("f", $"Classification of {classifying} and segmentation of {segmenting}, the last two of four stages with each mixer; means over {seeds.Length} seeds and their spread. " +
            $"GFLOP: of one image, forward. Images/s: training, {lab.Device.type}.",
            ["mixer", "M params", "GFLOP", "accuracy", "±", "images/s", "M params (seg.)", "GFLOP", "mean IoU", "±", "images/s"], rows);
        Draw(lab, classifying, segmenting, bars);
    }

    private static string Spread(Outcome[] outcomes) => ((outcomes.Max(outcome => outcome.Value) - outcomes.Min(outcome => outcome.Value)) / 2).Text(4);

    private static VisionBackbone Network(Lab lab, Backbone? mixer, int stem)
    {
        IntList depths = lab.Size<IntList>([1, 1, 1, 1], [1, 1, 2, 1], [2, 2, 4, 2]), widths = lab.Size<IntList>([16, 16, 32, 32], [16, 32, 64, 96], [32, 64, 128, 192]);
        return mixer is null
            ? VisionBackbone.MambaOut() with { Depths = depths, Widths = widths, StemStride = stem, DropPath = 0.1 }
            : VisionBackbone.Hierarchical(mixer) with { Depths = depths, Widths = widths, StemStride = stem, DropPath = 0.1 };
    }

    private static Outcome Classify(Lab lab, Backbone? mixer, string folder, int seed)
    {
        var ml = new MLContext(seed);
        var cifar = folder.Length > 0;
        var (channels, size) = cifar ? (3, Cifar10.Size) : (1, Digits.Size);
        var schema = SchemaDefinition.Create(typeof(PixelRow));
        schema["Image"].ColumnType = new VectorDataViewType(NumberDataViewType.Byte, channels, size, size);
        IDataView View(IEnumerable<LabelledImage> images) => ml.Data.LoadFromEnumerable(images.Select(image => new PixelRow { Label = image.Label, Image = image.Pixels }).ToArray(), schema);
        var (train, test) = cifar
            ? (View(Cifar10.Train(folder)), View(Cifar10.Test(folder)))
            : (View(Digits.Read().Where((_, i) => i % 5 != 0).Take(lab.Size(200, 10_000, 10_000))), View(Digits.Read().Where((_, i) => i % 5 == 0)));
        double speed = 0;
        var network = Network(lab, mixer, stem: 1);
        var trainer = ml.MulticlassClassification.Trainers.ImageClassification(new ImageClassificationTrainer.Options
        {
            Backbone = network, FeatureColumnName = "Image", Epochs = lab.Size(1, 15, 12), BatchSize = cifar ? 512 : 64, LearningRate = 2e-3, WeightDecay = 0.05, LabelSmoothing = 0.1,
            Ema = cifar ? 0.999 : 0.99, Augmentation = cifar ? new() { HorizontalFlip = 0.5, Translation = 0.125, Erasing = 0.25 } : new() { Translation = 0.125, Rotation = 10, Zoom = 0.1 },
            Device = lab.Device.ToString(), Seed = seed, Progress = new Each(progress => speed = progress.SamplesPerSecond),
        });
        var labels = ml.Transforms.Conversion.MapValueToKey("Label").Fit(train);
        var model = trainer.Fit(labels.Transform(train));
        var accuracy = ml.MulticlassClassification.Evaluate(model.Transform(labels.Transform(test))).MicroAccuracy;
        return new(accuracy, speed, model.ParameterCount, Flops(new ImageClassifier(new(network, channels, 10)), mixer, channels, size));
    }

    private static Outcome Segment(Lab lab, Backbone? mixer, string folder, int seed)
    {
        var ml = new MLContext(seed);
        var own = folder.Length > 0;
        var files = ImageFolder.Masks(own ? folder : Path.Combine(AppContext.BaseDirectory, "data", "blue-marble")).ToArray();
        var (train, test) = (ml.Data.LoadFromEnumerable(files.Where(file => file.Split != "test").Take(lab.Size(8, 1000, 100_000))), ml.Data.LoadFromEnumerable(files.Where(file => file.Split == "test").Take(lab.Size(4, 1000, 100_000))));
        double speed = 0;
        var network = Network(lab, mixer, stem: lab.Size(4, 4, 2));
        var trainer = ml.ImageSegmentation.Trainers.SemanticSegmentation(new SemanticSegmentationTrainer.Options
        {
            Backbone = network, HeadWidth = lab.Size(16, 32, 64), ClassNames = own ? ["background", "object"] : ["land", "water"], MaskAsImage = true, Epochs = lab.Size(1, 10, 30), BatchSize = lab.Size(4, 8, 16),
            LearningRate = 2e-3, WeightDecay = 0.05, Ema = 0.99, Augmentation = ImageAugmentation.Overhead, Device = lab.Device.ToString(), Seed = seed, Progress = new Each(progress => speed = progress.SamplesPerSecond),
        });
        var images = ml.Transforms.LoadImages("Image", "", nameof(MaskedFile.ImagePath)).Append(ml.Transforms.LoadImages("Label", "", nameof(MaskedFile.MaskPath))).Fit(train);
        var model = trainer.Fit(images.Transform(train));
        var metrics = ml.ImageSegmentation.Evaluate(model.Transform(images.Transform(test)));
        return new(metrics.MeanIoU, speed, model.ParameterCount, Flops(new ImageSegmenter(new(network, 3, 2, lab.Size(16, 32, 64))), mixer, 3, 128));
    }

    /// <summary>Forward, of one image: two per weight and place of every convolution and matrix product; and what the mixers do between places.</summary>
    private static double Flops(nn.Module<Tensor, Tensor> network, Backbone? mixer, int channels, int size)
    {
        using var scope = NewDisposeScope();
        using var _ = inference_mode();
        double flops = 0;
        var normed = network.modules().OfType<NormedConvolution>().SelectMany(module => module.modules()).OfType<Conv2d>().ToHashSet(); // counted with their norms: some are computed as matrix products
        foreach (var module in network.modules())
        {
            switch (module)
            {
                case NormedConvolution convolution: convolution.register_forward_hook((_, _, output) => { flops += 2.0 * output.numel() * convolution.WeightsPerOutput; return output; }); break;
                case Conv2d convolution when !normed.Contains(convolution): convolution.register_forward_hook((_, _, output) => { flops += 2.0 * output.numel() * convolution.weight.numel() / convolution.weight.shape[0]; return output; }); break;
                case Linear linear: linear.register_forward_hook((_, _, output) => { flops += 2.0 * output.numel() * linear.weight.shape[1]; return output; }); break;
                case GatedCnnBlock block when mixer is not null: block.register_forward_hook((_, _, output) => { flops += block.modules().OfType<TokenMixer>().Any() ? Between(mixer, output) : 0; return output; }); break;
            }
        }
        network.eval();
        network.call(zeros(1, channels, size, size));
        network.Dispose();
        return flops / 1e9;
    }

    // Attention multiplies all places with all, twice. A recurrence writes and reads, in each of two directions, a state of (features per head or states) numbers per feature.
    private static double Between(Backbone mixer, Tensor map)
    {
        double places = map.shape[1] * map.shape[2], width = map.shape[3];
        return mixer switch
        {
            TransformerBackbone => 4 * places * places * width,
            Mamba2Backbone mamba => 2 * 6 * places * width * mamba.Expansion * mamba.States,
            _ => 2 * 8 * places * width * 32,
        };
    }

    private static void Draw(Lab lab, string classifying, string segmenting, List<(string Name, double Accuracy, double IoU)> bars)
    {
        var chart = new Chart("A mixer in the last two stages: what it adds", "mixer", $"percentage points above {bars[0].Name}");
        chart.Bars([.. bars.Select(bar => bar.Name)], [($"classification: {classifying}, accuracy", [.. bars.Select(bar => 100 * (bar.Accuracy - bars[0].Accuracy))]), ($"segmentation: {segmenting}, mean IoU", [.. bars.Select(bar => 100 * (bar.IoU - bars[0].IoU))])]);
        lab.Draw("f", chart);
    }

    private sealed class PixelRow
    {
        public int Label { get; set; }

        public byte[] Image { get; set; } = [];
    }

    private sealed class Each(Action<TrainingProgress> report) : IProgress<TrainingProgress>
    {
        public void Report(TrainingProgress value) => report(value);
    }
}
