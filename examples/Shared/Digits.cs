using System.Globalization;

namespace MLSeq.Examples;

/// <summary>The handwritten digits of examples/data/digits.csv: 1,797 gray images, [1, 8, 8].</summary>
public static class Digits
{
    /// <summary>Rows, and columns, of an image.</summary>
    public const int Size = 8;

    private const int Brightest = 16;

    /// <summary>The names of the classes.</summary>
    public static IReadOnlyList<string> Names { get; } = [.. Enumerable.Range(0, 10).Select(digit => digit.ToString(CultureInfo.InvariantCulture))];

    /// <summary>Reads the file that the application carries: 64 levels of 0 to 16, then the digit. A level becomes a brightness of 0 to 240.</summary>
    public static IEnumerable<LabelledImage> Read()
        => File.ReadLines(Path.Combine(AppContext.BaseDirectory, "data", "digits.csv"))
            .Select(line => line.Split(',').Select(number => int.Parse(number, CultureInfo.InvariantCulture)).ToArray())
            .Select(numbers => new LabelledImage(numbers[^1], [.. numbers[..^1].Select(level => (byte)(level * (240 / Brightest)))]));
}
