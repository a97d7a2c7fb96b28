using System.Drawing;
using System.IO.Compression;
using System.Reflection;
using System.Text;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Transforms.Image;
using MLSeq.Tests.Support;
using SkiaSharp;
using Xunit;

namespace MLSeq.Tests.Transforms;

public sealed class MaskPaintingTests
{
    private static readonly Color Red = Color.FromArgb(200, 0, 0), Blue = Color.FromArgb(0, 0, 100), White = Color.FromArgb(255, 255, 255);

    private sealed class Row
    {
        public MLImage? Image { get; set; }

        public byte[] Pixels { get; set; } = [];

        public byte[] Mask { get; set; } = [];

        public MLImage? MaskImage { get; set; }
    }

    private sealed class Painted
    {
        public MLImage? Output { get; set; }
    }

    private static IDataView View(MLContext ml, IEnumerable<Row> rows, int[] pixels, int[] mask)
    {
        var schema = SchemaDefinition.Create(typeof(Row));
        schema[nameof(Row.Pixels)].ColumnType = Masks.VectorType(pixels);
        schema[nameof(Row.Mask)].ColumnType = Masks.VectorType(mask);
        return ml.Data.LoadFromEnumerable(rows, schema);
    }

    private static MLImage Image(int height, int width, Color color) => MaskPalette.ToImage(new byte[height * width], height, width, [color]);

    private static PaintOptions Options(Action<PaintOptions>? change = null)
    {
        var options = new PaintOptions { Colors = [Red, Blue], Opacity = 0.4, BoundaryWidth = 0, Legend = LegendPlace.None };
        change?.Invoke(options);
        return options;
    }

    private static MLImage PaintOne(Row row, int[] pixels, int[] mask, PaintOptions options, string imageColumn = "Image", string maskColumn = "Mask")
    {
        var ml = Models.Context();
        var view = View(ml, [row], pixels, mask);
        var painted = ml.ImageSegmentation.PaintMask("Output", imageColumn, maskColumn, options).Fit(view).Transform(view);
        return ml.Data.CreateEnumerable<Painted>(painted, false).Single().Output!;
    }

    private static MLImage PaintOne(int height, int width, byte[] mask, PaintOptions options)
        => PaintOne(new Row { Image = Image(height, width, Color.FromArgb(100, 50, 10)), Mask = mask }, [1, 1, 1], [height, width], options);

    private static Color At(MLImage image, int y, int x)
    {
        var pixel = ImagePixels.Of(image)[y * image.Width + x];
        var (first, green, third) = ((byte)pixel, (byte)(pixel >> 8), (byte)(pixel >> 16));
        return image.PixelFormat == MLPixelFormat.Rgba32 ? Color.FromArgb((byte)(pixel >> 24), first, green, third) : Color.FromArgb((byte)(pixel >> 24), third, green, first);
    }

    private static bool Has(MLImage image, Color color)
        => Enumerable.Range(0, image.Height).Any(y => Enumerable.Range(0, image.Width).Any(x => At(image, y, x) == color));

    [Fact]
    public void Colours_are_blended_over_the_image()
    {
        var painted = PaintOne(1, 3, [0, 1, 255], Options());
        Assert.Equal(Color.FromArgb(140, 30, 6), At(painted, 0, 0)); // 0.6 · image + 0.4 · red
        Assert.Equal(Color.FromArgb(60, 30, 46), At(painted, 0, 1));
        Assert.Equal(Color.FromArgb(100, 50, 10), At(painted, 0, 2)); // the ignore index
        Assert.Equal((1, 3), (painted.Height, painted.Width));
        Assert.Equal(Color.FromArgb(100, 50, 10), At(PaintOne(1, 3, [0, 1, 255], Options(options => options.NotPainted = [0])), 0, 0));
        Assert.Equal(Color.FromArgb(100, 50, 10), At(PaintOne(1, 3, [0, 1, 255], Options(options => options.Opacity = 0)), 0, 0));
    }

    [Fact]
    public void Outlines_have_the_classes_full_colour()
    {
        byte[] mask = [.. Enumerable.Range(0, 8 * 8).Select(i => (byte)(i % 8 < 4 ? 0 : 1))];
        var painted = PaintOne(8, 8, mask, Options(options => options.BoundaryWidth = 1));
        Assert.Equal(Color.FromArgb(140, 30, 6), At(painted, 3, 2));
        Assert.Equal(Red, At(painted, 3, 3));
        Assert.Equal(Blue, At(painted, 3, 4));
        Assert.Equal(Color.FromArgb(60, 30, 46), At(painted, 3, 5));
        Assert.Equal(Red, At(PaintOne(8, 8, mask, Options(options => options.BoundaryWidth = 2)), 0, 2));
        Assert.Equal(Color.FromArgb(100, 50, 10), At(PaintOne(8, 8, mask, Options(options => (options.BoundaryWidth, options.NotPainted) = (1, [0]))), 3, 3)); // an unpainted class has no outline
    }

    [Fact]
    public void Masks_are_scaled_to_the_image_and_images_by_the_option()
    {
        var row = new Row { Image = Image(4, 6, Color.Black), Mask = [0, 1] };
        var painted = PaintOne(row, [1, 1, 1], [1, 2], Options(options => options.Opacity = 1));
        for (var y = 0; y < 4; y++)
            for (var x = 0; x < 6; x++) Assert.Equal(x < 3 ? Red : Blue, At(painted, y, x));
        row.Image = Image(4, 6, Color.Black);
        var larger = PaintOne(row, [1, 1, 1], [1, 2], Options(options => (options.Opacity, options.Scale) = (1, 3)));
        Assert.Equal((12, 18), (larger.Height, larger.Width));
        Assert.Equal((Red, Blue), (At(larger, 11, 8), At(larger, 11, 9)));
    }

    [Fact]
    public void Images_and_masks_come_in_every_kind()
    {
        var row = new Row
        {
            Image = MLImage.CreateFromPixels(2, 1, MLPixelFormat.Bgra32, [30, 20, 10, 255, 60, 50, 40, 255]),
            Pixels = [10, 40, 20, 50, 30, 60], // red, green and blue planes
            Mask = [0, 1],
            MaskImage = Masks.Image(1, 2, [0, 1]),
        };
        foreach (var (image, mask) in new[] { ("Image", "Mask"), ("Image", "MaskImage"), ("Pixels", "Mask"), ("Pixels", "MaskImage") })
        {
            var painted = PaintOne(row, [3, 1, 2], [1, 2], Options(options => options.NotPainted = [0, 1]), image, mask);
            Assert.Equal((Color.FromArgb(10, 20, 30), Color.FromArgb(40, 50, 60)), (At(painted, 0, 0), At(painted, 0, 1)));
        }
        Assert.Equal(Color.FromArgb(7, 7, 7), At(PaintOne(new Row { Pixels = [7, 7], Mask = [0, 0] }, [1, 1, 2], [], Options(options => options.NotPainted = [0]), "Pixels"), 0, 1));
        var bits = new Row { Image = Image(1, 2, Color.Black), MaskImage = Masks.Image(1, 2, [0, 255]) }; // a 1-bit mask
        Assert.Equal(Blue, At(PaintOne(bits, [1, 1, 1], [], Options(options => options.Opacity = 1), maskColumn: "MaskImage"), 0, 1));
    }

    [Theory]
    [InlineData(LegendPlace.Below)]
    [InlineData(LegendPlace.Right)]
    public void The_legend_shows_the_classes_of_the_image(LegendPlace place)
    {
        byte[] mask = new byte[60 * 90];
        mask[0] = 1;
        var image = PaintOne(60, 90, mask, Options(options => (options.Legend, options.ClassNames, options.NotPainted) = (place, ["first", "second", "third"], [1])));
        Assert.True(place == LegendPlace.Below ? image.Height > 60 && image.Width == 90 : image.Width > 90 && image.Height == 60);
        Assert.Equal(White, At(image, image.Height - 1, image.Width - 1));
        Assert.True(Has(image, Red));
        Assert.False(Has(image, Blue)); // not painted
        Assert.Equal(Color.FromArgb(140, 30, 6), At(image, 59, 89)); // the image stays where it was
        Assert.Equal((60, 90), Size(PaintOne(60, 90, mask, Options(options => (options.Legend, options.NotPainted) = (place, [0, 1]))))); // nothing to name
    }

    private static (int Height, int Width) Size(MLImage image) => (image.Height, image.Width);

    [Fact]
    public void Names_without_letters_on_this_machine_get_numbers()
    {
        using var legend = new MaskLegend([new(3, "\U0010FFFD", Red), new(127, "", Blue)], textSize: 14, width: 200); // for private use: no font has it
        using var bitmap = new SKBitmap(legend.Width, legend.Height);
        using var canvas = new SKCanvas(bitmap);
        canvas.Clear(SKColors.White);
        legend.Draw(canvas, 0, 0);
        var colors = bitmap.Pixels.ToHashSet();
        Assert.Contains(new SKColor(200, 0, 0), colors);
        Assert.Contains(new SKColor(0, 0, 100), colors);
        Assert.Contains(new SKColor(32, 32, 32), colors); // the numbers
    }

    [Fact]
    public void Palette_colours_differ()
    {
        var colors = Enumerable.Range(0, 256).Select(MaskPalette.ColorOf).ToList();
        Assert.Equal(256, colors.Distinct().Count());
        double Nearest(int count) => Enumerable.Range(0, count).Min(i => Enumerable.Range(0, i).Select(j => Math.Sqrt(MaskPalette.Distance(MaskPalette.Oklab(colors[i]), MaskPalette.Oklab(colors[j])))).DefaultIfEmpty(9).Min());
        Assert.True(Nearest(21) > 0.1, $"{Nearest(21)}"); // a just noticeable difference is about 0.02
        Assert.True(Nearest(256) > 0.02, $"{Nearest(256)}");
        Assert.Contains("expected 0 to 255", Assert.Throws<ArgumentOutOfRangeException>(() => MaskPalette.ColorOf(256)).Message);
        var image = MaskPalette.ToImage([0, 1, 2, 3, 4, 5], 2, 3, [Red]);
        Assert.Equal((Red, MaskPalette.ColorOf(5)), (At(image, 0, 0), At(image, 1, 2)));
        Assert.Contains("has 5 values; expected 2 x 3", Assert.Throws<ArgumentException>(() => MaskPalette.ToImage(new byte[5], 2, 3)).Message);
    }

    [Fact]
    public void The_transformer_is_saved_with_the_model()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var view = View(ml, [new Row { Image = Image(8, 8, Color.Black), Mask = [0, 1, 1, 0] }], [1, 1, 1], [2, 2]);
        var model = ml.ImageSegmentation.PaintMask("Output", "Image", "Mask",
            new PaintOptions { Colors = [Red], ClassNames = ["a", "b"], NotPainted = [1], Opacity = 0.3, BoundaryWidth = 1, Legend = LegendPlace.Right, Scale = 2, IgnoreIndex = null }).Fit(view);
        ml.Model.Save(model, view.Schema, folder.File("m.zip"));
        var loaded = new MLContext().Model.Load(folder.File("m.zip"), out _);
        uint[] Pixels(ITransformer transformer) => ImagePixels.Of(ml.Data.CreateEnumerable<Painted>(transformer.Transform(view), false).Single().Output!).ToArray();
        Assert.Equal(Pixels(model), Pixels(loaded));
        using var engine = ml.Model.CreatePredictionEngine<Row, Painted>(loaded, inputSchemaDefinition: Schema2x2());
        Assert.Equal(Pixels(model), ImagePixels.Of(engine.Predict(new Row { Image = Image(8, 8, Color.Black), Mask = [0, 1, 1, 0] }).Output!).ToArray());
    }

    private static SchemaDefinition Schema2x2()
    {
        var schema = SchemaDefinition.Create(typeof(Row));
        schema[nameof(Row.Mask)].ColumnType = Masks.VectorType([2, 2]);
        return schema;
    }

    [Theory]
    [InlineData("\"Opacity\":0.5=>\"Opacity\":7.5", "Opacity is 7.5")]
    [InlineData("\"Legend\":\"Below\"=>\"Legend\":\"Under\"", "LegendPlace")]
    [InlineData("\"Mask\":\"Mask\"=>\"Mask\":null  ", "The mask column has no name")]
    [InlineData("{=>x", "invalid start")]
    public void A_damaged_model_is_refused(string damage, string reason)
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var view = View(ml, [], [1, 1, 1], [2, 2]);
        ml.Model.Save(ml.ImageSegmentation.PaintMask("Output", "Image", "Mask").Fit(view), view.Schema, folder.File("m.zip"));
        using (var zip = ZipFile.Open(folder.File("m.zip"), ZipArchiveMode.Update))
        {
            var entry = zip.Entries.Single(entry => entry.Name == "MaskPainting.json");
            using var stream = entry.Open();
            var text = new StreamReader(stream).ReadToEnd();
            var (from, to) = (damage.Split("=>")[0], damage.Split("=>")[1]);
            Assert.Contains(from, text);
            stream.SetLength(0);
            stream.Write(Encoding.UTF8.GetBytes(text.Replace(from, to, StringComparison.Ordinal)));
        }
        var message = Assert.ThrowsAny<Exception>(() => new MLContext().Model.Load(folder.File("m.zip"), out _)).ToString();
        Assert.Contains("The model cannot be loaded", message);
        Assert.Contains(reason, message);
    }

    [Fact]
    public void Bad_options_columns_and_rows_are_refused()
    {
        var ml = Models.Context();
        var message = Assert.Throws<ArgumentException>(() => ml.ImageSegmentation.PaintMask("Output", "Image", "", new PaintOptions
        { Opacity = double.NaN, BoundaryWidth = -1, Scale = 0, NotPainted = [300], ClassNames = [], Legend = (LegendPlace)9 })).Message;
        Assert.All(["mask column has no name", "Opacity is NaN", "BoundaryWidth is -1", "Scale is 0", "the class 300", "ClassNames has 0", "Legend is 9"], part => Assert.Contains(part, message));

        var view = View(ml, [], [4, 1, 2], [1, 2]);
        string Columns(string image, string mask) => Assert.ThrowsAny<Exception>(() => ml.ImageSegmentation.PaintMask("Output", image, mask).Fit(view)).Message;
        Assert.Contains("'Nothing'", Columns("Nothing", "Mask"));
        Assert.Contains("'Nothing'", Columns("Image", "Nothing"));
        Assert.Contains("[1 or 3, height, width]", Columns("Pixels", "Mask"));
        Assert.Contains("'Id'", Assert.ThrowsAny<Exception>(() => ml.ImageSegmentation.PaintMask("Output", "Id", "Mask").GetOutputSchema(Shape(Models.Series(ml)))).Message);
        Assert.Contains(ml.ImageSegmentation.PaintMask("Output", "Image", "Mask").GetOutputSchema(Shape(view)), column => column is { Name: "Output", ItemType: ImageDataViewType });

        Assert.Contains("Row 0 of column 'Mask' has class index 2 at (y 0, x 1); expected 0 to 1", Assert.ThrowsAny<Exception>(() => PaintOne(1, 2, [0, 2], Options(options => options.ClassNames = ["a", "b"]))).Message);
        Assert.Contains("expected as many as the image, 4 x 6", Assert.ThrowsAny<Exception>(() => PaintOne(new Row { Image = Image(4, 6, Red), Mask = [0, 1] }, [1, 1, 1], [], Options())).Message);
        Assert.Contains("too large to paint", Assert.ThrowsAny<Exception>(() => PaintOne(1, 1000, new byte[1000], Options(options => options.Scale = 64))).Message);
    }

    // ML.NET keeps the making of shapes to itself.
    private static SchemaShape Shape(IDataView view)
        => (SchemaShape)typeof(SchemaShape).GetMethod("Create", BindingFlags.Static | BindingFlags.NonPublic)!.Invoke(null, [view.Schema])!;

    [Fact]
    public void A_row_without_image_has_none_painted()
    {
        var ml = Models.Context();
        var view = View(ml, [new Row { Mask = [0, 1] }, new Row { Image = Image(1, 2, Red), Mask = [0, 1] }], [1, 1, 1], [1, 2]);
        var painted = ml.ImageSegmentation.PaintMask("Output", "Image", "Mask").Fit(view).Transform(view);
        Assert.Equal([false, true], ml.Data.CreateEnumerable<Painted>(painted, false).Select(row => row.Output is not null));
    }

    [Fact]
    public void Memory_stays_flat()
    {
        using var folder = new TemporaryFolder();
        Image(300, 400, Color.FromArgb(10, 200, 90)).Save(folder.File("image.png"));
        var random = new Random(1);
        Masks.WritePng(folder.File("mask.png"), 300, 400, 8, [.. Enumerable.Range(0, 300 * 400).Select(i => (byte)(i / 20 % 20 / 5))]);
        var ml = Models.Context();
        var view = ml.Data.LoadFromEnumerable(Enumerable.Range(0, 500).Select(_ => new Files { Image = "image.png", Mask = "mask.png" }));
        var painted = ml.Transforms.LoadImages("Image", folder.Path).Append(ml.Transforms.LoadImages("Mask", folder.Path))
            .Append(ml.ImageSegmentation.PaintMask("Output", "Image", "Mask")).Fit(view).Transform(view);
        long after100 = 0, rows = 0;
        foreach (var row in ml.Data.CreateEnumerable<Painted>(painted, false))
        {
            Assert.Equal(400, row.Output!.Width);
            if (++rows == 100) after100 = Environment.WorkingSet;
        }
        Assert.Equal(500, rows);
        var growth = Environment.WorkingSet - after100;
        Assert.True(growth < 60 << 20, $"400 images of 0.5 MB each grew the process by {growth >> 20} MB"); // 200 MB, were they kept
    }

    private sealed class Files
    {
        public string Image { get; set; } = "";

        public string Mask { get; set; } = "";
    }
}
