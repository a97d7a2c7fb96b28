using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Microsoft.ML.Data;
using SkiaSharp;

namespace MLSeq;

/// <summary>The pixels of ML.NET's images.</summary>
internal static class ImagePixels
{
    /// <summary>The most pixels of an image file: a file of some kilobytes can claim any number.</summary>
    private const long MostPixels = 1L << 28;

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

    /// <summary>Decodes a file.</summary>
    /// <remarks>As <see cref="MLImage.CreateFromFile"/> does, which however takes a file that ends early for an image whose rest is black.</remarks>
    /// <exception cref="ArgumentException">The file is no image, or damaged.</exception>
    public static MLImage Decode(string path)
    {
        using var codec = SKCodec.Create(path, out var result) ?? throw new ArgumentException($"{result}.", nameof(path));
        if (codec.Info.Width * (long)codec.Info.Height is var count && count is < 1 or > MostPixels)
            throw new ArgumentException($"it has {codec.Info.Height} × {codec.Info.Width} pixels (height × width); expected at most {MostPixels} in all. Make it smaller first.", nameof(path));
        var alpha = codec.Info.AlphaType == SKAlphaType.Opaque ? SKAlphaType.Opaque : SKAlphaType.Premul;
        var info = new SKImageInfo(codec.Info.Width, codec.Info.Height, SKColorType.Bgra8888, alpha);
        var pixels = new byte[4 * count];
        unsafe
        {
            fixed (byte* data = pixels) result = codec.GetPixels(info, (nint)data);
        }
        if (result != SKCodecResult.Success) throw new ArgumentException(result == SKCodecResult.IncompleteInput ? "it ends early." : $"{result}.", nameof(path));
        return MLImage.CreateFromPixels(info.Width, info.Height, MLPixelFormat.Bgra32, pixels);
    }

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_image")]
    private static extern ref SKBitmap Bitmap(MLImage image);
}
