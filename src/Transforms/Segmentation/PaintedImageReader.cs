using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms.Image;

namespace MLSeq;

/// <summary>Reads the images that masks are painted over.</summary>
internal sealed class PaintedImageReader
{
    /// <summary>What is expected of the column, for messages.</summary>
    public const string Expected = "an image, or a vector of Byte with dimensions [1 or 3, height, width]";

    private readonly DataViewRow _row;
    private readonly string _column;
    private readonly Func<bool> _read;
    private uint[] _pixels = [];

    /// <param name="row">A row or cursor in which <paramref name="column"/> is active.</param>
    /// <param name="column">A column found by <see cref="Find"/>.</param>
    public PaintedImageReader(DataViewRow row, DataViewSchema.Column column)
    {
        (_row, _column) = (row, column.Name);
        _read = column.Type is VectorDataViewType vector ? VectorReader(column, vector) : ImageReader(column);
    }

    /// <summary>Rows of pixels of the image read last.</summary>
    public int Height { get; private set; }

    /// <summary>Pixels per row of the image read last.</summary>
    public int Width { get; private set; }

    /// <summary>The image read last, 0xAABBGGRR, [height, width]. Overwritten by the next <see cref="Read"/>.</summary>
    public ReadOnlySpan<uint> Pixels => _pixels.AsSpan(0, Height * Width);

    /// <summary>The column named <paramref name="name"/>.</summary>
    /// <exception cref="ArgumentOutOfRangeException">It is missing, or holds no images.</exception>
    public static DataViewSchema.Column Find(IExceptionContext host, DataViewSchema schema, string name)
    {
        var column = schema.GetColumnOrNull(name) ?? throw host.ExceptSchemaMismatch(nameof(schema), "image", name);
        var isVector = column.Type is VectorDataViewType { Dimensions: [1 or 3, > 0, > 0] } vector && vector.ItemType == NumberDataViewType.Byte;
        return isVector || column.Type is ImageDataViewType ? column : throw host.ExceptSchemaMismatch(nameof(schema), "image", name, Expected, column.Type.ToString());
    }

    /// <summary>Reads the current row's image; false: it has none.</summary>
    public bool Read() => _read();

    private Func<bool> VectorReader(DataViewSchema.Column column, VectorDataViewType type)
    {
        var planes = type.Dimensions[0];
        (Height, Width) = (type.Dimensions[1], type.Dimensions[2]);
        var count = Height * Width;
        _pixels = new uint[count];
        var values = new byte[type.Size];
        var getter = _row.GetGetter<VBuffer<byte>>(column);
        VBuffer<byte> vector = default;
        return () =>
        {
            getter(ref vector);
            if (vector.Length != values.Length) throw new ArgumentException($"Row {_row.Position} of column '{_column}' has {vector.Length} values; expected {values.Length}, as the column is {type}.");
            vector.CopyTo(values);
            for (var i = 0; i < count; i++)
                _pixels[i] = planes == 1 ? values[i] * MaskReader.Gray : values[i] | (uint)values[count + i] << 8 | (uint)values[2 * count + i] << 16;
            return true;
        };
    }

    private Func<bool> ImageReader(DataViewSchema.Column column)
    {
        var getter = _row.GetGetter<MLImage?>(column);
        MLImage? image = null; // the cursor's: handed back with every call, never disposed here
        return () =>
        {
            getter(ref image);
            if (image is null) return false;
            (Height, Width) = (image.Height, image.Width);
            if (_pixels.Length < Height * Width) _pixels = new uint[Height * Width];
            var pixels = ImagePixels.Of(image);
            if (image.PixelFormat == MLPixelFormat.Rgba32) pixels.CopyTo(_pixels);
            else
                for (var i = 0; i < pixels.Length; i++) _pixels[i] = pixels[i] & 0xFF00FF00 | pixels[i] >> 16 & 0xFF | (pixels[i] & 0xFF) << 16;
            return true;
        };
    }
}
