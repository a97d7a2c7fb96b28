using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Microsoft.ML.Data;
using SkiaSharp;

namespace MLSeq;

/// <summary>The pixels of ML.NET's images.</summary>
internal static class ImagePixels
{
    /// <summary>The pixels, [height, width], 4 bytes each: blue, green, red, alpha in Bgra32, red, green, blue, alpha in Rgba32, the first the lowest. Colours are as decoded, multiplied by alpha.</summary>
    /// <remarks>
    /// In place of <see cref="MLImage.Pixels"/>, which throws MissingMethodException with SkiaSharp 3: ML.NET 5.0.1 is compiled against SkiaSharp 2, where SKBitmap.GetPixelSpan returned
    /// another type. What is used here is in both.
    /// </remarks>
    /// <exception cref="NotSupportedException">The image has another format.</exception>
    public static unsafe ReadOnlySpan<uint> Of(MLImage image)
    {
        if (image.PixelFormat is not (MLPixelFormat.Bgra32 or MLPixelFormat.Rgba32)) // throws when the image is disposed
            throw new NotSupportedException($"An image has the pixel format {image.PixelFormat}; expected Bgra32 or Rgba32.");
        var bitmap = Bitmap(image);
        return MemoryMarshal.Cast<byte, uint>(new ReadOnlySpan<byte>((void*)bitmap.GetPixels(), bitmap.ByteCount))[..(bitmap.Height * bitmap.Width)];
    }

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_image")]
    private static extern ref SKBitmap Bitmap(MLImage image);
}
