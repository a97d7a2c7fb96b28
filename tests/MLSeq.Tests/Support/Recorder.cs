namespace MLSeq.Tests.Support;

/// <summary>Keeps what a training reports, and acts on it.</summary>
internal sealed class Recorder(Action<TrainingProgress>? then = null) : IProgress<TrainingProgress>
{
    public List<TrainingProgress> Reports { get; } = [];

    public IEnumerable<TrainingProgress> Epochs => Reports.Where(report => report.IsEpochEnd);

    /// <summary>Cancels a training once its epoch <paramref name="epoch"/> has ended.</summary>
    public static Recorder CancelAfter(int epoch, CancellationTokenSource cancel) => new(report =>
    {
        if (report.IsEpochEnd && report.Epoch == epoch) cancel.Cancel();
    });

    public void Report(TrainingProgress value)
    {
        Reports.Add(value);
        then?.Invoke(value);
    }
}
