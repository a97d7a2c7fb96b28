using Microsoft.ML;

namespace MLSeq;

/// <summary>Arithmetic of the forward and backward pass. Weights, optimizer and loss are always float32.</summary>
public enum Precision
{
    /// <summary><see cref="BFloat16"/> on CUDA, <see cref="Float32"/> on the CPU.</summary>
    Auto,

    /// <summary>32-bit.</summary>
    Float32,

    /// <summary>16-bit with float32's range: about twice as fast on a GPU, with float32 master weights.</summary>
    BFloat16,
}

/// <summary>How to train: the options that every MLSeq trainer shares.</summary>
public abstract class TrainingOptions
{
    /// <summary>Passes over the training data.</summary>
    public int Epochs { get; set; } = 20;

    /// <summary>Rows per step of the network; see <see cref="GradientAccumulation"/>.</summary>
    public int BatchSize { get; set; } = 64;

    /// <summary>Batches whose gradients are averaged into one optimizer step.</summary>
    public int GradientAccumulation { get; set; } = 1;

    /// <summary>Peak step size of AdamW (Loshchilov and Hutter 2019).</summary>
    public double LearningRate { get; set; } = 1e-3;

    /// <summary>Share of all steps over which the step size rises from 0; then it falls to 0 along a cosine.</summary>
    public double WarmupFraction { get; set; } = 0.1;

    /// <summary>AdamW's decay of matrices and tables; biases and norms are not decayed.</summary>
    public double WeightDecay { get; set; } = 0.01;

    /// <summary>Bound on the gradient's norm; 0: none.</summary>
    public double GradientClipping { get; set; } = 1;

    /// <summary>Arithmetic of the network.</summary>
    public Precision Precision { get; set; } = Precision.Auto;

    /// <summary>Share of probability given to all classes alike (Szegedy et al. 2016).</summary>
    public double LabelSmoothing { get; set; }

    /// <summary>Decay of a running average of the weights, which then is the model, for example 0.99; 0: none. It warms up with the steps done.</summary>
    public double Ema { get; set; }

    /// <summary>Rows to judge epochs by, with the training data's columns. The weights of the best epoch become the model.</summary>
    public IDataView? ValidationSet { get; set; }

    /// <summary>Without a <see cref="ValidationSet"/>: the share of each class's training rows set apart for that purpose; 0: none, the last weights become the model.</summary>
    public double ValidationFraction { get; set; }

    /// <summary>Stop after so many epochs without a better one; 0: never. Needs validation rows.</summary>
    public int EarlyStoppingPatience { get; set; }

    /// <summary>Fixes weights, order and dropout; null takes the MLContext's seed, or a random one. The same seed on the same machine gives the same model, bit for bit, on the CPU.</summary>
    public int? Seed { get; set; }

    /// <summary><c>cpu</c>, <c>cuda</c> or <c>cuda:N</c>; null: <c>MLContext.GpuDeviceId</c> if set, else the first CUDA device, else the CPU.</summary>
    public string? Device { get; set; }

    /// <summary>Bytes of training data that may be kept on a CUDA device; more is kept in host memory and sent batch by batch, ahead of need.</summary>
    public long DeviceDataBudget { get; set; } = 4L << 30;

    /// <summary>Told about batches (at most ten a second) and epochs.</summary>
    public IProgress<TrainingProgress>? Progress { get; set; }

    /// <summary>Ends training early; see <see cref="ReturnBestOnCancellation"/>.</summary>
    public CancellationToken CancellationToken { get; set; }

    /// <summary>Whether a cancelled training returns the best model so far; otherwise it throws <see cref="OperationCanceledException"/>.</summary>
    public bool ReturnBestOnCancellation { get; set; } = true;

    /// <summary>
    /// A folder for checkpoints: training with the same options and data goes on where it stopped, bit for bit. Written in one piece after every epoch and
    /// every <see cref="CheckpointInterval"/>, so that a crash loses at most that much.
    /// </summary>
    public string? CheckpointFolder { get; set; }

    /// <summary>Time between checkpoints within an epoch.</summary>
    public TimeSpan CheckpointInterval { get; set; } = TimeSpan.FromMinutes(1);

    internal virtual IEnumerable<string> Problems()
    {
        if (Epochs < 1) yield return $"Epochs is {Epochs}; expected at least 1.";
        if (BatchSize < 1) yield return $"BatchSize is {BatchSize}; expected at least 1.";
        if (GradientAccumulation < 1) yield return $"GradientAccumulation is {GradientAccumulation}; expected at least 1.";
        if (LearningRate is not (> 0 and < 10)) yield return $"LearningRate is {LearningRate}; expected above 0 and below 10.";
        if (WarmupFraction is not (>= 0 and < 1)) yield return $"WarmupFraction is {WarmupFraction}; expected at least 0 and below 1.";
        if (WeightDecay is not (>= 0 and < 10)) yield return $"WeightDecay is {WeightDecay}; expected at least 0 and below 10.";
        if (GradientClipping is not (>= 0 and < double.PositiveInfinity)) yield return $"GradientClipping is {GradientClipping}; expected 0 or a positive number.";
        if (LabelSmoothing is not (>= 0 and < 1)) yield return $"LabelSmoothing is {LabelSmoothing}; expected at least 0 and below 1.";
        if (Ema is not (>= 0 and < 1)) yield return $"Ema is {Ema}; expected at least 0 and below 1.";
        if (ValidationFraction is not (>= 0 and < 1)) yield return $"ValidationFraction is {ValidationFraction}; expected at least 0 and below 1.";
        if (ValidationSet is not null && ValidationFraction > 0) yield return "ValidationSet and ValidationFraction are both set; expected one of them.";
        if (EarlyStoppingPatience < 0) yield return $"EarlyStoppingPatience is {EarlyStoppingPatience}; expected 0 or more.";
        if (EarlyStoppingPatience > 0 && ValidationSet is null && ValidationFraction == 0) yield return "EarlyStoppingPatience is set without validation rows; set ValidationSet or ValidationFraction.";
        if (CheckpointInterval <= TimeSpan.Zero) yield return $"CheckpointInterval is {CheckpointInterval}; expected a positive time.";
        if (DeviceDataBudget < 0) yield return $"DeviceDataBudget is {DeviceDataBudget}; expected 0 or more bytes.";
    }

    /// <summary>What the result depends on: a checkpoint is resumed only with the same.</summary>
    internal virtual IEnumerable<object> FingerprintParts()
        => [Epochs, BatchSize, GradientAccumulation, LearningRate, WarmupFraction, WeightDecay, GradientClipping, LabelSmoothing, Ema, ValidationFraction, EarlyStoppingPatience];

    internal static IEnumerable<string> WeightProblems(IReadOnlyList<double>? classWeights)
        => classWeights?.Any(weight => weight is not (>= 0 and < double.PositiveInfinity)) == true ? ["ClassWeights must be finite and not negative."] : [];

    internal static IEnumerable<string> SizeProblems(string heightName, int height, string widthName, int width)
    {
        if (height is < 0 or > 1 << 15 || width is < 0 or > 1 << 15 || height == 0 != (width == 0))
            yield return $"{heightName} is {height} and {widthName} is {width}; expected 1 to {1 << 15} for both, or 0 for both.";
    }

    internal void Validate()
    {
        var problems = Problems().ToList();
        if (problems.Count > 0) throw new ArgumentException(string.Join(" ", problems));
    }
}
