using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What one batch says: tensors on the device, so that reading them is the loop's choice.</summary>
/// <param name="Loss">Scalar, mean over the batch; differentiable.</param>
/// <param name="MetricSum">Scalar: the metric summed over the batch.</param>
/// <param name="Count">Terms of that sum: rows, or pixels.</param>
internal readonly record struct BatchOutcome(Tensor Loss, Tensor MetricSum, long Count);

/// <summary>What is trained on and how it is judged: all that differs between tasks. The loop is the same for all.</summary>
internal abstract class TrainingTask
{
    /// <summary>The network.</summary>
    public abstract nn.Module Network { get; }

    /// <summary>The metric's name; more is better.</summary>
    public abstract string MetricName { get; }

    /// <summary>The rows of each batch of an epoch: the same for the same seed.</summary>
    public abstract int[][] PlanEpoch(ulong seed);

    /// <summary>The rows of each validation batch; empty without validation.</summary>
    public abstract int[][] ValidationPlan { get; }

    /// <summary>Prepares batches in this order, ahead of need where that helps. Each call of the result runs the next batch through the network.</summary>
    /// <remarks>The result's tensors belong to the caller's dispose scope.</remarks>
    public abstract IBatchRunner Open(ReadOnlyMemory<int[]> plan, bool validation);
}

/// <summary>Runs batches one after the other.</summary>
internal interface IBatchRunner : IDisposable
{
    BatchOutcome Next();
}
