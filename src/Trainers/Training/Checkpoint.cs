using System.Text.Json;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Where a training stands, besides its tensors. Order and dropout follow from the seed and these counters.</summary>
internal sealed record TrainingState
{
    public int Epoch { get; init; }

    public int Batch { get; init; }

    public long Step { get; init; }

    public double LossSum { get; init; }

    public required double[] Tally { get; init; }

    public long Count { get; init; }

    public double? BestMetric { get; init; }

    public double? BestLoss { get; init; }

    public int EpochsSinceBest { get; init; }

    public bool Finished { get; init; }
}

/// <summary>A training's state in one file, replaced in one piece: a crash leaves the old one or the new one, never half of one.</summary>
/// <param name="folder">The folder; made when missing.</param>
/// <param name="fingerprint">Tells trainings apart: options and data.</param>
internal sealed class Checkpoint(string folder, string fingerprint)
{
    private const string StateKey = "state", FingerprintKey = "fingerprint";

    public string Path { get; } = System.IO.Path.Combine(folder, "checkpoint.safetensors");

    public void Save(TrainingState state, IReadOnlyList<(string, Tensor)> tensors)
    {
        Directory.CreateDirectory(folder);
        AtomicFile.Write(Path, file => SafeTensors.Write(file, tensors, new Dictionary<string, string> { [FingerprintKey] = fingerprint, [StateKey] = JsonSerializer.Serialize(state) }));
    }

    /// <summary>Restores into <paramref name="tensors"/>; null when there is no checkpoint.</summary>
    /// <exception cref="InvalidOperationException">The checkpoint is damaged or belongs to another training.</exception>
    public TrainingState? Load(IReadOnlyList<(string, Tensor)> tensors)
    {
        if (!File.Exists(Path)) return null;
        try
        {
            using (var file = File.OpenRead(Path))
                if (SafeTensors.ReadMetadata(file).GetValueOrDefault(FingerprintKey) != fingerprint)
                    throw new FormatException("It was made with other options, data or another version.");
            using var stream = File.OpenRead(Path);
            return JsonSerializer.Deserialize<TrainingState>(SafeTensors.Read(stream, tensors)[StateKey])!;
        }
        catch (Exception e) when (e is FormatException or KeyNotFoundException or JsonException)
        {
            throw new InvalidOperationException($"The checkpoint {Path} cannot be resumed: {e.Message} Delete it to start again, or choose another CheckpointFolder.", e);
        }
    }
}
