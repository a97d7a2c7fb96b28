using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Transforms.Image;
using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Transforms;

/// <summary>The segmenter as an ML.NET user meets it.</summary>
public sealed class SemanticSegmentationTests
{
    private sealed class Scored
    {
        public byte[] PredictedMask { get; set; } = [];
    }

    private sealed class WithScores
    {
        public byte[] PredictedMask { get; set; } = [];

        public float[] Score { get; set; } = [];
    }

    private static SemanticSegmentationTrainer.Options With(Action<SemanticSegmentationTrainer.Options> change, int epochs = 8)
    {
        var options = Pictures.MaskOptions(epochs);
        change(options);
        return options;
    }

    private static SemanticSegmentationTransformer Fit(MLContext ml, IDataView view, Action<SemanticSegmentationTrainer.Options>? change = null, int epochs = 8)
        => ml.ImageSegmentation.Trainers.SemanticSegmentation(With(change ?? (_ => { }), epochs)).Fit(view);

    private static List<byte[]> PredictedMasks(MLContext ml, ITransformer model, IDataView view)
        => [.. ml.Data.CreateEnumerable<Scored>(model.Transform(view), false, ignoreMissingColumns: true).Select(row => row.PredictedMask)];

    private static List<WithScores> Scores(MLContext ml, ITransformer model, IDataView view) => [.. ml.Data.CreateEnumerable<WithScores>(model.Transform(view), false)];

    private static float[] Weights(SemanticSegmentationTransformer model)
    {
        using var scope = NewDisposeScope();
        return cat([.. model.Model.Network.State().Select(entry => entry.Value.detach().flatten())]).data<float>().ToArray();
    }

    private static SemanticSegmentationTransformer Segmenter(ITransformer model) => Models.Parts(model).OfType<SemanticSegmentationTransformer>().Single();

    private static string Message(Action act) => Assert.ThrowsAny<Exception>(act).Message;

    private static IEstimator<ITransformer> FilePipeline(MLContext ml, Action<SemanticSegmentationTrainer.Options>? change = null, int epochs = 8)
        => Pictures.LoadMasks(ml).Append(ml.ImageSegmentation.Trainers.SemanticSegmentation(With(options =>
        {
            (options.CropHeight, options.CropWidth, options.MaskAsImage) = (16, 16, true);
            change?.Invoke(options);
        }, epochs)));

    // ---- Learning.

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void A_blob_in_vectors_is_learned(int classes)
    {
        var ml = Models.Context();
        string[] names = classes == 2 ? ["noise", "blob"] : ["noise", "bright", "dark"];
        var model = Fit(ml, Pictures.Masked(ml, classes: classes), options => (options.ClassNames, options.ScoreColumnName, options.Augmentation) =
            (names, "Score", ImageAugmentation.Overhead with { ColorJitter = 0 }), epochs: 10);
        var test = Pictures.Masked(ml, rows: 20, seed: 2, classes: classes);
        var scored = model.Transform(test);
        var metrics = ml.ImageSegmentation.Evaluate(scored);
        Assert.True(metrics.MeanIoU > 0.9, $"{metrics.MeanIoU}");
        Assert.Equal(names, metrics.ClassNames);
        Assert.Equal(names, model.ClassNames);
        Assert.Equal(names, MaskColumn.ClassNames(scored.Schema["PredictedMask"])!);
        Assert.Equal([16, 16], ((VectorDataViewType)scored.Schema["PredictedMask"].Type).Dimensions.ToArray());
        Assert.Equal([classes, 16, 16], ((VectorDataViewType)scored.Schema["Score"].Type).Dimensions.ToArray());
        foreach (var row in Scores(ml, model, test))
            for (var i = 0; i < 256; i++)
            {
                var probabilities = Enumerable.Range(0, classes).Select(c => row.Score[c * 256 + i]).ToArray();
                Assert.Equal(1, probabilities.Sum(), 1e-5);
                Assert.Equal(probabilities[row.PredictedMask[i]], probabilities.Max());
            }
        // Others in a pipeline are told of the columns.
        var chain = ml.ImageSegmentation.Trainers.SemanticSegmentation(With(options => (options.ClassNames, options.ScoreColumnName) = (names, "Score"), 1))
            .Append(ml.Transforms.CopyColumns("Mask", "PredictedMask")).Append(ml.Transforms.NormalizeMinMax("Score"));
        Assert.Equal(names, MaskColumn.ClassNames(chain.Fit(Pictures.Masked(ml, rows: 4, classes: classes)).Transform(test).Schema["Mask"])!);
    }

    [Fact]
    public void Vectors_of_Singles_with_a_margin_of_channels_are_learned()
    {
        var ml = Models.Context();
        var rows = Pictures.MaskRows(40, channels: 2).Select(row => new SingleMaskRow { Label = row.Label, Image = [.. row.Image.Select(value => value * 10f - 500)] }).ToList();
        var schema = Pictures.Schema<SingleMaskRow>("Image", 2, 16, 16);
        schema["Label"].ColumnType = new VectorDataViewType(NumberDataViewType.Byte, 16, 16);
        var view = ml.Data.LoadFromEnumerable(rows, schema);
        var model = Fit(ml, view);
        Assert.True(ml.ImageSegmentation.Evaluate(model.Transform(view)).MeanIoU > 0.9);
        rows[7].Image[256 + 3 * 16 + 2] = float.NaN;
        var message = Message(() => Fit(ml, ml.Data.LoadFromEnumerable(rows, schema)));
        Assert.Contains("Row 7 ", message);
        Assert.Contains("channel 1, (y 3, x 2)", message);
    }

    private sealed class SingleMaskRow
    {
        public float[] Image { get; set; } = [];

        public byte[] Label { get; set; } = [];
    }

    private sealed class MaskImageRow
    {
        public MLImage? Image { get; set; }

        public MLImage? PredictedMask { get; set; }
    }

    [Fact]
    public void Files_of_different_sizes_are_learned_and_masks_come_out_as_images_of_their_own_sizes()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var (train, test) = (Pictures.MaskFiles(folder), Pictures.MaskFiles(folder, rows: 12, seed: 2));
        var model = FilePipeline(ml, options => options.Augmentation = ImageAugmentation.Overhead, epochs: 12).Fit(ml.Data.LoadFromEnumerable(train));
        var scored = model.Transform(ml.Data.LoadFromEnumerable(test));
        Assert.IsType<ImageDataViewType>(scored.Schema["PredictedMask"].Type);
        var metrics = ml.ImageSegmentation.Evaluate(scored);
        Assert.True(metrics.MeanIoU > 0.85, $"{metrics.MeanIoU}");
        foreach (var row in ml.Data.CreateEnumerable<MaskImageRow>(scored, false)) Assert.Equal((row.Image!.Height, row.Image.Width), (row.PredictedMask!.Height, row.PredictedMask.Width));

        // The same network with masks scaled to one size.
        var scoring = Segmenter(model).Model.Scoring with { AsImage = false, Height = 9, Width = 21 };
        var scaled = With(Segmenter(model), scoring, score: "Score");
        var images = Pictures.LoadMasks(ml).Fit(ml.Data.LoadFromEnumerable(test)).Transform(ml.Data.LoadFromEnumerable(test));
        foreach (var row in Scores(ml, scaled, images))
        {
            Assert.Equal((189, 378), (row.PredictedMask.Length, row.Score.Length));
            Assert.All(Enumerable.Range(0, 189), i => Assert.Equal(1, row.Score[i] + row.Score[189 + i], 1e-4));
        }
    }

    [Fact]
    public void Masks_are_scaled_to_one_size_on_request_and_a_size_is_demanded_where_it_is_needed()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var view = ml.Data.LoadFromEnumerable(Pictures.MaskFiles(folder, rows: 12));
        var model = FilePipeline(ml, options => (options.MaskAsImage, options.MaskHeight, options.MaskWidth) = (false, 10, 12), epochs: 1).Fit(view);
        Assert.Equal([10, 12], ((VectorDataViewType)model.Transform(view).Schema["PredictedMask"].Type).Dimensions.ToArray());
        Assert.All(PredictedMasks(ml, model, view), mask => Assert.Equal(120, mask.Length));
        var message = Message(() => FilePipeline(ml, options => options.MaskAsImage = false).Fit(view));
        Assert.Contains("The images differ in size", message);
        Assert.Contains("MaskAsImage", message);
        message = Message(() => FilePipeline(ml, options => (options.CropHeight, options.CropWidth) = (0, 0)).Fit(view));
        Assert.Contains("CropHeight", message);
    }

    [Fact]
    public void Crops_larger_than_their_images_are_filled_with_their_mirror_images()
    {
        var ml = Models.Context();
        var model = Fit(ml, Pictures.Masked(ml, rows: 24), options => (options.CropHeight, options.CropWidth) = (21, 24));
        Assert.True(ml.ImageSegmentation.Evaluate(model.Transform(Pictures.Masked(ml, rows: 10, seed: 2))).MeanIoU > 0.8);
    }

    [Fact]
    public void Black_and_white_masks_are_classes_0_and_1()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var rows = Pictures.MaskFiles(folder, rows: 12);
        foreach (var row in rows)
        {
            using var mask = MLImage.CreateFromFile(row.MaskPath);
            Masks.WritePng(row.MaskPath, mask.Height, mask.Width, 1, (byte[])PixelImage.From(mask, 1).Data);
        }
        var model = FilePipeline(ml, epochs: 20).Fit(ml.Data.LoadFromEnumerable(rows));
        var metrics = ml.ImageSegmentation.Evaluate(model.Transform(ml.Data.LoadFromEnumerable(rows)));
        Assert.True(metrics.PerClassIoU[1] > 0.8, $"{metrics}");
        Assert.Equal(0, metrics.IgnoredPixelCount);
    }

    [Fact]
    public void What_255_means_does_not_depend_on_how_many_threads_read_the_masks()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        // White is a class in the first rows; in later ones, which other threads read, it is beside class 1.
        var rows = Enumerable.Range(0, 300).Select(i =>
        {
            var row = new Pictures.MaskFileRow { Path = folder.File("image.png"), MaskPath = folder.File(i < 150 ? "white.png" : "both.png") };
            return row;
        }).ToList();
        Pictures.Save(rows[0].Path, new byte[3 * 16], 4, 4);
        Masks.WritePng(folder.File("white.png"), 4, 4, 8, [.. Enumerable.Range(0, 16).Select(i => i < 8 ? (byte)0 : (byte)255)]);
        Masks.WritePng(folder.File("both.png"), 4, 4, 8, [.. Enumerable.Range(0, 16).Select(i => i < 8 ? (byte)1 : (byte)255)]);
        for (var attempt = 0; attempt < 3; attempt++)
        {
            var message = Message(() => FilePipeline(ml, epochs: 1).Fit(ml.Data.LoadFromEnumerable(rows)));
            Assert.Contains("Row 150 ", message);
            Assert.Contains("row 0 has only 0 and 255", message);
        }
        rows.Reverse(); // now the first row tells
        FilePipeline(ml, options => options.BatchSize = 300, epochs: 1).Fit(ml.Data.LoadFromEnumerable(rows));
    }

    // ---- The loss and the metric.

    private static ImageData Data(IEnumerable<Pictures.MaskRow> rows, int channels, int height, int width)
    {
        var input = new ImageInput { Kind = ImageColumnKind.Bytes, Channels = channels, ColumnHeight = height, ColumnWidth = width, Mean = new float[channels], Scale = [.. Enumerable.Repeat(1f, channels)] };
        return new ImageData([.. rows.Select(row =>
        {
            var image = PixelImage.FromPlanes<byte>(row.Image, height, width, channels);
            return new ImageRow(() => image, height, width, 0, row.Label);
        })], input, 0, []);
    }

    /// <summary>The specification: cross-entropy per pixel that counts, and 1 − Dice averaged over the classes.</summary>
    private static double Loss(float[] logits, byte[] masks, int classes, int size, byte? ignore, IReadOnlyList<double>? weights, double diceWeight)
    {
        var (entropy, counted) = (0.0, 0);
        var (both, predicted, truth) = (new double[classes], new double[classes], new double[classes]);
        for (var i = 0; i < masks.Length; i++)
        {
            if (masks[i] == ignore) continue;
            var (image, place) = (i / size, i % size);
            var powers = Enumerable.Range(0, classes).Select(c => Math.Exp(logits[(image * classes + c) * size + place])).ToArray();
            for (var c = 0; c < classes; c++)
            {
                predicted[c] += powers[c] / powers.Sum();
                if (c != masks[i]) continue;
                both[c] += powers[c] / powers.Sum();
                truth[c]++;
                entropy -= Math.Log(powers[c] / powers.Sum()) * (weights?[c] ?? 1);
            }
            counted++;
        }
        return entropy / Math.Max(1, counted) + diceWeight * Enumerable.Range(0, classes).Average(c => 1 - (2 * both[c] + 1) / (predicted[c] + truth[c] + 1));
    }

    [Theory, NoTensorLeaks]
    [InlineData(0.0, false, true)]
    [InlineData(1.0, false, true)]
    [InlineData(1.0, true, true)]
    [InlineData(2.5, true, false)]
    public void The_loss_is_what_it_is_defined_to_be_and_ignored_pixels_have_no_part_in_it(double diceWeight, bool weighted, bool ignoring)
    {
        using var scope = NewDisposeScope();
        const int classes = 3, size = 8 * 9;
        var rows = Pictures.MaskRows(5, channels: 2, height: 8, width: 9, classes: classes);
        var random = new Random(1);
        if (ignoring)
            foreach (var row in rows)
                for (var i = 0; i < size; i++)
                    if (random.Next(3) == 0) row.Label[i] = 255;
        double[]? weights = weighted ? [0.5, 3, 1] : null;
        manual_seed(1);
        using var network = new ImageSegmenter(new(VisionBackbone.Cnn([4, 8], [1, 1]), 2, classes, HeadWidth: 8));
        network.eval();
        var options = With(options => (options.Classes, options.DiceWeight, options.ClassWeights, options.IgnoreIndex) = (classes, diceWeight, weights, ignoring ? (byte)255 : null));
        var data = Data(rows, 2, 8, 9);
        using var task = new SegmentationTask(network, new ImageAugmenter(ImageAugmentation.None, data.Input, 8, 9, float32, CPU), new(data, [0, 1, 2, 3, 4], data, [0, 1, 2, 3, 4]), size, options, CPU);
        using var runner = task.Open(new int[][] { [0, 1, 2, 3, 4] }, validation: true);
        var outcome = runner.Next();
        using var _ = no_grad();
        var logits = network.call(data.Input.Stack([.. Enumerable.Range(0, 5).Select(row => data[row].Load())], CPU)).contiguous().data<float>().ToArray();
        byte[] masks = [.. rows.SelectMany(row => row.Label)];
        Assert.Equal(Loss(logits, masks, classes, size, options.IgnoreIndex, weights, diceWeight), outcome.Loss.item<float>(), 1e-4);
        // The tally is the confusion matrix [truth, prediction] of the pixels that count.
        var confusion = new double[classes * classes];
        for (var i = 0; i < masks.Length; i++)
            if (masks[i] != options.IgnoreIndex)
                confusion[masks[i] * classes + Enumerable.Range(0, classes).MaxBy(c => logits[(i / size * classes + c) * size + i % size])]++;
        Assert.Equal(confusion, outcome.Tally.to(float64).data<double>().ToArray());
    }

    [Fact, NoTensorLeaks]
    public void A_batch_of_ignored_pixels_gives_no_gradient_and_no_NaN()
    {
        using var scope = NewDisposeScope();
        var rows = Pictures.MaskRows(2, height: 8, width: 8);
        foreach (var row in rows) row.Label.AsSpan().Fill(255);
        manual_seed(1);
        using var network = new ImageSegmenter(new(VisionBackbone.Cnn([4, 8], [1, 1]), 1, 2, HeadWidth: 8));
        var data = Data(rows, 1, 8, 8);
        using var task = new SegmentationTask(network, new ImageAugmenter(ImageAugmentation.None, data.Input, 8, 8, float32, CPU), new(data, [0, 1], data, []), 64, With(_ => { }), CPU);
        using var runner = task.Open(new int[][] { [0, 1] }, validation: false);
        var outcome = runner.Next();
        Assert.Equal(0, outcome.Loss.item<float>(), 1e-6f);
        outcome.Loss.backward();
        foreach (var (name, parameter) in network.named_parameters()) Assert.True(parameter.grad is null || parameter.grad.abs().max().item<float>() == 0, name);
        var tally = outcome.Tally.to(float64).data<double>().ToArray();
        Assert.All(tally, value => Assert.Equal(0, value));
        Assert.Equal(0, task.Metric(tally, 2));
        foreach (var parameter in network.parameters()) parameter.grad?.Dispose();
    }

    [Fact]
    public void Training_goes_on_where_all_pixels_of_a_batch_are_ignored()
    {
        var ml = Models.Context();
        var rows = Pictures.MaskRows(24);
        foreach (var row in rows.Skip(8)) row.Label.AsSpan().Fill(255);
        var recorder = new Recorder();
        var model = Fit(ml, Pictures.Masked(ml, rows), options => (options.Progress, options.BatchSize) = (recorder, 1), epochs: 3);
        Assert.All(recorder.Epochs, epoch => Assert.True(double.IsFinite(epoch.Loss) && double.IsFinite(epoch.Metric)));
        Assert.All(Weights(model), weight => Assert.True(float.IsFinite(weight)));
    }

    [Fact]
    public void The_loop_s_metric_is_the_evaluation_s_mean_IoU()
    {
        var ml = Models.Context();
        var recorder = new Recorder();
        var rows = Pictures.MaskRows(20, seed: 2, classes: 4);
        foreach (var row in rows) row.Label.AsSpan(0, 40).Fill(255);
        var validation = Pictures.Masked(ml, rows);
        // Class 3 never occurs in training; it does in validation, where it is all wrong.
        var model = Fit(ml, Pictures.Masked(ml, rows: 32, classes: 3), options => (options.Classes, options.ValidationSet, options.Progress) = (4, validation, recorder), epochs: 4);
        var best = recorder.Epochs.Last(epoch => epoch.IsBest);
        Assert.Equal("mean IoU", best.MetricName);
        Assert.Equal(ml.ImageSegmentation.Evaluate(model.Transform(validation)).MeanIoU, best.ValidationMetric!.Value, 1e-9);
        Assert.Equal(best.ValidationMetric, recorder.Epochs.Max(epoch => epoch.ValidationMetric));
    }

    [Fact]
    public void The_metric_counts_beyond_what_a_Single_can_count()
    {
        // 2^24 + 9 pixels of one class in one batch, which Singles that are counted up by one never reach.
        using var scope = NewDisposeScope();
        var (cells, extra) = (1L << 24, 9);
        var counts = SegmentationTask.Confusion(zeros(cells + extra, uint8).to(@bool).logical_not(), zeros(cells + extra, uint8), zeros(cells + extra, uint8), 2);
        Assert.Equal([cells + extra, 0, 0, 0], counts.to(float64).data<double>().ToArray());
    }

    [Fact]
    public void Class_weights_and_the_Dice_loss_act()
    {
        var ml = Models.Context();
        var view = Pictures.Masked(ml, rows: 16);
        var model = Fit(ml, view, options => (options.ClassWeights, options.DiceWeight) = ([1, 0], 0), epochs: 30);
        var ones = PredictedMasks(ml, model, view).Sum(mask => mask.Count(value => value == 1));
        Assert.True(ones < 16 * 256 / 50, $"{ones} pixels of a class without weight");
        Assert.NotEqual(Weights(Fit(ml, view, options => options.DiceWeight = 0, epochs: 1)), Weights(Fit(ml, view, epochs: 1)));
    }

    // ---- Tiles and mirror images.

    private static SemanticSegmentationTransformer With(SemanticSegmentationTransformer model, SegmentationScoring scoring, string? score)
        => new(new MLContext(), new SegmentationModel(model.Model.Spec, model.Model.Input, scoring, model.Model.Network, model.Model.Device), model.Columns with { Score = score });

    /// <summary>A vector column's model for images of another size.</summary>
    private static SemanticSegmentationTransformer Resized(SemanticSegmentationTransformer model, int height, int width, int tile, double overlap, ImageFlips flips = ImageFlips.None)
        => new(new MLContext(), new SegmentationModel(model.Model.Spec, model.Model.Input with { ColumnHeight = height, ColumnWidth = width },
            model.Model.Scoring with { Height = height, Width = width, TileSize = tile, TileOverlap = overlap, TestTimeFlips = flips }, model.Model.Network, model.Model.Device), model.Columns with { Score = "Score" });

    private static readonly Lazy<SemanticSegmentationTransformer> Trained = new(() => Fit(Models.Context(), Pictures.Masked(Models.Context(), rows: 32), epochs: 8));

    [Theory]
    [InlineData(61, 87, 0.25)]
    [InlineData(61, 87, 0.0)]
    [InlineData(61, 87, 0.75)]
    [InlineData(20, 90, 0.25)] // smaller than a tile in one direction
    [InlineData(90, 20, 0.5)]
    [InlineData(33, 33, 0.25)]
    [InlineData(96, 64, 0.0)] // tiles fit exactly
    public void Tiles_cover_every_pixel_and_say_nearly_what_the_whole_image_says(int height, int width, double overlap)
    {
        var ml = Models.Context();
        var view = Pictures.Masked(ml, Pictures.MaskRows(2, height: height, width: width, seed: 3), height: height, width: width);
        var whole = Scores(ml, Resized(Trained.Value, height, width, tile: 1024, overlap), view);
        var tiled = Scores(ml, Resized(Trained.Value, height, width, tile: 32, overlap), view);
        var size = height * width;
        foreach (var (a, b) in whole.Zip(tiled))
        {
            Assert.All(Enumerable.Range(0, size), i => Assert.Equal(1, b.Score[i] + b.Score[size + i], 1e-4));
            Assert.NotEqual(a.Score, b.Score);
            // A tile knows less of the surroundings than the whole image tells, and most at its border.
            var difference = a.Score.Zip(b.Score).Average(pair => Math.Abs(pair.First - pair.Second));
            Assert.True(difference < 0.05, $"{difference}");
            Assert.True(a.PredictedMask.Zip(b.PredictedMask).Count(pair => pair.First == pair.Second) > size * 0.97);
        }
    }

    [Theory]
    [InlineData(ImageFlips.Horizontal)]
    [InlineData(ImageFlips.Vertical)]
    [InlineData(ImageFlips.Horizontal | ImageFlips.Vertical)]
    public void Of_a_mirrored_image_test_time_flips_give_the_mirrored_mask(ImageFlips flips)
    {
        var ml = Models.Context();
        const int height = 17, width = 22;
        var rows = Pictures.MaskRows(3, height: height, width: width, seed: 4);
        T[] Mirrored<T>(T[] planes) => [.. Enumerable.Range(0, planes.Length).Select(i =>
        {
            int plane = i / (height * width), y = i / width % height, x = i % width;
            if (flips.HasFlag(ImageFlips.Horizontal)) x = width - 1 - x;
            if (flips.HasFlag(ImageFlips.Vertical)) y = height - 1 - y;
            return planes[(plane * height + y) * width + x];
        })];
        var mirrored = rows.Select(row => new Pictures.MaskRow { Image = Mirrored(row.Image), Label = row.Label }).ToList();
        double Difference(ImageFlips used)
        {
            var model = Resized(Trained.Value, height, width, 512, 0.25, used);
            var (a, b) = (Scores(ml, model, Pictures.Masked(ml, rows, 1, height, width)), Scores(ml, model, Pictures.Masked(ml, mirrored, 1, height, width)));
            return a.Zip(b).Max(pair => Mirrored(pair.First.Score).Zip(pair.Second.Score).Max(values => Math.Abs(values.First - values.Second)));
        }
        Assert.True(Difference(flips) < 1e-5, $"{Difference(flips)}");
        Assert.True(Difference(ImageFlips.None) > 1e-3); // strides are not symmetric
    }

    // ---- Scoring.

    private sealed class EngineRow
    {
        public byte[] Image { get; set; } = [];
    }

    [Fact]
    public void Engine_batch_and_threads_agree()
    {
        var ml = Models.Context();
        var rows = Pictures.MaskRows(70, seed: 5);
        var model = Trained.Value;
        var expected = PredictedMasks(ml, model, Pictures.Masked(ml, rows));
        Assert.True(expected.DistinctBy(mask => Convert.ToHexString(mask)).Count() > 60);
        using var engine = ml.Model.CreatePredictionEngine<EngineRow, Scored>(model, new PredictionEngineOptions
        { OwnsTransformer = false, IgnoreMissingColumns = true, InputSchemaDefinition = Pictures.Schema<EngineRow>("Image", 1, 16, 16) });
        var differing = rows.Select((row, i) => engine.Predict(new EngineRow { Image = row.Image }).PredictedMask.Zip(expected[i]).Count(pair => pair.First != pair.Second)).Sum();
        Assert.True(differing < 5, $"{differing}");
        var all = new List<byte[]>[4];
        var threads = Enumerable.Range(0, all.Length).Select(i => new Thread(() => all[i] = PredictedMasks(new MLContext(), model, Pictures.Masked(new MLContext(), rows)))).ToList();
        threads.ForEach(thread => thread.Start());
        threads.ForEach(thread => thread.Join());
        Assert.All(all, masks => Assert.Equal(expected, masks));
    }

    [Fact, NoTensorLeaks]
    public void Training_and_scoring_leave_no_tensor_but_the_model_s()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var view = ml.Data.LoadFromEnumerable(Pictures.MaskFiles(folder, rows: 10));
        var model = FilePipeline(ml, options => (options.Augmentation, options.Ema, options.ValidationFraction, options.TileSize, options.TestTimeFlips) =
            (ImageAugmentation.Overhead, 0.9, 0.2, 16, ImageFlips.Horizontal), epochs: 2).Fit(view);
        ml.ImageSegmentation.Evaluate(model.Transform(view));
        Models.Release(model);
    }

    // ---- Saved models.

    [Theory]
    [InlineData("vector")]
    [InlineData("image")]
    [InlineData("scaled")]
    public void A_loaded_model_scores_bit_for_bit_alike_and_can_be_painted(string kind)
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var view = kind == "vector" ? Pictures.Masked(ml, rows: 12) : ml.Data.LoadFromEnumerable(Pictures.MaskFiles(folder, rows: 12));
        ITransformer model = kind switch
        {
            "vector" => Fit(ml, view, options => (options.ScoreColumnName, options.Ema, options.ClassNames) = ("Score", 0.5, ["back", "fore"]), epochs: 2),
            "image" => FilePipeline(ml, options => (options.TestTimeFlips, options.TileSize, options.Backbone) = (ImageFlips.Vertical, 17, VisionBackbone.ResNet(20) with { Widths = [4, 8], Depths = [1, 1] }), epochs: 2).Fit(view),
            _ => FilePipeline(ml, options => (options.MaskAsImage, options.MaskHeight, options.MaskWidth, options.ScoreColumnName, options.Channels) = (false, 11, 7, "Score", 1), epochs: 2).Fit(view),
        };
        ml.Model.Save(model, view.Schema, folder.File("m.zip"));
        var other = new MLContext();
        var loaded = other.Model.Load(folder.File("m.zip"), out _);
        Assert.Equal(Weights(Segmenter(model)), Weights(Segmenter(loaded)));
        Assert.Equal(Segmenter(model).ClassNames, Segmenter(loaded).ClassNames);
        if (kind == "image")
        {
            List<byte[]> Pixels(ITransformer transformer) => [.. ml.Data.CreateEnumerable<MaskImageRow>(transformer.Transform(view), false).Select(row => (byte[])PixelImage.From(row.PredictedMask!, 1).Data)];
            Assert.Equal(Pixels(model), Pixels(loaded));
        }
        else
        {
            foreach (var (a, b) in Scores(ml, model, view).Zip(Scores(other, loaded, view)))
            {
                Assert.Equal(a.Score, b.Score);
                Assert.Equal(a.PredictedMask, b.PredictedMask);
            }
        }
        var painted = other.ImageSegmentation.PaintMask("Painted", "Image", "PredictedMask").Fit(loaded.Transform(view)).Transform(loaded.Transform(view));
        Assert.Equal(12, other.Data.CreateEnumerable<PaintedRow>(painted, false).Count(row => row.Painted!.Height >= 16));
    }

    private sealed class PaintedRow
    {
        public MLImage? Painted { get; set; }
    }

    [Theory]
    [InlineData("Weights.safetensors", "cut")]
    [InlineData("Weights.safetensors", "random")]
    [InlineData("Weights.safetensors", "missing")]
    [InlineData("Weights.safetensors", "norm.mean\"=>norm.meen\"")]
    [InlineData("MLSeq.json", "cut")]
    [InlineData("MLSeq.json", "[8,16]=>[16384,16384]")]
    [InlineData("MLSeq.json", "[8,16]=>[8,-16]")]
    [InlineData("MLSeq.json", "[1,1]=>[256,256]")]
    [InlineData("MLSeq.json", "\"HeadWidth\":16=>\"HeadWidth\":4096")]
    [InlineData("MLSeq.json", "\"HeadWidth\":16=>\"HeadWidth\":-1")]
    [InlineData("MLSeq.json", "\"HeadWidth\":16=>\"HeadWidth\":32")]
    [InlineData("MLSeq.json", "\"TileSize\":512=>\"TileSize\":1")]
    [InlineData("MLSeq.json", "\"TileSize\":512=>\"TileSize\":2000000000")]
    [InlineData("MLSeq.json", "\"TileOverlap\":0.25=>\"TileOverlap\":0.99999")]
    [InlineData("MLSeq.json", "\"TileOverlap\":0.25=>\"TileOverlap\":-1")]
    [InlineData("MLSeq.json", "\"Height\":16,\"Width\":16,\"AsImage\"=>\"Height\":-16,\"Width\":16,\"AsImage\"")]
    [InlineData("MLSeq.json", "\"Height\":16,\"Width\":16,\"AsImage\"=>\"Height\":0,\"Width\":0,\"AsImage\"")]
    [InlineData("MLSeq.json", "\"ColumnHeight\":16=>\"ColumnHeight\":-16")]
    [InlineData("MLSeq.json", "\"ClassNames\":[\"0\",\"1\"]=>\"ClassNames\":[\"0\"]")]
    [InlineData("MLSeq.json", "\"ClassNames\":[\"0\",\"1\"]=>\"ClassNames\":[\"0\",\"1\",\"2\"]")]
    [InlineData("MLSeq.json", "\"ClassNames\":[\"0\",\"1\"]=>\"ClassNames\":null")]
    [InlineData("MLSeq.json", "\"Mean\":[=>\"Mean\":[0.5,")]
    [InlineData("MLSeq.json", "\"TestTimeFlips\":\"None\"=>\"TestTimeFlips\":-1")]
    [InlineData("MLSeq.json", "\"name\":\"cnn\"=>\"name\":\"oracle\"")]
    [InlineData("MLSeq.json", "\"Kind\":\"Bytes\"=>\"Kind\":\"File\"")] // what scoring would decode row by row, training refuses
    [InlineData("MLSeq.json", "\"PredictedMask\":\"PredictedMask\"=>\"PredictedMask\":\"\"")]
    public void A_damaged_or_foreign_entry_is_refused(string entry, string damage)
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var view = Pictures.Masked(ml, rows: 4);
        var model = Fit(ml, view, epochs: 1);
        ml.Model.Save(model, view.Schema, folder.File("m.zip"));
        Models.Release(model);
        ModelFiles.AssertRefused(folder.File("m.zip"), entry, damage);
    }

    // ---- Training.

    [Fact]
    public void Cancellation_returns_a_model()
    {
        var ml = Models.Context();
        using var cancel = new CancellationTokenSource();
        var model = Fit(ml, Pictures.Masked(ml), options => (options.CancellationToken, options.Progress, options.WarmupFraction) = (cancel.Token, Recorder.CancelAfter(8, cancel), 0), epochs: 1000);
        Assert.True(ml.ImageSegmentation.Evaluate(model.Transform(Pictures.Masked(ml))).MeanIoU > 0.7);
    }

    [Fact]
    public void A_resumed_training_equals_an_uninterrupted_one_statistics_included()
    {
        using var folder = new TemporaryFolder();
        float[] Run(string? checkpoint, int? cancelAfter)
        {
            using var cancel = new CancellationTokenSource();
            var ml = Models.Context();
            return Weights(Fit(ml, Pictures.Masked(ml, rows: 20), options =>
            {
                (options.CheckpointFolder, options.Augmentation, options.Ema, options.ValidationFraction) = (checkpoint, ImageAugmentation.Overhead, 0.9, 0.2);
                (options.CancellationToken, options.Progress) = (cancel.Token, cancelAfter is { } epoch ? Recorder.CancelAfter(epoch, cancel) : null);
            }, epochs: 4));
        }
        var whole = Run(null, null);
        Run(folder.File("b"), 1);
        Run(folder.File("b"), 2);
        Assert.Equal(whole, Run(folder.File("b"), null));
    }

    [Fact]
    public void A_warm_start_keeps_all_but_the_head_when_the_classes_differ()
    {
        var ml = Models.Context();
        var warnings = Models.Warnings(ml);
        var recorder = new Recorder();
        Fit(ml, Pictures.Masked(ml), options => (options.WarmStart, options.LearningRate, options.Progress) = (Trained.Value, 1e-6, recorder), epochs: 1);
        Assert.True(recorder.Epochs.Single().Metric > 0.8, $"{recorder.Epochs.Single().Metric}");
        Assert.Empty(warnings);
        Fit(ml, Pictures.Masked(ml, classes: 3), options => (options.WarmStart, options.Classes) = (Trained.Value, 3), epochs: 1);
        Assert.Equal(2, warnings.Count); // the head's weight and bias
        Assert.Contains("WarmStart", Message(() => Fit(ml, Pictures.Masked(ml), options => (options.WarmStart, options.Backbone) = (Trained.Value, VisionBackbone.Cnn([4, 8])))));
    }

    // ---- Bad data.

    [Fact]
    public void Bad_masks_are_named_with_row_and_place_or_left_out_and_counted()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var warnings = Models.Warnings(ml);
        var rows = Pictures.MaskFiles(folder, rows: 200);
        string Refusal() => Message(() => FilePipeline(ml, epochs: 1).Fit(ml.Data.LoadFromEnumerable(rows)));
        using (var image = MLImage.CreateFromFile(rows[163].Path)) Masks.WritePng(rows[163].MaskPath, image.Height + 1, image.Width, 8, new byte[(image.Height + 1) * image.Width]);
        var message = Refusal();
        Assert.Contains("Row 163", message);
        Assert.Contains("expected a mask of the image's size", message);
        using (var image = MLImage.CreateFromFile(rows[151].Path))
        {
            var mask = new byte[image.Height * image.Width];
            mask[3 * image.Width + 5] = 7;
            Masks.WritePng(rows[151].MaskPath, image.Height, image.Width, 8, mask);
        }
        message = Refusal();
        Assert.Contains("Row 151 ", message);
        Assert.Contains("class index 7 at (y 3, x 5)", message);
        File.Delete(rows[140].Path);
        Assert.Contains("Row 140 ", Refusal());
        FilePipeline(ml, options => options.BadImages = BadImages.Skip, epochs: 1).Fit(ml.Data.LoadFromEnumerable(rows));
        var warning = Assert.Single(warnings, text => text.Contains("Left out", StringComparison.Ordinal));
        Assert.Contains("Left out 3 training rows", warning);
        Assert.Contains("Row 140 ", warning);
        foreach (var row in rows.Skip(120)) File.Delete(row.MaskPath);
        Assert.Contains("Row 120 of column 'Label'", Refusal());
        foreach (var row in rows.Take(120)) File.Delete(row.MaskPath);
        Assert.Contains("no training images that can be used", Message(() => FilePipeline(ml, options => options.BadImages = BadImages.Skip).Fit(ml.Data.LoadFromEnumerable(rows))));
    }

    private sealed class VaryingRow
    {
        public byte[] Image { get; set; } = [];

        public byte[]? Label { get; set; }
    }

    [Fact]
    public void Bad_columns_are_refused_with_the_reason()
    {
        var ml = Models.Context();
        var rows = Pictures.MaskRows(12);
        // A mask that is missing, and one of another length, in a column of unknown size.
        var schema = Pictures.Schema<VaryingRow>("Image", 1, 16, 16);
        IDataView Varying(byte[]? label) => ml.Data.LoadFromEnumerable(rows.Select((row, i) => new VaryingRow { Image = row.Image, Label = i == 5 ? label : row.Label }).ToList(), schema);
        Fit(ml, Varying(rows[5].Label), epochs: 1);
        var message = Message(() => Fit(ml, Varying(null)));
        Assert.Contains("Row 5 ", message);
        Assert.Contains("no mask", message);
        message = Message(() => Fit(ml, Varying(new byte[255])));
        Assert.Contains("Row 5", message);
        Assert.Contains("255 pixels", message);
        // Out of range, in a vector.
        rows[3].Label[20] = 9;
        message = Message(() => Fit(ml, Pictures.Masked(ml, rows)));
        Assert.Contains("Row 3 ", message);
        Assert.Contains("class index 9 at (y 1, x 4)", message);
        Assert.Contains("expected 0 to 1 or the ignore index 255", message);
        // Columns.
        var view = Pictures.Masked(ml, rows: 12);
        Assert.Contains("Nothing", Message(() => Fit(ml, view, options => options.LabelColumnName = "Nothing")));
        Assert.Contains("Nothing", Message(() => Fit(ml, view, options => options.FeatureColumnName = "Nothing")));
        Assert.Contains("Byte", Message(() => Fit(ml, Pictures.Singles(ml), options => (options.LabelColumnName, options.FeatureColumnName) = ("Features", "Features"))));
        Assert.Contains("Image", Message(() => Trained.Value.Transform(Pictures.Masked(ml, Pictures.MaskRows(2, height: 18), height: 18))));
        Assert.Contains("no training images", Message(() => Fit(ml, Pictures.Masked(ml, rows: 0))));
        Assert.Contains("ValidationFraction", Message(() => Fit(ml, Pictures.Masked(ml, rows: 5), options => options.ValidationFraction = 0.1)));
        message = Message(() => Fit(ml, view, options => (options.Classes, options.ClassNames, options.ClassWeights, options.CropHeight, options.MaskWidth, options.HeadWidth, options.DiceWeight, options.TileSize,
            options.TileOverlap, options.ScoreColumnName, options.MaskAsImage, options.Channels) = (1, ["a", ""], [1, -1], 4, 5, 3, -1, 8, 0.9, "Score", true, 2)));
        foreach (var part in (string[])["Classes is 1", "ClassNames has 2", "empty name", "ClassWeights", "CropHeight", "MaskWidth", "HeadWidth", "DiceWeight", "TileSize", "TileOverlap", "ScoreColumnName", "Channels"])
            Assert.Contains(part, message);
    }
}
