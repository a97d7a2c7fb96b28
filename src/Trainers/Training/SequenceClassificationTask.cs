using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Sequence classification: cross-entropy, judged by accuracy.</summary>
internal sealed class SequenceClassificationTask : TrainingTask
{
    private readonly SequenceClassifier _network;
    private readonly SequenceData _training, _validation;
    private readonly int[] _trainingRows;
    private readonly IBatchSource _trainingSource, _validationSource;
    private readonly Tensor? _classWeights;
    private readonly double _labelSmoothing;
    private readonly int _batchSize;

    /// <summary>Joins network and data.</summary>
    /// <param name="network">The network.</param>
    /// <param name="training">The training data.</param>
    /// <param name="trainingRows">Which of its rows to train on.</param>
    /// <param name="validation">The data to judge by; may be the same.</param>
    /// <param name="validationRows">Which of its rows.</param>
    /// <param name="classWeights">One per class, or null.</param>
    /// <param name="options">Batch size, label smoothing and memory budget.</param>
    /// <param name="device">Where to compute.</param>
    public SequenceClassificationTask(SequenceClassifier network, SequenceData training, int[] trainingRows, SequenceData validation, int[] validationRows,
        double[]? classWeights, TrainingOptions options, Device device)
    {
        (_network, _training, _trainingRows, _validation) = (network, training, trainingRows, validation);
        (_labelSmoothing, _batchSize) = (options.LabelSmoothing, options.BatchSize);
        ValidationPlan = BatchPlan.Sorted(validationRows, validation.Sequences.Length, Math.Max(256, options.BatchSize));
        var total = training.DeviceBytes + (ReferenceEquals(training, validation) ? 0 : validation.DeviceBytes);
        var resident = device.type == DeviceType.CPU || total <= options.DeviceDataBudget;
        IBatchSource Source(SequenceData data) => resident ? new ResidentSource(data, device) : new StreamedSource(data, device);
        _trainingSource = Source(training);
        _validationSource = ReferenceEquals(training, validation) ? _trainingSource : Source(validation);
        _classWeights = classWeights is null ? null : tensor([.. classWeights.Select(weight => (float)weight)], device: device).DetachFromDisposeScope();
    }

    public override nn.Module Network => _network;

    public override string MetricName => "accuracy";

    public override int TallySize => 1;

    public override int[][] ValidationPlan { get; }

    public override double Metric(ReadOnlySpan<double> tally, long count) => tally[0] / count;

    public override int[][] PlanEpoch(ulong seed) => BatchPlan.Shuffled(_trainingRows, _training.Sequences.Length, _batchSize, seed);

    public override IBatchRunner Open(ReadOnlyMemory<int[]> plan, bool validation)
        => new Runner(this, (validation ? _validationSource : _trainingSource).Open(plan), validation ? 0 : _labelSmoothing);

    public override void Dispose()
    {
        _trainingSource.Dispose();
        _validationSource.Dispose();
        _classWeights?.Dispose();
    }

    private sealed class Runner(SequenceClassificationTask task, IBatchReader reader, double labelSmoothing) : IBatchRunner
    {
        public BatchOutcome Next()
        {
            var batch = reader.Next();
            var logits = task._network.call(batch.Sequences, null);
            // Summed and divided by rows, not by their weights: rows then count alike however they fall into batches, and a batch of weightless ones is 0, not 0/0.
            var loss = nn.functional.cross_entropy(logits, batch.Labels, task._classWeights, reduction: nn.Reduction.Sum, label_smoothing: labelSmoothing) / batch.Labels.shape[0];
            return new BatchOutcome(loss, batch.Labels.shape[0], logits.detach().argmax(1).eq(batch.Labels).sum().view(1));
        }

        public void Dispose() => reader.Dispose();
    }
}
