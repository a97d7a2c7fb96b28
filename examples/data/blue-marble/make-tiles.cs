#:package SkiaSharp@3.119.4
#:package SkiaSharp.NativeAssets.Linux.NoDependencies@3.119.4
#:property ManagePackageVersionsCentrally=false
// Cuts the Blue Marble and its water mask into the tiles of this folder; README.md says how to run it.
using System.Globalization;
using SkiaSharp;

const int Tile = 128, Columns = 32, Rows = 16; // 4096 × 2048 pixels; a tile is 11.25° wide and high
const double Degrees = 360.0 / Columns;

if (args.Length != 1)
{
    Console.Error.WriteLine("usage: dotnet run make-tiles.cs -- FOLDER   (three-globe's example/img); writes images, masks and tiles.csv here");
    return 2;
}

using var picture = Decode(Path.Combine(args[0], "earth-blue-marble.jpg"));
using var coarse = Decode(Path.Combine(args[0], "earth-water.png")); // 1600 × 800, white is water
using var water = coarse.Resize(picture.Info, new SKSamplingOptions(SKCubicResampler.Mitchell));
if ((picture.Width, picture.Height) != (Tile * Columns, Tile * Rows))
    throw new InvalidDataException($"The picture is {picture.Width}×{picture.Height}; expected {Tile * Columns}×{Tile * Rows}.");

foreach (var folder in (string[])["images", "masks"])
{
    if (Directory.Exists(folder)) Directory.Delete(folder, recursive: true);
    Directory.CreateDirectory(folder);
}

var (map, tests) = (new Score(), new Score());
var (pictureColours, waterColours) = (picture.Pixels, water.Pixels);
for (var i = 0; i < pictureColours.Length; i++) map.Add(Rule(pictureColours[i]), IsWater(waterColours[i]));

using var list = new StreamWriter("tiles.csv") { NewLine = "\n" };
list.WriteLine("image,mask,split,longitude,latitude");
for (var row = 0; row < Rows; row++)
    for (var column = 0; column < Columns; column++)
    {
        using var image = Cut(picture, row, column);
        using var mask = Cut(water, row, column);
        var isWater = mask.Pixels.Select(IsWater).ToArray();
        var share = isWater.Average(pixel => pixel ? 1.0 : 0.0);
        var isCoast = share is > 0.05 and < 0.95;
        if (!isCoast && (row + column) % 4 != 0) continue; // every coast, and one in four of the rest

        using var gray = new SKBitmap(new SKImageInfo(Tile, Tile, SKColorType.Gray8));
        isWater.Select(pixel => pixel ? (byte)255 : (byte)0).ToArray().CopyTo(gray.GetPixelSpan());
        var (imagePath, maskPath) = ($"images/r{row:00}c{column:00}.jpg", $"masks/r{row:00}c{column:00}.png");
        Save(image, imagePath, SKEncodedImageFormat.Jpeg, 90);
        Save(gray, maskPath, SKEncodedImageFormat.Png, 100);

        var isTest = column / 2 % 4 == 1; // bands of 22.5°: one for the test, three for training
        var (longitude, latitude) = (-180 + (column + 0.5) * Degrees, 90 - (row + 0.5) * Degrees);
        list.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{imagePath},{maskPath},{(isTest ? "test" : "train")},{longitude:F3},{latitude:F3}"));
        if (!isTest) continue;
        using var saved = Decode(imagePath);
        foreach (var (colour, truth) in saved.Pixels.Zip(isWater)) tests.Add(Rule(colour), truth);
    }

Console.WriteLine($"blue > red + 8 means water: whole map {map}; test tiles {tests}");
return 0;

static bool Rule(SKColor colour) => colour.Blue > colour.Red + 8;

static bool IsWater(SKColor colour) => colour.Red >= 128;

static SKBitmap Decode(string path) => SKBitmap.Decode(path) ?? throw new FileNotFoundException($"{path} is missing or no image.");

static SKBitmap Cut(SKBitmap from, int row, int column)
{
    var tile = new SKBitmap();
    from.ExtractSubset(tile, SKRectI.Create(column * Tile, row * Tile, Tile, Tile));
    return tile;
}

static void Save(SKBitmap bitmap, string path, SKEncodedImageFormat format, int quality)
{
    using var file = File.Create(path);
    bitmap.Encode(file, format, quality);
}

// Pixel accuracy and the mean over water and land of intersection over union.
internal sealed class Score
{
    private readonly double[,] _count = new double[2, 2]; // [predicted, true]

    public void Add(bool predicted, bool truth) => _count[predicted ? 1 : 0, truth ? 1 : 0]++;

    public override string ToString()
    {
        var (right, wrong) = (_count[0, 0] + _count[1, 1], _count[0, 1] + _count[1, 0]);
        var meanIoU = (_count[0, 0] / (_count[0, 0] + wrong) + _count[1, 1] / (_count[1, 1] + wrong)) / 2;
        return string.Create(CultureInfo.InvariantCulture, $"accuracy {right / (right + wrong):F4}, mean IoU {meanIoU:F4}");
    }
}
