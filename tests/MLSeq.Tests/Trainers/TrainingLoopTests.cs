using Microsoft.ML;
using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Trainers;

public sealed class TrainingLoopTests
{
    private static SequenceClassificationTransformer Fit(MLContext ml, SequenceClassificationTrainer.Options options, IDataView? view = null)
        => Models.Classifier(Models.Pipeline(ml, options).Fit(view ?? Models.Series(ml)));

    private static float[] Weights(SequenceClassificationTransformer model)
    {
        using var scope = NewDisposeScope();
        return cat([.. model.Model.Network.parameters().Select(parameter => parameter.detach().flatten())]).data<float>().ToArray();
    }

    [Fact, NoTensorLeaks]
    public void Flat_AdamW_equals_libtorch_s()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using var flat = nn.Linear(5, 3);
        using var reference = nn.Linear(5, 3);
        using (no_grad())
            foreach (var (a, b) in reference.parameters().Zip(flat.parameters())) a.copy_(b);
        using var parameters = new FlatParameters(flat, float32, CPU);
        using var ours = new AdamW(parameters, weightDecay: 0.1, clipping: 0.5);
        var groups = new[]
        {
            new TorchSharp.Modules.AdamW.ParamGroup([reference.weight!], lr: 0.01, beta1: 0.9, beta2: 0.98, weight_decay: 0.1),
            new TorchSharp.Modules.AdamW.ParamGroup([reference.bias!], lr: 0.01, beta1: 0.9, beta2: 0.98, weight_decay: 0),
        };
        using var theirs = optim.AdamW(groups, lr: 0.01, beta1: 0.9, beta2: 0.98);
        for (var step = 1; step <= 10; step++)
        {
            var x = randn(8, 5);
            flat.call(x).pow(2).sum().backward();
            reference.call(x).pow(2).sum().backward();
            nn.utils.clip_grad_norm_(reference.parameters(), 0.5);
            ours.Step(step, 0.01, 1);
            theirs.step();
            theirs.zero_grad();
        }
        foreach (var (a, b) in flat.parameters().Zip(reference.parameters())) Assert.True((a - b).abs().max().item<float>() < 1e-5);
    }

    [Fact, NoTensorLeaks]
    public void Flat_parameters_are_views_in_float32_and_copies_in_bfloat16()
    {
        foreach (var precision in (ScalarType[])[float32, bfloat16])
        {
            using var scope = NewDisposeScope();
            manual_seed(1);
            using var network = new SequenceClassifier(new(Backbone.Lstm(width: 8, depth: 1), new ElementKind.Tokens(5), SequencePooling.Mean, 3));
            using var parameters = new FlatParameters(network, precision, CPU);
            var batch = new SequenceBatch(randint(0, 5, [2, 4], dtype: int64), null);
            network.call(batch, null).sum().backward();
            var gradient = parameters.Gradients();
            Assert.True(gradient.abs().sum().item<float>() > 0);
            foreach (var parameter in network.parameters()) Assert.Equal(precision, parameter.dtype);
            using (no_grad()) parameters.Master.zero_();
            parameters.Publish();
            foreach (var parameter in network.parameters()) Assert.Equal(0, parameter.abs().sum().to(float32).item<float>());
        }
    }

    [Fact, NoTensorLeaks]
    public void Training_leaves_no_tensor_but_the_model_s()
    {
        var ml = Models.Context();
        var options = Models.Options(epochs: 2);
        options.Ema = 0.9;
        options.ValidationFraction = 0.2;
        var model = Models.Pipeline(ml, options).Fit(Models.Series(ml, rows: 60));
        Models.Score(ml, model, Models.Series(ml, rows: 40, seed: 2));
        Models.Release(model);
    }

    [Fact]
    public void The_same_seed_gives_the_same_model_and_another_seed_another()
    {
        float[] Run(int seed)
        {
            var ml = new MLContext();
            var options = Models.Options();
            options.Seed = seed;
            return Weights(Fit(ml, options));
        }
        var first = Run(3);
        TorchSharp.torch.manual_seed(99); // the process's generator has no say
        Assert.Equal(first, Run(3));
        Assert.NotEqual(first, Run(4));
    }

    [Fact]
    public void Learns_and_reports()
    {
        var ml = Models.Context();
        var recorder = new Recorder();
        var options = Models.Options(epochs: 12);
        options.Progress = recorder;
        options.ValidationFraction = 0.25;
        Fit(ml, options, Models.Series(ml, rows: 240));
        var epochs = recorder.Epochs.ToList();
        Assert.Equal(Enumerable.Range(1, 12), epochs.Select(epoch => epoch.Epoch));
        Assert.True(epochs[^1].Loss < epochs[0].Loss / 2, $"{epochs[0].Loss} to {epochs[^1].Loss}");
        Assert.True(epochs.Max(epoch => epoch.ValidationMetric) > 0.9);
        Assert.All(recorder.Reports, report => Assert.True(report.SamplesPerSecond > 0 && report.Remaining >= TimeSpan.Zero && report.Batch <= report.Batches));
        Assert.True(epochs[0].Remaining > epochs[^1].Remaining);
        Assert.True(recorder.Reports.Count > epochs.Count, "batches are reported too");
        Assert.Contains("accuracy", epochs[0].ToString());
    }

    [Fact]
    public void The_best_validated_weights_are_the_model()
    {
        var ml = Models.Context();
        var recorder = new Recorder();
        var options = Models.Options(epochs: 8);
        options.LearningRate = 0.05; // restless, so that the last epoch is not the best
        var (train, validation) = (Models.Series(ml, rows: 60), Models.Series(ml, rows: 90, seed: 5));
        var keys = ml.Transforms.Conversion.MapValueToKey("Label").Fit(train);
        options.ValidationSet = keys.Transform(validation);
        options.Progress = recorder;
        var model = ml.MulticlassClassification.Trainers.SequenceClassification(options).Fit(keys.Transform(train));
        var accuracy = ml.MulticlassClassification.Evaluate(model.Transform(keys.Transform(validation))).MicroAccuracy;
        Assert.Equal(recorder.Epochs.Max(epoch => epoch.ValidationMetric)!.Value, accuracy, 1e-9);
        Assert.Equal(recorder.Epochs.Last(epoch => epoch.IsBest).ValidationMetric!.Value, accuracy, 1e-9);
    }

    [Fact]
    public void Early_stopping_stops()
    {
        var ml = Models.Context();
        var recorder = new Recorder();
        var options = Models.Options(epochs: 200);
        options.ValidationFraction = 0.3;
        options.EarlyStoppingPatience = 3;
        options.Progress = recorder;
        Fit(ml, options, Models.Series(ml, rows: 60));
        var epochs = recorder.Epochs.ToList();
        Assert.InRange(epochs.Count, 4, 150);
        Assert.Equal(3, epochs.Count - 1 - epochs.FindLastIndex(epoch => epoch.IsBest));
    }

    [Fact]
    public void Accumulated_batches_equal_one_large_batch()
    {
        float[] Run(int batch, int accumulate)
        {
            var ml = Models.Context();
            var options = Models.Options(Backbone.Gru(width: 8, depth: 1, dropout: 0), epochs: 2);
            (options.BatchSize, options.GradientAccumulation, options.ElementDropout, options.HeadDropout) = (batch, accumulate, 0, 0);
            return Weights(Fit(ml, options, Models.Series(ml, rows: 64)));
        }
        // One step per epoch of all 64 rows, whatever their order.
        var whole = Run(64, 1);
        var parts = Run(16, 4);
        Assert.True(whole.Zip(parts).Max(pair => Math.Abs(pair.First - pair.Second)) < 1e-4);
        Assert.False(whole.SequenceEqual(Run(16, 1)));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Streamed_batches_equal_resident_ones(bool words)
    {
        using var scope = NewDisposeScope();
        var ml = Models.Context();
        var text = new[] { "one two", "three", "two two unusual one", "a b c d e" };
        var buffer = words ? new SequenceBuffer(0, 100) : new SequenceBuffer(2, 100);
        var encoding = (WordTextEncoding)TextEncoding.Words(buckets: 64);
        for (var row = 0; row < text.Length; row++)
        {
            if (words) encoding.Encode(text[row], buffer);
            else buffer.AddValues([.. Enumerable.Range(0, 2 * (row + 1)).Select(value => (float)value)]);
            buffer.EndRow(encoding);
        }
        var data = new SequenceData(buffer, [0, 1, 0, 1], 0);
        int[][] plan = [[2, 0], [3, 1], [1]];
        using var resident = new ResidentSource(data, CPU);
        using var streamed = new StreamedSource(data, CPU);
        using var a = resident.Open(plan);
        using var b = streamed.Open(plan);
        ElementKind kind = words ? new ElementKind.Words(64) : new ElementKind.Series(2);
        using var network = new SequenceClassifier(new(Backbone.Gru(width: 8, depth: 1, bidirectional: true), kind, SequencePooling.LearnedQuery, 2));
        network.eval();
        foreach (var _ in plan)
        {
            var (x, y) = (a.Next(), b.Next());
            Assert.True(x.Labels.Same(y.Labels));
            Assert.True((network.call(x.Sequences, null) - network.call(y.Sequences, null)).abs().max().item<float>() < 1e-6);
        }
    }

    [Fact, NoTensorLeaks]
    public void A_stream_left_early_frees_what_it_prepared()
    {
        var buffer = new SequenceBuffer(0, 10);
        for (var row = 0; row < 64; row++)
        {
            buffer.AddToken(1);
            buffer.EndRow();
        }
        var data = new SequenceData(buffer, new int[64], 0);
        using var streamed = new StreamedSource(data, CPU);
        using var scope = NewDisposeScope();
        using var reader = streamed.Open(Enumerable.Range(0, 64).Select(row => new[] { row }).ToArray());
        reader.Next();
    }

    [Fact]
    public void Cancellation_returns_the_best_so_far()
    {
        var ml = Models.Context();
        var warnings = Models.Warnings(ml);
        using var cancel = new CancellationTokenSource();
        var options = Models.Options(epochs: 10_000);
        options.CancellationToken = cancel.Token;
        options.ValidationFraction = 0.2;
        options.Progress = new Recorder(report =>
        {
            if (report.IsEpochEnd && report.Epoch == 3) cancel.Cancel();
        });
        var model = Fit(ml, options);
        Assert.NotEmpty(Models.Score(ml, Models.Pipeline(ml, Models.Options(epochs: 1)).Fit(Models.Series(ml)), Models.Series(ml)));
        Assert.All(Weights(model), weight => Assert.True(float.IsFinite(weight)));
        Assert.Contains(warnings, warning => warning.Contains("cancelled", StringComparison.Ordinal));
        options.ReturnBestOnCancellation = false;
        Assert.Throws<OperationCanceledException>(() => Fit(ml, options));
        options.ReturnBestOnCancellation = true; // already cancelled: there is nothing to return
        Assert.Throws<OperationCanceledException>(() => Fit(ml, options));
    }

    [Fact]
    public void A_loss_that_is_not_finite_stops_training_and_keeps_the_best_model()
    {
        var ml = Models.Context();
        var options = Models.Options(epochs: 60);
        options.ValidationFraction = 0.2;
        (options.LearningRate, options.GradientClipping, options.WarmupFraction) = (9.9, 0, 0.9); // good at first, absurd later
        options.WeightDecay = 9.9;
        var error = Assert.Throws<TrainingDivergedException>(() => Fit(ml, options));
        Assert.Contains("LearningRate", error.Message);
        var best = Assert.IsType<SequenceClassificationTransformer>(error.BestModel);
        Assert.All(Weights(best), weight => Assert.True(float.IsFinite(weight)));
    }

    [Fact]
    public void A_killed_training_resumes_bit_for_bit()
    {
        using var folder = new TemporaryFolder();
        var whole = Host.Run(["train", folder.File("a"), folder.File("a.zip")]);
        Assert.True(whole.ExitCode == 0, whole.Output);
        foreach (var reports in (int[])[2, 4]) // dies twice, in different places
        {
            var killed = Host.Run(["train", folder.File("b"), folder.File("b.zip"), $"{reports}"]);
            Assert.NotEqual(0, killed.ExitCode);
            Assert.False(File.Exists(folder.File("b.zip")));
        }
        Assert.True(File.Exists(Path.Combine(folder.File("b"), "checkpoint.safetensors")));
        var resumed = Host.Run(["train", folder.File("b"), folder.File("b.zip")]);
        Assert.True(resumed.ExitCode == 0, resumed.Output);
        Assert.Equal(whole.Output, resumed.Output);
        Assert.Equal(["checkpoint.safetensors"], Directory.GetFiles(folder.File("a")).Select(Path.GetFileName)); // nothing half-written stays
    }

    [Fact]
    public void A_checkpoint_of_another_training_is_refused()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var options = Models.Options(epochs: 2);
        options.CheckpointFolder = folder.Path;
        Fit(ml, options);
        options.LearningRate *= 2;
        var error = Assert.Throws<InvalidOperationException>(() => Fit(ml, options));
        Assert.Contains("CheckpointFolder", error.Message);
        File.WriteAllBytes(folder.File("checkpoint.safetensors"), [1, 2, 3]);
        Assert.Throws<InvalidOperationException>(() => Fit(ml, options));
    }

    [Fact]
    public void Warm_start_goes_on_from_the_fitted_weights()
    {
        var ml = Models.Context();
        var view = Models.Series(ml, rows: 240);
        var first = Fit(ml, Models.Options(epochs: 12), view);
        var recorder = new Recorder();
        var options = Models.Options(epochs: 1);
        (options.WarmStart, options.Progress, options.LearningRate) = (first, recorder, 1e-4);
        Fit(ml, options, view);
        Assert.True(recorder.Epochs.Single().Metric > 0.8, $"{recorder.Epochs.Single().Metric}");
        options.Backbone = Backbone.Gru(width: 32, depth: 1);
        Assert.Contains("WarmStart", Assert.ThrowsAny<Exception>(() => Fit(ml, options, view)).Message);
    }

    [Fact]
    public void Class_weights_and_label_smoothing_act()
    {
        var ml = Models.Context();
        var view = Models.Series(ml);
        Assert.NotEqual(Weights(Fit(ml, Models.Options(), view)), Weights(Fit(ml, With(options => options.LabelSmoothing = 0.3), view)));
        var onlyFirst = Fit(ml, With(options => options.ClassWeights = [1, 0, 0], epochs: 15), view);
        var scores = Models.Score(ml, Models.Pipeline(ml, With(options => options.ClassWeights = [1, 0, 0], epochs: 15)).Fit(view), view);
        Assert.All(scores, row => Assert.True(row.Score[0] > row.Score[1] && row.Score[0] > row.Score[2]));
        Assert.ThrowsAny<Exception>(() => Fit(ml, With(options => options.ClassWeights = [1, 2]), view));
        _ = onlyFirst;

        static SequenceClassificationTrainer.Options With(Action<SequenceClassificationTrainer.Options> change, int epochs = 2)
        {
            var options = Models.Options(epochs: epochs);
            change(options);
            return options;
        }
    }

    [Fact]
    public void Bfloat16_trains_on_the_CPU_too()
    {
        var ml = Models.Context();
        var options = Models.Options(Backbone.Cnn(width: 16, depth: 2), epochs: 12);
        options.Precision = Precision.BFloat16;
        var recorder = new Recorder();
        options.Progress = recorder;
        Fit(ml, options, Models.Series(ml, rows: 240));
        Assert.True(recorder.Epochs.Last().Metric > 0.8);
    }

    [Fact]
    public void All_option_problems_are_reported_at_once()
    {
        var error = Assert.Throws<ArgumentException>(() => Models.Context().MulticlassClassification.Trainers.SequenceClassification(new SequenceClassificationTrainer.Options
        { Epochs = 0, LearningRate = -1, Ema = 1, EarlyStoppingPatience = 2, Backbone = Backbone.Gru(width: 3), FeatureColumnName = "" }));
        foreach (var part in (string[])["Epochs", "LearningRate", "Ema", "EarlyStoppingPatience", "Width", "FeatureColumnName"]) Assert.Contains(part, error.Message);
    }

    [Fact]
    public void An_epoch_visits_every_row_once_in_batches_of_like_length()
    {
        var lengths = new Random(1).GetItems(Enumerable.Range(1, 200).ToArray(), 5000);
        var rows = Enumerable.Range(0, 5000).ToArray();
        var plan = BatchPlan.Shuffled(rows, row => lengths[row], 32, 1);
        Assert.Equal(rows, plan.SelectMany(batch => batch).Order());
        Assert.NotEqual(plan[0], BatchPlan.Shuffled(rows, row => lengths[row], 32, 2)[0]);
        var padded = plan.Sum(batch => batch.Length * batch.Max(row => lengths[row]));
        Assert.True(padded < lengths.Sum() * 1.15, $"{padded} positions for {lengths.Sum()} elements");
        var (training, validation) = BatchPlan.Split([.. Enumerable.Range(0, 100).Select(row => row % 4)], 0.2, 1);
        Assert.Equal(20, validation.Length);
        Assert.All(Enumerable.Range(0, 4), label => Assert.Equal(5, validation.Count(row => row % 4 == label)));
        Assert.Equal(100, training.Union(validation).Count());
    }
}
