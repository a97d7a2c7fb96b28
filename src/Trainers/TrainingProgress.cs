namespace MLSeq;

/// <summary>Where a training stands.</summary>
public sealed record TrainingProgress
{
    /// <summary>The current epoch, from 1.</summary>
    public required int Epoch { get; init; }

    /// <summary>Epochs planned.</summary>
    public required int Epochs { get; init; }

    /// <summary>Batches done in this epoch.</summary>
    public required int Batch { get; init; }

    /// <summary>Batches of this epoch.</summary>
    public required int Batches { get; init; }

    /// <summary>True for the report that closes an epoch, after validation.</summary>
    public required bool IsEpochEnd { get; init; }

    /// <summary>Mean training loss of this epoch so far (nats).</summary>
    public required double Loss { get; init; }

    /// <summary>Training metric of this epoch so far; see <see cref="MetricName"/>.</summary>
    public required double Metric { get; init; }

    /// <summary>What <see cref="Metric"/> and <see cref="ValidationMetric"/> are, for example <c>accuracy</c>.</summary>
    public required string MetricName { get; init; }

    /// <summary>Mean loss on the validation rows; null without them or before the epoch's end.</summary>
    public double? ValidationLoss { get; init; }

    /// <summary>Metric on the validation rows; null without them or before the epoch's end.</summary>
    public double? ValidationMetric { get; init; }

    /// <summary>Whether this epoch is the best so far.</summary>
    public bool IsBest { get; init; }

    /// <summary>The optimizer's current step size.</summary>
    public required double LearningRate { get; init; }

    /// <summary>Training rows per second since the start of this run.</summary>
    public required double SamplesPerSecond { get; init; }

    /// <summary>Time since the start of this run.</summary>
    public required TimeSpan Elapsed { get; init; }

    /// <summary>Estimated time to the end of the last epoch.</summary>
    public required TimeSpan Remaining { get; init; }

    /// <inheritdoc/>
    public override string ToString()
        => $"epoch {Epoch}/{Epochs} batch {Batch}/{Batches} loss {Loss:F4} {MetricName} {Metric:F4}"
           + (ValidationMetric is { } metric ? $" | validation loss {ValidationLoss:F4} {MetricName} {metric:F4}{(IsBest ? " (best)" : "")}" : "")
           + $" | {SamplesPerSecond:N0} rows/s, {Elapsed:mm\\:ss} gone, {Remaining:mm\\:ss} left";
}

/// <summary>The loss became not-a-number or infinite. Training stopped; the best weights before that are in <see cref="BestModel"/>.</summary>
public sealed class TrainingDivergedException : Exception
{
    /// <summary>Creates the exception.</summary>
    public TrainingDivergedException(string message, Microsoft.ML.ITransformer? bestModel = null) : base(message) => BestModel = bestModel;

    /// <summary>The model of the last good evaluation (with validation rows: the best one); null when there was none.</summary>
    public Microsoft.ML.ITransformer? BestModel { get; }
}
