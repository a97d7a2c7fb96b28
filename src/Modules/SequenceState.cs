using System.Globalization;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>All that a causal classifier knows of the elements so far: the state of each block's mixer and of the pooling.</summary>
internal sealed class SequenceState(int depth) : IDisposable
{
    private const string PositionKey = "position", OwnerKey = "owner", DepthKey = "depth", PoolingPrefix = "pooling";
    private const long MaxBytes = 1L << 34;

    private readonly MixerState[] _blocks = [.. Enumerable.Range(0, depth).Select(_ => new MixerState())];

    /// <summary>One per block.</summary>
    public IReadOnlyList<MixerState> Blocks => _blocks;

    public MixerState Pooling { get; } = new();

    /// <summary>Elements so far.</summary>
    public long Position => Pooling.Position;

    /// <summary>Bytes of all parts.</summary>
    public long Bytes => All.Sum(state => state.State.Bytes);

    private IEnumerable<(string Prefix, MixerState State)> All
        => _blocks.Select((state, block) => (block.ToString(CultureInfo.InvariantCulture), state)).Append((PoolingPrefix, Pooling));

    public void Clear()
    {
        foreach (var (_, state) in All) state.Clear();
    }

    public void Dispose() => Clear();

    /// <summary>Writes the state, bit for bit.</summary>
    /// <param name="stream">Where to.</param>
    /// <param name="owner">Tells the model that the state belongs to.</param>
    public void Save(Stream stream, string owner)
    {
        var tensors = All.SelectMany(part => part.State.Tensors.Select(tensor => ($"{part.Prefix}.{tensor.Key}", tensor.Value))).ToList();
        SafeTensors.Write(stream, tensors, new Dictionary<string, string>
        {
            [OwnerKey] = owner, [DepthKey] = depth.ToString(CultureInfo.InvariantCulture), [PositionKey] = Position.ToString(CultureInfo.InvariantCulture),
        });
    }

    /// <summary>Reads what <see cref="Save"/> wrote.</summary>
    /// <param name="stream">Where from.</param>
    /// <param name="owner">The model; the state must belong to it.</param>
    /// <param name="like">A state of the same model after one element: tells which parts there must be, of which type and shape (but for the time of attention's keys and values).</param>
    /// <param name="device">Where the state is to live.</param>
    /// <exception cref="FormatException">The stream is damaged or belongs to another model.</exception>
    public static SequenceState Load(Stream stream, string owner, SequenceState like, Device device)
    {
        var depth = like._blocks.Length;
        using var scope = NewDisposeScope();
        var (tensors, metadata) = SafeTensors.ReadAll(stream, MaxBytes);
        if (metadata.GetValueOrDefault(OwnerKey) != owner) throw new FormatException("It is the state of another model, or of none; restore it into an engine of the model that it was taken from.");
        if (!long.TryParse(metadata.GetValueOrDefault(PositionKey), NumberStyles.None, CultureInfo.InvariantCulture, out var position))
            throw new FormatException("It does not say how many elements it has seen.");
        var expected = position == 0 ? [] : like.All.SelectMany(part => part.State.Tensors.Select(tensor => (Name: $"{part.Prefix}.{tensor.Key}", tensor.Value))).ToDictionary(pair => pair.Name, pair => pair.Value);
        if (!tensors.Keys.ToHashSet().SetEquals(expected.Keys)) throw new FormatException($"It has the parts {string.Join(", ", tensors.Keys)}; expected {string.Join(", ", expected.Keys)}.");
        foreach (var (name, want) in expected)
            if (tensors[name].dtype != want.dtype || !Fits(name, tensors[name].shape, want.shape, position))
                throw new FormatException($"Its part '{name}' is {tensors[name].dtype} [{string.Join(", ", tensors[name].shape)}], which does not fit {want.dtype} [{string.Join(", ", want.shape)}] at position {position}.");
        var state = new SequenceState(depth);
        foreach (var (prefix, part) in state.All)
        {
            part.Position = position;
            foreach (var (name, tensor) in tensors.Where(pair => pair.Key.StartsWith(prefix + '.', StringComparison.Ordinal))) part.Set(name[(prefix.Length + 1)..], tensor.to(device, copy: true));
        }
        return state;
    }

    // Attention's cache is the one part that grows: [batch, heads, time, size], with room for what it has seen (or, with a window, at least its last element).
    private static bool Fits(string name, long[] got, long[] want, long position)
    {
        if (got.SequenceEqual(want)) return true;
        var isCache = name.EndsWith(".keys", StringComparison.Ordinal) || name.EndsWith(".values", StringComparison.Ordinal);
        return isCache && got.Length == 4 && got[0] == want[0] && got[1] == want[1] && got[3] == want[3];
    }
}
