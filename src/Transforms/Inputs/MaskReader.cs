using Microsoft.ML;
using Microsoft.ML.Data;

namespace MLSeq;

/// <summary>What 255 means in an image that has no value but 0 and 255, as 1-bit masks are decoded.</summary>
internal enum WhitePixels
{
    /// <summary>Class 1 where there are two classes. With an unknown number of classes such an image is an error.</summary>
    ClassOneOfTwo,

    /// <summary>Class 1, however many classes there are.</summary>
    ClassOne,

    /// <summary>What it is: the ignore index, or class 255.</summary>
    AsTheyAre,
}

/// <summary>Reads the masks of a column of a cursor: class indices, [height, width], each checked.</summary>
/// <remarks>
/// Two classes and an ignore index of 255 leave an image of only 0 and 255 open to two readings. It is read as classes 0 and 1, unless an earlier row has both 1 and 255: such a
/// row shows that the column's 255 stands for pixels to leave out. When it comes later, that is an error.
/// </remarks>
internal sealed class MaskReader
{
    /// <summary>A gray value times this is a pixel's red, green and blue, whichever the order.</summary>
    internal const uint Gray = 0x00010101;

    /// <summary>A pixel's alpha.</summary>
    internal const uint Opaque = 0xFF000000;

    private const byte White = 255;

    private readonly DataViewRow _row;
    private readonly string _column;
    private readonly int? _classes;
    private readonly byte? _ignoreIndex;
    private readonly WhitePixels _white;
    private readonly Action _read;
    private readonly bool[] _seen = new bool[256];
    private byte[] _pixels = [];
    private long? _whiteIsClass, _whiteIsIgnored; // the rows that first showed it

    /// <param name="row">A row or cursor in which <paramref name="column"/> is active.</param>
    /// <param name="column">A column that <see cref="MaskColumn.Accepts"/>.</param>
    /// <param name="classes">How many classes there are, 1 to 256; null: unknown, any value is a class.</param>
    /// <param name="ignoreIndex">The value of pixels to leave out; it may be a class. They keep it.</param>
    /// <param name="white">The reading of images of 0 and 255; vectors are taken as they are.</param>
    public MaskReader(DataViewRow row, DataViewSchema.Column column, int? classes, byte? ignoreIndex, WhitePixels white = WhitePixels.ClassOneOfTwo)
    {
        if (classes is < 1 or > MaskColumn.MostClasses) throw new ArgumentOutOfRangeException(nameof(classes), $"There are {classes} classes; a mask of bytes has 1 to {MaskColumn.MostClasses}.");
        (_row, _column, _classes, _ignoreIndex, _white) = (row, column.Name, classes, ignoreIndex, white);
        _read = column.Type is VectorDataViewType vector ? VectorReader(column, vector) : ImageReader(column);
    }

    /// <summary>Rows of pixels of the mask read last; 0: unknown, as the column is a vector without dimensions.</summary>
    public int Height { get; private set; }

    /// <summary>Pixels per row of the mask read last; 0: unknown.</summary>
    public int Width { get; private set; }

    /// <summary>Pixels of the mask read last.</summary>
    public int Count { get; private set; }

    /// <summary>The mask read last, [height, width]: class indices, and the ignore index where a pixel is to be left out. Overwritten by the next <see cref="Read"/>.</summary>
    public ReadOnlySpan<byte> Pixels => _pixels.AsSpan(0, Count);

    /// <summary>Whether an image of 0 and 255 was read as classes 0 and 1.</summary>
    public bool WhiteIsClass => _whiteIsClass is not null;

    /// <summary>Whether a row has shown that 255 stands for pixels to leave out.</summary>
    public bool WhiteIsIgnored => _whiteIsIgnored is not null;

    /// <summary>The size of the mask read last, for messages.</summary>
    public string Size => Height > 0 ? $"{Height} x {Width} pixels (height x width)" : $"{Count} pixels";

    /// <summary>Reads the current row's mask.</summary>
    /// <exception cref="ArgumentException">The row has no mask, or a value that is neither a class nor the ignore index; the message names the place.</exception>
    public void Read() => _read();

    private Action VectorReader(DataViewSchema.Column column, VectorDataViewType type)
    {
        if (type.Dimensions is [> 0, > 0]) (Height, Width) = (type.Dimensions[0], type.Dimensions[1]);
        var getter = _row.GetGetter<VBuffer<byte>>(column);
        VBuffer<byte> vector = default;
        return () =>
        {
            getter(ref vector);
            if (vector.Length == 0) throw Missing();
            if (type.Size > 0 && vector.Length != type.Size) throw Error($"has {vector.Length} values; expected {type.Size}, as the column is {type}.");
            Resize(vector.Length);
            vector.CopyTo(_pixels);
            foreach (var value in Pixels) _seen[value] = true;
            Check();
        };
    }

    private Action ImageReader(DataViewSchema.Column column)
    {
        var getter = _row.GetGetter<MLImage?>(column);
        MLImage? image = null; // the cursor's: handed back with every call, never disposed here
        return () =>
        {
            try
            {
                getter(ref image);
            }
            catch (Exception e) when (e is not (OutOfMemoryException or OperationCanceledException))
            {
                throw Error($"cannot be read: {e.Message}", e); // a missing file, for instance
            }
            if (image is null) throw Missing();
            (Height, Width) = (image.Height, image.Width);
            Resize(Height * Width);
            ReadPixels(image);
            ReadWhite();
            Check();
        };
    }

    private void Resize(int count)
    {
        if (_pixels.Length < count) _pixels = new byte[count];
        Count = count;
        Array.Clear(_seen);
    }

    private void ReadPixels(MLImage image)
    {
        var pixels = ImagePixels.Of(image);
        for (var i = 0; i < Count; i++)
        {
            var value = (byte)pixels[i];
            if ((pixels[i] & ~Opaque) != value * Gray) throw NotGray(pixels[i], i, image.PixelFormat);
            // Decoders multiply colours by alpha, so that the index is lost; only 0 and 255 leave it whole.
            if ((pixels[i] >> 24) is > 0 and < 255) throw Error($"is half transparent (alpha {pixels[i] >> 24}) {Place(i)}; expected opaque pixels. Write masks as gray images without alpha.");
            _pixels[i] = value;
            _seen[value] = true;
        }
    }

    private void ReadWhite()
    {
        if (_white == WhitePixels.AsTheyAre || !_seen[White]) return;
        if (_seen.AsSpan(1, White - 1).Contains(true))
        {
            if (_classes != 2 || _ignoreIndex != White || !_seen[1]) return;
            if (_whiteIsClass is { } row)
                throw Error($"has 1 and 255, but row {row} has only 0 and 255, which was read as classes 0 and 1. If 255 stands for pixels to leave out, give them another value in the " +
                    "masks and as the ignore index (for example 254), or give the masks as vectors of Byte.");
            _whiteIsIgnored ??= _row.Position;
            return;
        }
        if (_white == WhitePixels.ClassOneOfTwo)
        {
            if (_classes is null)
                throw Error("has only 0 and 255, and it is unknown how many classes there are: with two, 255 is class 1, else what it says. Name the classes.");
            if (_classes != 2 || _whiteIsIgnored is not null) return;
        }
        _whiteIsClass ??= _row.Position;
        _pixels.AsSpan(0, Count).Replace(White, (byte)1);
        (_seen[1], _seen[White]) = (true, false);
    }

    private void Check()
    {
        for (var value = _classes ?? MaskColumn.MostClasses; value < _seen.Length; value++)
            if (_seen[value] && value != _ignoreIndex)
                throw Error($"has class index {value} {Place(Pixels.IndexOf((byte)value))}; expected 0 to {_classes - 1}{(_ignoreIndex is { } ignored ? $" or the ignore index {ignored}" : "")}.");
    }

    private string Place(int pixel) => Width > 0 ? $"at (y {pixel / Width}, x {pixel % Width})" : $"at pixel {pixel}";

    private ArgumentException NotGray(uint pixel, int at, MLPixelFormat format)
    {
        var (first, green, third) = ((byte)pixel, (byte)(pixel >> 8), (byte)(pixel >> 16));
        var (red, blue) = format == MLPixelFormat.Rgba32 ? (first, third) : (third, first);
        return Error($"has the colour (R {red}, G {green}, B {blue}) {Place(at)}; expected a gray pixel whose value is the class index. " +
            "An image with a palette loses its indices when it is decoded: write masks as gray images.");
    }

    private ArgumentException Missing() => Error("has no mask; expected one in every row. Leave such rows out first, for example with ml.Data.FilterByCustomPredicate.");

    private ArgumentException Error(string reason, Exception? inner = null) => new($"Row {_row.Position} of column '{_column}' {reason}", inner);
}
