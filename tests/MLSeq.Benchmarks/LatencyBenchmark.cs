using System.Diagnostics;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq.Examples;

namespace MLSeq.Benchmarks;

/// <summary>How long one prediction takes on the CPU: an element of a stream (width 128, 4 blocks), and a row of 64 elements through a PredictionEngine (width 64, 2 blocks); over spans and through libtorch.</summary>
internal static class LatencyBenchmark
{
    private const int Channels = 8, RowTime = 64, StreamTime = 256; // a stream begins anew after so many elements: attention's cost grows

    private sealed class Row
    {
        public uint Label { get; set; }

        public float[] Features { get; set; } = [];
    }

    private sealed class Element
    {
        public float[] Features { get; set; } = [];
    }

    private sealed class Prediction
    {
        public float[] Score { get; set; } = [];
    }

    public static void Run(CommandLine command)
    {
        MLSeqRuntime.EnsureLoaded();
        var quick = command.Has("--quick");
        var names = command.Get("--backbones", string.Join(',', Backbone.Names)).Split(',');
        foreach (var name in names)
        {
            Measure(name, "prediction_engine", Backbone.Create(name, 64, 2), Predicting, OperatorForm.Chunked, quick);
            if (name != "mamba2") Measure(name, "streaming", Backbone.Create(name, 128, 4), Streaming, OperatorForm.Naive, quick);
        }
        if (names.Contains("mamba2")) Measure("mamba2", "streaming", Backbone.Create("mamba2", 128, 4), Streaming, OperatorForm.Naive, quick);
    }

    private static void Measure(string name, string path, Backbone backbone, Func<MLContext, ITransformer, Action> predict, OperatorForm ofModules, bool quick)
    {
        var ml = new MLContext(1);
        var model = Fit(ml, backbone);
        var overSpans = Times(predict(ml, model), quick ? 200 : 4000, quick ? 200 : 6000);
        MLSeqRuntime.Operators = ofModules; // what libtorch did best
        var modules = Times(Repeating(predict(ml, model)), quick ? 20 : 200, quick ? 50 : 600);
        MLSeqRuntime.Operators = OperatorForm.Auto;
        Console.WriteLine($"RESULT benchmark=latency backbone={name} path={path} width={backbone.Width} depth={backbone.Depth} p50_us={Percentile(overSpans, 50):F1} p99_us={Percentile(overSpans, 99):F1} " +
            $"module_path_p50_us={Percentile(modules, 50):F1} speedup={Percentile(modules, 50) / Percentile(overSpans, 50):F1}");
    }

    private static ITransformer Fit(MLContext ml, Backbone backbone)
    {
        var schema = SchemaDefinition.Create(typeof(Row));
        schema["Features"].ColumnType = new VectorDataViewType(NumberDataViewType.Single, RowTime, Channels);
        schema["Label"].ColumnType = new KeyDataViewType(typeof(uint), 3);
        var rows = Enumerable.Range(0, 16).Select(i => new Row { Label = (uint)(i % 3), Features = Numbers(RowTime, i) }).ToList();
        return ml.MulticlassClassification.Trainers.SequenceClassification(new SequenceClassificationTrainer.Options { Backbone = backbone, Epochs = 1, BatchSize = 16, Device = "cpu" })
            .Fit(ml.Data.LoadFromEnumerable(rows, schema));
    }

    private static float[] Numbers(int time, int seed)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, time * Channels).Select(_ => random.NextSingle())];
    }

    private static Action Streaming(MLContext ml, ITransformer model)
    {
        var schema = SchemaDefinition.Create(typeof(Element));
        schema["Features"].ColumnType = new VectorDataViewType(NumberDataViewType.Single, Channels);
        var engine = ml.Model.CreateStreamingEngine<Element, Prediction>(model, new PredictionEngineOptions { InputSchemaDefinition = schema });
        var elements = Enumerable.Range(0, StreamTime).Select(t => new Element { Features = Numbers(1, t) }).ToArray();
        return () =>
        {
            if (engine.Position == StreamTime) engine.Reset();
            engine.Predict(elements[engine.Position]);
        };
    }

    private static Action Predicting(MLContext ml, ITransformer model)
    {
        var schema = SchemaDefinition.Create(typeof(Element));
        schema["Features"].ColumnType = new VectorDataViewType(NumberDataViewType.Single, RowTime, Channels);
        var engine = ml.Model.CreatePredictionEngine<Element, Prediction>(model, inputSchemaDefinition: schema);
        var row = new Element { Features = Numbers(RowTime, 1) };
        return () => engine.Predict(row);
    }

    // TorchSharp 0.107 does not keep a scalar argument alive during a call: once in very many, a collection frees it too early, and libtorch refuses what it reads.
    private static Action Repeating(Action predict) => () =>
    {
        try
        {
            predict();
        }
        catch (System.Runtime.InteropServices.ExternalException)
        {
            predict();
        }
    };

    // Microseconds, sorted.
    private static double[] Times(Action predict, int warmUp, int count)
    {
        for (var i = 0; i < warmUp; i++) predict();
        Thread.Sleep(500); // the compiler's last word on what was warmed up
        for (var i = 0; i < warmUp / 4; i++) predict();
        var times = new double[count];
        for (var i = 0; i < count; i++)
        {
            var start = Stopwatch.GetTimestamp();
            predict();
            times[i] = Stopwatch.GetElapsedTime(start).TotalMicroseconds;
        }
        Array.Sort(times);
        return times;
    }

    private static double Percentile(double[] sorted, int percent) => sorted[sorted.Length * percent / 100];
}
