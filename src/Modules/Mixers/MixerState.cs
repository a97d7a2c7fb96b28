using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>All that a causal mixer knows of the past: H in <c>H_t = fA(H_{t-1}) + fB(x_t)</c>. Empty at the beginning.</summary>
/// <remarks>Owns its tensors. For recurrent mixers its size is constant; attention without a window keeps all keys and values.</remarks>
public sealed class MixerState : IDisposable
{
    private readonly SortedDictionary<string, Tensor> _tensors = new(StringComparer.Ordinal);
    private readonly Dictionary<string, (nint Address, int Count)> _places = []; // of parts that were asked for in place: TorchSharp takes long to tell them

    /// <summary>Elements so far.</summary>
    public long Position { get; set; }

    /// <summary>The parts, by name.</summary>
    public IReadOnlyDictionary<string, Tensor> Tensors => _tensors;

    /// <summary>Bytes of all parts.</summary>
    public long Bytes => _tensors.Values.Sum(tensor => tensor.numel() * tensor.ElementSize);

    /// <summary>A part, or null when the past is empty.</summary>
    public Tensor? this[string name] => _tensors.GetValueOrDefault(name);

    /// <summary>Replaces a part. The state takes the tensor over: it leaves the caller's dispose scope.</summary>
    public void Set(string name, Tensor value)
    {
        ArgumentNullException.ThrowIfNull(value);
        if (_tensors.GetValueOrDefault(name) is { } old && !ReferenceEquals(old, value)) old.Dispose();
        _tensors[name] = value.DetachFromDisposeScope();
        _places.Remove(name);
    }

    /// <summary>The numbers of a part that is Single on the CPU, to read and to write; zeros of the given shape when the past is empty. Valid until the part is replaced.</summary>
    internal unsafe Span<float> InPlace(string name, params ReadOnlySpan<long> shape)
    {
        if (!_places.TryGetValue(name, out var place))
        {
            if (!_tensors.TryGetValue(name, out var part)) Set(name, part = zeros(shape.ToArray()));
            else if (part.device_type != DeviceType.CPU || !part.is_contiguous()) Set(name, part = part.cpu().contiguous());
            _places[name] = place = (TensorAddress.Of(part), checked((int)part.numel()));
        }
        return new Span<float>((void*)place.Address, place.Count);
    }

    /// <summary>Forgets everything.</summary>
    public void Clear()
    {
        foreach (var tensor in _tensors.Values) tensor.Dispose();
        _tensors.Clear();
        _places.Clear();
        Position = 0;
    }

    /// <inheritdoc/>
    public void Dispose() => Clear();
}
