using System.Drawing;
using SkiaSharp;

namespace MLSeq;

/// <summary>Swatches and names of classes, in a grid. A machine without fonts gets swatches and class numbers, drawn in rectangles.</summary>
internal sealed class MaskLegend : IDisposable
{
    // Rows of three pixels, top to bottom, the leftmost the highest bit.
    private static readonly int[] Digits = [0b111_101_101_101_111, 0b010_110_010_010_111, 0b111_001_111_100_111, 0b111_001_111_001_111, 0b101_101_111_001_001,
        0b111_100_111_001_111, 0b111_100_111_101_111, 0b111_001_010_010_010, 0b111_101_111_101_111, 0b111_101_111_001_111];

    // Plain letters read best when small. The default of a machine may have serifs.
    private static readonly string[] Families = ["Segoe UI", "Helvetica Neue", "Arial", "Liberation Sans", "Noto Sans", "DejaVu Sans"];

    private static readonly Lazy<SKTypeface> Usual = new(() => Families.Select(SKFontManager.Default.MatchFamily).FirstOrDefault(face => face is not null) ?? SKTypeface.Default);

    private readonly Entry[] _entries;
    private readonly SKFont?[] _fonts; // null: none has the name's letters
    private readonly int _textSize, _margin, _cellWidth, _cellHeight, _columns;

    /// <param name="entries">The classes.</param>
    /// <param name="textSize">Height of the text and of the swatches, in pixels.</param>
    /// <param name="width">The width to fill; 0: one column.</param>
    public MaskLegend(Entry[] entries, int textSize, int width)
    {
        (_entries, _textSize, _margin) = (entries, textSize, textSize / 2);
        _fonts = [.. entries.Select(entry => FontFor(entry.Name))];
        if (entries.Length == 0) return;
        var nameWidth = entries.Select((entry, i) => _fonts[i] is { } font ? (int)Math.Ceiling(TextWidth(font, entry.Name)) : NumberWidth(entry.Index)).Max();
        (_cellWidth, _cellHeight) = (textSize + _margin + nameWidth + 2 * _margin, textSize * 3 / 2);
        _columns = Math.Clamp((width - _margin) / _cellWidth, 1, entries.Length);
        (Width, Height) = (_margin + _columns * _cellWidth, 2 * _margin + (entries.Length + _columns - 1) / _columns * _cellHeight);
    }

    /// <summary>A line of the legend.</summary>
    public readonly record struct Entry(int Index, string Name, Color Color);

    /// <summary>Pixels; 0 without entries.</summary>
    public int Width { get; }

    /// <summary>Pixels; 0 without entries.</summary>
    public int Height { get; }

    /// <summary>Draws the legend with its top left corner at (x, y), on a white ground.</summary>
    public void Draw(SKCanvas canvas, int x, int y)
    {
        using var paint = new SKPaint { IsAntialias = true };
        for (var i = 0; i < _entries.Length; i++)
        {
            var entry = _entries[i];
            var (left, top) = (x + _margin + i % _columns * _cellWidth, y + _margin + i / _columns * _cellHeight + _textSize / 4);
            paint.Color = new SKColor(entry.Color.R, entry.Color.G, entry.Color.B);
            canvas.DrawRect(left, top, _textSize, _textSize, paint);
            paint.Color = new SKColor(32, 32, 32);
            var text = left + _textSize + _margin;
            if (_fonts[i] is { } font)
                canvas.DrawText(entry.Name, text, top + (_textSize - font.Metrics.Ascent - font.Metrics.Descent) / 2, font, paint);
            else
                DrawNumber(canvas, entry.Index, text, top, paint);
        }
    }

    public void Dispose()
    {
        foreach (var font in _fonts) font?.Dispose();
    }

    // By way of glyphs, as SkiaSharp 2 and 3 both can: an application may bring either.
    private static float TextWidth(SKFont font, string text)
    {
        var glyphs = new ushort[font.CountGlyphs(text)];
        font.GetGlyphs(text, glyphs);
        return font.MeasureText(glyphs);
    }

    private int Dot => Math.Max(1, _textSize / 7);

    private int NumberWidth(int number) => 4 * Dot * $"{number}".Length;

    private void DrawNumber(SKCanvas canvas, int number, int x, int y, SKPaint paint)
    {
        foreach (var digit in $"{number}")
        {
            for (var dot = 0; dot < 15; dot++)
                if ((Digits[digit - '0'] >> 14 - dot & 1) == 1) canvas.DrawRect(x + dot % 3 * Dot, y + (_textSize - 5 * Dot) / 2 + dot / 3 * Dot, Dot, Dot, paint);
            x += 4 * Dot;
        }
    }

    // The machine's usual typeface, or another that has all letters of the name.
    private SKFont? FontFor(string name)
    {
        SKFont? Font(SKTypeface? face)
        {
            if (face is null) return null;
            var font = new SKFont(face, _textSize) { Edging = SKFontEdging.Antialias, Subpixel = true };
            if (name.Length > 0 && font.ContainsGlyphs(name)) return font;
            font.Dispose();
            return null;
        }
        if (Font(Usual.Value) is { } direct) return direct;
        foreach (var rune in name.EnumerateRunes())
        {
            using var fallback = SKFontManager.Default.MatchCharacter(rune.Value);
            if (Font(fallback) is { } found) return found;
        }
        return null;
    }
}
