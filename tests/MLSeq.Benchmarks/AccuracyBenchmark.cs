using System.Diagnostics;
using System.Globalization;
using System.Text;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Trainers;
using Microsoft.ML.Trainers.LightGbm;
using MLSeq.Examples;

namespace MLSeq.Benchmarks;

/// <summary>The examples, exactly as users run them, beside ML.NET's own trainers on the same rows.</summary>
internal static class AccuracyBenchmark
{
    private const string Folder = "data"; // the examples' data, beside this program

    private sealed record Problem(string Name, string Split, string Example, string[] Arguments, string[] Backbones, Func<MLContext, Problem.Views> Load)
    {
        /// <summary>Training and test rows for ML.NET's trainers, with what makes Features of them.</summary>
        public sealed record Views(IDataView Train, IDataView Test, IEstimator<ITransformer>? Featurizer, bool ForTrees);
    }

    private sealed class DenseRow
    {
        public string Label { get; set; } = "";

        public float[] Features { get; set; } = [];
    }

    private sealed class TextRow
    {
        [LoadColumn(0)] public string Label { get; set; } = "";

        [LoadColumn(1)] public string Text { get; set; } = "";
    }

    public static void Run(CommandLine command)
    {
        var problems = Problems(command.Get("--ag-news", "")).Where(problem => command.Get("--only", problem.Name) == problem.Name).ToList();
        var table = new StringBuilder("| data | test rows | MLSeq | accuracy | training | SdcaMaximumEntropy | LightGbm |\n|---|---|---|---|---|---|---|\n");
        var results = new List<string>();
        foreach (var problem in problems)
        {
            var (sdca, trees) = Alternatives(problem);
            var backbones = command.Get("--backbones", string.Join(',', problem.Backbones)).Split(',');
            foreach (var backbone in backbones)
            {
                Console.WriteLine($"\n{problem.Name}: {problem.Example} --backbone {backbone}");
                var (accuracy, seconds) = RunExample(problem.Example, [.. problem.Arguments, "--backbone", backbone, .. command.Has("--quick") ? ["--quick"] : Array.Empty<string>()]);
                var first = backbone == backbones[0];
                table.AppendLine(CultureInfo.InvariantCulture, $"| {(first ? problem.Name : "")} | {(first ? problem.Split : "")} | {backbone} | {accuracy:F4} | {seconds:F0} s | {(first ? $"{sdca:F4}" : "")} | {(!first ? "" : trees is null ? "–" : $"{trees:F4}")} |");
                results.Add(FormattableString.Invariant($"RESULT benchmark=accuracy data={problem.Name} backbone={backbone} accuracy={accuracy:F4} train_seconds={seconds:F1} sdca={sdca:F4} lightgbm={trees?.ToString("F4", CultureInfo.InvariantCulture) ?? "-"}"));
            }
        }
        Console.WriteLine($"\n{table}");
        if (command.Get("--out", "") is { Length: > 0 } file) File.WriteAllText(file, table.ToString());
        results.ForEach(Console.WriteLine);
    }

    private static IEnumerable<Problem> Problems(string agNews)
    {
        yield return new("dna", "every fifth", "QuickStart", [], ["cnn", "gru", "lstm", "rnn", "transformer"], ml =>
        {
            var rows = File.ReadLines(Path.Combine(AppContext.BaseDirectory, Folder, "dna-splice.csv")).Skip(1).Select(line => line.Split(','))
                .Select(parts => new DenseRow { Label = parts[0], Features = [.. parts[1].SelectMany(letter => "ACGT".Select(b => b == letter ? 1f : 0f))] }).ToList();
            return EveryFifth(rows, rows => Dense(ml, rows, 60 * 4), forTrees: true);
        });
        yield return new("vowels", "official", "TimeSeries", [], ["gru", "lstm", "transformer", "cnn", "rnn"], ml =>
        {
            IDataView Load(string file) => Dense(ml, [.. TimeSeriesFile.Read(Path.Combine(AppContext.BaseDirectory, Folder, file)).Select(series =>
            {
                var padded = new float[29 * 12];
                series.Samples.CopyTo(padded, 0);
                return new DenseRow { Label = series.Label, Features = padded };
            })], 29 * 12);
            return new(Load("JapaneseVowels_TRAIN.ts"), Load("JapaneseVowels_TEST.ts"), ml.Transforms.NormalizeMeanVariance("Features"), ForTrees: true);
        });
        yield return new("sms", "every fifth", "Text", [], ["gru", "cnn"], ml =>
        {
            var rows = ml.Data.CreateEnumerable<TextRow>(ml.Data.LoadFromTextFile<TextRow>(Path.Combine(AppContext.BaseDirectory, Folder, "sms-spam.tsv"), allowQuoting: true), false).ToList();
            return EveryFifth(rows, rows => ml.Data.LoadFromEnumerable(rows), ml.Transforms.Text.FeaturizeText("Features", "Text"));
        });
        if (agNews.Length == 0) yield break; // its licence does not let it come with the code
        string InFolder(string name) => Path.Combine(agNews, name);
        yield return new("ag-news-10k", "official", "Text", ["--data", InFolder("train.csv"), "--test", InFolder("test.csv"), "--separator", "comma", "--header"], ["gru", "cnn"], ml =>
        {
            IDataView Load(string file) => ml.Data.LoadFromTextFile<TextRow>(InFolder(file), ',', hasHeader: true, allowQuoting: true);
            return new(Load("train.csv"), Load("test.csv"), ml.Transforms.Text.FeaturizeText("Features", "Text"), ForTrees: false);
        });
    }

    private static Problem.Views EveryFifth<T>(List<T> rows, Func<List<T>, IDataView> view, IEstimator<ITransformer>? featurizer = null, bool forTrees = false)
        => new(view([.. rows.Where((_, i) => i % 5 != 0)]), view([.. rows.Where((_, i) => i % 5 == 0)]), featurizer, forTrees);

    private static IDataView Dense(MLContext ml, List<DenseRow> rows, int size)
    {
        var schema = SchemaDefinition.Create(typeof(DenseRow));
        schema["Features"].ColumnType = new VectorDataViewType(NumberDataViewType.Single, size);
        return ml.Data.LoadFromEnumerable(rows, schema);
    }

    private static (double Sdca, double? Trees) Alternatives(Problem problem)
    {
        var ml = new MLContext(1);
        var views = problem.Load(ml);
        double Accuracy(IEstimator<ITransformer> trainer)
        {
            IEstimator<ITransformer> pipeline = ml.Transforms.Conversion.MapValueToKey("Label");
            if (views.Featurizer is not null) pipeline = pipeline.Append(views.Featurizer);
            var model = pipeline.AppendCacheCheckpoint(ml).Append(trainer).Fit(views.Train);
            return ml.MulticlassClassification.Evaluate(model.Transform(views.Test)).MicroAccuracy;
        }
        var trainers = ml.MulticlassClassification.Trainers;
        return (Accuracy(trainers.SdcaMaximumEntropy(new SdcaMaximumEntropyMulticlassTrainer.Options { NumberOfThreads = 1 })),
            views.ForTrees ? Accuracy(trainers.LightGbm(new LightGbmMulticlassTrainer.Options { NumberOfThreads = 1 })) : null);
    }

    private static (double Accuracy, double Seconds) RunExample(string example, string[] arguments)
    {
        using var folder = new TemporaryWorkingFolder(); // QuickStart leaves its model there
        var start = new ProcessStartInfo("dotnet", [Path.Combine(AppContext.BaseDirectory, example + ".dll"), .. arguments]) { RedirectStandardOutput = true, WorkingDirectory = folder.Path };
        using var process = Process.Start(start)!;
        var result = "";
        while (process.StandardOutput.ReadLine() is { } line)
        {
            Console.WriteLine(line);
            if (line.StartsWith("RESULT ", StringComparison.Ordinal)) result = line;
        }
        process.WaitForExit();
        if (process.ExitCode != 0) throw new InvalidOperationException($"{example} ended with exit code {process.ExitCode}.");
        double Value(string key) => double.Parse(result.Split(' ').Single(part => part.StartsWith(key + "=", StringComparison.Ordinal))[(key.Length + 1)..], CultureInfo.InvariantCulture);
        return (Value("accuracy"), Value("train_seconds"));
    }

    private sealed class TemporaryWorkingFolder : IDisposable
    {
        public string Path { get; } = Directory.CreateTempSubdirectory("mlseq-benchmark-").FullName;

        public void Dispose() => Directory.Delete(Path, recursive: true);
    }
}
