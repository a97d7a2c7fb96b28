namespace MLSeq;

/// <summary>[count, width] numbers in host memory, row by row. Rows may be parts of wider ones.</summary>
internal readonly ref struct Rows
{
    private readonly Span<float> _values;
    private readonly int _stride;

    /// <param name="values">Beginning with the first row.</param>
    /// <param name="count">Rows.</param>
    /// <param name="width">Numbers in a row.</param>
    /// <param name="stride">Numbers from the beginning of a row to that of the next; 0: they follow each other.</param>
    public Rows(Span<float> values, int count, int width, int stride = 0)
    {
        (Count, Width, _stride) = (count, width, stride == 0 ? width : stride);
        _values = count == 0 ? [] : values[..((count - 1) * _stride + width)];
    }

    public int Count { get; }

    public int Width { get; }

    /// <summary>Numbers from the beginning of a row to that of the next.</summary>
    public int Stride => _stride;

    /// <summary>From the first number of the first row to the last of the last, with what lies between rows.</summary>
    public Span<float> Values => _values;

    public Span<float> this[int row] => _values.Slice(row * _stride, Width);

    /// <summary>A part of every row.</summary>
    public Rows Columns(int from, int width) => new(_values[from..], Count, width, _stride);

    /// <summary>Some of the rows.</summary>
    public Rows Range(int from, int count) => count == 0 ? new([], 0, Width, _stride) : new(_values[(from * _stride)..], count, Width, _stride);

    /// <summary>Copies all rows to the first rows of another.</summary>
    public void CopyTo(Rows target)
    {
        if (_stride == Width && target._stride == Width) _values.CopyTo(target._values);
        else for (var row = 0; row < Count; row++) this[row].CopyTo(target[row]);
    }
}

/// <summary>Scratch memory for one sequence after another: what is taken does not move, and lasts until its frame is left. For one thread.</summary>
internal sealed class Workspace
{
    private readonly List<float[]> _outgrown = []; // parts of them are still in use
    private float[] _memory = [];
    private int _used;

    /// <summary>Numbers of any value.</summary>
    public Span<float> Take(int count)
    {
        const int least = 1 << 14, line = 16; // a cache line's numbers, so that parts do not share one
        var room = (count + line - 1) / line * line;
        if (_memory.Length - _used < room)
        {
            _outgrown.Add(_memory);
            _memory = GC.AllocateUninitializedArray<float>(Math.Max(Math.Max(least, 2 * _memory.Length), _used + room), pinned: true);
        }
        _used += room;
        return _memory.AsSpan(_used - room, count);
    }

    /// <summary>[count, width] numbers of any value.</summary>
    public Rows Take(int count, int width) => new(Take(checked(count * width)), count, width);

    /// <summary>The numbers of a part of the state, in place: what precedes a sequence; zeros when nothing does. Without a state they are zeros that nobody keeps.</summary>
    public Span<float> Past(MixerState? state, string name, params ReadOnlySpan<long> shape)
    {
        if (state is not null) return state.InPlace(name, shape);
        long count = 1;
        foreach (var size in shape) count *= size;
        var zeros = Take(checked((int)count));
        zeros.Clear();
        return zeros;
    }

    /// <summary>Begins a frame; disposing of it frees what was taken since.</summary>
    public Frame Open() => new(this);

    public readonly ref struct Frame(Workspace workspace)
    {
        private readonly int _used = workspace._used;

        public void Dispose()
        {
            workspace._used = _used;
            if (_used == 0) workspace._outgrown.Clear();
        }
    }
}
