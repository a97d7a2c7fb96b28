using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What one batch says: tensors on the device, so that reading them is the loop's choice.</summary>
/// <param name="Loss">Scalar, mean over the batch's rows; differentiable.</param>
/// <param name="Count">Rows.</param>
/// <param name="Tally">[<see cref="TrainingTask.TallySize"/>]: what the metric is made of, such as correct rows or a confusion matrix; the loop adds it up.</param>
internal readonly record struct BatchOutcome(Tensor Loss, long Count, Tensor Tally);

/// <summary>What is trained on and how it is judged: all that differs between tasks. The loop is the same for all.</summary>
internal abstract class TrainingTask : IDisposable
{
    /// <summary>The network.</summary>
    public abstract nn.Module Network { get; }

    /// <summary>The metric's name; more is better.</summary>
    public abstract string MetricName { get; }

    /// <summary>Numbers in a tally.</summary>
    public abstract int TallySize { get; }

    /// <summary>The metric of many batches.</summary>
    /// <param name="tally">The sum of their tallies.</param>
    /// <param name="count">Their rows.</param>
    public abstract double Metric(ReadOnlySpan<double> tally, long count);

    /// <summary>The rows of each batch of an epoch: the same for the same seed.</summary>
    public abstract int[][] PlanEpoch(ulong seed);

    /// <summary>The rows of each validation batch; empty without validation.</summary>
    public abstract int[][] ValidationPlan { get; }

    /// <summary>Prepares batches in this order, ahead of need where that helps. Each call of the result runs the next batch through the network.</summary>
    /// <remarks>The result's tensors belong to the caller's dispose scope.</remarks>
    public abstract IBatchRunner Open(ReadOnlyMemory<int[]> plan, bool validation);

    public abstract void Dispose();
}

/// <summary>Runs batches one after the other.</summary>
internal interface IBatchRunner : IDisposable
{
    BatchOutcome Next();
}
