using MLSeq.Native;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Turns the elements of a batch into vectors: [batch, time, width].</summary>
internal abstract class SequenceEmbedding(string name) : nn.Module<SequenceBatch, Tensor>(name)
{
    private readonly List<SpanTable> _tables = [];

    /// <summary>The form over spans, for one sequence.</summary>
    internal abstract SpanEmbedding OverSpans();

    /// <summary>A learned table over spans; it lives as long as the module.</summary>
    private protected SpanTable Table(Tensor weight)
    {
        _tables.Add(new SpanTable(weight));
        return _tables[^1];
    }

    protected override void Dispose(bool disposing)
    {
        if (disposing) _tables.ForEach(table => table.Dispose());
        base.Dispose(disposing);
    }
}

/// <summary>Numeric elements: an affine map of the channels of each position.</summary>
internal sealed class SeriesEmbedding : SequenceEmbedding
{
    private readonly Linear projection;

    public SeriesEmbedding(int channels, int width) : base(nameof(SeriesEmbedding))
    {
        projection = nn.Linear(channels, width);
        RegisterComponents();
    }

    public override Tensor forward(SequenceBatch batch) => projection.call(batch.Elements.to(projection.weight.dtype));

    internal override SpanEmbedding OverSpans()
    {
        var map = new PackedLinear(projection);
        return (row, x) => map.Apply(new Rows(row.Values, row.Count, map.Inputs), x);
    }
}

/// <summary>Token ids 0 … tokens − 1: one learned vector each.</summary>
internal sealed class TokenEmbedding : SequenceEmbedding
{
    private readonly Embedding table;

    public TokenEmbedding(int tokens, int width) : base(nameof(TokenEmbedding))
    {
        table = nn.Embedding(tokens, width);
        RegisterComponents();
    }

    public override Tensor forward(SequenceBatch batch) => table.call(batch.Elements);

    internal override SpanEmbedding OverSpans()
    {
        var vectors = Table(table.weight!);
        return (row, x) =>
        {
            for (var t = 0; t < x.Count; t++) vectors[row.Tokens[t]].CopyTo(x[t]);
        };
    }
}

/// <summary>
/// Words: the vectors of a word's hashed pieces (itself and its character n-grams), summed. Bojanowski et al., "Enriching word vectors with subword
/// information", 2017, equation 2.
/// </summary>
/// <remarks>The sum is divided by √pieces, so that long and short words start with vectors of one length.</remarks>
internal sealed class WordPieceEmbedding : SequenceEmbedding
{
    private readonly EmbeddingBag table;

    public WordPieceEmbedding(int buckets, int width) : base(nameof(WordPieceEmbedding))
    {
        table = nn.EmbeddingBag(buckets + 1, width, mode: EmbeddingBagMode.Sum); // bucket 0 fills up, with weight 0
        RegisterComponents();
    }

    public override Tensor forward(SequenceBatch batch)
    {
        var pieces = batch.Words!; // [words, pieces]
        var present = pieces.ne(0).to(table.weight!.dtype);
        var weights = present / present.sum(1, keepdim: true).clamp_min(1).sqrt();
        var words = table.call(pieces, null, weights); // [words, width]
        var elements = batch.Elements;
        return words.index_select(0, elements.flatten()).view(elements.shape[0], elements.shape[1], words.shape[1]);
    }

    internal override SpanEmbedding OverSpans()
    {
        var vectors = Table(table.weight!);
        return (row, x) =>
        {
            for (var t = 0; t < x.Count; t++)
            {
                var word = x[t];
                var pieces = row.PiecesOf(t);
                word.Clear();
                foreach (var piece in pieces) word.Add(vectors[piece]);
                word.Scale(1 / MathF.Sqrt(Math.Max(1, pieces.Length)));
            }
        };
    }
}

/// <summary>The rows of a table [rows, width], where they are: tables may be large.</summary>
internal sealed unsafe class SpanTable : IDisposable
{
    private readonly Tensor _table;
    private readonly float* _first;
    private readonly int _rows, _width;

    public SpanTable(Tensor table)
    {
        _table = table.detach().DetachFromDisposeScope();
        (_rows, _width) = (checked((int)table.shape[0]), checked((int)table.shape[1]));
        _first = (float*)TensorAddress.Of(_table);
    }

    /// <exception cref="ObjectDisposedException">The network was disposed.</exception>
    public ReadOnlySpan<float> this[int row]
    {
        get
        {
            ObjectDisposedException.ThrowIf(_table.IsInvalid, typeof(SequenceEmbedding));
            ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual((uint)row, (uint)_rows, nameof(row));
            return new(_first + (long)row * _width, _width);
        }
    }

    public void Dispose() => _table.Dispose();
}
