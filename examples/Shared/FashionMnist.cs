namespace MLSeq.Examples;

/// <summary>Fashion-MNIST: clothes in ten classes, 28 × 28 pixels of gray; 60,000 to train, 10,000 to test (H. Xiao et al., 2017, arXiv:1708.07747).</summary>
public static class FashionMnist
{
    /// <summary>Where Debian's package dataset-fashion-mnist puts it.</summary>
    public const string DefaultFolder = "/usr/share/datasets/fashion-mnist";

    /// <summary>Height and width of an image.</summary>
    public const int Size = 28;

    /// <summary>The classes, in the labels' order.</summary>
    public static IReadOnlyList<string> Names { get; } =
        ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

    /// <summary>The 60,000 training images, [28, 28] each.</summary>
    public static IEnumerable<LabelledImage> Train(string folder = DefaultFolder) => Read(folder, "train");

    /// <summary>The 10,000 test images, [28, 28] each.</summary>
    public static IEnumerable<LabelledImage> Test(string folder = DefaultFolder) => Read(folder, "t10k");

    private static IEnumerable<LabelledImage> Read(string folder, string part)
    {
        var (shape, pixels) = IdxFile.Read(Find(folder, $"{part}-images-idx3-ubyte"));
        var (_, labels) = IdxFile.Read(Find(folder, $"{part}-labels-idx1-ubyte"));
        if (shape is not [_, Size, Size] || shape[0] != labels.Length)
            throw new InvalidDataException(
                $"{folder}: the {part} images are {string.Join('×', shape)} with {labels.Length} labels; expected as many labels as images of {Size}×{Size}.");
        return labels.Select((label, i) => new LabelledImage(label, pixels.AsSpan(i * Size * Size, Size * Size).ToArray()));
    }

    private static string Find(string folder, string name)
    {
        var path = Path.Combine(folder, name);
        return File.Exists(path) ? path
            : File.Exists(path + ".gz") ? path + ".gz"
            : throw new FileNotFoundException($"{path}[.gz] is missing; examples/ImageClassification/install-data.sh installs Fashion-MNIST.");
    }
}
