namespace MLSeq.Examples;

/// <summary>One image file of a class.</summary>
/// <param name="ImagePath">Where the image is.</param>
/// <param name="Label">Its class: the name of its folder.</param>
public sealed record LabelledFile(string ImagePath, string Label);

/// <summary>One image file and the file of its mask.</summary>
/// <param name="ImagePath">Where the image is.</param>
/// <param name="MaskPath">Where its mask is.</param>
/// <param name="Split"><c>train</c> or <c>test</c>; empty where nothing says.</param>
public sealed record MaskedFile(string ImagePath, string MaskPath, string Split);

/// <summary>Folders of images; lists files and opens none of the images.</summary>
public static class ImageFolder
{
    private static readonly string[] Extensions = [".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"];

    /// <summary>The images of a folder that has one folder per class, by class and name.</summary>
    public static IReadOnlyList<LabelledFile> Classes(string folder)
    {
        var files = Folders(folder)
            .SelectMany(named => Images(named).Select(path => new LabelledFile(path, Path.GetFileName(named))))
            .ToList();
        return files.Count > 0 ? files : throw new InvalidDataException($"{folder} has no images in folders below it; expected one folder per class.");
    }

    /// <summary>The images of a folder and their masks, by name or in the list's order.</summary>
    /// <param name="folder">
    /// With a <c>tiles.csv</c> (columns image, mask, split; paths within the folder), what that lists. Otherwise the images in <c>images</c> and the masks in
    /// <c>masks</c>, alike in name but for the extension; a <c>split.csv</c> (columns file, split) may say which are for training.
    /// </param>
    public static IReadOnlyList<MaskedFile> Masks(string folder)
    {
        MustExist(folder);
        var list = Path.Combine(folder, "tiles.csv");
        var pairs = File.Exists(list) ? Listed(folder, list) : SameNames(folder);
        return pairs.Count > 0 ? pairs : throw new InvalidDataException(
            $"{folder} has no pairs of image and mask; expected tiles.csv, or images and masks with the same names.");
    }

    private static List<MaskedFile> Listed(string folder, string list)
    {
        var pairs = ReadColumns(list, "image", "mask", "split")
            .Select(row => new MaskedFile(Path.Combine(folder, row[0]), Path.Combine(folder, row[1]), row[2]))
            .ToList();
        foreach (var pair in pairs)
        {
            if (!File.Exists(pair.ImagePath)) throw new FileNotFoundException($"{list} names {pair.ImagePath}, which is missing.");
            if (!File.Exists(pair.MaskPath)) throw new FileNotFoundException($"{pair.ImagePath} has no mask: {pair.MaskPath}, named by {list}, is missing.");
        }
        return pairs;
    }

    private static List<MaskedFile> SameNames(string folder)
    {
        if (!Directory.Exists(Path.Combine(folder, "images")) || !Directory.Exists(Path.Combine(folder, "masks")))
            throw new DirectoryNotFoundException($"{folder} has no tiles.csv and not both folders, images and masks; expected one or the other.");
        var masks = Images(Path.Combine(folder, "masks")).ToDictionary(path => Path.GetFileNameWithoutExtension(path));
        var list = Path.Combine(folder, "split.csv");
        var splits = File.Exists(list) ? ReadColumns(list, "file", "split").ToDictionary(row => row[0], row => row[1]) : null;
        return [.. Images(Path.Combine(folder, "images")).Select(Pair)];

        MaskedFile Pair(string image)
        {
            var stem = Path.GetFileNameWithoutExtension(image);
            if (!masks.TryGetValue(stem, out var mask))
                throw new FileNotFoundException($"{image} has no mask; expected {Path.Combine(folder, "masks", stem)} with the extension of an image.");
            var split = "";
            if (splits?.TryGetValue(Path.GetFileName(image), out split) == false)
                throw new InvalidDataException($"{image} is not in {list}; expected a row for every image, or no such file.");
            return new MaskedFile(image, mask, split ?? "");
        }
    }

    // Some columns of a file of comma-separated values without quotes.
    private static IEnumerable<string[]> ReadColumns(string path, params string[] names)
    {
        var lines = File.ReadLines(path).Where(line => line.Length > 0).Select(line => line.Split(','));
        var header = lines.FirstOrDefault() ?? [];
        var columns = names.Select(name => Array.IndexOf(header, name)).ToArray();
        if (columns.Contains(-1))
            throw new InvalidDataException($"{path} has the columns {string.Join(", ", header)}; expected {string.Join(", ", names)} among them.");
        return lines.Skip(1).Select(row => row.Length == header.Length
            ? columns.Select(column => row[column]).ToArray()
            : throw new InvalidDataException($"{path}: '{string.Join(',', row)}' has {row.Length} values; expected {header.Length}."));
    }

    private static IEnumerable<string> Folders(string folder)
    {
        MustExist(folder);
        return Directory.EnumerateDirectories(folder).Order(StringComparer.Ordinal);
    }

    private static IEnumerable<string> Images(string folder)
    {
        MustExist(folder);
        return Directory.EnumerateFiles(folder)
            .Where(path => Extensions.Contains(Path.GetExtension(path), StringComparer.OrdinalIgnoreCase))
            .Order(StringComparer.Ordinal);
    }

    private static void MustExist(string folder)
    {
        if (!Directory.Exists(folder)) throw new DirectoryNotFoundException($"There is no folder {Path.GetFullPath(folder)}; expected one with images.");
    }
}
