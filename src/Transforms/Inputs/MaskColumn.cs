using System.Runtime.InteropServices;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms.Image;

namespace MLSeq;

/// <summary>
/// What a column of masks is: a vector of Byte, [height, width] or of unknown size, or an image whose gray values are class indices. Written here once; <see cref="MaskReader"/>
/// reads its rows.
/// </summary>
internal static class MaskColumn
{
    /// <summary>The annotation that names the classes of a mask column: a vector of text, class by class.</summary>
    public const string ClassNamesKind = "ClassNames";

    /// <summary>A mask's pixel is a byte.</summary>
    public const int MostClasses = 256;

    /// <summary>What is expected of a mask column, for messages.</summary>
    public const string Expected = "a vector of Byte with dimensions [height, width], or an image";

    /// <summary>Whether masks can be read from a column of this type.</summary>
    public static bool Accepts(DataViewType type) => type is ImageDataViewType || type is VectorDataViewType vector && vector.ItemType == NumberDataViewType.Byte;

    /// <summary>The column named <paramref name="name"/>.</summary>
    /// <exception cref="ArgumentOutOfRangeException">It is missing, or holds no masks.</exception>
    public static DataViewSchema.Column Find(IExceptionContext host, DataViewSchema schema, string role, string name)
    {
        var column = schema.GetColumnOrNull(name) ?? throw host.ExceptSchemaMismatch(nameof(schema), role, name);
        return Accepts(column.Type) ? column : throw host.ExceptSchemaMismatch(nameof(schema), role, name, Expected, column.Type.ToString());
    }

    /// <summary>The names of the classes that the column was made with; null when it has none.</summary>
    public static IReadOnlyList<string>? ClassNames(DataViewSchema.Column column)
    {
        if (column.Annotations.Schema.GetColumnOrNull(ClassNamesKind) is not { Type: VectorDataViewType { ItemType: TextDataViewType } }) return null;
        VBuffer<ReadOnlyMemory<char>> names = default;
        column.Annotations.GetValue(ClassNamesKind, ref names);
        return [.. names.DenseValues().Select(name => name.ToString())];
    }

    /// <summary>Annotations that name the classes.</summary>
    public static DataViewSchema.Annotations Annotations(IReadOnlyList<string> classNames)
    {
        var names = classNames.Select(name => name.AsMemory()).ToArray();
        var annotations = new DataViewSchema.Annotations.Builder();
        annotations.Add(ClassNamesKind, new VectorDataViewType(TextDataViewType.Instance, names.Length),
            (ref VBuffer<ReadOnlyMemory<char>> value) => value = new VBuffer<ReadOnlyMemory<char>>(names.Length, names));
        return annotations.ToAnnotations();
    }

    /// <summary>An image whose gray values are the class indices of <paramref name="mask"/>, [height, width].</summary>
    public static MLImage ToGrayImage(ReadOnlySpan<byte> mask, int height, int width)
    {
        var pixels = new uint[mask.Length];
        for (var i = 0; i < pixels.Length; i++) pixels[i] = MaskReader.Opaque | mask[i] * MaskReader.Gray;
        return MLImage.CreateFromPixels(width, height, MLPixelFormat.Bgra32, MemoryMarshal.AsBytes<uint>(pixels));
    }
}
