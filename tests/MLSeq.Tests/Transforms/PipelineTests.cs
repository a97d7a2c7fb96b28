using System.Reflection;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq.TestHost;
using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;

namespace MLSeq.Tests.Transforms;

/// <summary>The trainers as an ML.NET user meets them.</summary>
public sealed class PipelineTests
{
    [Theory]
    [MemberData(nameof(Backbones))]
    public void Every_backbone_fits_evaluates_and_names_its_classes(string name)
    {
        var ml = Models.Context();
        var model = Models.Pipeline(ml, Backbone.Create(name, 16, 1, bidirectional: true), epochs: 25).Fit(Models.Series(ml, rows: 300, fixedLength: false));
        var scored = model.Transform(Models.Series(ml, rows: 100, seed: 2, fixedLength: false));
        var metrics = ml.MulticlassClassification.Evaluate(scored);
        Assert.True(metrics.MicroAccuracy > 0.85, $"{name}: {metrics.MicroAccuracy}");
        Assert.Contains("class 2", metrics.ConfusionMatrix.GetFormattedConfusionTable());
        VBuffer<ReadOnlyMemory<char>> names = default;
        scored.Schema["Score"].GetSlotNames(ref names);
        Assert.Equal(["class 0", "class 1", "class 2"], names.DenseValues().Select(value => value.ToString()).Order());
        Assert.All(Models.Score(ml, model, Models.Series(ml, rows: 10, seed: 3, fixedLength: false)), row =>
        {
            Assert.Equal(1, row.Score.Sum(), 1e-5);
            Assert.StartsWith("class ", row.Predicted);
        });
    }

    public static TheoryData<string> Backbones() => [.. Backbone.Names];

    [Fact]
    public void Cross_validation_caching_and_feature_importance_work()
    {
        var ml = Models.Context();
        var view = Models.Series(ml, rows: 240, time: 6, channels: 1);
        var pipeline = ml.Transforms.Conversion.MapValueToKey("Label").AppendCacheCheckpoint(ml)
            .Append(ml.MulticlassClassification.Trainers.SequenceClassification("Label", "Features", Backbone.Cnn(width: 16, depth: 1)));
        Assert.All(ml.MulticlassClassification.CrossValidate(view, pipeline, 3), fold => Assert.True(fold.Metrics.MicroAccuracy > 0.5));
        var model = pipeline.Fit(view);
        var keyed = ml.Transforms.Conversion.MapValueToKey("Label").Fit(view).Transform(view);
        var importance = ml.MulticlassClassification.PermutationFeatureImportance(model.LastTransformer, keyed);
        Assert.Equal(6, importance.Length);
        var drops = importance.Select(feature => feature.MicroAccuracy.Mean).ToArray();
        Assert.True(Math.Min(drops[0], Math.Min(drops[2], drops[4])) < drops[1] && drops[1] > -0.05, string.Join(" ", drops)); // bumps sit at 0, 2 and 4
    }

    [Fact]
    public void Engine_batch_and_shuffled_cursor_agree()
    {
        var ml = Models.Context();
        var view = Models.Series(ml, rows: 1500, fixedLength: false);
        var model = Models.Pipeline(ml).Fit(view);
        var batched = Models.Score(ml, model, view);
        using var engine = ml.Model.CreatePredictionEngine<Models.SeriesRow, Models.ScoredRow>(model, inputSchemaDefinition: Models.SeriesSchema(0, 2));
        foreach (var (row, expected) in ml.Data.CreateEnumerable<Models.SeriesRow>(view, false).Zip(batched).Take(60))
        {
            var got = engine.Predict(row);
            Assert.Equal(expected.Predicted, got.Predicted);
            Assert.All(expected.Score.Zip(got.Score), pair => Assert.Equal(pair.First, pair.Second, 1e-5f));
        }
        var scored = model.Transform(ml.Data.Cache(view)); // a cached view can be shuffled
        using var cursor = scored.GetRowCursor(scored.Schema, new Random(5));
        var (id, score, seen, moved) = (0, default(VBuffer<float>), 0, 0);
        var getId = cursor.GetGetter<int>(scored.Schema["Id"]);
        var getScore = cursor.GetGetter<VBuffer<float>>(scored.Schema["Score"]);
        while (cursor.MoveNext())
        {
            getId(ref id);
            getScore(ref score);
            if (id != seen++) moved++;
            Assert.Equal(batched[id].Score[0], score.GetValues()[0], 1e-5f);
        }
        Assert.Equal(1500, seen);
        Assert.True(moved > 1000, "the cursor was not shuffled");
    }

    [Fact]
    public void Concurrent_engines_share_one_model()
    {
        var ml = Models.Context();
        var view = Models.Series(ml, rows: 200);
        var model = Models.Pipeline(ml).Fit(view);
        var rows = ml.Data.CreateEnumerable<Models.SeriesRow>(view, false).ToList();
        var expected = Models.Score(ml, model, view);
        var wrong = 0;
        Parallel.For(0, 6, _ =>
        {
            using var engine = new MLContext().Model.CreatePredictionEngine<Models.SeriesRow, Models.ScoredRow>(model,
                new PredictionEngineOptions { OwnsTransformer = false, InputSchemaDefinition = Models.SeriesSchema(12, 2) });
            for (var i = 0; i < rows.Count; i++)
                if (engine.Predict(rows[i]).Predicted != expected[i].Predicted) Interlocked.Increment(ref wrong);
        });
        Assert.Equal(0, wrong);
    }

    [Fact]
    public void Memory_and_tensors_stay_flat_under_load()
    {
        var ml = Models.Context();
        var view = Models.Series(ml, rows: 400);
        var model = Models.Pipeline(ml).Fit(view);
        using var engine = ml.Model.CreatePredictionEngine<Models.SeriesRow, Models.ScoredRow>(model, new PredictionEngineOptions { OwnsTransformer = false, InputSchemaDefinition = Models.SeriesSchema(12, 2) });
        var row = ml.Data.CreateEnumerable<Models.SeriesRow>(view, false).First();
        void Load()
        {
            Models.Score(ml, model, view);
            for (var i = 0; i < 400; i++) engine.Predict(row);
        }
        Load();
        TensorLeaks.Collect(); // what training left
        var before = torch.Tensor.TotalCount;
        for (var i = 0; i < 5; i++) Load();
        Assert.Equal(before, torch.Tensor.TotalCount);
    }

    [Theory]
    [InlineData("words")]
    [InlineData("utf8")]
    [InlineData("wordpiece")]
    [InlineData("bpe")]
    public void Text_is_read_in_every_encoding(string kind)
    {
        using var folder = new TemporaryFolder();
        var encoding = kind switch
        {
            "words" => TextEncoding.Words(buckets: 512),
            "utf8" => TextEncoding.Utf8Bytes(),
            "wordpiece" => WordPiece(folder),
            _ => ByteLevelBpe(folder),
        };
        var ml = Models.Context();
        var view = FixedData.View(ml);
        var model = FixedData.Pipeline(ml, options => (options.TextEncoding, options.Epochs, options.LearningRate) = (encoding, 20, 5e-3)).Fit(view);
        var scored = model.Transform(view);
        Assert.True(ml.MulticlassClassification.Evaluate(scored).MicroAccuracy > 0.85, $"{kind}: {ml.MulticlassClassification.Evaluate(scored).MicroAccuracy}");
        ml.Model.Save(model, view.Schema, folder.File("m.zip"));
        if (kind != "words") // the vocabulary travels inside the model
            foreach (var file in Directory.GetFiles(folder.Path).Where(file => !file.EndsWith("m.zip", StringComparison.Ordinal))) File.Delete(file);
        Assert.Equal(FixedData.Scores(ml, model), FixedData.Scores(ml, ml.Model.Load(folder.File("m.zip"), out _)));
    }

    private static TextEncoding WordPiece(TemporaryFolder folder)
    {
        File.WriteAllLines(folder.File("vocab.txt"), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "alpha", "be", "##ta", "gamma", "delta", "7", "!"]);
        return TextEncoding.WordPiece(folder.File("vocab.txt"));
    }

    private static TextEncoding ByteLevelBpe(TemporaryFolder folder)
    {
        var letters = "abcdefghijklmnopqrstuvwxyz7!Ġ".Select(letter => letter.ToString()).Concat(["be", "ta", "beta", "<|endoftext|>"]);
        File.WriteAllText(folder.File("vocab.json"), System.Text.Json.JsonSerializer.Serialize(letters.Select((letter, i) => (letter, i)).ToDictionary(pair => pair.letter, pair => pair.i)));
        File.WriteAllLines(folder.File("merges.txt"), ["#version: 0.2", "b e", "t a", "be ta"]);
        return TextEncoding.ByteLevelBpe(folder.File("vocab.json"), folder.File("merges.txt"));
    }

    private sealed class TokenRow
    {
        public string Label { get; set; } = "";

        public int[] Ids { get; set; } = [];

        public string Text { get; set; } = "";
    }

    [Theory]
    [InlineData("Ids")]
    [InlineData("Keys")]
    public void Token_ids_and_keys_are_read(string column)
    {
        var ml = Models.Context();
        var random = new Random(1);
        List<TokenRow> Rows(int count, int vocabulary) => [.. Enumerable.Range(0, count).Select(_ =>
        {
            var ids = Enumerable.Range(0, random.Next(1, 9)).Select(_ => random.Next(vocabulary)).ToArray();
            return new TokenRow { Label = ids.Contains(3) ? "yes" : "no", Ids = ids, Text = string.Join(' ', ids.Select(id => $"w{id}")) };
        })];
        var train = ml.Data.LoadFromEnumerable(Rows(300, 8));
        var pipeline = ml.Transforms.Conversion.MapValueToKey("Label")
            .Append(ml.Transforms.Text.TokenizeIntoWords("Tokens", "Text")).Append(ml.Transforms.Conversion.MapValueToKey("Keys", "Tokens"))
            .Append(ml.MulticlassClassification.Trainers.SequenceClassification(new SequenceClassificationTrainer.Options
            { FeatureColumnName = column, Backbone = Backbone.Gru(width: 16, depth: 1), Epochs = 20, LearningRate = 5e-3, Device = "cpu" }));
        var model = pipeline.Fit(train);
        Assert.True(ml.MulticlassClassification.Evaluate(model.Transform(ml.Data.LoadFromEnumerable(Rows(100, 8)))).MicroAccuracy > 0.9);
        var unseen = model.Transform(ml.Data.LoadFromEnumerable(Rows(20, 50))); // ids never seen are the unknown token
        Assert.All(ml.Data.CreateEnumerable<Models.ScoredRow>(unseen, false, ignoreMissingColumns: true), row => Assert.True(row.Score.All(float.IsFinite)));
    }

    [Fact]
    public void Flat_vectors_take_their_channels_from_the_options_and_long_rows_are_cut_with_a_count()
    {
        var ml = Models.Context();
        var warnings = Models.Warnings(ml);
        var rows = ml.Data.CreateEnumerable<Models.SeriesRow>(Models.Series(ml, rows: 50, fixedLength: false), false).ToList();
        var flat = ml.Data.LoadFromEnumerable(rows); // Vector<Single> of unknown size
        var options = Models.Options(epochs: 1);
        (options.Channels, options.MaxLength) = (2, 8);
        var model = Models.Pipeline(ml, options).Fit(flat);
        Assert.Equal(2, ((ElementKind.Series)Models.Classifier(model).Model.Spec.Input).Channels);
        var longer = rows.Count(row => row.Features.Length > 16);
        Assert.Contains(warnings, warning => warning.Contains($"{longer} of 50 training rows are longer than MaxLength 8", StringComparison.Ordinal));
        options.Channels = 5;
        Assert.Contains("multiple of the 5 channels", Assert.ThrowsAny<Exception>(() => Models.Pipeline(ml, options).Fit(flat)).ToString());
    }

    [Fact]
    public void Missing_labels_are_skipped_and_counted()
    {
        var ml = Models.Context();
        var warnings = Models.Warnings(ml);
        var known = ml.Transforms.Conversion.MapValueToKey("Label").Fit(Models.Series(ml, rows: 60, classes: 2));
        var view = known.Transform(Models.Series(ml, rows: 60, classes: 3)); // class 2 is unknown to the mapping
        var missing = ml.Data.CreateEnumerable<Models.SeriesRow>(Models.Series(ml, rows: 60, classes: 3), false).Count(row => row.Label == "class 2");
        ml.MulticlassClassification.Trainers.SequenceClassification(Models.Options(epochs: 1)).Fit(view);
        Assert.Contains(warnings, warning => warning.Contains($"Skipped {missing} training rows", StringComparison.Ordinal));
    }

    [Fact]
    public void Bad_data_is_refused_with_the_reason()
    {
        var ml = Models.Context();
        string Message(IDataView view, Action<SequenceClassificationTrainer.Options>? change = null)
        {
            var options = Models.Options(epochs: 1);
            change?.Invoke(options);
            return Assert.ThrowsAny<Exception>(() => Models.Pipeline(ml, options).Fit(view)).Message;
        }
        Assert.Contains("needs at least 2", Message(Models.Series(ml, classes: 1)));
        Assert.Contains("no training rows", Assert.ThrowsAny<Exception>(() => ml.MulticlassClassification.Trainers.SequenceClassification(Models.Options()).Fit(
            ml.Transforms.Conversion.MapValueToKey("Label").Fit(Models.Series(ml)).Transform(Models.Series(ml, rows: 0)))).Message);
        var rows = ml.Data.CreateEnumerable<Models.SeriesRow>(Models.Series(ml, rows: 30), false).ToList();
        foreach (var bad in (float[])[float.NaN, float.PositiveInfinity])
        {
            rows[17].Features[5] = bad;
            var message = Message(ml.Data.LoadFromEnumerable(rows, Models.SeriesSchema(12, 2)));
            Assert.Contains("Row 17", message);
            Assert.Contains("time 2, channel 1", message);
        }
        Assert.Contains("Features", Message(Models.Series(ml), options => options.FeatureColumnName = "NoSuchFeatures"));
        Assert.Contains("Text", Message(Models.Series(ml), options => options.FeatureColumnName = "Id"));
        Assert.Contains("MapValueToKey", Assert.ThrowsAny<Exception>(() => ml.MulticlassClassification.Trainers.SequenceClassification(Models.Options()).Fit(Models.Series(ml))).Message);
        Assert.Contains("CUDA", Message(Models.Series(ml), options => options.Device = "cuda:99"));
        Assert.Contains("is no device", Message(Models.Series(ml), options => options.Device = "abacus"));
    }

    [Fact]
    public void Not_a_number_in_scoring_gives_a_missing_label_for_that_row_alone()
    {
        var ml = Models.Context();
        var model = Models.Pipeline(ml).Fit(Models.Series(ml));
        var rows = ml.Data.CreateEnumerable<Models.SeriesRow>(Models.Series(ml, rows: 30), false).ToList();
        var clean = Models.Score(ml, model, ml.Data.LoadFromEnumerable(rows, Models.SeriesSchema(12, 2)));
        rows[4].Features[3] = float.NaN;
        var scores = Models.Score(ml, model, ml.Data.LoadFromEnumerable(rows, Models.SeriesSchema(12, 2)));
        Assert.True(scores[4].Score.All(float.IsNaN));
        Assert.True(string.IsNullOrEmpty(scores[4].Predicted));
        for (var i = 0; i < rows.Count; i++)
            if (i != 4) Assert.Equal(clean[i].Score, scores[i].Score);
    }

    [Fact]
    public void Empty_texts_and_series_are_scored()
    {
        var ml = Models.Context();
        var model = FixedData.Pipeline(ml).Fit(FixedData.View(ml));
        var scores = ml.Data.CreateEnumerable<FixedData.Scored>(model.Transform(ml.Data.LoadFromEnumerable([new FixedData.Row { Text = "" }, new FixedData.Row { Text = "  \n" }])), false).ToList();
        Assert.All(scores, row => Assert.Equal(1, row.Score.Sum(), 1e-5));
        var series = Models.Pipeline(ml).Fit(Models.Series(ml, fixedLength: false));
        var empty = ml.Data.LoadFromEnumerable([new Models.SeriesRow()], Models.SeriesSchema(0, 2));
        Assert.Equal(1, Models.Score(ml, series, empty).Single().Score.Sum(), 1e-5);
    }
}
