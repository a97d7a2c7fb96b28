using System.Text.Json.Serialization;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms.Image;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>How an image of another size than the network's is fitted to it.</summary>
public enum ImageResize
{
    /// <summary>Scaled so that it covers the size, keeping its proportions; what sticks out is cut off on both sides.</summary>
    Crop,

    /// <summary>Scaled so that all of it fits in, keeping its proportions; the rest is filled with zeros.</summary>
    Pad,

    /// <summary>Scaled to the size, whatever its proportions.</summary>
    Stretch,
}

/// <summary>Directions in which an image is mirrored.</summary>
[Flags]
public enum ImageFlips
{
    /// <summary>As it is.</summary>
    None = 0,

    /// <summary>Left and right exchanged.</summary>
    Horizontal = 1,

    /// <summary>Top and bottom exchanged.</summary>
    Vertical = 2,
}

/// <summary>What an image column holds.</summary>
internal enum ImageColumnKind
{
    /// <summary><see cref="MLImage"/>.</summary>
    Image,

    /// <summary>A vector of Byte, [channels, height, width].</summary>
    Bytes,

    /// <summary>A vector of Single, [channels, height, width].</summary>
    Singles,

    /// <summary>Text: the path of an image file.</summary>
    File,
}

/// <summary>How a column becomes images for a network, in training and in scoring alike. Part of the saved model.</summary>
internal sealed record ImageInput
{
    /// <summary>Smallest <see cref="CropFraction"/>: images are enlarged by its inverse.</summary>
    public const double LeastCropFraction = 0.05;

    private const int LargestSide = 1 << 15, MostChannels = 1 << 12;

    public required ImageColumnKind Kind { get; init; }

    /// <summary>Numbers per pixel.</summary>
    public required int Channels { get; init; }

    /// <summary>Rows of a vector column's images; 0: they vary.</summary>
    public int ColumnHeight { get; init; }

    /// <summary>Columns of a vector column's images; 0: they vary.</summary>
    public int ColumnWidth { get; init; }

    /// <summary>Rows that the network sees; 0: those of each image.</summary>
    public int Height { get; init; }

    /// <summary>Columns that the network sees; 0: those of each image.</summary>
    public int Width { get; init; }

    /// <summary>How images of other sizes are fitted.</summary>
    public ImageResize Resize { get; init; }

    /// <summary>Share of each side of the fitted image that scoring sees, about the centre; training sees parts of all of it.</summary>
    public double CropFraction { get; init; } = 1;

    /// <summary>Per channel, in units of the full brightness of bytes (1) or in the column's own units (Singles); subtracted.</summary>
    public float[] Mean { get; init; } = [];

    /// <summary>Per channel, multiplied.</summary>
    public float[] Scale { get; init; } = [];

    /// <summary>Where relative paths begin.</summary>
    public string Folder { get; init; } = "";

    [JsonIgnore]
    public ScalarType ElementType => Kind == ImageColumnKind.Singles ? float32 : uint8;

    [JsonIgnore]
    public DataViewType ColumnType => Kind switch
    {
        ImageColumnKind.Image => new ImageDataViewType(),
        ImageColumnKind.File => TextDataViewType.Instance,
        ImageColumnKind.Bytes => new VectorDataViewType(NumberDataViewType.Byte, Channels, ColumnHeight, ColumnWidth),
        _ => new VectorDataViewType(NumberDataViewType.Single, Channels, ColumnHeight, ColumnWidth),
    };

    /// <summary>Whether a column of this type can be read.</summary>
    public bool Accepts(DataViewType type) => Kind switch
    {
        ImageColumnKind.Image => type is ImageDataViewType,
        ImageColumnKind.File => type is TextDataViewType,
        _ => type is VectorDataViewType vector && vector.ItemType == ((VectorDataViewType)ColumnType).ItemType && HasShape(vector),
    };

    // A flat vector of the right length is taken, as are [height, width] of one channel; other orders of the same numbers are not.
    private bool HasShape(VectorDataViewType vector) => vector.Dimensions switch
    {
        [var size] => size == Channels * ColumnHeight * ColumnWidth,
        [var height, var width] => Channels == 1 && (height, width) == (ColumnHeight, ColumnWidth),
        [var channels, var height, var width] => (channels, height, width) == (Channels, ColumnHeight, ColumnWidth),
        _ => false,
    };

    /// <summary>The column to score; throws when it is missing or of another type.</summary>
    public DataViewSchema.Column Find(IExceptionContext context, DataViewSchema schema, string name)
    {
        var column = schema.GetColumnOrNull(name) ?? throw context.ExceptSchemaMismatch("inputSchema", "feature", name);
        return Accepts(column.Type) ? column : throw context.ExceptSchemaMismatch("inputSchema", "feature", column.Name, ColumnType.ToString()!, column.Type.ToString()!);
    }

    /// <summary>Chooses how to read a column for training.</summary>
    /// <param name="column">The feature column.</param>
    /// <param name="channels">Channels of an image or a file: 1 or 3.</param>
    /// <exception cref="ArgumentException">No image can be made of this type.</exception>
    public static ImageInput For(DataViewSchema.Column column, int channels)
    {
        switch (column.Type)
        {
            case ImageDataViewType: return new() { Kind = ImageColumnKind.Image, Channels = channels };
            case TextDataViewType: return new() { Kind = ImageColumnKind.File, Channels = channels };
            case VectorDataViewType vector when (vector.ItemType == NumberDataViewType.Byte || vector.ItemType == NumberDataViewType.Single) && vector.Dimensions.Length is 2 or 3 && vector.IsKnownSize:
                var size = vector.Dimensions;
                if (size is [> 4, _, 1 or 3 or 4])
                    throw new ArgumentException($"Column '{column.Name}' is {column.Type}, which looks like [height, width, channels]; expected [channels, height, width]. Put each channel's plane after the other.");
                return new()
                {
                    Kind = vector.ItemType == NumberDataViewType.Byte ? ImageColumnKind.Bytes : ImageColumnKind.Singles,
                    Channels = size.Length == 3 ? size[0] : 1, ColumnHeight = size[^2], ColumnWidth = size[^1],
                };
            default:
                throw new ArgumentException($"Column '{column.Name}' is {column.Type}; an image is an MLImage (Transforms.LoadImages), Text (the path of a file), or a vector of Byte or Single " +
                    "with dimensions [channels, height, width] or [height, width]. Give a plain vector its dimensions, for example with a SchemaDefinition or the VectorType attribute.");
        }
    }

    /// <summary>Checks values that may come from a file.</summary>
    public void Validate()
    {
        if (!Enum.IsDefined(Kind) || !Enum.IsDefined(Resize)) throw new ArgumentException($"Kind is {Kind}, Resize is {Resize}.");
        foreach (var side in (int[])[Height, Width, ColumnHeight, ColumnWidth])
            if (side is < 0 or > LargestSide) throw new ArgumentException($"An image side is {side}; expected 0 to {LargestSide}.");
        if (Height == 0 != (Width == 0)) throw new ArgumentException($"The height is {Height} and the width {Width}; expected both or neither.");
        if (Channels is < 1 or > MostChannels || Kind is ImageColumnKind.Image or ImageColumnKind.File && Channels is not (1 or 3))
            throw new ArgumentException($"There are {Channels} channels; expected 1 to {MostChannels}, or 1 or 3 of an image.");
        if (Kind is ImageColumnKind.Bytes or ImageColumnKind.Singles && (ColumnHeight == 0 || (long)Channels * ColumnHeight * ColumnWidth > int.MaxValue)) throw new ArgumentException("A vector column needs a size.");
        if (CropFraction is not (>= LeastCropFraction and <= 1)) throw new ArgumentException($"CropFraction is {CropFraction}; expected {LeastCropFraction} to 1.");
        if (Mean?.Length != Channels || Scale?.Length != Channels) throw new ArgumentException("Mean and Scale need one number per channel.");
        if (Folder is null) throw new ArgumentException("Folder is null.");
    }

    /// <summary>Reads a column: each call tells how to get the current row's image. What it returns may be called later and from another thread: files are decoded only then.</summary>
    /// <exception cref="ArgumentException">(From the result, or from what it returns.) The image is missing or unreadable; the message names the row.</exception>
    public Func<Func<PixelImage>> CreateReader(DataViewRow row, DataViewSchema.Column column)
    {
        switch (Kind)
        {
            case ImageColumnKind.Image:
                var getImage = row.GetGetter<MLImage>(column);
                MLImage? image = null;
                return () =>
                {
                    var copy = Named(column.Name, row.Position, () =>
                    {
                        getImage(ref image!);
                        return PixelImage.From(image ?? throw new ArgumentException("the image is missing."), Channels);
                    });
                    return () => copy;
                };
            case ImageColumnKind.File:
                var getPath = row.GetGetter<ReadOnlyMemory<char>>(column);
                ReadOnlyMemory<char> path = default;
                return () =>
                {
                    getPath(ref path);
                    var (name, position) = (path.ToString(), row.Position);
                    return () => Named(column.Name, position, () => Decode(name));
                };
            case ImageColumnKind.Bytes: return Vectors<byte>(row, column);
            default: return Vectors<float>(row, column);
        }
    }

    /// <summary>Fits an image to the size, with the margin that training draws its crops from.</summary>
    public PixelImage WithMargin(PixelImage image)
    {
        if (Height == 0) return image;
        var (height, width) = ((int)Math.Round(Height / CropFraction), (int)Math.Round(Width / CropFraction));
        if (Resize == ImageResize.Stretch) return image.Resized(height, width);
        if (Resize == ImageResize.Crop)
        {
            // What will stick out is cut off before scaling: a strip of 8000 × 1 pixels would become millions wide.
            var (rows, columns) = (Math.Min(image.Height, Math.Max(1, (int)Math.Round((double)image.Width * height / width))), Math.Min(image.Width, Math.Max(1, (int)Math.Round((double)image.Height * width / height))));
            return image.Centre(rows, columns).Resized(height, width);
        }
        var scale = Math.Min((double)height / image.Height, (double)width / image.Width);
        return image.Resized(Math.Max(1, (int)Math.Round(image.Height * scale)), Math.Max(1, (int)Math.Round(image.Width * scale))).Centre(height, width);
    }

    /// <summary>Fits an image to what scoring sees.</summary>
    public PixelImage Fitted(PixelImage image) => Height == 0 ? image : WithMargin(image).Centre(Height, Width);

    /// <summary>Images of one size as the network wants them: Single [rows, channels, height, width], normalized, channels last in memory.</summary>
    public Tensor Stack(IReadOnlyList<PixelImage> images, Device device)
    {
        using var scope = NewDisposeScope();
        var (height, width) = (images[0].Height, images[0].Width);
        var pixels = stack(images.Select(image => image.ToTensor().view(height, width, Channels))).to(device);
        return Normalized(pixels).permute(0, 3, 1, 2).MoveToOuterDisposeScope();
    }

    /// <summary>The column's numbers [rows, height, width, channels] as Singles in the units of <see cref="Mean"/>.</summary>
    public static Tensor Unit(Tensor pixels) => pixels.dtype == uint8 ? pixels.to(float32) / 255 : pixels;

    /// <summary>Shifts and scales [rows, height, width, channels].</summary>
    public Tensor Normalized(Tensor pixels) => (Unit(pixels) - tensor(Mean, device: pixels.device)) * tensor(Scale, device: pixels.device);

    /// <summary>Learns the channels' mean and spread.</summary>
    /// <param name="images">Training images; a thousand are enough.</param>
    public ImageInput Fit(IEnumerable<PixelImage> images)
    {
        using var scope = NewDisposeScope();
        using var _ = inference_mode();
        var (sum, squares, count) = (zeros(Channels, float64), zeros(Channels, float64), 0L);
        foreach (var image in images)
        {
            using var inner = NewDisposeScope();
            var values = Unit(image.ToTensor()).view(-1, Channels).to(float64);
            sum.add_(values.sum([0L]));
            squares.add_(values.square().sum([0L]));
            count += image.Pixels;
        }
        var mean = sum / count;
        var deviation = (squares / count - mean.square()).clamp(min: 0).sqrt();
        return this with
        {
            Mean = mean.to(float32).data<float>().ToArray(),
            Scale = [.. deviation.data<double>().Select(value => value > 1e-6 ? (float)(1 / value) : 1)],
        };
    }

    private PixelImage Decode(string path)
    {
        if (path.Length == 0) throw new ArgumentException("the path is empty.");
        var full = Path.Combine(Folder, path);
        if (!File.Exists(full)) throw new ArgumentException($"there is no file '{full}'.");
        try
        {
            using var image = ImagePixels.Decode(full);
            return PixelImage.From(image, Channels);
        }
        catch (Exception e) when (e is not (OutOfMemoryException or ArgumentException { ParamName: null }))
        {
            throw new ArgumentException($"the file '{full}' is no image that can be read: {e.Message}", e);
        }
    }

    private Func<Func<PixelImage>> Vectors<T>(DataViewRow row, DataViewSchema.Column column)
    {
        var getter = row.GetGetter<VBuffer<T>>(column);
        VBuffer<T> vector = default;
        var dense = new T[Channels * ColumnHeight * ColumnWidth];
        return () =>
        {
            getter(ref vector);
            if (vector.Length != dense.Length)
                throw new ArgumentException($"Row {row.Position} of column '{column.Name}' has {vector.Length} numbers; expected {Channels} × {ColumnHeight} × {ColumnWidth} = {dense.Length}. Correct or remove the row.");
            vector.CopyTo(dense);
            var image = PixelImage.FromPlanes<T>(dense, ColumnHeight, ColumnWidth, Channels);
            return () => image;
        };
    }

    private static T Named<T>(string column, long row, Func<T> read)
    {
        try
        {
            return read();
        }
        catch (Exception e) when (e is not (OutOfMemoryException or OperationCanceledException))
        {
            throw new ArgumentException($"Row {row} of column '{column}' cannot be read: {e.Message} Correct or remove the row (in training, BadImages can leave such rows out).", e);
        }
    }
}
