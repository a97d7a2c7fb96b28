using System.Diagnostics;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq.Examples;
using TorchSharp;

namespace MLSeq.Benchmarks;

/// <summary>A million predictions through Transform and a hundred thousand through a PredictionEngine: memory stays flat, no tensor is left.</summary>
internal static class SoakBenchmark
{
    private sealed class Row
    {
        public string Label { get; set; } = "";

        public string Text { get; set; } = "";
    }

    private sealed class Scored
    {
        public float[] Score { get; set; } = [];
    }

    public static void Run(CommandLine command)
    {
        int many = command.Has("--quick") ? 20_000 : 1_000_000, single = command.Has("--quick") ? 2_000 : 100_000;
        var ml = new MLContext(1);
        string[] words = ["red", "green", "blue", "fast", "slow", "Berlin", "Tokyo", "2026", "!", "unusual"];
        IEnumerable<Row> Rows(int count)
        {
            var random = new Random(1);
            for (var i = 0; i < count; i++)
            {
                var text = string.Join(' ', Enumerable.Range(0, random.Next(1, 24)).Select(_ => words[random.Next(words.Length)]));
                yield return new Row { Label = text.Contains("fast", StringComparison.Ordinal) ? "yes" : "no", Text = text };
            }
        }
        var model = ml.Transforms.Conversion.MapValueToKey("Label")
            .Append(ml.MulticlassClassification.Trainers.SequenceClassification(new SequenceClassificationTrainer.Options
            {
                FeatureColumnName = "Text", Backbone = Backbone.Gru(width: 16, depth: 1), TextEncoding = TextEncoding.Words(buckets: 512), Epochs = 1, Device = "cpu",
            }))
            .Fit(ml.Data.LoadFromEnumerable(Rows(2000)));

        var tensors = torch.Tensor.TotalCount;
        var memory = new List<(long Row, double MiB)>();
        var clock = Stopwatch.StartNew();
        long scored = 0;
        foreach (var row in ml.Data.CreateEnumerable<Scored>(model.Transform(ml.Data.LoadFromEnumerable(Rows(many))), reuseRowObject: true))
            if (++scored % (many / 10) == 0) Sample(memory, scored);
        var perSecond = scored / clock.Elapsed.TotalSeconds;
        Report("transform", scored, perSecond, memory, tensors);

        memory.Clear();
        using var engine = ml.Model.CreatePredictionEngine<Row, Scored>(model, new PredictionEngineOptions { OwnsTransformer = false });
        clock.Restart();
        scored = 0;
        foreach (var row in Rows(single))
        {
            engine.Predict(row);
            if (++scored % (single / 10) == 0) Sample(memory, scored);
        }
        Report("engine", scored, scored / clock.Elapsed.TotalSeconds, memory, tensors);
    }

    private static void Sample(List<(long, double)> memory, long row)
    {
        GC.Collect();
        using var process = Process.GetCurrentProcess();
        memory.Add((row, process.WorkingSet64 / 1048576.0));
        Console.WriteLine($"{row,10:N0} rows: {memory[^1].Item2,8:F1} MiB resident, {torch.Tensor.TotalCount} live tensors");
    }

    private static void Report(string what, long rows, double perSecond, List<(long Row, double MiB)> memory, long tensors)
        => Console.WriteLine($"RESULT benchmark=soak path={what} rows={rows} rows_per_second={perSecond:F0} resident_mib_early={memory[1].MiB:F1} resident_mib_late={memory[^1].MiB:F1} " +
            $"undisposed_tensors={torch.Tensor.TotalCount - tensors}");
}
