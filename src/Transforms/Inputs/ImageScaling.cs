using System.Buffers;
using System.Numerics.Tensors;

namespace MLSeq;

/// <summary>
/// Scales an image with a triangle filter as wide as a new pixel's place in the old image: bilinear interpolation when enlarging, a weighted average of all that a new pixel covers when making smaller.
/// </summary>
/// <remarks>The same as torch's <c>interpolate(mode: bilinear, antialias: true)</c>; on one thread, because many images are scaled side by side.</remarks>
internal static class ImageScaling
{
    /// <param name="source">[height, width, channels].</param>
    /// <param name="height">Rows.</param>
    /// <param name="width">Columns.</param>
    /// <param name="channels">Numbers per pixel.</param>
    /// <param name="newHeight">Rows of the result.</param>
    /// <param name="newWidth">Columns of the result.</param>
    /// <returns>[newHeight, newWidth, channels].</returns>
    public static float[] Scale(ReadOnlySpan<float> source, int height, int width, int channels, int newHeight, int newWidth)
    {
        var result = new float[newHeight * newWidth * channels];
        Scale(source, height, width, channels, newHeight, newWidth, result);
        return result;
    }

    /// <inheritdoc cref="Scale(ReadOnlySpan{float}, int, int, int, int, int)"/>
    public static byte[] Scale(ReadOnlySpan<byte> source, int height, int width, int channels, int newHeight, int newWidth)
    {
        var (values, scaled) = (ArrayPool<float>.Shared.Rent(source.Length), ArrayPool<float>.Shared.Rent(newHeight * newWidth * channels));
        TensorPrimitives.ConvertTruncating(source, values);
        var result = new byte[newHeight * newWidth * channels];
        Scale(values.AsSpan(0, source.Length), height, width, channels, newHeight, newWidth, scaled.AsSpan(0, result.Length));
        for (var i = 0; i < result.Length; i++) result[i] = (byte)(scaled[i] + 0.5f); // weights add up to 1, so that it stays within 0 to 255
        ArrayPool<float>.Shared.Return(values);
        ArrayPool<float>.Shared.Return(scaled);
        return result;
    }

    private static void Scale(ReadOnlySpan<float> source, int height, int width, int channels, int newHeight, int newWidth, Span<float> result)
    {
        var stride = width * channels;
        if (newHeight == height)
        {
            Columns(source, stride, channels, Taps(width, newWidth), result);
            return;
        }
        var rows = ArrayPool<float>.Shared.Rent(newHeight * stride);
        Rows(source, stride, Taps(height, newHeight), rows);
        Columns(rows.AsSpan(0, newHeight * stride), stride, channels, Taps(width, newWidth), result);
        ArrayPool<float>.Shared.Return(rows);
    }

    // Whole rows are added up, which is done many numbers at a time.
    private static void Rows(ReadOnlySpan<float> source, int stride, Tap[] taps, Span<float> result)
    {
        for (var y = 0; y < taps.Length; y++)
        {
            var sum = result.Slice(y * stride, stride);
            TensorPrimitives.Multiply(source.Slice(taps[y].First * stride, stride), taps[y].Weights[0], sum);
            for (var i = 1; i < taps[y].Weights.Length; i++)
                TensorPrimitives.MultiplyAdd(source.Slice((taps[y].First + i) * stride, stride), taps[y].Weights[i], sum, sum);
        }
    }

    private static void Columns(ReadOnlySpan<float> source, int stride, int channels, Tap[] taps, Span<float> result)
    {
        var rows = source.Length / stride;
        for (int y = 0, to = 0; y < rows; y++)
        {
            var row = source.Slice(y * stride, stride);
            foreach (var (first, weights) in taps)
            {
                var from = first * channels;
                if (channels == 3)
                {
                    float red = 0, green = 0, blue = 0;
                    foreach (var weight in weights)
                    {
                        red += weight * row[from];
                        green += weight * row[from + 1];
                        blue += weight * row[from + 2];
                        from += 3;
                    }
                    (result[to], result[to + 1], result[to + 2]) = (red, green, blue);
                    to += 3;
                    continue;
                }
                for (var channel = 0; channel < channels; channel++, from++)
                {
                    float sum = 0;
                    for (var i = 0; i < weights.Length; i++) sum += weights[i] * row[from + i * channels];
                    result[to++] = sum;
                }
            }
        }
    }

    /// <summary>The old pixels that make up a new one.</summary>
    private readonly record struct Tap(int First, float[] Weights);

    private static Tap[] Taps(int size, int newSize)
    {
        var scale = (double)size / newSize;
        var reach = Math.Max(1, scale);
        return [.. Enumerable.Range(0, newSize).Select(i =>
        {
            var centre = (i + 0.5) * scale;
            var first = Math.Max(0, (int)(centre - reach + 0.5));
            var end = Math.Min(size, (int)(centre + reach + 0.5));
            var weights = Enumerable.Range(first, end - first).Select(old => Math.Max(0, 1 - Math.Abs((old + 0.5 - centre) / reach))).ToArray();
            var sum = weights.Sum();
            return new Tap(first, [.. weights.Select(weight => (float)(weight / sum))]);
        })];
    }
}
