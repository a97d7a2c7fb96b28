using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Transforms;

/// <summary>The image classifier as an ML.NET user meets it.</summary>
public sealed class ImageClassificationTests
{
    private static double Accuracy(MLContext ml, ITransformer model, IDataView test) => ml.MulticlassClassification.Evaluate(model.Transform(test)).MicroAccuracy;

    private static List<Models.ScoredRow> Score(MLContext ml, ITransformer model, IDataView view) => Models.Score(ml, model, view);

    private static string[] Bits(IEnumerable<Models.ScoredRow> rows)
        => [.. rows.Select(row => $"{row.Predicted} {string.Join(' ', row.Score.Select(score => BitConverter.SingleToInt32Bits(score).ToString("x8")))}")];

    private static float[] Weights(ImageClassificationTransformer model)
    {
        using var scope = NewDisposeScope();
        return cat([.. model.Model.Network.State().Select(entry => entry.Value.detach().flatten())]).data<float>().ToArray();
    }

    private static float[] Weights(ITransformer model) => Weights(Pictures.Classifier(model));

    private static IDataView Labels(MLContext ml, IDataView view) => ml.Transforms.Conversion.MapValueToKey("Label").Fit(view).Transform(view);

    private static string Message(Action act) => Assert.ThrowsAny<Exception>(act).Message;

    private static ImageClassificationTrainer.Options With(Action<ImageClassificationTrainer.Options> change, int epochs = 6)
    {
        var options = Pictures.Options(epochs);
        change(options);
        return options;
    }

    private static IEstimator<ITransformer> FilePipeline(MLContext ml, TemporaryFolder folder, Action<ImageClassificationTrainer.Options>? change = null, int epochs = 8)
        => Pictures.Pipeline(ml, With(options =>
        {
            (options.FeatureColumnName, options.ImageFolder, options.ImageHeight, options.ImageWidth) = ("Path", folder.Path, Pictures.Side, Pictures.Side);
            change?.Invoke(options);
        }, epochs));

    private static IEstimator<ITransformer> ImagePipeline(MLContext ml, TemporaryFolder folder, Action<ImageClassificationTrainer.Options>? change = null, int epochs = 8)
        => ml.Transforms.LoadImages("Image", folder.Path, "Path").Append(FilePipeline(ml, folder, options =>
        {
            options.FeatureColumnName = "Image";
            change?.Invoke(options);
        }, epochs));

    // ---- Learning from every kind of column.

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void Vectors_of_bytes_and_of_Singles_are_learned(int channels)
    {
        var ml = Models.Context();
        var model = Pictures.Pipeline(ml, Pictures.Options()).Fit(Pictures.Bytes(ml, channels: channels));
        var scored = model.Transform(Pictures.Bytes(ml, rows: 60, channels: channels, seed: 2));
        var metrics = ml.MulticlassClassification.Evaluate(scored);
        Assert.True(metrics.MicroAccuracy > 0.9, $"{metrics.MicroAccuracy}");
        Assert.Contains("standing", metrics.ConfusionMatrix.GetFormattedConfusionTable());
        VBuffer<ReadOnlyMemory<char>> names = default;
        scored.Schema["Score"].GetSlotNames(ref names);
        Assert.Equal(["checks", "lying", "standing"], names.DenseValues().Select(value => value.ToString()).Order());
        Assert.All(Score(ml, model, Pictures.Bytes(ml, rows: 10, channels: channels, seed: 3)), row => Assert.Equal(1, row.Score.Sum(), 1e-5));

        var singles = Pictures.Pipeline(ml, Pictures.Options()).Fit(Pictures.Singles(ml, channels: channels));
        Assert.True(Accuracy(ml, singles, Pictures.Singles(ml, rows: 60, channels: channels, seed: 2)) > 0.9);
        Assert.Equal(channels, Pictures.Classifier(singles).Model.Input.Channels);
    }

    [Fact]
    public void A_gray_vector_needs_no_channels()
    {
        var ml = Models.Context();
        var rows = Pictures.Rows(channels: 1);
        var view = ml.Data.LoadFromEnumerable(rows, Pictures.Schema<Pictures.ByteRow>("Features", Pictures.Side, Pictures.Side));
        var model = Pictures.Pipeline(ml, Pictures.Options()).Fit(view);
        Assert.Equal((1, 12, 12), (Pictures.Classifier(model).Model.Input.Channels, Pictures.Classifier(model).Model.Input.Height, Pictures.Classifier(model).Model.Input.Width));
        Assert.True(Accuracy(ml, model, view) > 0.9);
        // Other dimensions of as many numbers are the same column to a loaded model.
        Assert.Equal(Bits(Score(ml, model, view)), Bits(Score(ml, model, Pictures.Bytes(ml, rows, channels: 1))));
    }

    [Theory]
    [InlineData(ImageResize.Crop, 3)]
    [InlineData(ImageResize.Pad, 3)]
    [InlineData(ImageResize.Stretch, 3)]
    [InlineData(ImageResize.Crop, 1)]
    public void Images_of_different_sizes_are_fitted_and_learned(ImageResize resize, int channels)
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var (train, test) = (ml.Data.LoadFromEnumerable(Pictures.Files(folder)), ml.Data.LoadFromEnumerable(Pictures.Files(folder, rows: 45, seed: 2)));
        var model = ImagePipeline(ml, folder, options => (options.Resize, options.Channels) = (resize, channels)).Fit(train);
        var accuracy = Accuracy(ml, model, test);
        Assert.True(accuracy > 0.85, $"{accuracy}");
    }

    [Fact]
    public void Files_are_learned_from_memory_and_from_disk_alike()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var (train, test) = (ml.Data.LoadFromEnumerable(Pictures.Files(folder)), ml.Data.LoadFromEnumerable(Pictures.Files(folder, rows: 45, seed: 2)));
        var kept = FilePipeline(ml, folder, options => (options.Augmentation, options.CropFraction, options.ValidationFraction) = (ImageAugmentation.Light, 0.9, 0.1)).Fit(train);
        var decoded = FilePipeline(ml, folder, options => (options.Augmentation, options.CropFraction, options.ValidationFraction, options.HostDataBudget) = (ImageAugmentation.Light, 0.9, 0.1, 0)).Fit(train);
        Assert.Equal(Weights(kept), Weights(decoded));
        Assert.Equal(Bits(Score(ml, kept, test)), Bits(Score(ml, decoded, test)));
        var accuracy = Accuracy(ml, kept, test);
        Assert.True(accuracy > 0.85, $"{accuracy}");
    }

    [Fact]
    public void A_file_and_the_image_made_of_it_are_the_same_input()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var train = ml.Data.LoadFromEnumerable(Pictures.Files(folder, rows: 48));
        var (files, images) = (FilePipeline(ml, folder, epochs: 2).Fit(train), ImagePipeline(ml, folder, epochs: 2).Fit(train));
        Assert.Equal(Weights(files), Weights(images));
        Assert.Equal(Bits(Score(ml, files, train)), Bits(Score(ml, images, train)));
    }

    [Theory]
    [InlineData(1, false)]
    [InlineData(2, true)]
    [InlineData(8, false)]
    [InlineData(8, true)]
    public void Files_of_every_depth_are_decoded_as_ML_NET_decodes_them(int bits, bool palette)
    {
        using var folder = new TemporaryFolder();
        var random = new Random(1);
        byte[] Random(int count, int limit) => [.. Enumerable.Range(0, count).Select(_ => (byte)random.Next(limit))];
        Masks.WritePng(folder.File("a.png"), 5, 7, bits, Random(35, 1 << bits), palette ? Random(3 << bits, 256) : null);
        using (var clear = MLImage.CreateFromPixels(7, 5, MLPixelFormat.Bgra32, [.. Enumerable.Range(0, 35).SelectMany(i => (byte[])[(byte)i, (byte)(2 * i), (byte)(3 * i), (byte)(105 + i)])])) clear.Save(folder.File("b.png"));
        foreach (var name in (string[])["a.png", "b.png"])
        {
            using var expected = MLImage.CreateFromFile(folder.File(name));
            using var got = ImagePixels.Decode(folder.File(name));
            Assert.Equal(PixelImage.From(expected, 3).Data, PixelImage.From(got, 3).Data);
        }
    }

    [Fact]
    public void Scoring_sees_what_validation_sees()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var train = Labels(ml, ml.Data.LoadFromEnumerable(Pictures.Files(folder, rows: 60)));
        var keys = ml.Transforms.Conversion.MapValueToKey("Label").Fit(ml.Data.LoadFromEnumerable(Pictures.Files(folder, rows: 60)));
        var test = keys.Transform(ml.Data.LoadFromEnumerable(Pictures.Files(folder, rows: 90, seed: 2)));
        var recorder = new Recorder();
        var options = With(options =>
        {
            (options.FeatureColumnName, options.ImageFolder, options.ImageHeight, options.ImageWidth) = ("Path", folder.Path, 10, 11);
            (options.CropFraction, options.Augmentation, options.ValidationSet, options.Progress) = (0.8, ImageAugmentation.Standard, test, recorder);
        }, epochs: 4);
        var model = ml.MulticlassClassification.Trainers.ImageClassification(options).Fit(keys.Transform(ml.Data.LoadFromEnumerable(Pictures.Files(folder, rows: 60))));
        var metrics = ml.MulticlassClassification.Evaluate(model.Transform(test));
        Assert.Equal(recorder.Epochs.Last(epoch => epoch.IsBest).ValidationMetric!.Value, metrics.MicroAccuracy, 1e-9);
        Assert.Equal(recorder.Epochs.Last(epoch => epoch.IsBest).ValidationLoss!.Value, metrics.LogLoss, 1e-3);
        Assert.True(train.GetRowCount() is null or 60);
    }

    [Fact]
    public void A_margin_needs_a_size_that_it_is_a_margin_of()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var train = ml.Data.LoadFromEnumerable(Pictures.Files(folder, rows: 12, alike: true));
        var message = Message(() => FilePipeline(ml, folder, options => (options.CropFraction, options.ImageHeight, options.ImageWidth) = (0.8, 0, 0)).Fit(train));
        Assert.Contains("CropFraction", message);
        Assert.Contains("ImageHeight", message);
    }

    [Fact]
    public void Strong_augmentation_and_flips_learn_too()
    {
        var ml = Models.Context();
        var model = Pictures.Pipeline(ml, With(options => (options.Augmentation, options.TestTimeFlips, options.Ema) =
            (ImageAugmentation.Strong with { MinimumArea = 0.5, RandAugmentLayers = 1, RandAugmentMagnitude = 4, Mixup = 0.2 }, ImageFlips.Horizontal | ImageFlips.Vertical, 0.9), epochs: 20)).Fit(Pictures.Bytes(ml));
        var accuracy = Accuracy(ml, model, Pictures.Bytes(ml, rows: 60, seed: 2));
        Assert.True(accuracy > 0.85, $"{accuracy}");
        // Scores of an image and of its mirror images agree.
        var rows = Pictures.Rows(20, seed: 3);
        var mirrored = rows.Select(row => new Pictures.ByteRow { Label = row.Label, Features = [.. row.Features.Chunk(Pictures.Side).SelectMany(line => line.Reverse())] }).ToList();
        foreach (var (a, b) in Score(ml, model, Pictures.Bytes(ml, rows)).Zip(Score(ml, model, Pictures.Bytes(ml, mirrored))))
            Assert.All(a.Score.Zip(b.Score), pair => Assert.Equal(pair.First, pair.Second, 1e-5f));
        Assert.Contains("RandAugmentLayers", Message(() => Pictures.Pipeline(ml, With(options => options.Augmentation = ImageAugmentation.Strong)).Fit(Pictures.Singles(ml))));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void Bfloat16_trains_on_the_CPU(int channels)
    {
        var ml = Models.Context();
        var model = Pictures.Pipeline(ml, With(options => options.Precision = Precision.BFloat16)).Fit(Pictures.Bytes(ml, channels: channels));
        var accuracy = Accuracy(ml, model, Pictures.Bytes(ml, rows: 60, channels: channels, seed: 2));
        Assert.True(accuracy > 0.9, $"{accuracy}");
        Assert.All(Pictures.Classifier(model).Model.Network.State(), entry => Assert.Equal(float32, entry.Value.dtype));
    }

    [Theory]
    [InlineData(1, 8)]
    [InlineData(1, 24)]
    [InlineData(3, 8)]
    public void An_image_is_convolved_in_bfloat16_on_the_CPU_as_in_float32(int channels, int features)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using var convolution = new NormedConvolution(channels, features, 3, stride: 2);
        var images = randn(4, 9, 11, channels).permute(0, 3, 1, 2);
        var expected = convolution.call(images);
        convolution.to(bfloat16);
        foreach (var (_, module) in convolution.named_modules()) if (module is IKeepsFloat32) module.to(float32);
        var got = convolution.call(images.to(bfloat16));
        Assert.Equal(bfloat16, got.dtype);
        Assert.True((got.to(float32) - expected).abs().max().item<float>() < 0.1, $"{(got.to(float32) - expected).abs().max().item<float>()}");
    }

    // ---- Scoring.

    [Fact]
    public void Engine_batch_single_rows_and_shuffled_cursor_agree()
    {
        var ml = Models.Context();
        var rows = Pictures.Rows(300, seed: 4);
        var view = Pictures.Bytes(ml, rows);
        var model = Pictures.Pipeline(ml, Pictures.Options(3)).Fit(view);
        var batched = Score(ml, model, view);
        using var engine = ml.Model.CreatePredictionEngine<Pictures.ByteRow, Models.ScoredRow>(model, inputSchemaDefinition: Pictures.Schema<Pictures.ByteRow>("Features", 3, Pictures.Side, Pictures.Side));
        foreach (var (row, expected) in rows.Zip(batched).Take(40))
        {
            var alone = Score(ml, model, Pictures.Bytes(ml, [row])).Single();
            var predicted = engine.Predict(row);
            Assert.Equal(alone.Score, predicted.Score);
            Assert.Equal((expected.Predicted, expected.Predicted), (alone.Predicted, predicted.Predicted));
            Assert.All(expected.Score.Zip(alone.Score), pair => Assert.Equal(pair.First, pair.Second, 1e-5f));
        }
        var scored = model.Transform(ml.Data.Cache(view));
        using var cursor = scored.GetRowCursor(scored.Schema, new Random(5));
        var (id, score, seen) = (0, default(VBuffer<float>), 0);
        var getId = cursor.GetGetter<int>(scored.Schema["Id"]);
        var getScore = cursor.GetGetter<VBuffer<float>>(scored.Schema["Score"]);
        while (cursor.MoveNext())
        {
            getId(ref id);
            getScore(ref score);
            seen++;
            Assert.Equal(batched[id].Score[0], score.GetValues()[0], 1e-5f);
        }
        Assert.Equal(300, seen);
    }

    [Fact]
    public void Threads_share_one_model()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var rows = Pictures.Files(folder, rows: 40);
        var model = FilePipeline(ml, folder, epochs: 2).Fit(ml.Data.LoadFromEnumerable(rows));
        var expected = Bits(Score(ml, model, ml.Data.LoadFromEnumerable(rows)));
        var all = new string[4][];
        var threads = Enumerable.Range(0, all.Length).Select(i => new Thread(() => all[i] = Bits(Score(new MLContext(), model, ml.Data.LoadFromEnumerable(rows))))).ToList();
        threads.ForEach(thread => thread.Start());
        threads.ForEach(thread => thread.Join());
        Assert.All(all, scores => Assert.Equal(expected, scores));
    }

    [Fact, NoTensorLeaks]
    public void Training_and_scoring_leave_no_tensor_but_the_model_s()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var files = ml.Data.LoadFromEnumerable(Pictures.Files(folder, rows: 24));
        foreach (var budget in (long[])[1 << 20, 0])
        {
            var model = FilePipeline(ml, folder, options => (options.HostDataBudget, options.Augmentation, options.Ema, options.ValidationFraction) = (budget, ImageAugmentation.Strong, 0.9, 0.2), epochs: 2).Fit(files);
            Score(ml, model, files);
            Models.Release(model);
        }
    }

    [Fact, NoTensorLeaks]
    public void A_stream_left_early_frees_what_it_prepared()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var view = Labels(ml, ml.Data.LoadFromEnumerable(Pictures.Files(folder, rows: 4)));
        var input = ImageInput.For(view.Schema["Path"], 3) with { Height = 8, Width = 8, Folder = folder.Path };
        var data = ImageData.Read(view, input, new("Path", "Label", (_, _) => _ => (0, null), NeedsImage: false, BadImages.Fail, MemoryBudget: 0), () => { });
        Assert.True(data.IsDeferred);
        using var source = ImageSource.Create(data, CPU, fits: true);
        using var scope = NewDisposeScope();
        for (var i = 0; i < 5; i++)
        {
            using var reader = source.Open(Enumerable.Range(0, 64).Select(row => new[] { row % 4 }).ToArray());
            reader.Next();
            Thread.Sleep(20); // all that may be prepared ahead is
        }
    }

    // ---- Saved models.

    public static TheoryData<string> Kinds() => ["bytes", "singles", "image", "file", "resnet"];

    [Theory]
    [MemberData(nameof(Kinds))]
    public void A_loaded_model_scores_bit_for_bit_alike(string kind)
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var files = ml.Data.LoadFromEnumerable(Pictures.Files(folder, rows: 40));
        var (view, pipeline) = kind switch
        {
            "singles" => (Pictures.Singles(ml, rows: 40), Pictures.Pipeline(ml, With(options => options.TestTimeFlips = ImageFlips.Horizontal, 2))),
            "image" => (files, ImagePipeline(ml, folder, options => (options.Resize, options.CropFraction) = (ImageResize.Pad, 0.75), epochs: 2)),
            "file" => (files, FilePipeline(ml, folder, options => options.Resize = ImageResize.Stretch, epochs: 2)),
            // Zeros do not do for a test of what a batch norm has seen.
            "resnet" => (Pictures.Bytes(ml, rows: 40), Pictures.Pipeline(ml, With(options => (options.Backbone, options.Ema) = (VisionBackbone.ResNet(20) with { Widths = [4, 8, 8], Depths = [1, 1, 1] }, 0.5), 3))),
            _ => (Pictures.Bytes(ml, rows: 40), Pictures.Pipeline(ml, Pictures.Options(2))),
        };
        var model = pipeline.Fit(view);
        ml.Model.Save(model, view.Schema, folder.File("m.zip"));
        var loaded = new MLContext().Model.Load(folder.File("m.zip"), out _);
        Assert.Equal(Bits(Score(ml, model, view)), Bits(Score(new MLContext(), loaded, view)));
        Assert.Equal(Weights(model), Weights(loaded));
        var statistics = Pictures.Classifier(loaded).Model.Network.named_buffers().Where(entry => entry.name.EndsWith(".mean", StringComparison.Ordinal)).ToList();
        Assert.NotEmpty(statistics);
        Assert.All(statistics, entry => Assert.True(entry.buffer.abs().max().item<float>() > 1e-4, entry.name));
        // And again.
        ml.Model.Save(loaded, view.Schema, folder.File("again.zip"));
        Assert.Equal(Bits(Score(ml, model, view)), Bits(Score(ml, ml.Model.Load(folder.File("again.zip"), out _), view)));
    }

    [Theory]
    [InlineData("Weights.safetensors", "cut")]
    [InlineData("Weights.safetensors", "random")]
    [InlineData("Weights.safetensors", "longer")]
    [InlineData("Weights.safetensors", "missing")]
    [InlineData("Weights.safetensors", "norm.variance\"=>norm.varianse\"")] // a batch norm's statistics are not there
    [InlineData("MLSeq.json", "cut")]
    [InlineData("MLSeq.json", "missing")]
    [InlineData("Label", "random")]
    [InlineData("MLSeq.json", "[8,16]=>[16384,16384]")] // a network that the weights cannot fill
    [InlineData("MLSeq.json", "[8,16]=>[8,32]")]
    [InlineData("MLSeq.json", "[8,16]=>[8,-16]")]
    [InlineData("MLSeq.json", "[1,1]=>[256,256]")]
    [InlineData("MLSeq.json", "[1,1]=>[1,2000000000]")]
    [InlineData("MLSeq.json", "[1,1]=>[1,1,1]")]
    [InlineData("MLSeq.json", "\"Height\":12=>\"Height\":-12")]
    [InlineData("MLSeq.json", "\"Height\":12=>\"Height\":0")]
    [InlineData("MLSeq.json", "\"Height\":12=>\"Height\":1000000")]
    [InlineData("MLSeq.json", "\"ColumnWidth\":12=>\"ColumnWidth\":2000000000")]
    [InlineData("MLSeq.json", "\"ColumnHeight\":12=>\"ColumnHeight\":0")]
    [InlineData("MLSeq.json", "\"Channels\":3=>\"Channels\":0")]
    [InlineData("MLSeq.json", "\"Channels\":3=>\"Channels\":4000")]
    [InlineData("MLSeq.json", "\"Mean\":[=>\"Mean\":[0.5,")]
    [InlineData("MLSeq.json", "\"Scale\":[=>\"Scale\":[1,")]
    [InlineData("MLSeq.json", "\"CropFraction\":1=>\"CropFraction\":0")]
    [InlineData("MLSeq.json", "\"CropFraction\":1=>\"CropFraction\":1e-9")]
    [InlineData("MLSeq.json", "\"Kind\":\"Bytes\"=>\"Kind\":\"Hologram\"")]
    [InlineData("MLSeq.json", "\"Kind\":\"Bytes\"=>\"Kind\":77")]
    [InlineData("MLSeq.json", "\"Resize\":\"Crop\"=>\"Resize\":\"Fold\"")]
    [InlineData("MLSeq.json", "\"name\":\"cnn\"=>\"name\":\"oracle\"")]
    [InlineData("MLSeq.json", "\"name\":\"cnn\"=>\"name\":\"resnet\"")]
    [InlineData("MLSeq.json", "\"TestTimeFlips\":\"None\"=>\"TestTimeFlips\":7")]
    [InlineData("MLSeq.json", "\"TestTimeFlips\":\"None\"=>\"TestTimeFlips\":\"Inside out\"")]
    [InlineData("MLSeq.json", "\"Classes\":3=>\"Classes\":4")]
    [InlineData("MLSeq.json", "\"Classes\":3=>\"Classes\":1")]
    [InlineData("MLSeq.json", "\"Format\":1=>\"Format\":2")]
    [InlineData("MLSeq.json", "\"Folder\":\"\"=>\"Folder\":null")]
    public void A_damaged_or_foreign_entry_is_refused(string entry, string damage)
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var view = Pictures.Bytes(ml, rows: 24);
        var model = Pictures.Pipeline(ml, With(options => options.BatchSize = 24, 1)).Fit(view);
        ml.Model.Save(model, view.Schema, folder.File("m.zip"));
        Models.Release(model);
        ModelFiles.AssertRefused(folder.File("m.zip"), entry, damage);
    }

    private sealed class KeyRow
    {
        public uint Label { get; set; }

        public byte[] Features { get; set; } = [];
    }

    [Fact]
    public void Many_classes_need_weights_before_anything_is_made_for_them()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var schema = Pictures.Schema<KeyRow>("Features", 3, Pictures.Side, Pictures.Side);
        schema["Label"].ColumnType = new KeyDataViewType(typeof(uint), 40_000);
        var view = ml.Data.LoadFromEnumerable(Pictures.Rows(8).Select((row, i) => new KeyRow { Label = 1 + (uint)i % 2, Features = row.Features }).ToList(), schema);
        var model = ml.MulticlassClassification.Trainers.ImageClassification(Pictures.Options(1)).Fit(view);
        ml.Model.Save(model, view.Schema, folder.File("m.zip"));
        new MLContext().Model.Load(folder.File("m.zip"), out _);
        ModelFiles.Damage(folder.File("m.zip"), "Weights.safetensors", bytes => bytes[..(bytes.Length * 2 / 3)], renewChecksum: true);
        Assert.Contains("a network as described needs at least", ModelFiles.Refusal(folder.File("m.zip")));
    }

    // ---- Training.

    [Fact]
    public void The_same_seed_gives_the_same_model()
    {
        float[] Run(int seed) => Weights(Pictures.Pipeline(new MLContext(), With(options => (options.Seed, options.Augmentation) = (seed, ImageAugmentation.Strong), 2)).Fit(Pictures.Bytes(new MLContext(), rows: 48)));
        Assert.Equal(Run(3), Run(3));
        Assert.NotEqual(Run(3), Run(4));
    }

    [Fact]
    public void Cancellation_returns_a_model()
    {
        var ml = Models.Context();
        var warnings = Models.Warnings(ml);
        using var cancel = new CancellationTokenSource();
        var model = Pictures.Pipeline(ml, With(options => (options.CancellationToken, options.Progress) = (cancel.Token, Recorder.CancelAfter(6, cancel)), epochs: 1000)).Fit(Pictures.Bytes(ml));
        Assert.Contains(warnings, warning => warning.Contains("cancelled", StringComparison.Ordinal));
        Assert.True(Accuracy(ml, model, Pictures.Bytes(ml)) > 0.7);
    }

    [Fact]
    public void A_resumed_training_equals_an_uninterrupted_one_statistics_included()
    {
        using var folder = new TemporaryFolder();
        float[] Run(string? checkpoint, int? cancelAfter)
        {
            using var cancel = new CancellationTokenSource();
            var options = With(options =>
            {
                (options.CheckpointFolder, options.Augmentation, options.Ema, options.ValidationFraction) = (checkpoint, ImageAugmentation.Strong, 0.9, 0.2);
                (options.CancellationToken, options.Progress) = (cancel.Token, cancelAfter is { } epoch ? Recorder.CancelAfter(epoch, cancel) : null);
                options.HeadDropout = 0.2;
            }, epochs: 5);
            return Weights(Pictures.Pipeline(Models.Context(), options).Fit(Pictures.Bytes(Models.Context())));
        }
        var whole = Run(null, null);
        Assert.NotEqual(whole, Run(folder.File("b"), 1));
        Assert.NotEqual(whole, Run(folder.File("b"), 3));
        Assert.Equal(whole, Run(folder.File("b"), null));
    }

    [Fact]
    public void A_warm_start_keeps_the_backbone_when_the_classes_differ()
    {
        var ml = Models.Context();
        var warnings = Models.Warnings(ml);
        var first = Pictures.Classifier(Pictures.Pipeline(ml, Pictures.Options()).Fit(Pictures.Bytes(ml)));
        var recorder = new Recorder();
        var second = Pictures.Classifier(Pictures.Pipeline(ml, With(options => (options.WarmStart, options.LearningRate, options.Progress) = (first, 1e-6, recorder), 1)).Fit(Pictures.Bytes(ml, classes: 2)));
        Assert.Equal(2, second.Model.Spec.Classes);
        Assert.Contains(warnings, warning => warning.Contains("head.weight", StringComparison.Ordinal));
        Assert.DoesNotContain(warnings, warning => warning.Contains("backbone", StringComparison.Ordinal));
        var (a, b) = (first.Model.Network.State().ToDictionary(entry => entry.Name, entry => entry.Value), second.Model.Network.State().ToDictionary(entry => entry.Name, entry => entry.Value));
        foreach (var name in a.Keys.Where(name => name.StartsWith("backbone", StringComparison.Ordinal) && !name.EndsWith("mean", StringComparison.Ordinal) && !name.EndsWith("variance", StringComparison.Ordinal)))
            Assert.True((a[name] - b[name]).abs().max().item<float>() < 1e-4, name);
        // With the same classes it begins where the first ended.
        Pictures.Pipeline(ml, With(options => (options.WarmStart, options.LearningRate, options.Progress) = (first, 1e-6, recorder), 1)).Fit(Pictures.Bytes(ml));
        Assert.True(recorder.Epochs.Last().Metric > 0.85, $"{recorder.Epochs.Last().Metric}");
        Assert.Contains("WarmStart", Message(() => Pictures.Pipeline(ml, With(options => (options.WarmStart, options.Backbone) = (first, VisionBackbone.Cnn([8, 8], [1, 1])))).Fit(Pictures.Bytes(ml))));
    }

    [Fact]
    public void An_averaged_model_has_statistics_that_fit_its_weights()
    {
        var ml = Models.Context();
        var model = Pictures.Pipeline(ml, With(options => (options.Ema, options.WarmupFraction) = (0.9, 0.1), epochs: 12)).Fit(Pictures.Bytes(ml));
        var accuracy = Accuracy(ml, model, Pictures.Bytes(ml, rows: 60, seed: 2));
        Assert.True(accuracy > 0.9, $"{accuracy}");
    }

    [Fact]
    public void Validation_rows_choose_the_best_epoch()
    {
        var ml = Models.Context();
        var recorder = new Recorder();
        var options = With(options => (options.LearningRate, options.ValidationFraction, options.Progress) = (0.05, 0.25, recorder), epochs: 5);
        var model = Pictures.Pipeline(ml, options).Fit(Pictures.Bytes(ml));
        Assert.Equal(5, recorder.Epochs.Count());
        Assert.All(recorder.Epochs, epoch => Assert.True(epoch.ValidationLoss > 0 && epoch.ValidationMetric is >= 0 and <= 1 && epoch.MetricName == "accuracy"));
        Assert.Contains(recorder.Epochs, epoch => epoch.IsBest);
        // What a fifth of 3 rows of each class leaves is too little, and is said.
        Assert.Contains("ValidationFraction", Message(() => Pictures.Pipeline(ml, With(options => options.ValidationFraction = 0.1)).Fit(Pictures.Bytes(ml, rows: 9))));
        Models.Release(model);
    }

    [Fact]
    public void Labels_that_are_missing_are_skipped_and_counted()
    {
        var ml = Models.Context();
        var warnings = Models.Warnings(ml);
        var known = ml.Transforms.Conversion.MapValueToKey("Label").Fit(Pictures.Bytes(ml, classes: 2));
        var rows = Pictures.Rows(60);
        ml.MulticlassClassification.Trainers.ImageClassification(Pictures.Options(1)).Fit(known.Transform(Pictures.Bytes(ml, rows)));
        Assert.Contains(warnings, warning => warning.Contains($"Skipped {rows.Count(row => row.Label == "checks")} training rows with a missing label", StringComparison.Ordinal));
    }

    // ---- Bad data.

    private static void Break(string path, string how)
    {
        switch (how)
        {
            case "missing": File.Delete(path); break;
            case "text": File.WriteAllText(path, "This is no image."); break;
            case "empty": File.WriteAllText(path, ""); break;
            case "cut": // in the middle of the pixels
                var bytes = File.ReadAllBytes(path);
                File.WriteAllBytes(path, bytes[..(bytes.Length / 2)]);
                break;
            default: throw new ArgumentException(how);
        }
    }

    [Theory]
    [InlineData("missing")]
    [InlineData("text")]
    [InlineData("empty")]
    [InlineData("cut")]
    public void A_file_that_cannot_be_read_is_named_with_its_row(string how)
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var warnings = Models.Warnings(ml);
        var rows = Pictures.Files(folder, rows: 300, alike: true); // so many that ML.NET splits them over several cursors
        var view = ml.Data.LoadFromEnumerable(rows);
        var good = FilePipeline(ml, folder, options => options.BatchSize = 300, epochs: 1).Fit(view);
        foreach (var row in (int[])[223, 231]) Break(folder.File(rows[row].Path), how);
        foreach (var budget in (long[])[1 << 20, 0])
        {
            var message = Message(() => FilePipeline(ml, folder, options => options.HostDataBudget = budget, epochs: 1).Fit(view));
            Assert.Contains("Row 223 ", message);
            Assert.Contains("1-223.png", message);
            Assert.Contains("BadImages", message);
            warnings.Clear();
            FilePipeline(ml, folder, options => (options.HostDataBudget, options.BadImages) = (budget, BadImages.Skip), epochs: 1).Fit(view);
            var warning = Assert.Single(warnings);
            Assert.Contains("Left out 2 training rows", warning);
            Assert.Contains("Row 223 ", warning);
        }
        var scored = Pictures.Classifier(good).Transform(view);
        var scoring = Assert.Throws<ArgumentException>(() => scored.GetColumn<float[]>("Score").Count());
        Assert.Contains("Row 223 ", scoring.Message);
    }

    [Theory]
    [InlineData("missing")]
    [InlineData("text")]
    public void An_image_that_cannot_be_loaded_is_named_with_its_row(string how)
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var warnings = Models.Warnings(ml);
        var rows = Pictures.Files(folder, rows: 300, alike: true);
        foreach (var row in (int[])[223, 231]) Break(folder.File(rows[row].Path), how);
        var view = ml.Data.LoadFromEnumerable(rows);
        var message = Message(() => ImagePipeline(ml, folder, epochs: 1).Fit(view));
        Assert.Contains("Row 223 ", message);
        Assert.Contains("BadImages", message);
        ImagePipeline(ml, folder, options => options.BadImages = BadImages.Skip, epochs: 1).Fit(view);
        var warning = Assert.Single(warnings, text => text.Contains("Left out", StringComparison.Ordinal));
        Assert.Contains("Left out 2 training rows", warning);
        Assert.Contains("Row 223 ", warning);
    }

    [Fact]
    public void Bad_columns_and_sizes_are_refused_with_the_reason()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var view = Pictures.Bytes(ml, rows: 24);
        var model = Pictures.Pipeline(ml, Pictures.Options(1)).Fit(view);
        // Another number of channels or another type when scoring.
        Assert.Contains("Features", Message(() => model.Transform(Pictures.Bytes(ml, rows: 5, channels: 1))));
        Assert.Contains("Features", Message(() => model.Transform(Pictures.Singles(ml, rows: 5))));
        Assert.Contains("Features", Message(() => model.Transform(ml.Data.LoadFromEnumerable(Pictures.Files(folder, 3)))));
        // Types that are no images.
        Assert.Contains("vector of Byte or Single", Message(() => Pictures.Pipeline(ml, With(options => options.FeatureColumnName = "Id")).Fit(view)));
        Assert.Contains("Nothing", Message(() => Pictures.Pipeline(ml, With(options => options.FeatureColumnName = "Nothing")).Fit(view)));
        var flat = ml.Data.LoadFromEnumerable(Pictures.Rows(12), Pictures.Schema<Pictures.ByteRow>("Features", 432));
        Assert.Contains("[channels, height, width]", Message(() => Pictures.Pipeline(ml, Pictures.Options()).Fit(flat)));
        var unknown = ml.Data.LoadFromEnumerable(Pictures.Rows(12));
        Assert.Contains("of known size", Message(() => Pictures.Pipeline(ml, Pictures.Options()).Fit(unknown)));
        Assert.Contains("MapValueToKey", Message(() => ml.MulticlassClassification.Trainers.ImageClassification(Pictures.Options()).Fit(view)));
        // A row of another length than its column says.
        var rows = Pictures.Rows(12);
        rows[7].Features = new byte[431];
        var message = Message(() => Pictures.Pipeline(ml, Pictures.Options()).Fit(Pictures.Bytes(ml, rows)));
        Assert.Contains("431", message);
        // Sizes that differ.
        var files = ml.Data.LoadFromEnumerable(Pictures.Files(folder, rows: 12, seed: 3));
        message = Message(() => FilePipeline(ml, folder, options => (options.ImageHeight, options.ImageWidth) = (0, 0)).Fit(files));
        Assert.Contains("The images differ in size", message);
        Assert.Contains("Set ImageHeight and ImageWidth", message);
        // Classes.
        Assert.Contains("at least 2", Message(() => Pictures.Pipeline(ml, Pictures.Options()).Fit(Pictures.Bytes(ml, classes: 1))));
        var keys = ml.Transforms.Conversion.MapValueToKey("Label").Fit(view);
        Assert.Contains("same label", Message(() => ml.MulticlassClassification.Trainers.ImageClassification(Pictures.Options()).Fit(keys.Transform(Pictures.Bytes(ml, classes: 1)))));
        Assert.Contains("no training rows", Message(() => ml.MulticlassClassification.Trainers.ImageClassification(Pictures.Options()).Fit(keys.Transform(Pictures.Bytes(ml, rows: 0)))));
        Assert.Contains("square", Message(() => Pictures.Pipeline(ml, With(options => (options.Augmentation, options.ImageHeight, options.ImageWidth) = (ImageAugmentation.Overhead, 8, 9))).Fit(view)));
        Assert.Contains("ValidationSet", Message(() => Pictures.Pipeline(ml, With(options => options.ValidationSet = Pictures.Singles(ml))).Fit(view)));
        Assert.Contains("ClassWeights", Message(() => Pictures.Pipeline(ml, With(options => options.ClassWeights = [1, 2])).Fit(view)));
    }

    [Theory]
    [InlineData(float.NaN)]
    [InlineData(float.NegativeInfinity)]
    public void A_number_that_is_not_finite_is_named_with_its_place(float bad)
    {
        var ml = Models.Context();
        var warnings = Models.Warnings(ml);
        var rows = ml.Data.CreateEnumerable<Pictures.SingleRow>(Pictures.Singles(ml, rows: 300), false).ToList();
        rows[217].Features[144 + 2 * 12 + 5] = bad; // channel 1, y 2, x 5
        var message = Message(() => Pictures.Pipeline(ml, Pictures.Options(1)).Fit(Pictures.Singles(ml, rows)));
        Assert.Contains("Row 217 ", message);
        Assert.Contains("channel 1, (y 2, x 5)", message);
        Pictures.Pipeline(ml, With(options => options.BadImages = BadImages.Skip, 1)).Fit(Pictures.Singles(ml, rows));
        Assert.Contains(warnings, warning => warning.Contains("Left out 1 training rows", StringComparison.Ordinal) && warning.Contains("Row 217 ", StringComparison.Ordinal));
    }
}
