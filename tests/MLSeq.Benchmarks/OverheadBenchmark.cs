using System.Diagnostics;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq.Examples;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Benchmarks;

/// <summary>What the ML.NET path costs: Fit on an IDataView against the shortest loop over tensors that are ready, same network, optimizer and batches.</summary>
internal static class OverheadBenchmark
{
    private sealed class Row
    {
        public uint Label { get; set; }

        public float[] Features { get; set; } = [];
    }

    public static void Run(CommandLine command)
    {
        MLSeqRuntime.EnsureLoaded();
        int rows = command.Has("--quick") ? 512 : 2048, time = 48, channels = 8, batch = 64, epochs = command.Has("--quick") ? 1 : 2, rounds = command.Has("--quick") ? 2 : 21;
        var ml = new MLContext(1);
        var random = new Random(1);
        var data = Enumerable.Range(0, rows).Select(i => new Row { Label = (uint)(i % 3), Features = [.. Enumerable.Range(0, time * channels).Select(_ => random.NextSingle())] }).ToList();
        var schema = SchemaDefinition.Create(typeof(Row));
        schema["Features"].ColumnType = new VectorDataViewType(NumberDataViewType.Single, time, channels);
        schema["Label"].ColumnType = new KeyDataViewType(typeof(uint), 3); // in memory, keys count from 0
        var view = ml.Data.LoadFromEnumerable(data, schema);
        var backbone = Backbone.Transformer(width: 64, depth: 2, bidirectional: true);
        var trainer = ml.MulticlassClassification.Trainers.SequenceClassification(new SequenceClassificationTrainer.Options { Backbone = backbone, Epochs = epochs, BatchSize = batch, ElementDropout = 0 });

        double Plain() => PlainLoop(data, backbone, time, channels, batch, epochs);
        double Fit()
        {
            var clock = Stopwatch.StartNew();
            trainer.Fit(view);
            return clock.Elapsed.TotalSeconds;
        }
        var ratios = new List<double>();
        for (var round = 0; round < rounds; round++)
        {
            // In turns and in alternating order, so that a noisy moment meets both.
            var (plain, fit) = round % 2 == 0 ? (Plain(), Fit()) : (0, Fit());
            if (round % 2 == 1) plain = Plain();
            if (round > 0) ratios.Add(fit / plain);
            Console.WriteLine($"round {round}: ML.NET {fit:F2} s, plain loop {plain:F2} s, ratio {fit / plain:F3}{(round == 0 ? " (warm-up)" : "")}");
        }
        ratios.Sort();
        Console.WriteLine($"RESULT benchmark=overhead rows={rows} epochs={epochs} ratio={ratios[ratios.Count / 2]:F3}");
    }

    private static double PlainLoop(List<Row> data, Backbone backbone, int time, int channels, int batch, int epochs)
    {
        using var scope = NewDisposeScope();
        var x = tensor([.. data.SelectMany(row => row.Features)], [data.Count, time, channels]);
        var y = tensor([.. data.Select(row => (long)row.Label)]);
        using var network = new SequenceClassifier(new(backbone, new ElementKind.Series(channels), SequencePooling.LearnedQuery, 3, 0, 0.1));
        using var parameters = new FlatParameters(network, float32, CPU);
        using var optimizer = new AdamW(parameters, 0.01, 1);
        network.train();
        var clock = Stopwatch.StartNew();
        long step = 0;
        for (var epoch = 0; epoch < epochs; epoch++)
        {
            for (var start = 0; start < data.Count; start += batch)
            {
                using var inner = NewDisposeScope();
                var loss = nn.functional.cross_entropy(network.call(new SequenceBatch(x.slice(0, start, start + batch, 1), null), null), y.slice(0, start, start + batch, 1));
                loss.backward();
                optimizer.Step(++step, 1e-3, 1);
            }
        }
        return clock.Elapsed.TotalSeconds;
    }
}
