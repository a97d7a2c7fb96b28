using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Rows of different length, end to end in host memory: numbers, token ids, or words with their hashed pieces.</summary>
internal sealed class SequenceBuffer(int channels, int maxLength)
{
    private readonly List<float> _values = [];
    private readonly List<int> _tokens = [];
    private readonly List<long> _ends = [];
    private readonly Dictionary<string, int> _wordIndex = [];
    private readonly List<int> _pieces = [];
    private readonly List<int> _pieceEnds = [];
    private bool _truncating;

    /// <summary>Numbers per position; 0 when the elements are tokens or words.</summary>
    public int Channels { get; } = channels;

    /// <summary>Rows.</summary>
    public int Count => _ends.Count;

    /// <summary>Elements of all rows.</summary>
    public long TotalLength => Count == 0 ? 0 : _ends[^1];

    /// <summary>Rows that were longer than the maximum and lost their end.</summary>
    public int TruncatedRows { get; private set; }

    /// <summary>Whether the last row had no element, and got a neutral one.</summary>
    public bool LastRowWasEmpty { get; private set; }

    /// <summary>The largest token.</summary>
    public int MaxToken { get; private set; }

    /// <summary>Whether elements are words.</summary>
    public bool HasWords => _pieceEnds.Count > 0;

    public Span<float> Values => CollectionsMarshal.AsSpan(_values);

    public ReadOnlySpan<int> Tokens => CollectionsMarshal.AsSpan(_tokens);

    public long Start(int row) => row == 0 ? 0 : _ends[row - 1];

    public int Length(int row) => (int)(_ends[row] - Start(row));

    private long Filled => Channels > 0 ? _values.Count / Channels : _tokens.Count;

    public void Clear()
    {
        _values.Clear();
        _tokens.Clear();
        _ends.Clear();
        _wordIndex.Clear();
        _pieces.Clear();
        _pieceEnds.Clear();
    }

    /// <summary>Adds a token to the open row.</summary>
    public void AddToken(int token)
    {
        if (Filled - TotalLength >= maxLength)
        {
            _truncating = true;
            return;
        }
        _tokens.Add(token);
        MaxToken = Math.Max(MaxToken, token);
    }

    /// <summary>Adds a word to the open row; its pieces are computed once.</summary>
    public void AddWord(ReadOnlySpan<char> word, WordTextEncoding encoding)
    {
        var lookup = _wordIndex.GetAlternateLookup<ReadOnlySpan<char>>();
        if (!lookup.TryGetValue(word, out var index))
        {
            if (Filled - TotalLength >= maxLength)
            {
                _truncating = true;
                return;
            }
            index = _pieceEnds.Count;
            lookup[word] = index;
            encoding.AddPieces(word, _pieces);
            _pieceEnds.Add(_pieces.Count);
        }
        AddToken(index);
    }

    /// <summary>Adds the numbers of a whole row, [time, channels]; zeros of a sparse vector included.</summary>
    public void AddValues(ReadOnlySpan<float> row)
    {
        var room = maxLength * (long)Channels;
        if (row.Length > room)
        {
            row = row[..(int)room];
            _truncating = true;
        }
        _values.AddRange(row);
    }

    /// <summary>Ends the open row. An empty row gets one neutral element (zeros, or the unknown token), so that every row has a position to read.</summary>
    public void EndRow(WordTextEncoding? words = null)
    {
        LastRowWasEmpty = Filled == TotalLength;
        if (LastRowWasEmpty)
        {
            if (Channels > 0) _values.AddRange(new float[Channels]);
            else if (words is not null) AddWord(" ", words);
            else AddToken(0);
        }
        _ends.Add(Filled);
        if (_truncating) TruncatedRows++;
        _truncating = false;
    }

    /// <summary>A row, where it is.</summary>
    public SequenceRow Row(int row)
    {
        var (start, length) = ((int)Start(row), Length(row));
        return new SequenceRow
        {
            Count = length, Values = Channels > 0 ? Values.Slice(start * Channels, length * Channels) : [], Tokens = Channels > 0 ? [] : Tokens.Slice(start, length),
            Pieces = CollectionsMarshal.AsSpan(_pieces), PieceEnds = CollectionsMarshal.AsSpan(_pieceEnds),
        };
    }

    /// <summary>Copies rows into a right-padded batch.</summary>
    /// <param name="rows">Row numbers.</param>
    /// <param name="device">Where the batch is to live.</param>
    public SequenceBatch Gather(ReadOnlySpan<int> rows, Device device)
    {
        var time = 0;
        var padded = false;
        foreach (var row in rows) time = Math.Max(time, Length(row));
        var lengths = new long[rows.Length];
        for (var i = 0; i < rows.Length; i++) padded |= (lengths[i] = Length(rows[i])) < time;
        var padding = padded ? new SequencePadding(tensor(lengths, device: device), time) : null;
        return Channels > 0 ? new SequenceBatch(GatherValues(rows, time, device), padding)
            : HasWords ? GatherWords(rows, time, padding, device)
            : new SequenceBatch(GatherTokens(rows, time, device), padding);
    }

    private Tensor GatherValues(ReadOnlySpan<int> rows, int time, Device device)
    {
        var batch = new float[(long)rows.Length * time * Channels];
        for (var i = 0; i < rows.Length; i++)
            Values.Slice((int)Start(rows[i]) * Channels, Length(rows[i]) * Channels).CopyTo(batch.AsSpan(i * time * Channels));
        return tensor(batch, [rows.Length, time, Channels], device: device);
    }

    private Tensor GatherTokens(ReadOnlySpan<int> rows, int time, Device device)
    {
        var batch = new long[(long)rows.Length * time];
        for (var i = 0; i < rows.Length; i++)
        {
            var at = i * time;
            foreach (var token in Tokens.Slice((int)Start(rows[i]), Length(rows[i]))) batch[at++] = token;
        }
        return tensor(batch, [rows.Length, time], device: device);
    }

    private SequenceBatch GatherWords(ReadOnlySpan<int> rows, int time, SequencePadding? padding, Device device)
    {
        var number = new Dictionary<int, int>(); // word → its row in the batch's table
        var used = new List<int>();
        var batch = new long[(long)rows.Length * time];
        for (var i = 0; i < rows.Length; i++)
        {
            var at = i * time;
            foreach (var word in Tokens.Slice((int)Start(rows[i]), Length(rows[i])))
            {
                if (!number.TryGetValue(word, out var n))
                {
                    number[word] = n = used.Count;
                    used.Add(word);
                }
                batch[at++] = n;
            }
        }
        return new SequenceBatch(tensor(batch, [rows.Length, time], device: device), padding, PieceTable(used, device));
    }

    /// <summary>The pieces of every word of the buffer: Int64 [words, pieces], filled up with 0.</summary>
    public Tensor PieceTable(Device device) => PieceTable([.. Enumerable.Range(0, _pieceEnds.Count)], device);

    private Tensor PieceTable(List<int> words, Device device)
    {
        int First(int word) => word == 0 ? 0 : _pieceEnds[word - 1];
        var most = words.Max(word => _pieceEnds[word] - First(word));
        var table = new long[(long)words.Count * most];
        for (var i = 0; i < words.Count; i++)
            for (int from = First(words[i]), k = 0; from + k < _pieceEnds[words[i]]; k++)
                table[(long)i * most + k] = _pieces[from + k];
        return tensor(table, [words.Count, most], device: device);
    }
}
