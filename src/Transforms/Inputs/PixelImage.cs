using Microsoft.ML.Data;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>An image in host memory, [height, width, channels]: bytes (0 to 255) or Singles.</summary>
internal sealed class PixelImage
{
    /// <param name="data">A byte[] or a float[].</param>
    /// <param name="height">Rows.</param>
    /// <param name="width">Columns.</param>
    /// <param name="channels">Numbers per pixel.</param>
    public PixelImage(Array data, int height, int width, int channels)
    {
        if (data.Length != (long)height * width * channels) throw new ArgumentException($"{data.Length} numbers for {height} × {width} × {channels}.", nameof(data));
        (Data, Height, Width, Channels) = (data, height, width, channels);
    }

    public Array Data { get; }

    public int Height { get; }

    public int Width { get; }

    public int Channels { get; }

    public long Pixels => (long)Height * Width;

    /// <summary>Copies an <see cref="MLImage"/>: red, green, blue; or their brightness when <paramref name="channels"/> is 1. Alpha is left out.</summary>
    /// <exception cref="ArgumentException">The channels are not 1 or 3.</exception>
    /// <exception cref="NotSupportedException">The image has an unknown pixel format.</exception>
    public static PixelImage From(MLImage image, int channels)
    {
        if (channels is not (1 or 3)) throw new ArgumentException($"An image file gives 1 (gray) or 3 (red, green, blue) channels; {channels} were asked for.");
        var pixels = ImagePixels.Of(image);
        var (red, blue) = image.PixelFormat == MLPixelFormat.Bgra32 ? (16, 0) : (0, 16); // their bits
        var data = new byte[pixels.Length * channels];
        var to = 0;
        foreach (var pixel in pixels)
        {
            var (r, g, b) = ((byte)(pixel >> red), (byte)(pixel >> 8), (byte)(pixel >> blue));
            if (channels == 1)
            {
                data[to++] = (byte)((299 * r + 587 * g + 114 * b + 500) / 1000); // ITU-R BT.601
                continue;
            }
            data[to++] = r;
            data[to++] = g;
            data[to++] = b;
        }
        return new PixelImage(data, image.Height, image.Width, channels);
    }

    /// <summary>Copies a vector laid out [channels, height, width].</summary>
    public static PixelImage FromPlanes<T>(ReadOnlySpan<T> planes, int height, int width, int channels)
    {
        var data = new T[planes.Length];
        var size = height * width;
        for (var channel = 0; channel < channels; channel++)
        {
            var plane = planes.Slice(channel * size, size);
            for (var i = 0; i < size; i++) data[i * channels + channel] = plane[i];
        }
        return new PixelImage(data, height, width, channels);
    }

    /// <summary>Scales to another size, averaging over what a new pixel covers.</summary>
    public PixelImage Resized(int height, int width)
    {
        if ((height, width) == (Height, Width)) return this;
        if (Data is float[] values) return new(ImageScaling.Scale(values, Height, Width, Channels, height, width), height, width, Channels);
        return new(ImageScaling.Scale((byte[])Data, Height, Width, Channels, height, width), height, width, Channels);
    }

    /// <summary>The part of the given size about the centre; what lies beyond the image is 0.</summary>
    public PixelImage Centre(int height, int width)
    {
        if ((height, width) == (Height, Width)) return this;
        var data = Array.CreateInstance(Data.GetType().GetElementType()!, (long)height * width * Channels);
        int top = FloorHalf(Height - height), left = FloorHalf(Width - width);
        var (firstColumn, columns) = (Math.Max(0, -left), Math.Min(width, Width - left) - Math.Max(0, -left));
        for (var y = Math.Max(0, -top); y < Math.Min(height, Height - top); y++)
            Array.Copy(Data, ((long)(y + top) * Width + left + firstColumn) * Channels, data, ((long)y * width + firstColumn) * Channels, (long)columns * Channels);
        return new PixelImage(data, height, width, Channels);
    }

    /// <summary>[height · width · channels] on the host.</summary>
    public Tensor ToTensor() => Data is byte[] bytes ? tensor(bytes) : tensor((float[])Data);

    private static int FloorHalf(int value) => (int)Math.Floor(value / 2.0);
}
