using System.Text.Json;
using System.Text.Json.Serialization;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms.Image;
using MLSeq;

[assembly: LoadableClass(typeof(MaskPaintingTransformer), null, typeof(SignatureLoadModel), "MLSeq mask painting", MaskPaintingTransformer.LoaderSignature)]

namespace MLSeq;

/// <summary>Adds a column with images that show masks; see <c>ml.ImageSegmentation.PaintMask</c>.</summary>
/// <remarks>As with ML.NET's own image columns, an image lives until the next row is read; save or copy it before. Where a row has no image, there is none in the output.</remarks>
public sealed class MaskPaintingTransformer : ITransformer
{
    internal const string LoaderSignature = "MLSeqMaskPainting";

    private const string Entry = "MaskPainting.json";
    private const int MaxEntryBytes = 16 << 20;

    private static readonly JsonSerializerOptions JsonOptions = new()
    {
        UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow,
        Converters = { new JsonStringEnumConverter() },
        MaxDepth = 8,
    };

    private readonly IHost _host;
    private readonly MaskPainting _painting;

    internal MaskPaintingTransformer(IHostEnvironment env, MaskPainting painting) => (_host, _painting) = (env.Register(nameof(MaskPaintingTransformer)), painting);

    bool ITransformer.IsRowToRowMapper => true;

    /// <summary>The input's schema with the image column added.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another type.</exception>
    public DataViewSchema GetOutputSchema(DataViewSchema inputSchema)
    {
        _host.CheckValue(inputSchema, nameof(inputSchema));
        Sources(inputSchema);
        var builder = new DataViewSchema.Builder();
        builder.AddColumns(inputSchema);
        builder.AddColumn(_painting.Output, new ImageDataViewType());
        return builder.ToSchema();
    }

    /// <summary>Paints a view's masks, lazily.</summary>
    public IDataView Transform(IDataView input)
    {
        _host.CheckValue(input, nameof(input));
        return new View(this, input);
    }

    IRowToRowMapper ITransformer.GetRowToRowMapper(DataViewSchema inputSchema) => new Mapper(this, inputSchema);

    private DataViewSchema.Column[] Sources(DataViewSchema schema)
        => [PaintedImageReader.Find(_host, schema, _painting.Image), MaskColumn.Find(_host, schema, "mask", _painting.Mask)];

    private IEnumerable<DataViewSchema.Column> Dependencies(DataViewSchema input, IEnumerable<DataViewSchema.Column> wanted)
    {
        var indices = wanted.Select(column => column.Index).ToHashSet();
        if (indices.Contains(input.Count)) indices.UnionWith(Sources(input).Select(column => column.Index));
        return input.Where(column => indices.Contains(column.Index));
    }

    private ValueGetter<MLImage?> CreateGetter(DataViewRow row)
    {
        var (imageColumn, maskColumn) = (Sources(row.Schema)[0], Sources(row.Schema)[1]);
        IReadOnlyList<string>? names = _painting.ClassNames ?? MaskColumn.ClassNames(maskColumn);
        var painter = new MaskPainter(_painting, names);
        var image = new PaintedImageReader(row, imageColumn);
        var mask = new MaskReader(row, maskColumn, names?.Count, _painting.IgnoreIndex, names is null ? WhitePixels.ClassOne : WhitePixels.ClassOneOfTwo);
        return (ref MLImage? value) =>
        {
            value?.Dispose();
            value = null;
            if (!image.Read()) return;
            mask.Read();
            if (mask.Height == 0 && mask.Count != image.Pixels.Length)
                throw new ArgumentException($"Row {row.Position} of column '{_painting.Mask}' has {mask.Size} of unknown height and width; expected as many as the image, {image.Height} x {image.Width}, " +
                    "or a column with dimensions [height, width].");
            var (height, width) = mask.Height > 0 ? (mask.Height, mask.Width) : (image.Height, image.Width);
            value = painter.Paint(image.Pixels, image.Height, image.Width, mask.Pixels, height, width);
        };
    }

    void ICanSaveModel.Save(ModelSaveContext ctx)
    {
        _host.CheckValue(ctx, nameof(ctx));
        ctx.CheckAtModel();
        ctx.SetVersionInfo(GetVersionInfo());
        ctx.SaveBinaryStream(Entry, writer => JsonSerializer.Serialize(writer.BaseStream, _painting, JsonOptions));
    }

    // Found by ML.NET's component catalog through the LoadableClass attribute.
    private static MaskPaintingTransformer Create(IHostEnvironment env, ModelLoadContext ctx)
    {
        env.CheckValue(ctx, nameof(ctx));
        ctx.CheckAtModel(GetVersionInfo());
        MaskPainting? painting = null;
        try
        {
            ctx.TryLoadBinaryStream(Entry, reader =>
            {
                if (reader.BaseStream.Length > MaxEntryBytes) throw new FormatException($"It has {reader.BaseStream.Length} bytes; expected at most {MaxEntryBytes}.");
                painting = JsonSerializer.Deserialize<MaskPainting>(reader.BaseStream, JsonOptions);
            });
            if (painting is null) throw new FormatException("It is missing or empty.");
            painting.Validate();
        }
        catch (Exception e) when (e is not OutOfMemoryException)
        {
            throw env.ExceptDecode(e, $"The model cannot be loaded: its entry '{Entry}' is damaged or was not written by MLSeq. {e.Message} Nothing was loaded; save the model again from its source.");
        }
        return new MaskPaintingTransformer(env, painting);
    }

    private static VersionInfo GetVersionInfo() => new(
        modelSignature: "MLSEQPNT",
        verWrittenCur: 0x00010001,
        verReadableCur: 0x00010001,
        verWeCanReadBack: 0x00010001,
        loaderSignature: LoaderSignature,
        loaderAssemblyName: typeof(MaskPaintingTransformer).Assembly.GetName().Name); // the simple name survives version changes

    private sealed class View(MaskPaintingTransformer transformer, IDataView source) : IDataView
    {
        public DataViewSchema Schema { get; } = transformer.GetOutputSchema(source.Schema);

        public bool CanShuffle => source.CanShuffle;

        public long? GetRowCount() => source.GetRowCount();

        public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random? rand = null)
            => new Cursor(this, source.GetRowCursor(transformer.Dependencies(source.Schema, columnsNeeded), rand), columnsNeeded);

        public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random? rand = null)
            => [.. source.GetRowCursorSet(transformer.Dependencies(source.Schema, columnsNeeded), n, rand).Select(cursor => new Cursor(this, cursor, columnsNeeded))];

        private sealed class Cursor(View view, DataViewRowCursor source, IEnumerable<DataViewSchema.Column> columnsNeeded) : DataViewRowCursor
        {
            private readonly PaintedRow _row = new(view.Transformer, view.Schema, source, columnsNeeded);

            public override DataViewSchema Schema => view.Schema;

            public override long Position => source.Position;

            public override long Batch => source.Batch;

            public override ValueGetter<DataViewRowId> GetIdGetter() => source.GetIdGetter();

            public override bool IsColumnActive(DataViewSchema.Column column) => _row.IsColumnActive(column);

            public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column) => _row.GetGetter<TValue>(column);

            public override bool MoveNext() => source.MoveNext();

            protected override void Dispose(bool disposing)
            {
                if (disposing) _row.Dispose();
                base.Dispose(disposing);
            }
        }

        private MaskPaintingTransformer Transformer => transformer;
    }

    private sealed class Mapper(MaskPaintingTransformer transformer, DataViewSchema input) : IRowToRowMapper
    {
        public DataViewSchema InputSchema { get; } = input;

        public DataViewSchema OutputSchema { get; } = transformer.GetOutputSchema(input);

        public IEnumerable<DataViewSchema.Column> GetDependencies(IEnumerable<DataViewSchema.Column> dependingColumns) => transformer.Dependencies(InputSchema, dependingColumns);

        public DataViewRow GetRow(DataViewRow input, IEnumerable<DataViewSchema.Column> activeColumns) => new PaintedRow(transformer, OutputSchema, input, activeColumns);
    }

    /// <summary>A row, or a cursor's current one, with the painted image.</summary>
    private sealed class PaintedRow(MaskPaintingTransformer transformer, DataViewSchema schema, DataViewRow source, IEnumerable<DataViewSchema.Column> activeColumns) : DataViewRow
    {
        private readonly HashSet<int> _active = [.. activeColumns.Select(column => column.Index)];

        public override DataViewSchema Schema => schema;

        public override long Position => source.Position;

        public override long Batch => source.Batch;

        public override ValueGetter<DataViewRowId> GetIdGetter() => source.GetIdGetter();

        public override bool IsColumnActive(DataViewSchema.Column column) => _active.Contains(column.Index);

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            if (!IsColumnActive(column)) throw new InvalidOperationException($"Column '{column.Name}' is not active in this row.");
            return column.Index < source.Schema.Count
                ? source.GetGetter<TValue>(source.Schema[column.Index])
                : BatchedDataView.Typed<TValue>(transformer.CreateGetter(source), column);
        }

        protected override void Dispose(bool disposing)
        {
            if (disposing) source.Dispose();
            base.Dispose(disposing);
        }
    }
}
