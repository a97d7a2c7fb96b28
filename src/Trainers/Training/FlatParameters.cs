using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// All parameters of a network as views of one buffer, and all gradients of another, so that clipping, AdamW and averaging are a few operators
/// whatever the number of parameters.
/// </summary>
/// <remarks>
/// In bfloat16 the network's parameters are views of a bfloat16 copy; the float32 <see cref="Master"/> is what the optimizer changes. Matrices and
/// tables come first, so that the part that is decayed is contiguous. Recurrent layers on CUDA keep the storage that cuDNN wants; their weights are
/// copied there after each step, while their gradients are views like all others.
/// </remarks>
internal sealed class FlatParameters : IDisposable
{
    private const int Alignment = 64; // elements: keeps every matrix on the boundary that fast matrix products want

    private readonly Tensor _compute;   // what the network reads; Master itself in float32
    private readonly Tensor _gradients; // what backward adds to
    private readonly List<Slot> _slots = [];
    private readonly List<(Slot Slot, Tensor Value)> _apart = []; // parameters with storage of their own

    public FlatParameters(nn.Module network, ScalarType precision, Device device)
    {
        network.to(precision);
        network.to(device);
        var apart = CudnnWeights.Compact(network, device);
        var parameters = network.named_parameters().Select(entry => (entry.name, Value: entry.parameter)).OrderBy(entry => entry.Value.dim() < 2).ToList();
        long size = 0;
        foreach (var (name, value) in parameters)
        {
            _slots.Add(new Slot(name, size, value.numel(), value.shape));
            size += (value.numel() + Alignment - 1) / Alignment * Alignment;
            if (value.dim() >= 2) DecayedSize = size;
        }
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        Master = zeros(size, float32, device).DetachFromDisposeScope();
        _compute = precision == float32 ? Master : zeros(size, precision, device).DetachFromDisposeScope();
        _gradients = zeros(size, precision, device).DetachFromDisposeScope();
        foreach (var (slot, (_, value)) in _slots.Zip(parameters))
        {
            slot.In(Master).copy_(value);
            if (apart.Contains(slot.Name)) _apart.Add((slot, value));
            else value.set_(slot.In(_compute));
            value.grad = slot.In(_gradients);
        }
        Publish();
    }

    /// <summary>Float32 [size]: the weights.</summary>
    public Tensor Master { get; }

    /// <summary>Elements, padding between parameters included (zeros that stay zeros).</summary>
    public long Size => Master.shape[0];

    /// <summary>The first elements of <see cref="Master"/>, those that weight decay applies to.</summary>
    public long DecayedSize { get; }

    /// <summary>Copies the weights to where the network reads them.</summary>
    public void Publish()
    {
        if (!ReferenceEquals(_compute, Master)) _compute.copy_(Master);
        if (_apart.Count == 0) return;
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        foreach (var (slot, value) in _apart) value.copy_(slot.In(Master));
    }

    /// <summary>Float32 [size]: the accumulated gradients, belonging to the caller's scope when a conversion was needed.</summary>
    public Tensor Gradients() => _gradients.dtype == float32 ? _gradients.alias() : _gradients.to(float32);

    public void ZeroGradients() => _gradients.zero_();

    /// <summary>Copies weights laid out like <see cref="Master"/> into a network of the same structure.</summary>
    public void CopyTo(Tensor weights, nn.Module network)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var target = network.named_parameters().ToDictionary(entry => entry.name, entry => entry.parameter);
        foreach (var slot in _slots) target[slot.Name].copy_(slot.In(weights));
    }

    public void Dispose()
    {
        if (!ReferenceEquals(_compute, Master)) _compute.Dispose();
        Master.Dispose();
        _gradients.Dispose();
    }

    private sealed record Slot(string Name, long Offset, long Count, long[] Shape)
    {
        public Tensor In(Tensor flat) => flat.narrow(0, Offset, Count).view(Shape);
    }
}
