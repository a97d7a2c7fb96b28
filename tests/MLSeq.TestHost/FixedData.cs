using Microsoft.ML;
using Microsoft.ML.Data;

namespace MLSeq.TestHost;

/// <summary>A small text problem that is the same in every process.</summary>
internal static class FixedData
{
    internal sealed class Row
    {
        public string Label { get; set; } = "";

        public string Text { get; set; } = "";
    }

    internal sealed class Scored
    {
        public string Predicted { get; set; } = "";

        public float[] Score { get; set; } = [];
    }

    public static IDataView View(MLContext ml)
    {
        var random = new Random(7);
        string[] words = ["alpha", "beta", "gamma", "delta", "7", "!"];
        return ml.Data.LoadFromEnumerable(Enumerable.Range(0, 200).Select(_ =>
        {
            var text = string.Join(' ', Enumerable.Range(0, random.Next(1, 12)).Select(_ => words[random.Next(words.Length)]));
            return new Row { Text = text, Label = text.Contains("beta", StringComparison.Ordinal) ? "has" : "lacks" };
        }).ToList());
    }

    public static IEstimator<ITransformer> Pipeline(MLContext ml, Action<SequenceClassificationTrainer.Options>? change = null)
    {
        var options = new SequenceClassificationTrainer.Options
        {
            FeatureColumnName = "Text", Backbone = Backbone.Gru(width: 16, depth: 1, bidirectional: true), TextEncoding = TextEncoding.Words(buckets: 256),
            Epochs = 3, BatchSize = 16, Ema = 0.9, ValidationFraction = 0.2, Device = "cpu",
        };
        change?.Invoke(options);
        return ml.Transforms.Conversion.MapValueToKey("Label")
            .Append(ml.MulticlassClassification.Trainers.SequenceClassification(options))
            .Append(ml.Transforms.Conversion.MapKeyToValue("Predicted", "PredictedLabel"));
    }

    /// <summary>Every bit of every score.</summary>
    public static IEnumerable<string> Scores(MLContext ml, ITransformer model)
        => ml.Data.CreateEnumerable<Scored>(model.Transform(View(ml)), reuseRowObject: true)
            .Select(row => $"{row.Predicted} {string.Join(' ', row.Score.Select(score => BitConverter.SingleToInt32Bits(score).ToString("x8")))}");
}
