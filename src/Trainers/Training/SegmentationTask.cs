using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Semantic segmentation: cross-entropy and Dice over the pixels, judged by the mean intersection over union.</summary>
internal sealed class SegmentationTask : TrainingTask
{
    private readonly ImageSegmenter _network;
    private readonly ImageAugmenter _augmenter;
    private readonly SemanticSegmentationTrainer.Options _options;
    private readonly int[] _trainingRows;
    private readonly ImageData _validation;
    private readonly IImageSource _trainingSource, _validationSource;
    private readonly Tensor? _classWeights;

    /// <summary>Joins network and data.</summary>
    /// <param name="network">The network.</param>
    /// <param name="augmenter">Makes batches of raw images.</param>
    /// <param name="data">Training and validation data, and which of their rows to use.</param>
    /// <param name="cropPixels">Pixels that training sees of an image.</param>
    /// <param name="options">Batch size, loss and memory budget.</param>
    /// <param name="device">Where to compute.</param>
    public SegmentationTask(ImageSegmenter network, ImageAugmenter augmenter, TrainingSplit<ImageData> data, long cropPixels, SemanticSegmentationTrainer.Options options, Device device)
    {
        (_network, _augmenter, _trainingRows, _validation, _options) = (network, augmenter, data.TrainingRows, data.Validation, options);
        ValidationPlan = [.. data.ValidationRows.GroupBy(Seen).SelectMany(alike => alike.Chunk((int)Math.Max(1, options.BatchSize * cropPixels / ((long)alike.Key.Height * alike.Key.Width))))];
        var fits = data.Distinct.Sum(part => part.DeviceBytes) <= options.DeviceDataBudget;
        _trainingSource = ImageSource.Create(data.Training, device, fits);
        _validationSource = data.Distinct.Count == 1 ? _trainingSource : ImageSource.Create(data.Validation, device, fits);
        _classWeights = options.ClassWeights is { } weights ? tensor([.. weights.Select(weight => (float)weight)], device: device).DetachFromDisposeScope() : null;
    }

    public override nn.Module Network => _network;

    public override string MetricName => "mean IoU";

    public override int TallySize => _options.Classes * _options.Classes;

    public override int[][] ValidationPlan { get; }

    /// <summary>Mean over the classes that occur, in truth or prediction, of their intersection over union. The tally is the confusion matrix [truth, prediction].</summary>
    public override double Metric(ReadOnlySpan<double> tally, long count)
    {
        double sum = 0, present = 0;
        for (var c = 0; c < _options.Classes; c++)
        {
            double truth = 0, predicted = 0;
            for (var other = 0; other < _options.Classes; other++)
            {
                truth += tally[c * _options.Classes + other];
                predicted += tally[other * _options.Classes + c];
            }
            var both = tally[c * _options.Classes + c];
            if (truth + predicted == 0) continue;
            sum += both / (truth + predicted - both);
            present++;
        }
        return present == 0 ? 0 : sum / present;
    }

    public override int[][] PlanEpoch(ulong seed) => BatchPlan.Shuffled(_trainingRows, _options.BatchSize, seed);

    public override IBatchRunner Open(ReadOnlyMemory<int[]> plan, bool validation)
        => new Runner(this, (validation ? _validationSource : _trainingSource).Open(plan), plan, validation);

    public override void Dispose()
    {
        _trainingSource.Dispose();
        _validationSource.Dispose();
        _classWeights?.Dispose();
    }

    // Whole images, or the middle of those that scoring would take apart.
    private (int Height, int Width) Seen(int row) => (Math.Min(_validation[row].Height, _options.TileSize), Math.Min(_validation[row].Width, _options.TileSize));

    /// <summary>Cross-entropy per pixel that counts, and 1 − Dice = 1 − (2 Σ p g + 1) / (Σ p + Σ g + 1), averaged over all classes (after Milletari et al. 2016, with sums for their squares).</summary>
    private Tensor Loss(Tensor logits, Tensor masks, Tensor counts, double labelSmoothing)
    {
        var ignored = _options.IgnoreIndex ?? -100L;
        // Divided by pixels, not by their weights, so that a batch of weightless ones is 0, not 0/0.
        var entropy = nn.functional.cross_entropy(logits, masks, _classWeights, ignore_index: ignored, reduction: nn.Reduction.Sum, label_smoothing: labelSmoothing) / counts.sum().clamp_min(1);
        if (_options.DiceWeight == 0) return entropy;
        var valid = counts.to(logits.dtype).unsqueeze(1);
        var probability = logits.softmax(1) * valid;
        var truth = zeros_like(probability).scatter_(1, (masks * counts).unsqueeze(1), valid);
        var both = (probability * truth).sum([0L, 2, 3]);
        var dice = (2 * both + 1) / (probability.sum([0L, 2, 3]) + truth.sum([0L, 2, 3]) + 1);
        return entropy + _options.DiceWeight * (1 - dice).mean();
    }

    /// <summary>The confusion matrix [truth · classes + prediction] of the pixels that count, in whole numbers: a batch may have more pixels than Singles can count.</summary>
    internal static Tensor Confusion(Tensor counts, Tensor truth, Tensor prediction, int classes)
    {
        using var _ = no_grad();
        var cells = (truth.to(int64) * classes + prediction).masked_fill(counts.logical_not(), classes * classes).flatten(); // what is ignored is counted beyond it
        return zeros(classes * classes + 1, int64, cells.device).scatter_add_(0, cells, ones_like(cells)).narrow(0, 0, classes * classes);
    }

    private sealed class Runner(SegmentationTask task, IImageReader reader, ReadOnlyMemory<int[]> plan, bool validation) : IBatchRunner
    {
        private int _next;

        public BatchOutcome Next()
        {
            var raw = reader.Next();
            ImageBatch batch;
            if (validation)
            {
                var (height, width) = task.Seen(plan.Span[_next++][0]);
                batch = task._augmenter.Plain(raw, height, width);
            }
            else
            {
                batch = task._augmenter.Vary(raw);
            }
            var (logits, masks, classes) = (task._network.call(batch.Images), batch.Masks!, task._options.Classes);
            var counts = task._options.IgnoreIndex is { } ignored ? masks.ne(ignored) : ones_like(masks, dtype: @bool);
            var loss = task.Loss(logits, masks, counts, validation ? 0 : task._options.LabelSmoothing);
            return new BatchOutcome(loss, masks.shape[0], Confusion(counts, masks, logits.argmax(1), classes));
        }

        public void Dispose() => reader.Dispose();
    }
}
