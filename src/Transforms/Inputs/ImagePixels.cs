using System.Runtime.CompilerServices;
using Microsoft.ML.Data;
using SkiaSharp;

namespace MLSeq;

/// <summary>The pixels of an <see cref="MLImage"/>, whichever SkiaSharp the application runs on.</summary>
/// <remarks>ML.NET 5.0.1's own <see cref="MLImage.Pixels"/> was built for SkiaSharp 2.88 and fails with a missing method on 3.x, which other libraries bring along.</remarks>
internal static unsafe class ImagePixels
{
    /// <summary>Four bytes per pixel, in the order that <see cref="MLImage.PixelFormat"/> tells; valid as long as the image.</summary>
    /// <exception cref="ObjectDisposedException">The image was disposed: ML.NET's loader does so when its cursor moves on.</exception>
    public static ReadOnlySpan<byte> PixelBytes(this MLImage image)
    {
        var bitmap = Bitmap(image) ?? throw new ObjectDisposedException(nameof(MLImage));
        return new ReadOnlySpan<byte>((void*)bitmap.GetPixels(), bitmap.ByteCount);
    }

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_image")]
    private static extern ref SKBitmap? Bitmap(MLImage image);
}
