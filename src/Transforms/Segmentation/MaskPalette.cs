using System.Drawing;
using System.Runtime.InteropServices;
using Microsoft.ML.Data;

namespace MLSeq;

/// <summary>Colours that tell many classes apart.</summary>
/// <remarks>
/// The first seven are those of Okabe and Ito (2008), which colour-blind people can distinguish. Every further one is, of the colours neither dark, pale nor gray, the one farthest from
/// all before it in Oklab (Ottosson 2020), whose distances are those that people see.
/// </remarks>
public static class MaskPalette
{
    private static readonly int[] First = [0x0072B2, 0xD55E00, 0x009E73, 0xF0E442, 0xCC79A7, 0x56B4E9, 0xE69F00];

    private static readonly Lazy<Color[]> All = new(Make);

    /// <summary>The colour of a class.</summary>
    /// <param name="classIndex">0 to 255.</param>
    /// <exception cref="ArgumentOutOfRangeException">The index is not in a byte's range.</exception>
    public static Color ColorOf(int classIndex)
        => classIndex is >= 0 and < MaskColumn.MostClasses
            ? All.Value[classIndex]
            : throw new ArgumentOutOfRangeException(nameof(classIndex), $"The class index is {classIndex}; expected 0 to {MaskColumn.MostClasses - 1}.");

    /// <summary>An image of a mask in the palette's colours; its <see cref="MLImage.Save"/> writes it, for example as PNG.</summary>
    /// <param name="mask">Class indices, [height, width].</param>
    /// <param name="height">Rows of pixels.</param>
    /// <param name="width">Pixels per row.</param>
    /// <param name="colors">Colours by class; null, and for classes beyond its end: the palette's.</param>
    /// <exception cref="ArgumentException">The mask's length is not height times width.</exception>
    public static MLImage ToImage(ReadOnlySpan<byte> mask, int height, int width, IReadOnlyList<Color>? colors = null)
    {
        if (height < 1 || width < 1 || mask.Length != (long)height * width)
            throw new ArgumentException($"The mask has {mask.Length} values; expected {height} x {width} (height x width), at least one.", nameof(mask));
        var pixels = new int[mask.Length]; // blue, green, red, alpha in memory
        for (var i = 0; i < pixels.Length; i++) pixels[i] = ColorOf(mask[i], colors).ToArgb();
        return MLImage.CreateFromPixels(width, height, MLPixelFormat.Bgra32, MemoryMarshal.AsBytes<int>(pixels));
    }

    /// <summary>The colour of a class, from <paramref name="colors"/> as far as they go.</summary>
    internal static Color ColorOf(int classIndex, IReadOnlyList<Color>? colors) => classIndex < colors?.Count ? colors[classIndex] : All.Value[classIndex];

    /// <summary>Lightness, and the two axes of colour, of an sRGB colour.</summary>
    internal static (double L, double A, double B) Oklab(Color color)
    {
        static double Linear(byte value) => value <= 10 ? value / 255d / 12.92 : Math.Pow((value / 255d + 0.055) / 1.055, 2.4);
        var (red, green, blue) = (Linear(color.R), Linear(color.G), Linear(color.B));
        var l = Math.Cbrt(0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue);
        var m = Math.Cbrt(0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue);
        var s = Math.Cbrt(0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue);
        return (0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s, 1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s, 0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s);
    }

    internal static double Distance((double L, double A, double B) x, (double L, double A, double B) y)
        => (x.L - y.L) * (x.L - y.L) + (x.A - y.A) * (x.A - y.A) + (x.B - y.B) * (x.B - y.B);

    private static Color[] Make()
    {
        const int Step = 17; // 16 values per channel
        var candidates = new List<(Color Color, (double L, double A, double B) Place)>();
        for (var red = 0; red < 256; red += Step)
            for (var green = 0; green < 256; green += Step)
                for (var blue = 0; blue < 256; blue += Step)
                {
                    var color = Color.FromArgb(red, green, blue);
                    var place = Oklab(color);
                    if (place.L is > 0.45 and < 0.9 && place.A * place.A + place.B * place.B > 0.06 * 0.06) candidates.Add((color, place));
                }
        var nearest = new double[candidates.Count];
        Array.Fill(nearest, double.MaxValue);
        var palette = new Color[MaskColumn.MostClasses];
        for (var index = 0; index < palette.Length; index++)
        {
            palette[index] = index < First.Length ? Color.FromArgb(0xFF << 24 | First[index]) : candidates[Array.IndexOf(nearest, nearest.Max())].Color;
            var place = Oklab(palette[index]);
            for (var i = 0; i < nearest.Length; i++) nearest[i] = Math.Min(nearest[i], Distance(candidates[i].Place, place));
        }
        return palette;
    }
}
