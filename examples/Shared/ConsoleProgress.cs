namespace MLSeq.Examples;

/// <summary>A progress bar on a terminal, one line per epoch elsewhere.</summary>
public sealed class ConsoleProgress : IProgress<TrainingProgress>
{
    private const int BarWidth = 24;

    /// <inheritdoc/>
    public void Report(TrainingProgress value)
    {
        ArgumentNullException.ThrowIfNull(value);
        if (Console.IsOutputRedirected)
        {
            if (value.IsEpochEnd) Console.WriteLine(value);
            return;
        }
        var done = (value.Epoch - 1 + (double)value.Batch / value.Batches) / value.Epochs;
        var filled = (int)Math.Round(done * BarWidth);
        var line = $"{new string('█', filled)}{new string('░', BarWidth - filled)} {done,4:P0} {value}";
        var width = Math.Max(20, Console.WindowWidth - 1);
        Console.Write("\r" + (line.Length > width ? line[..width] : line.PadRight(width)));
        if (value.IsEpochEnd && value.Epoch == value.Epochs) Console.WriteLine();
    }
}
