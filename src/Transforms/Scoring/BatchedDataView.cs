using Microsoft.ML;
using Microsoft.ML.Data;

namespace MLSeq;

/// <summary>
/// The scored view. A lead cursor reads the feature column many rows ahead, so that the network sees batches; a trail cursor serves the other columns
/// in step with the scores.
/// </summary>
internal sealed class BatchedDataView(IBatchedTransformer transformer, IDataView source) : IDataView
{
    private readonly DataViewSchema.Column _features = transformer.FeatureColumn(source.Schema);

    public DataViewSchema Schema { get; } = transformer.GetOutputSchema(source.Schema);

    public bool CanShuffle => source.CanShuffle;

    public long? GetRowCount() => source.GetRowCount();

    public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random? rand = null)
    {
        var wanted = columnsNeeded.Select(column => column.Index).ToHashSet();
        var passedThrough = source.Schema.Where(column => wanted.Contains(column.Index)).ToArray();
        // Both cursors must see the same order: each gets a generator with the same seed.
        int? seed = rand?.Next();
        Random? Order() => seed is { } value ? new Random(value) : null;
        var trail = source.GetRowCursor(passedThrough, Order());
        var lead = wanted.Any(index => index >= source.Schema.Count) ? source.GetRowCursor([_features], Order()) : null;
        return new Cursor(this, trail, lead, wanted);
    }

    // One cursor: libtorch uses the cores inside a batch, and n is only a hint.
    public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random? rand = null) => [GetRowCursor(columnsNeeded, rand)];

    private sealed class Cursor : DataViewRowCursor
    {
        private readonly BatchedDataView _view;
        private readonly DataViewRowCursor _trail;
        private readonly DataViewRowCursor? _lead;
        private readonly HashSet<int> _wanted;
        private readonly ScoringSession? _session;
        private readonly int _sourceColumns, _readAhead;
        private int _scored, _current;

        public Cursor(BatchedDataView view, DataViewRowCursor trail, DataViewRowCursor? lead, HashSet<int> wanted)
        {
            (_view, _trail, _lead, _wanted) = (view, trail, lead, wanted);
            _sourceColumns = trail.Schema.Count;
            _readAhead = view.Transformer.ReadAhead;
            if (lead is not null) _session = view.Transformer.CreateSession(lead, view._features);
        }

        public override DataViewSchema Schema => _view.Schema;

        public override long Position => _trail.Position;

        public override long Batch => _trail.Batch;

        public override ValueGetter<DataViewRowId> GetIdGetter() => _trail.GetIdGetter();

        public override bool IsColumnActive(DataViewSchema.Column column) => _wanted.Contains(column.Index);

        public override bool MoveNext()
        {
            if (!_trail.MoveNext()) return false;
            if (_lead is null || ++_current < _scored) return true;
            for (_scored = 0; _scored < _readAhead && _lead.MoveNext(); _scored++) _session!.Append();
            if (_scored == 0) throw new InvalidOperationException("The source yielded fewer rows on its second pass than on its first.");
            _session!.Score();
            _current = 0;
            return true;
        }

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            if (!IsColumnActive(column)) throw new InvalidOperationException($"Column '{column.Name}' is not active in this cursor.");
            return column.Index < _sourceColumns
                ? _trail.GetGetter<TValue>(_trail.Schema[column.Index])
                : Typed<TValue>(_session!.CreateGetter(column.Index - _sourceColumns, () => _current), column);
        }

        protected override void Dispose(bool disposing)
        {
            if (disposing)
            {
                _lead?.Dispose();
                _trail.Dispose();
            }
            base.Dispose(disposing);
        }
    }

    private IBatchedTransformer Transformer => transformer;

    internal static ValueGetter<TValue> Typed<TValue>(Delegate getter, DataViewSchema.Column column)
        => getter as ValueGetter<TValue> ?? throw new InvalidOperationException($"Column '{column.Name}' is {column.Type}; it cannot be read as {typeof(TValue)}.");
}

/// <summary>Row by row, for PredictionEngine.</summary>
internal sealed class BatchedRowMapper(IBatchedTransformer transformer, DataViewSchema input) : IRowToRowMapper
{
    private readonly DataViewSchema.Column _features = transformer.FeatureColumn(input);

    public DataViewSchema InputSchema { get; } = input;

    public DataViewSchema OutputSchema { get; } = transformer.GetOutputSchema(input);

    public IEnumerable<DataViewSchema.Column> GetDependencies(IEnumerable<DataViewSchema.Column> dependingColumns)
    {
        var wanted = dependingColumns.Select(column => column.Index).ToHashSet();
        var scores = wanted.Any(index => index >= InputSchema.Count);
        return InputSchema.Where(column => wanted.Contains(column.Index) || scores && column.Index == _features.Index);
    }

    public DataViewRow GetRow(DataViewRow input, IEnumerable<DataViewSchema.Column> activeColumns)
    {
        var active = activeColumns.Select(column => column.Index).ToHashSet();
        var session = active.Any(index => index >= InputSchema.Count) ? transformer.CreateSession(input, _features) : null;
        return new Row(OutputSchema, input, session, active);
    }

    private sealed class Row(DataViewSchema schema, DataViewRow source, ScoringSession? session, HashSet<int> active) : DataViewRow
    {
        private long _scoredPosition = -1;

        public override DataViewSchema Schema => schema;

        public override long Position => source.Position;

        public override long Batch => source.Batch;

        public override ValueGetter<DataViewRowId> GetIdGetter() => source.GetIdGetter();

        public override bool IsColumnActive(DataViewSchema.Column column) => active.Contains(column.Index);

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            if (!IsColumnActive(column)) throw new InvalidOperationException($"Column '{column.Name}' is not active in this row.");
            return column.Index < source.Schema.Count
                ? source.GetGetter<TValue>(source.Schema[column.Index])
                : BatchedDataView.Typed<TValue>(session!.CreateGetter(column.Index - source.Schema.Count, ScoredRow), column);
        }

        // All output getters of one row share one pass through the network.
        private int ScoredRow()
        {
            if (_scoredPosition != source.Position)
            {
                session!.Append();
                session.Score();
                _scoredPosition = source.Position;
            }
            return 0;
        }

        protected override void Dispose(bool disposing)
        {
            if (disposing) source.Dispose();
            base.Dispose(disposing);
        }
    }
}
