using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq.TestHost;
using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;

namespace MLSeq.Tests.Transforms;

/// <summary>The streaming engine: what it says after n elements is what the batch says of these n.</summary>
public sealed class StreamingTests
{
    private const int Channels = 2;

    private sealed class Element
    {
        public float[] Features { get; set; } = [];
    }

    private sealed class Prediction
    {
        public string Predicted { get; set; } = "";

        public float[] Score { get; set; } = [];
    }

    private sealed class TextElement
    {
        public string Text { get; set; } = "";
    }

    public static TheoryData<string> Backbones() => [.. Backbone.Names];

    private static ITransformer Fit(MLContext ml, Backbone backbone, SequencePooling pooling = SequencePooling.LearnedQuery, bool fixedLength = false)
    {
        var options = Models.Options(backbone, epochs: 1);
        options.Pooling = pooling;
        return Models.Pipeline(ml, options).Fit(Models.Series(ml, rows: 40, channels: Channels, fixedLength: fixedLength));
    }

    private static float[] Row(int time, int seed = 5)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, time * Channels).Select(_ => (float)random.NextDouble())];
    }

    // The batch's scores of every prefix of a row.
    private static List<Models.ScoredRow> Prefixes(MLContext ml, ITransformer model, float[] row)
    {
        var rows = Enumerable.Range(1, row.Length / Channels).Select(n => new Models.SeriesRow { Label = "class 0", Features = row[..(n * Channels)] }).ToList();
        return Models.Score(ml, model, ml.Data.LoadFromEnumerable(rows, Models.SeriesSchema(0, Channels)));
    }

    private static void Same(float[] expected, float[] got)
    {
        Assert.Equal(expected.Length, got.Length);
        for (var i = 0; i < expected.Length; i++) Assert.Equal(expected[i], got[i], 1e-5f);
    }

    [Theory, MemberData(nameof(Backbones))]
    public void Every_backbone_streams_what_the_batch_says(string name)
    {
        var ml = Models.Context();
        var model = Fit(ml, Backbone.Create(name, 16, 2));
        var row = Row(40);
        using var engine = ml.Model.CreateStreamingEngine<Element, Prediction>(model);
        foreach (var (expected, n) in Prefixes(ml, model, row).Select((scored, i) => (scored, i + 1)))
        {
            var got = engine.Predict(new Element { Features = row[((n - 1) * Channels)..(n * Channels)] });
            Same(expected.Score, got.Score);
            Assert.Equal(expected.Predicted, got.Predicted);
            Assert.Equal(n, engine.Position);
        }
        Models.Release(model);
    }

    [Theory]
    [InlineData(SequencePooling.Mean), InlineData(SequencePooling.Max), InlineData(SequencePooling.Last), InlineData(SequencePooling.LearnedQuery)]
    public void Every_pooling_streams_and_pieces_may_have_any_length(SequencePooling pooling)
    {
        var ml = Models.Context();
        var model = Fit(ml, Backbone.GatedDeltaNet(16, 1), pooling);
        var row = Row(40);
        var expected = Prefixes(ml, model, row);
        using var engine = ml.Model.CreateStreamingEngine<Element, Prediction>(model);
        for (int from = 0, i = 0; from < 40; i++)
        {
            var count = Math.Min(new[] { 1, 7, 2 }[i % 3], 40 - from);
            var got = engine.Predict(new Element { Features = row[(from * Channels)..((from + count) * Channels)] });
            from += count;
            Same(expected[from - 1].Score, got.Score);
        }
    }

    [Fact]
    public void A_model_of_fixed_length_series_can_be_streamed_beyond_it()
    {
        var ml = Models.Context();
        var model = Fit(ml, Backbone.Mamba2(16, 1), fixedLength: true);
        using var engine = ml.Model.CreateStreamingEngine<Element, Prediction>(model);
        for (var i = 0; i < 50; i++) Assert.Equal(1, engine.Predict(new Element { Features = Row(1, i) }).Score.Sum(), 1e-4);
        Assert.Equal(50, engine.Position);
        var error = Assert.ThrowsAny<Exception>(() => engine.Predict(new Element { Features = new float[3] }));
        Assert.Contains("multiple of the 2 channels", error.ToString());
    }

    [Theory]
    [InlineData("words"), InlineData("bytes")]
    public void Text_streams_word_by_word_or_byte_by_byte(string encoding)
    {
        var ml = Models.Context();
        var model = FixedData.Pipeline(ml, options =>
        {
            options.Backbone = Backbone.DeltaNet(16, 1);
            options.TextEncoding = encoding == "words" ? TextEncoding.Words(buckets: 256) : TextEncoding.Utf8Bytes();
        }).Fit(FixedData.View(ml));
        string[] pieces = encoding == "words" ? ["alpha", "7", "beta gamma", "", "!"] : ["al", "phа ", "", "β"]; // bytes of several per letter
        using var engine = ml.Model.CreateStreamingEngine<TextElement, FixedData.Scored>(model);
        using var batch = ml.Model.CreatePredictionEngine<FixedData.Row, FixedData.Scored>(model);
        var text = "";
        foreach (var piece in pieces)
        {
            text += encoding == "words" ? " " + piece : piece;
            Same(batch.Predict(new FixedData.Row { Text = text }).Score, engine.Predict(new TextElement { Text = piece }).Score);
        }
        engine.Reset();
        Same(batch.Predict(new FixedData.Row { Text = "" }).Score, engine.Predict(new TextElement { Text = "" }).Score); // an empty stream
        Assert.Equal(0, engine.Position);
        Same(batch.Predict(new FixedData.Row { Text = "beta" }).Score, engine.Predict(new TextElement { Text = "beta" }).Score);
    }

    [Theory, MemberData(nameof(Backbones))]
    public void A_restored_stream_goes_on_bit_for_bit(string name)
    {
        var ml = Models.Context();
        var model = Fit(ml, Backbone.Create(name, 16, 1));
        using var engine = ml.Model.CreateStreamingEngine<Element, Prediction>(model);
        using var other = ml.Model.CreateStreamingEngine<Element, Prediction>(model);
        using var file = new MemoryStream();
        for (var i = 0; i < 21; i++) engine.Predict(new Element { Features = Row(1, i) });
        engine.CheckPoint(file);
        file.Position = 0;
        other.Predict(new Element { Features = Row(3) }); // what it knew is replaced
        other.Restore(file);
        Assert.Equal(21, other.Position);
        Assert.Equal(engine.Predict(new Element()).Score, other.Predict(new Element()).Score); // an empty piece repeats the prediction
        for (var i = 21; i < 40; i++)
            Assert.Equal(engine.Predict(new Element { Features = Row(1, i) }).Score, other.Predict(new Element { Features = Row(1, i) }).Score);
        Models.Release(model);
    }

    // Streams on the CPU go over spans; the same through the modules, whose states are the same.
    [Theory, MemberData(nameof(Backbones))]
    public void A_stream_goes_on_through_the_modules_and_back(string name)
    {
        var ml = Models.Context();
        var model = Fit(ml, Backbone.Create(name, 16, 2));
        using var engine = ml.Model.CreateStreamingEngine<Element, Prediction>(model);
        using var other = ml.Model.CreateStreamingEngine<Element, Prediction>(model);
        try
        {
            for (var i = 0; i < 60; i++)
            {
                MLSeqRuntime.Operators = OperatorForm.Auto;
                var expected = engine.Predict(new Element { Features = Row(1, i) }).Score;
                if (i is 20 or 40)
                {
                    using var file = new MemoryStream();
                    other.CheckPoint(file);
                    other.Reset();
                    file.Position = 0;
                    other.Restore(file);
                }
                if (i is > 20 and < 40) MLSeqRuntime.Operators = OperatorForm.Naive;
                Same(expected, other.Predict(new Element { Features = Row(1, i) }).Score);
                Assert.Equal(engine.StateBytes, other.StateBytes);
            }
        }
        finally
        {
            MLSeqRuntime.Operators = OperatorForm.Auto;
        }
        Models.Release(model);
    }

    [Fact]
    public void Checkpoints_are_files_and_damaged_or_foreign_ones_are_refused()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var model = Fit(ml, Backbone.Hybrid(width: 16, depth: 2, recurrentPerAttention: 1));
        using var engine = ml.Model.CreateStreamingEngine<Element, Prediction>(model);
        engine.CheckPoint(folder.File("empty.state"));
        for (var i = 0; i < 5; i++) engine.Predict(new Element { Features = Row(1, i) });
        engine.CheckPoint(folder.File("five.state"));
        Assert.Equal(2, Directory.GetFiles(folder.Path).Length); // no temporary file is left
        engine.Restore(folder.File("empty.state"));
        Assert.Equal(0, engine.Position);
        engine.Restore(folder.File("five.state"));
        var whole = File.ReadAllBytes(folder.File("five.state"));
        var random = new Random(1);
        foreach (var damaged in (byte[][])[whole[..100], whole[..^5], [.. whole, 1], [], [.. Enumerable.Range(0, 500).Select(_ => (byte)random.Next(256))], System.Text.Encoding.Latin1.GetBytes(System.Text.Encoding.Latin1.GetString(whole).Replace("[1,", "[9,", StringComparison.Ordinal))])
            Assert.Throws<FormatException>(() => engine.Restore(new MemoryStream(damaged)));
        using var another = ml.Model.CreateStreamingEngine<Element, Prediction>(Fit(Models.Context(), Backbone.Hybrid(width: 16, depth: 2, recurrentPerAttention: 1), SequencePooling.Mean));
        Assert.Contains("another model", Assert.Throws<FormatException>(() => another.Restore(folder.File("five.state"))).Message);
        Assert.Equal(5, engine.Position); // refused files changed nothing
        Assert.Equal(1, engine.Predict(new Element { Features = Row(1) }).Score.Sum(), 1e-4);
    }

    [Fact]
    public void Models_that_cannot_be_streamed_are_refused()
    {
        var ml = Models.Context();
        var both = Models.Pipeline(ml, Backbone.Gru(16, 1, bidirectional: true), epochs: 1).Fit(Models.Series(ml, rows: 40));
        Assert.Contains("bidirectional: false", Assert.Throws<NotSupportedException>(() => ml.Model.CreateStreamingEngine<Element, Prediction>(both)).Message);
        var none = ml.Transforms.Conversion.MapValueToKey("Label").Fit(Models.Series(ml, rows: 40));
        Assert.Contains("0 sequence classifiers", Assert.Throws<ArgumentException>(() => ml.Model.CreateStreamingEngine<Element, Prediction>(none)).Message);
        using var blind = ml.Model.CreateStreamingEngine<Element, Element>(Fit(ml, Backbone.Rnn(16, 1)));
        Assert.Contains("was not read", Assert.Throws<InvalidOperationException>(() => blind.Predict(new Element { Features = Row(1) })).Message);
    }

    [Fact]
    public void Engines_share_a_saved_model_and_leave_no_tensor()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        ml.Model.Save(Fit(ml, Backbone.Mamba(16, 2)), Models.Series(ml, rows: 1).Schema, folder.File("m.zip"));
        var model = ml.Model.Load(folder.File("m.zip"), out _);
        using (var engine = ml.Model.CreateStreamingEngine<Element, Prediction>(model)) engine.Predict(new Element { Features = Row(2) });
        var leaks = new TensorLeaks();
        using (var first = ml.Model.CreateStreamingEngine<Element, Prediction>(model))
        using (var second = ml.Model.CreateStreamingEngine<Element, Prediction>(model))
        {
            var alone = Enumerable.Range(0, 20).Select(i => first.Predict(new Element { Features = Row(1, i) }).Score).ToList();
            first.Reset();
            var bytes = 0L;
            for (var i = 0; i < 20; i++)
            {
                second.Predict(new Element { Features = Row(1, 100 + i) }); // another stream in between changes nothing
                Assert.Equal(alone[i], first.Predict(new Element { Features = Row(1, i) }).Score);
                if (i == 0) bytes = first.StateBytes;
                Assert.Equal(bytes, first.StateBytes);
            }
        }
        Assert.Equal(0, leaks.Count());
    }
}
