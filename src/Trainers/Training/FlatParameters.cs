using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// All parameters and buffers of a network as views of one flat tensor, and all gradients of another, so that clipping, AdamW and averaging are a few
/// operators whatever the number of parameters.
/// </summary>
/// <remarks>
/// <para>The order is: matrices and tables, which decay; other parameters; those that stay float32 in a bfloat16 network (<see cref="IKeepsFloat32"/>); buffers. Buffers, such as
/// a batch norm's running statistics, have gradients that are always zero, so the optimizer leaves them alone, while averaging, the best epoch and checkpoints keep them
/// with the weights they belong to.</para>
/// <para>In bfloat16 the network reads the first two kinds from a bfloat16 copy; the float32 <see cref="Master"/> is what the optimizer changes. Recurrent layers on CUDA keep the
/// storage that cuDNN wants; their weights are copied there after each step, while their gradients are views like all others. Convolutions on CUDA have their
/// channels last in memory, as their images have.</para>
/// </remarks>
internal sealed class FlatParameters : IDisposable
{
    private const int Alignment = 64; // elements: keeps every matrix on the boundary that fast matrix products want

    private readonly Tensor? _low, _lowGradients; // in bfloat16: what the network reads and what backward adds to, of the first two kinds
    private readonly Tensor _gradients;           // float32 [size]
    private readonly List<Slot> _slots = [];
    private readonly List<(Slot Slot, Tensor Value)> _apart = []; // parameters with storage of their own

    public FlatParameters(nn.Module network, ScalarType precision, Device device)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var kept = network.named_modules().Where(entry => entry.module is IKeepsFloat32).ToArray();
        bool Keeps(string name) => Array.Exists(kept, entry => name.StartsWith(entry.name + '.', StringComparison.Ordinal));
        var state = network.named_parameters().Select(entry => (entry.name, Value: (Tensor)entry.parameter, Kind: Keeps(entry.name) ? 2 : entry.parameter.dim() < 2 ? 1 : 0))
            .Concat(network.named_buffers().Select(entry => (entry.name, Value: entry.buffer, Kind: 3)))
            .OrderBy(entry => entry.Kind).ToList();
        long lowSize = 0;
        foreach (var (name, value, kind) in state)
        {
            _slots.Add(new Slot(name, Size, value.numel(), value.shape, ChannelsLast: device.type == DeviceType.CUDA && value.dim() == 4, IsBuffer: kind == 3));
            Size += (value.numel() + Alignment - 1) / Alignment * Alignment;
            if (kind == 0) DecayedSize = Size;
            if (kind <= 1) lowSize = Size;
        }
        Master = zeros(Size, float32, device).DetachFromDisposeScope();
        foreach (var (slot, (_, value, _)) in _slots.Zip(state)) slot.In(Master).copy_(value); // before any rounding

        network.to(precision);
        foreach (var (_, module) in kept) module.to(float32);
        network.to(device);
        var apart = CudnnWeights.Compact(network, device);
        _gradients = zeros(Size, float32, device).DetachFromDisposeScope();
        if (precision != float32)
        {
            _low = zeros(lowSize, precision, device).DetachFromDisposeScope();
            _lowGradients = zeros(lowSize, precision, device).DetachFromDisposeScope();
        }
        var values = network.State().ToDictionary(entry => entry.Name, entry => entry.Value);
        foreach (var slot in _slots)
        {
            var (value, isLow) = (values[slot.Name], _low is not null && slot.Offset < lowSize);
            if (apart.Contains(slot.Name)) _apart.Add((slot, value));
            else value.set_(slot.In(isLow ? _low! : Master));
            if (!slot.IsBuffer) value.grad = slot.In(isLow ? _lowGradients! : _gradients);
        }
        Publish();
    }

    /// <summary>Float32 [size]: weights and buffers.</summary>
    public Tensor Master { get; }

    /// <summary>Elements, padding between parameters included (zeros that stay zeros).</summary>
    public long Size { get; }

    /// <summary>The first elements of <see cref="Master"/>, those that weight decay applies to.</summary>
    public long DecayedSize { get; }

    /// <summary>In bfloat16: what the network reads of the first elements of <see cref="Master"/>; else null.</summary>
    public Tensor? Low => _low;

    /// <summary>Its gradients.</summary>
    public Tensor? LowGradients => _lowGradients;

    /// <summary>Float32 [size]: the gradients of all other elements.</summary>
    public Tensor OtherGradients => _gradients;

    /// <summary>Copies the weights to where the network reads them.</summary>
    public void Publish()
    {
        using var _ = no_grad();
        if (_low is not null)
        {
            using var scope = NewDisposeScope();
            _low.copy_(Master.narrow(0, 0, _low.shape[0]));
        }
        PublishApart();
    }

    /// <summary>The same for weights that are neither in <see cref="Low"/> nor views of <see cref="Master"/>.</summary>
    public void PublishApart()
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        foreach (var (slot, value) in _apart) value.copy_(slot.In(Master));
    }

    /// <summary>Float32 [size]: the accumulated gradients, for the optimizer to change as it likes before it calls <see cref="ZeroGradients"/>.</summary>
    public Tensor Gradients()
    {
        if (_lowGradients is not null) _gradients.narrow(0, 0, _lowGradients.shape[0]).copy_(_lowGradients);
        return _gradients;
    }

    public void ZeroGradients()
    {
        _gradients.zero_();
        _lowGradients?.zero_();
    }

    /// <summary>Copies weights and buffers laid out like <see cref="Master"/> into a network of the same structure.</summary>
    public void CopyTo(Tensor weights, nn.Module network)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var target = network.State().ToDictionary(entry => entry.Name, entry => entry.Value);
        foreach (var slot in _slots) target[slot.Name].copy_(slot.In(weights));
    }

    public void Dispose()
    {
        foreach (var flat in new[] { Master, _gradients, _low, _lowGradients }) flat?.Dispose();
    }

    private sealed record Slot(string Name, long Offset, long Count, long[] Shape, bool ChannelsLast, bool IsBuffer)
    {
        public Tensor In(Tensor flat)
        {
            var elements = flat.narrow(0, Offset, Count);
            return ChannelsLast ? elements.view(Shape[0], Shape[2], Shape[3], Shape[1]).permute(0, 3, 1, 2) : elements.view(Shape);
        }
    }
}
