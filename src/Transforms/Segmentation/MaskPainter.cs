using System.Drawing;
using System.Runtime.InteropServices;
using Microsoft.ML.Data;
using SkiaSharp;

namespace MLSeq;

/// <summary>Paints masks over images, one after the other. Serves one thread.</summary>
internal sealed class MaskPainter
{
    private const int LargestSide = 1 << 15;

    private readonly MaskPainting _painting;
    private readonly IReadOnlyList<string>? _classNames;
    private readonly Color[] _colors;
    private readonly bool[] _painted = new bool[MaskColumn.MostClasses];
    private byte[] _classes = []; // of the pixels drawn

    /// <param name="painting">What to paint.</param>
    /// <param name="classNames">The names in the legend; null: numbers.</param>
    public MaskPainter(MaskPainting painting, IReadOnlyList<string>? classNames)
    {
        (_painting, _classNames) = (painting, classNames);
        var palette = painting.Palette;
        _colors = [.. Enumerable.Range(0, MaskColumn.MostClasses).Select(index => MaskPalette.ColorOf(index, palette))];
        Array.Fill(_painted, true);
        foreach (var index in painting.NotPainted) _painted[index] = false;
        if (painting.IgnoreIndex is { } ignored) _painted[ignored] = false;
    }

    /// <summary>The image with the mask's colours over it, at the top left, and the legend.</summary>
    /// <param name="image">0xAABBGGRR, [height, width]; alpha is not looked at.</param>
    /// <param name="height">Rows of pixels of the image.</param>
    /// <param name="width">Pixels per row of the image.</param>
    /// <param name="mask">Class indices, [mask height, mask width].</param>
    /// <param name="maskHeight">Rows of pixels of the mask.</param>
    /// <param name="maskWidth">Pixels per row of the mask.</param>
    /// <exception cref="ArgumentException">The painted image would be too large.</exception>
    public MLImage Paint(ReadOnlySpan<uint> image, int height, int width, ReadOnlySpan<byte> mask, int maskHeight, int maskWidth)
    {
        var (drawnHeight, drawnWidth) = ((long)height * _painting.Scale, (long)width * _painting.Scale);
        if (drawnHeight > LargestSide || drawnWidth > LargestSide)
            throw new ArgumentException($"An image of {height} x {width} pixels (height x width) at Scale {_painting.Scale} is too large to paint; expected at most {LargestSide} in each direction.");
        var present = Scale(mask, maskHeight, maskWidth, (int)drawnHeight, (int)drawnWidth);

        using var legend = Legend(present, (int)drawnHeight, (int)drawnWidth);
        var (totalHeight, totalWidth) = _painting.Legend switch
        {
            LegendPlace.Below => ((int)drawnHeight + legend.Height, Math.Max((int)drawnWidth, legend.Width)),
            LegendPlace.Right => (Math.Max((int)drawnHeight, legend.Height), (int)drawnWidth + legend.Width),
            _ => ((int)drawnHeight, (int)drawnWidth),
        };
        using var bitmap = new SKBitmap(new SKImageInfo(totalWidth, totalHeight, SKColorType.Rgba8888, SKAlphaType.Opaque));
        var pixels = Pixels(bitmap);
        using (var canvas = new SKCanvas(bitmap))
        {
            canvas.Clear(SKColors.White);
            if (_painting.Legend == LegendPlace.Below) legend.Draw(canvas, 0, (int)drawnHeight);
            if (_painting.Legend == LegendPlace.Right) legend.Draw(canvas, (int)drawnWidth, 0);
        }
        Blend(image, width, pixels, totalWidth, (int)drawnHeight, (int)drawnWidth);
        return MLImage.CreateFromPixels(totalWidth, totalHeight, MLPixelFormat.Rgba32, MemoryMarshal.AsBytes(pixels));
    }

    // Not by GetPixelSpan, whose type differs between SkiaSharp 2 and 3: an application may bring either.
    private static unsafe Span<uint> Pixels(SKBitmap bitmap) => new((void*)bitmap.GetPixels(), bitmap.Width * bitmap.Height);

    // The classes of the pixels drawn, by the nearest of the mask's pixels, and which of them there are.
    private bool[] Scale(ReadOnlySpan<byte> mask, int maskHeight, int maskWidth, int height, int width)
    {
        if (_classes.Length < height * width) _classes = new byte[height * width];
        var present = new bool[MaskColumn.MostClasses];
        for (var y = 0; y < height; y++)
        {
            var from = mask.Slice((int)((2L * y + 1) * maskHeight / (2 * height)) * maskWidth, maskWidth);
            for (var x = 0; x < width; x++) present[_classes[y * width + x] = from[(int)((2L * x + 1) * maskWidth / (2 * width))]] = true;
        }
        return present;
    }

    private MaskLegend Legend(bool[] present, int height, int width)
    {
        var entries = _painting.Legend == LegendPlace.None
            ? []
            : Enumerable.Range(0, present.Length).Where(index => present[index] && _painted[index]).Select(index => new MaskLegend.Entry(index, Name(index), _colors[index]));
        return new MaskLegend([.. entries], textSize: Math.Clamp(Math.Min(height, width) / 28, 13, 36), width: _painting.Legend == LegendPlace.Below ? width : 0);
    }

    private string Name(int index) => _classNames is not null && index < _classNames.Count ? _classNames[index] : $"class {index}";

    private void Blend(ReadOnlySpan<uint> image, int imageWidth, Span<uint> output, int stride, int height, int width)
    {
        var inside = (uint)Math.Round(_painting.Opacity * 255);
        var boundary = _painting.BoundaryWidth ?? Math.Max(1, Math.Min(height, width) / 256);
        for (var y = 0; y < height; y++)
            for (var x = 0; x < width; x++)
            {
                var pixel = image[y / _painting.Scale * imageWidth + x / _painting.Scale];
                var index = _classes[y * width + x];
                output[y * stride + x] = MaskReader.Opaque | (_painted[index] ? Mix(pixel, _colors[index], IsBoundary(y, x, height, width, boundary) ? 255 : inside) : pixel);
            }
    }

    private bool IsBoundary(int y, int x, int height, int width, int boundary)
    {
        var at = y * width + x;
        for (var step = 1; step <= boundary; step++)
            if (x >= step && _classes[at - step] != _classes[at] || x + step < width && _classes[at + step] != _classes[at]
                || y >= step && _classes[at - step * width] != _classes[at] || y + step < height && _classes[at + step * width] != _classes[at])
                return true;
        return false;
    }

    private static uint Mix(uint pixel, Color color, uint share)
    {
        uint Channel(int shift, byte value) => (((pixel >> shift & 0xFF) * (255 - share) + value * share + 127) / 255) << shift;
        return Channel(0, color.R) | Channel(8, color.G) | Channel(16, color.B);
    }
}
