using System.Globalization;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using Microsoft.ML;
using Microsoft.ML.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What all trainers do alike: choose device, precision and seed, run the loop, and make the model of what it leaves.</summary>
internal sealed class TrainingRun
{
    private readonly IHost _host;
    private readonly IChannel _channel;
    private readonly TrainingOptions _options;

    public TrainingRun(IHost host, IChannel channel, TrainingOptions options)
    {
        (_host, _channel, _options) = (host, channel, options);
        Device = DeviceChoice.Resolve(host, options.Device, text => channel.Warning(text));
        if (OperatorChoice.Remark(Device.type, Device.index) is { } remark) channel.Warning(remark);
        Precision = options.Precision == MLSeq.Precision.BFloat16 || options.Precision == MLSeq.Precision.Auto && Device.type == DeviceType.CUDA ? bfloat16 : float32;
        Seed = (ulong)(options.Seed ?? (host as IHostEnvironmentInternal)?.Seed ?? Random.Shared.Next());
    }

    public Device Device { get; }

    public ScalarType Precision { get; }

    public ulong Seed { get; }

    /// <summary>Checks that a warm start, if there is one, has the same backbone.</summary>
    /// <param name="got">Its backbone in JSON; null: there is none.</param>
    /// <param name="expected">The backbone to train.</param>
    public void CheckWarmStart(string? got, string expected)
    {
        if (got is not null && got != expected) throw _host.Except($"WarmStart has the backbone {got}; expected {expected}.");
    }

    /// <summary>Makes a network from the seed, with the weights of a warm start where they fit.</summary>
    public TNetwork CreateNetwork<TNetwork>(Func<TNetwork> create, nn.Module? warmStart) where TNetwork : nn.Module
    {
        manual_seed((long)(Seed >> 1));
        var network = create();
        if (warmStart is null) return network;
        using var _ = no_grad();
        var known = warmStart.State().ToDictionary(entry => entry.Name, entry => entry.Value);
        foreach (var (name, own) in network.State())
        {
            if (known.TryGetValue(name, out var value) && value.shape.SequenceEqual(own.shape)) own.copy_(value);
            else _channel.Warning($"WarmStart has no weights of the right size for '{name}'; they start anew.");
        }
        return network;
    }

    /// <summary>Tells whether a checkpoint belongs to this training: everything that its result depends on.</summary>
    /// <param name="parts">What the task depends on besides the options.</param>
    /// <param name="data">The training and validation data's bytes.</param>
    public Checkpoint? Checkpoint(IEnumerable<object> parts, Action<IncrementalHash> data)
    {
        if (_options.CheckpointFolder is not { } folder) return null;
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        const int format = 2;
        object[] all = [format, Precision, Seed, .. parts, .. _options.FingerprintParts()];
        hash.AppendData(Encoding.UTF8.GetBytes(string.Join('|', all.Select(part => Convert.ToString(part, CultureInfo.InvariantCulture)))));
        data(hash);
        return new Checkpoint(folder, Convert.ToHexString(hash.GetHashAndReset()));
    }

    /// <summary>Trains.</summary>
    /// <param name="task">What to train.</param>
    /// <param name="checkpoint">Where to keep the state, or null.</param>
    /// <param name="hasValidation">Whether there are validation rows.</param>
    /// <param name="createNetwork">Makes a network like the one trained, for the model.</param>
    /// <param name="createModel">Makes the model of that network, which is on the device and frozen.</param>
    /// <exception cref="TrainingDivergedException">The loss is not finite.</exception>
    /// <exception cref="OperationCanceledException">Cancelled, and <see cref="TrainingOptions.ReturnBestOnCancellation"/> is off or nothing was trained yet.</exception>
    public TTransformer Run<TNetwork, TTransformer>(TrainingTask task, Checkpoint? checkpoint, bool hasValidation, Func<TNetwork> createNetwork, Func<TNetwork, TTransformer> createModel)
        where TNetwork : nn.Module where TTransformer : class, ITransformer
    {
        using var loop = new TrainingLoop(task, _options, Precision, Device, Seed, checkpoint, Report, _host.CheckAlive);
        TTransformer Model()
        {
            var fresh = createNetwork();
            loop.CopyModelTo(fresh);
            fresh.MoveTo(Device);
            foreach (var (_, value) in fresh.State()) value.DetachFromDisposeScope().requires_grad = false;
            return createModel(fresh);
        }
        try
        {
            loop.Run();
        }
        catch (TrainingDivergedException e)
        {
            throw new TrainingDivergedException(e.Message, loop.HasModel && hasValidation ? Model() : null);
        }
        if (loop.WasCancelled)
        {
            if (!_options.ReturnBestOnCancellation || !loop.HasModel) throw new OperationCanceledException("Training was cancelled.", _options.CancellationToken);
            _channel.Warning("Training was cancelled; returning the best model so far.");
        }
        return Model();
    }

    private void Report(TrainingProgress progress)
    {
        if (progress.IsEpochEnd) _channel.Info(progress.ToString());
        _options.Progress?.Report(progress);
    }
}

internal static class Hashing
{
    public static void Append<T>(this IncrementalHash hash, ReadOnlySpan<T> values) where T : unmanaged => hash.AppendData(MemoryMarshal.AsBytes(values));
}
