using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Image classification: cross-entropy, judged by accuracy.</summary>
internal sealed class ImageClassificationTask : TrainingTask
{
    private readonly ImageClassifier _network;
    private readonly ImageAugmenter _augmenter;
    private readonly int[] _trainingRows;
    private readonly IImageSource _trainingSource, _validationSource;
    private readonly Tensor? _classWeights;
    private readonly double _labelSmoothing;
    private readonly int _batchSize, _height, _width;

    /// <summary>Joins network and data.</summary>
    /// <param name="network">The network.</param>
    /// <param name="augmenter">Makes batches of raw images.</param>
    /// <param name="input">The size that scoring sees.</param>
    /// <param name="data">Training and validation data, and which of their rows to use.</param>
    /// <param name="options">Batch size, label smoothing, class weights and memory budget.</param>
    /// <param name="device">Where to compute.</param>
    public ImageClassificationTask(ImageClassifier network, ImageAugmenter augmenter, ImageInput input, TrainingSplit<ImageData> data, ImageClassificationTrainer.Options options, Device device)
    {
        (_network, _augmenter, _trainingRows, _labelSmoothing, _batchSize) = (network, augmenter, data.TrainingRows, options.LabelSmoothing, options.BatchSize);
        (_height, _width) = (input.Height, input.Width);
        ValidationPlan = [.. data.ValidationRows.Chunk(options.BatchSize)];
        var fits = data.Distinct.Sum(part => part.DeviceBytes) <= options.DeviceDataBudget;
        _trainingSource = ImageSource.Create(data.Training, device, fits);
        _validationSource = data.Distinct.Count == 1 ? _trainingSource : ImageSource.Create(data.Validation, device, fits);
        _classWeights = options.ClassWeights is { } weights ? tensor([.. weights.Select(weight => (float)weight)], device: device).DetachFromDisposeScope() : null;
    }

    public override nn.Module Network => _network;

    public override string MetricName => "accuracy";

    public override int TallySize => 1;

    public override int[][] ValidationPlan { get; }

    public override double Metric(ReadOnlySpan<double> tally, long count) => tally[0] / count;

    public override int[][] PlanEpoch(ulong seed) => BatchPlan.Shuffled(_trainingRows, _batchSize, seed);

    public override IBatchRunner Open(ReadOnlyMemory<int[]> plan, bool validation)
        => new Runner(this, (validation ? _validationSource : _trainingSource).Open(plan), validation);

    public override void Dispose()
    {
        _trainingSource.Dispose();
        _validationSource.Dispose();
        _classWeights?.Dispose();
    }

    private sealed class Runner(ImageClassificationTask task, IImageReader reader, bool validation) : IBatchRunner
    {
        public BatchOutcome Next()
        {
            var raw = reader.Next();
            var batch = validation ? task._augmenter.Plain(raw, task._height, task._width) : task._augmenter.Vary(raw);
            var (logits, labels) = (task._network.call(batch.Images), batch.Labels!);
            // Divided by rows, not by their weights, so that rows count alike however they fall into batches.
            Tensor Loss(Tensor classes) => nn.functional.cross_entropy(logits, classes, task._classWeights, reduction: nn.Reduction.Sum, label_smoothing: validation ? 0 : task._labelSmoothing) / labels.shape[0];
            var loss = batch.Partners is null ? Loss(labels) : batch.Share * Loss(labels) + (1 - batch.Share) * Loss(batch.Partners);
            // Of a mixed image, what it shows most of counts as its class.
            var shown = batch.Partners is { } partners && batch.Share < 0.5 ? partners : labels;
            return new BatchOutcome(loss, labels.shape[0], logits.detach().argmax(1).eq(shown).sum().view(1));
        }

        public void Dispose() => reader.Dispose();
    }
}
