using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Where every pixel of the result comes from in its image: <c>(y, x) = centre + A · (v, u)</c>, with u and v from −½ to ½ over the result. One affine map per image holds
/// crop, scale, shift, rotation, shear and mirroring alike, so that they are one look-up and the same for an image and its mask.
/// </summary>
/// <remarks>Coordinates are in pixels, pixel i covering [i, i + 1). Beyond an image's border its mirror image is seen.</remarks>
internal sealed class ImageSampler
{
    private readonly Tensor _y, _x;              // Single [batch, height, width]: continuous coordinates
    private readonly Tensor _start, _rows, _columns; // Int64 [batch, 1, 1]
    private readonly bool _exact;

    /// <param name="places">The images.</param>
    /// <param name="maps">Per image: centre y, centre x, A as yv, yu, xv, xu.</param>
    /// <param name="height">Rows of the result.</param>
    /// <param name="width">Columns of the result.</param>
    /// <param name="exact">Whether every place is meant to hit a pixel's middle, so that it is copied rather than interpolated.</param>
    /// <param name="device">Where to compute.</param>
    public ImageSampler(ImagePlace[] places, AffineMap[] maps, int height, int width, bool exact, Device device)
    {
        _exact = exact;
        var batch = places.Length;
        var numbers = new float[batch * 6];
        var sizes = new long[batch * 3];
        for (var i = 0; i < batch; i++)
        {
            var m = maps[i];
            ((float[])[m.Y, m.X, m.YV, m.YU, m.XV, m.XU]).CopyTo(numbers, i * 6);
            ((long[])[places[i].Start, places[i].Height, places[i].Width]).CopyTo(sizes, i * 3);
        }
        var map = tensor(numbers, [batch, 6, 1, 1]).Send(device).unbind(1);
        var size = tensor(sizes, [batch, 3, 1, 1]).Send(device).unbind(1);
        (_start, _rows, _columns) = (size[0], size[1], size[2]);
        var v = ((arange(height, dtype: float32, device: device) + 0.5) / height - 0.5).view(1, height, 1);
        var u = ((arange(width, dtype: float32, device: device) + 0.5) / width - 0.5).view(1, 1, width);
        _y = map[0] + map[2] * v + map[3] * u;
        _x = map[1] + map[4] * v + map[5] * u;
    }

    /// <summary>Copies the nearest pixels.</summary>
    /// <param name="pixels">[pixels, …].</param>
    /// <returns>[batch, height, width, …] of the same type.</returns>
    public Tensor Nearest(Tensor pixels) => At(pixels, _y.floor().to(int64), _x.floor().to(int64));

    /// <summary>Interpolates between the four nearest pixels' middles.</summary>
    /// <param name="pixels">[pixels, channels].</param>
    /// <returns>[batch, height, width, channels]: Single, or of the pixels' type when nothing has to be interpolated.</returns>
    public Tensor Bilinear(Tensor pixels)
    {
        if (_exact) return Nearest(pixels);
        var (top, left) = ((_y - 0.5).floor(), (_x - 0.5).floor());
        var (down, right) = ((_y - 0.5 - top).unsqueeze(-1), (_x - 0.5 - left).unsqueeze(-1));
        var (y, x) = (top.to(int64), left.to(int64));
        Tensor Row(Tensor row) => At(pixels, row, x).to(float32).lerp(At(pixels, row, x + 1).to(float32), right);
        return Row(y).lerp(Row(y + 1), down);
    }

    private Tensor At(Tensor pixels, Tensor y, Tensor x)
    {
        var index = _start + Mirrored(y, _rows) * _columns + Mirrored(x, _columns);
        return pixels.index_select(0, index.flatten()).view([.. index.shape, .. pixels.shape[1..]]);
    }

    // … 2 1 0 | 0 1 2 … n−1 | n−1 … : −1 − i on one side and 2n − 1 − i on the other; what is farther away than that is clamped.
    private static Tensor Mirrored(Tensor index, Tensor size)
    {
        index = where(index < 0, -1 - index, index);
        index = where(index >= size, 2 * size - 1 - index, index);
        return minimum(index.clamp_min_(0), size - 1);
    }
}

/// <summary>The affine map of <see cref="ImageSampler"/>.</summary>
internal readonly record struct AffineMap(float Y, float X, float YV, float YU, float XV, float XU)
{
    /// <summary>The part of <paramref name="height"/> × <paramref name="width"/> pixels about (y, x).</summary>
    public static AffineMap Window(double y, double x, double height, double width) => new((float)y, (float)x, (float)height, 0, 0, (float)width);

    /// <summary>This map, the result's plane being changed before: (v, u) becomes (a v + b u, c v + d u).</summary>
    public AffineMap After(double a, double b, double c, double d)
        => new(Y, X, (float)(YV * a + YU * c), (float)(YV * b + YU * d), (float)(XV * a + XU * c), (float)(XV * b + XU * d));
}
