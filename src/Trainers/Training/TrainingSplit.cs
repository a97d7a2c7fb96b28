namespace MLSeq;

/// <summary>What to train on and what to judge by.</summary>
/// <param name="Training">The training data.</param>
/// <param name="TrainingRows">Which of its rows to train on.</param>
/// <param name="Validation">The data to judge by; may be the same.</param>
/// <param name="ValidationRows">Which of its rows.</param>
internal sealed record TrainingSplit<TData>(TData Training, int[] TrainingRows, TData Validation, int[] ValidationRows) where TData : class
{
    /// <summary>The data, each once.</summary>
    public IReadOnlyList<TData> Distinct => ReferenceEquals(Training, Validation) ? [Training] : [Training, Validation];
}
