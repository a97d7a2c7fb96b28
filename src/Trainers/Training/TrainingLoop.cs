using System.Diagnostics;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>The training loop of all tasks: AdamW with warm-up and cosine on flat parameters, averaging, validation, checkpoints, cancellation.</summary>
/// <remarks>
/// A training is a function of its seed: the order of epoch e and the dropout of step s are drawn from (seed, e) and (seed, s), so a resumed training
/// repeats the uninterrupted one bit for bit without keeping any generator's state. The device is read at most ten times a second.
/// </remarks>
internal sealed class TrainingLoop : IDisposable
{
    private static readonly TimeSpan ReportInterval = TimeSpan.FromSeconds(0.1);

    private readonly TrainingTask _task;
    private readonly TrainingOptions _options;
    private readonly ulong _seed;
    private readonly Action<TrainingProgress> _report;
    private readonly Action _checkAlive;
    private readonly Checkpoint? _checkpoint;
    private readonly FlatParameters _parameters;
    private readonly AdamW _optimizer;
    private readonly Tensor _sums; // float64 [1 + tally]: loss and tally of this epoch, on the device
    private readonly Tensor? _average, _best;
    private TrainingState _state;
    private long _rowsThisRun, _resumedSteps, _totalSteps;

    /// <summary>Prepares a training and, where there is a checkpoint, takes it up.</summary>
    /// <param name="task">What to train.</param>
    /// <param name="options">How.</param>
    /// <param name="precision">Element type of the network.</param>
    /// <param name="device">Where.</param>
    /// <param name="seed">Draws order and dropout.</param>
    /// <param name="checkpoint">Where to keep the state, or null.</param>
    /// <param name="report">Told about batches and epochs.</param>
    /// <param name="checkAlive">Throws when the host has cancelled.</param>
    public TrainingLoop(TrainingTask task, TrainingOptions options, ScalarType precision, Device device, ulong seed, Checkpoint? checkpoint,
        Action<TrainingProgress> report, Action checkAlive)
    {
        (_task, _options, _seed, _checkpoint, _report, _checkAlive) = (task, options, seed, checkpoint, report, checkAlive);
        _parameters = new FlatParameters(task.Network, precision, device);
        _optimizer = new AdamW(_parameters, options.WeightDecay, options.GradientClipping);
        _state = new() { Tally = new double[task.TallySize] };
        using var scope = NewDisposeScope();
        _sums = zeros(1 + task.TallySize, float64, device).DetachFromDisposeScope();
        if (options.Ema > 0) _average = _parameters.Master.clone().DetachFromDisposeScope();
        if (task.ValidationPlan.Length > 0) _best = _parameters.Master.clone().DetachFromDisposeScope();
        TrainingState? resumed;
        try
        {
            resumed = _checkpoint?.Load(StateTensors());
        }
        catch
        {
            Dispose();
            throw;
        }
        if (resumed is { } state)
        {
            _state = state;
            _resumedSteps = state.Step;
            _parameters.Publish();
            _sums.copy_(tensor((double[])[state.LossSum, .. state.Tally]));
        }
    }

    /// <summary>Whether any step was done.</summary>
    public bool HasModel => _state.Step > 0 && (_best is null || _state.BestMetric is not null);

    /// <summary>Whether training was cut short by its token.</summary>
    public bool WasCancelled { get; private set; }

    /// <summary>Trains to the end, to the token's cancellation or to early stopping.</summary>
    /// <exception cref="TrainingDivergedException">The loss is not finite. The best weights are kept: see <see cref="CopyModelTo"/>.</exception>
    public void Run()
    {
        var clock = Stopwatch.StartNew();
        var batchesPerEpoch = _task.PlanEpoch(0).Length;
        _totalSteps = (long)StepsPerEpoch(batchesPerEpoch) * _options.Epochs;
        while (!_state.Finished && _state.Epoch < _options.Epochs && !WasCancelled)
        {
            RunEpoch(clock);
            if (!WasCancelled) EndEpoch(clock);
        }
    }

    /// <summary>Copies the result into a fresh network: the best validated weights, else the averaged ones, else the last ones.</summary>
    public void CopyModelTo(nn.Module network)
        => _parameters.CopyTo(_best is not null && _state.BestMetric is not null ? _best : _average ?? _parameters.Master, network);

    public void Dispose()
    {
        _optimizer.Dispose();
        _parameters.Dispose();
        _sums.Dispose();
        _average?.Dispose();
        _best?.Dispose();
    }

    private int StepsPerEpoch(int batches) => (batches + _options.GradientAccumulation - 1) / _options.GradientAccumulation;

    private void RunEpoch(Stopwatch clock)
    {
        var plan = _task.PlanEpoch(SplitMix.Mix((long)_seed, _state.Epoch));
        var (lastReport, lastCheckpoint) = (-ReportInterval, clock.Elapsed);
        _task.Network.train();
        using var runner = _task.Open(plan.AsMemory(_state.Batch), validation: false);
        while (_state.Batch < plan.Length)
        {
            _checkAlive();
            if (_options.CancellationToken.IsCancellationRequested)
            {
                WasCancelled = true;
                if (_checkpoint is not null) SaveCheckpoint();
                return;
            }
            RunStep(runner, plan);
            var last = _state.Batch == plan.Length;
            if (last || clock.Elapsed - lastReport >= ReportInterval)
            {
                lastReport = clock.Elapsed;
                ReadSums();
                if (!last) _report(Progress(clock, plan.Length, isEpochEnd: false));
            }
            if (_checkpoint is not null && !last && clock.Elapsed - lastCheckpoint >= _options.CheckpointInterval)
            {
                SaveCheckpoint();
                lastCheckpoint = clock.Elapsed;
            }
        }
    }

    /// <summary>One optimizer step: one batch, or as many as are accumulated.</summary>
    private void RunStep(IBatchRunner runner, int[][] plan)
    {
        var batches = Math.Min(_options.GradientAccumulation, plan.Length - _state.Batch);
        long count = 0;
        for (var i = 0; i < batches; i++)
        {
            using var scope = NewDisposeScope();
            manual_seed((long)(SplitMix.Mix((long)_seed, _state.Step, i) >> 1));
            var outcome = runner.Next();
            OperatorFailure.Backward(outcome.Loss);
            AddTo(_sums, outcome);
            count += outcome.Count;
            _rowsThisRun += plan[_state.Batch + i].Length;
        }
        var step = _state.Step + 1;
        _optimizer.Step(step, LearningRate(step), 1.0 / batches);
        if (_average is not null) UpdateAverage(step);
        _state = _state with { Step = step, Batch = _state.Batch + batches, Count = _state.Count + count };
    }

    private static void AddTo(Tensor sums, BatchOutcome outcome)
        => sums.add_(cat([outcome.Loss.detach().to(float64).mul(outcome.Count).view(1), outcome.Tally.to(float64)]));

    /// <summary>Linear warm-up, then a cosine to zero (Loshchilov and Hutter 2017).</summary>
    private double LearningRate(long step)
    {
        var warmup = Math.Max(1, _options.WarmupFraction * _totalSteps);
        if (step <= warmup) return _options.LearningRate * step / warmup;
        var progress = Math.Min(1, (step - warmup) / Math.Max(1, _totalSteps - warmup));
        return _options.LearningRate * 0.5 * (1 + Math.Cos(Math.PI * progress));
    }

    // A young average follows closely: decay = min(Ema, (1 + t) / (10 + t)).
    private void UpdateAverage(long step)
    {
        using var _ = no_grad();
        var decay = Math.Min(_options.Ema, (1.0 + step) / (10 + step));
        _average!.mul_(decay).add_(_parameters.Master, 1 - decay);
    }

    private void EndEpoch(Stopwatch clock)
    {
        var (loss, metric) = _best is null ? (default(double?), default(double?)) : Validate();
        // Ties on the metric, frequent on few rows, are broken by the loss.
        var isBest = metric is not null && (_state.BestMetric is null || metric > _state.BestMetric || metric == _state.BestMetric && loss < _state.BestLoss);
        if (isBest) _best!.copy_(_average ?? _parameters.Master);
        var batches = _state.Batch;
        var progress = Progress(clock, batches, isEpochEnd: true) with { ValidationLoss = loss, ValidationMetric = metric, IsBest = isBest };
        var sinceBest = isBest || metric is null ? 0 : _state.EpochsSinceBest + 1;
        _state = _state with
        {
            Epoch = _state.Epoch + 1,
            Batch = 0,
            LossSum = 0,
            Tally = new double[_task.TallySize],
            Count = 0,
            BestMetric = isBest ? metric : _state.BestMetric,
            BestLoss = isBest ? loss : _state.BestLoss,
            EpochsSinceBest = sinceBest,
            Finished = _options.EarlyStoppingPatience > 0 && sinceBest >= _options.EarlyStoppingPatience,
        };
        _sums.zero_();
        if (_checkpoint is not null) SaveCheckpoint();
        _report(progress);
    }

    /// <summary>Loss and metric on the validation rows, with the weights that would be the model.</summary>
    private (double? Loss, double? Metric) Validate()
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        Tensor? trained = null;
        if (_average is not null)
        {
            trained = _parameters.Master.clone();
            _parameters.Master.copy_(_average);
            _parameters.Publish();
        }
        try
        {
            _task.Network.eval();
            var sums = zeros_like(_sums);
            long count = 0;
            using var runner = _task.Open(_task.ValidationPlan, validation: true);
            foreach (var _batch in _task.ValidationPlan)
            {
                _checkAlive();
                using var batchScope = NewDisposeScope();
                var outcome = runner.Next();
                AddTo(sums, outcome);
                count += outcome.Count;
            }
            var values = sums.cpu().data<double>().ToArray();
            ThrowIfDiverged(values[0], "validation");
            return (values[0] / count, _task.Metric(values.AsSpan(1), count));
        }
        finally
        {
            if (trained is not null)
            {
                _parameters.Master.copy_(trained);
                _parameters.Publish();
            }
        }
    }

    private void ReadSums()
    {
        using var scope = NewDisposeScope();
        var values = _sums.cpu().data<double>().ToArray();
        ThrowIfDiverged(values[0], "training");
        _state = _state with { LossSum = values[0], Tally = values[1..] };
    }

    private void ThrowIfDiverged(double loss, string which)
    {
        if (!double.IsFinite(loss))
            throw new TrainingDivergedException($"The {which} loss became {loss} in epoch {_state.Epoch + 1} after {_state.Step} steps. Lower LearningRate " +
                $"({_options.LearningRate}), set GradientClipping, or use Precision.Float32.");
    }

    private TrainingProgress Progress(Stopwatch clock, int batches, bool isEpochEnd)
    {
        var done = _state.Epoch + (double)_state.Batch / batches;
        var rowsPerEpoch = _state.Batch == 0 ? 0 : (double)_rowsThisRun / Math.Max(1, _state.Step - _resumedSteps) * StepsPerEpoch(batches);
        var speed = _rowsThisRun / clock.Elapsed.TotalSeconds;
        return new TrainingProgress
        {
            Epoch = _state.Epoch + 1, Epochs = _options.Epochs, Batch = _state.Batch, Batches = batches, IsEpochEnd = isEpochEnd,
            Loss = _state.LossSum / _state.Count, Metric = _task.Metric(_state.Tally, _state.Count), MetricName = _task.MetricName,
            LearningRate = LearningRate(Math.Max(1, _state.Step)), SamplesPerSecond = speed, Elapsed = clock.Elapsed,
            Remaining = TimeSpan.FromSeconds(Math.Max(0, (_options.Epochs - done) * rowsPerEpoch / speed)),
        };
    }

    private void SaveCheckpoint()
    {
        if (_state.Batch > 0) ReadSums();
        _checkpoint!.Save(_state, StateTensors());
    }

    private IReadOnlyList<(string, Tensor)> StateTensors()
    {
        var tensors = new List<(string, Tensor)> { ("weights", _parameters.Master), ("adam.mean", _optimizer.Mean), ("adam.square", _optimizer.Square) };
        if (_average is not null) tensors.Add(("average", _average));
        if (_best is not null) tensors.Add(("best", _best));
        return tensors;
    }
}
