using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Transforms.Image;

namespace MLSeq.Tests.Support;

/// <summary>Small problems on images that many tests use: which way do the stripes run, and where is the bright blob?</summary>
internal static class Pictures
{
    public const int Side = 12;

    public sealed class ByteRow
    {
        public string Label { get; set; } = "";

        public byte[] Features { get; set; } = [];

        public int Id { get; set; }
    }

    public sealed class SingleRow
    {
        public string Label { get; set; } = "";

        public float[] Features { get; set; } = [];

        public int Id { get; set; }
    }

    public sealed class FileRow
    {
        public string Label { get; set; } = "";

        public string Path { get; set; } = "";

        public int Id { get; set; }
    }

    public sealed class MaskRow
    {
        public byte[] Image { get; set; } = [];

        public byte[] Label { get; set; } = [];
    }

    public sealed class MaskFileRow
    {
        public string Path { get; set; } = "";

        public string MaskPath { get; set; } = "";
    }

    /// <summary>Stripes along x ("lying"), along y ("standing") or both ("checks"), on noise: [channels, height, width].</summary>
    public static (string Label, byte[] Planes) Stripes(Random random, int channels = 3, int height = Side, int width = Side, int classes = 3)
    {
        var label = random.Next(classes);
        var (phase, planes) = (random.Next(4), new byte[channels * height * width]);
        for (var i = 0; i < planes.Length; i++)
        {
            int y = i / width % height + phase, x = i % width + phase;
            var bright = label switch { 0 => y / 2 % 2 == 0, 1 => x / 2 % 2 == 0, _ => (y / 2 + x / 2) % 2 == 0 };
            planes[i] = (byte)((bright ? 150 : 60) + random.Next(50));
        }
        return (((string[])["lying", "standing", "checks"])[label], planes);
    }

    public static List<ByteRow> Rows(int rows = 96, int channels = 3, int seed = 1, int classes = 3)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, rows).Select(i =>
        {
            var (label, planes) = Stripes(random, channels, classes: classes);
            return new ByteRow { Label = label, Features = planes, Id = i };
        })];
    }

    public static IDataView Bytes(MLContext ml, int rows = 96, int channels = 3, int seed = 1, int classes = 3) => Bytes(ml, Rows(rows, channels, seed, classes), channels);

    public static IDataView Bytes(MLContext ml, IEnumerable<ByteRow> rows, int channels = 3) => ml.Data.LoadFromEnumerable(rows, Schema<ByteRow>("Features", channels, Side, Side));

    public static IDataView Singles(MLContext ml, int rows = 96, int channels = 3, int seed = 1)
        => Singles(ml, Rows(rows, channels, seed).Select(row => new SingleRow { Label = row.Label, Id = row.Id, Features = [.. row.Features.Select(value => value * 0.3f - 20)] }).ToList(), channels);

    public static IDataView Singles(MLContext ml, IEnumerable<SingleRow> rows, int channels = 3) => ml.Data.LoadFromEnumerable(rows, Schema<SingleRow>("Features", channels, Side, Side));

    public static SchemaDefinition Schema<T>(string column, params int[] dimensions)
    {
        var schema = SchemaDefinition.Create(typeof(T));
        schema[column].ColumnType = new VectorDataViewType(typeof(T).GetProperty(column)!.PropertyType == typeof(byte[]) ? NumberDataViewType.Byte : NumberDataViewType.Single, dimensions);
        return schema;
    }

    /// <summary>Writes PNG files of different sizes and proportions, not less than <see cref="Side"/>.</summary>
    public static List<FileRow> Files(TemporaryFolder folder, int rows = 96, int seed = 1, bool alike = false)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, rows).Select(i =>
        {
            var (height, width) = alike ? (Side, Side) : (Side + random.Next(5), Side + random.Next(5));
            var (label, planes) = Stripes(random, 3, height, width);
            Save(folder.File($"{seed}-{i}.png"), planes, height, width);
            return new FileRow { Label = label, Path = $"{seed}-{i}.png", Id = i };
        })];
    }

    /// <summary>Writes a file of planes [3, height, width].</summary>
    public static void Save(string path, byte[] planes, int height, int width)
    {
        var pixels = new byte[height * width * 4];
        var size = height * width;
        for (var i = 0; i < size; i++) (pixels[4 * i], pixels[4 * i + 1], pixels[4 * i + 2], pixels[4 * i + 3]) = (planes[i], planes[size + i], planes[2 * size + i], 255);
        using var image = MLImage.CreateFromPixels(width, height, MLPixelFormat.Rgba32, pixels);
        image.Save(path);
    }

    public static ImageClassificationTrainer.Options Options(int epochs = 6) => new()
    {
        Backbone = VisionBackbone.Cnn([8, 16], [1, 1]), Epochs = epochs, BatchSize = 16, LearningRate = 1e-2, HeadDropout = 0, Device = "cpu",
    };

    public static IEstimator<ITransformer> Pipeline(MLContext ml, ImageClassificationTrainer.Options options)
        => ml.Transforms.Conversion.MapValueToKey("Label")
            .Append(ml.MulticlassClassification.Trainers.ImageClassification(options))
            .Append(ml.Transforms.Conversion.MapKeyToValue("Predicted", "PredictedLabel"));

    public static ImageClassificationTransformer Classifier(ITransformer model) => Models.Parts(model).OfType<ImageClassificationTransformer>().Single();

    // ---- Masks.

    /// <summary>A bright rectangle (class 1), and with three classes a dark one (class 2), on noise: planes [channels, height, width] and the mask.</summary>
    public static (byte[] Planes, byte[] Mask) Blob(Random random, int channels, int height, int width, int classes = 2)
    {
        var mask = new byte[height * width];
        for (var label = 1; label < classes; label++)
        {
            int rows = random.Next(height / 4, height / 2 + 1), columns = random.Next(width / 4, width / 2 + 1), top = random.Next(height - rows + 1), left = random.Next(width - columns + 1);
            for (var y = top; y < top + rows; y++) mask.AsSpan(y * width + left, columns).Fill((byte)label);
        }
        var planes = new byte[channels * mask.Length];
        for (var i = 0; i < planes.Length; i++) planes[i] = (byte)(mask[i % mask.Length] switch { 1 => 180 + random.Next(60), 2 => random.Next(30), _ => 60 + random.Next(80) });
        return (planes, mask);
    }

    public static List<MaskRow> MaskRows(int rows = 48, int channels = 1, int height = 16, int width = 16, int seed = 1, int classes = 2)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, rows).Select(_ => Blob(random, channels, height, width, classes)).Select(blob => new MaskRow { Image = blob.Planes, Label = blob.Mask })];
    }

    public static SchemaDefinition MaskSchema(int channels = 1, int height = 16, int width = 16)
    {
        var schema = Schema<MaskRow>("Image", channels, height, width);
        schema["Label"].ColumnType = new VectorDataViewType(NumberDataViewType.Byte, height, width);
        return schema;
    }

    public static IDataView Masked(MLContext ml, IEnumerable<MaskRow> rows, int channels = 1, int height = 16, int width = 16) => ml.Data.LoadFromEnumerable(rows, MaskSchema(channels, height, width));

    public static IDataView Masked(MLContext ml, int rows = 48, int seed = 1, int classes = 2) => Masked(ml, MaskRows(rows, seed: seed, classes: classes));

    /// <summary>Files of images and masks of different sizes.</summary>
    public static List<MaskFileRow> MaskFiles(TemporaryFolder folder, int rows = 32, int seed = 1, int classes = 2)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, rows).Select(i =>
        {
            var (height, width) = (16 + random.Next(8), 16 + random.Next(8));
            var (planes, mask) = Blob(random, 3, height, width, classes);
            var row = new MaskFileRow { Path = folder.File($"{seed}-{i}.png"), MaskPath = folder.File($"{seed}-{i}-mask.png") };
            Save(row.Path, planes, height, width);
            Masks.WritePng(row.MaskPath, height, width, 8, mask);
            return row;
        })];
    }

    public static IEstimator<ITransformer> LoadMasks(MLContext ml)
        => ml.Transforms.LoadImages("Image", "", nameof(MaskFileRow.Path)).Append(ml.Transforms.LoadImages("Label", "", nameof(MaskFileRow.MaskPath)));

    public static SemanticSegmentationTrainer.Options MaskOptions(int epochs = 8) => new()
    {
        Backbone = VisionBackbone.Cnn([8, 16], [1, 1]), HeadWidth = 16, Epochs = epochs, BatchSize = 8, LearningRate = 1e-2, Device = "cpu",
    };
}
