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
        var stride = width * channels;
        var rows = newHeight == height ? source : Rows(source, stride, Taps(height, newHeight));
        return newWidth == width ? rows.ToArray() : Columns(rows, stride, channels, Taps(width, newWidth));
    }

    /// <inheritdoc cref="Scale(ReadOnlySpan{float}, int, int, int, int, int)"/>
    public static byte[] Scale(ReadOnlySpan<byte> source, int height, int width, int channels, int newHeight, int newWidth)
    {
        var values = new float[source.Length];
        TensorPrimitives.ConvertTruncating(source, values);
        var scaled = Scale(values, height, width, channels, newHeight, newWidth);
        var result = new byte[scaled.Length];
        for (var i = 0; i < result.Length; i++) result[i] = (byte)(scaled[i] + 0.5f); // weights add up to 1, so that it stays within 0 to 255
        return result;
    }

    // Whole rows are added up, which is done many numbers at a time.
    private static float[] Rows(ReadOnlySpan<float> source, int stride, Tap[] taps)
    {
        var result = new float[taps.Length * stride];
        for (var y = 0; y < taps.Length; y++)
        {
            var sum = result.AsSpan(y * stride, stride);
            for (var i = 0; i < taps[y].Weights.Length; i++)
                TensorPrimitives.MultiplyAdd(source.Slice((taps[y].First + i) * stride, stride), taps[y].Weights[i], sum, sum);
        }
        return result;
    }

    private static float[] Columns(ReadOnlySpan<float> source, int stride, int channels, Tap[] taps)
    {
        var rows = source.Length / stride;
        var result = new float[rows * taps.Length * channels];
        for (int y = 0, to = 0; y < rows; y++)
        {
            var row = source.Slice(y * stride, stride);
            foreach (var (first, weights) in taps)
                for (var channel = 0; channel < channels; channel++)
                {
                    float sum = 0;
                    for (int i = 0, from = first * channels + channel; i < weights.Length; i++, from += channels) sum += weights[i] * row[from];
                    result[to++] = sum;
                }
        }
        return result;
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
