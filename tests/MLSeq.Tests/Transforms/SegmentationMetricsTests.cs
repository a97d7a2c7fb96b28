using System.Reflection;
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq.Tests.Support;
using Xunit;

namespace MLSeq.Tests.Transforms;

public sealed class SegmentationMetricsTests
{
    private static readonly string[] TwoNames = ["back", "fore"], FourNames = ["road", "tree", "sky", "cow"];

    private static ImageSegmentationMetrics Evaluate(byte[] label, byte[] predicted, IReadOnlyList<string>? names = null, byte? ignoreIndex = 255)
    {
        var ml = Models.Context();
        return ml.ImageSegmentation.Evaluate(Masks.Vectors(ml, [2, label.Length / 2], (label, predicted)), ignoreIndex: ignoreIndex, classNames: names);
    }

    private static string Message(Func<object> act) => Assert.ThrowsAny<Exception>(act).Message;

    [Fact]
    public void Two_classes_by_hand()
    {
        var metrics = Evaluate([0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]);
        Assert.Equal([0.5, 0.5], metrics.PerClassIoU); // 2 / (3 + 3 - 2)
        Assert.Equal([2 / 3d, 2 / 3d], metrics.PerClassDice); // 2·2 / (3 + 3)
        Assert.Equal((0.5, 2 / 3d), (metrics.MeanIoU, metrics.MeanDice));
        Assert.Equal((4 / 6d, 2 / 3d), (metrics.PixelAccuracy, metrics.MeanClassAccuracy));
        Assert.Equal(0.5, metrics.FrequencyWeightedIoU);
        Assert.Equal((1L, 6L, 0L), (metrics.ImageCount, metrics.PixelCount, metrics.IgnoredPixelCount));
        Assert.Equal([[2, 1], [1, 2]], metrics.ConfusionMatrix.Counts);
    }

    [Fact]
    public void Ignored_pixels_and_absent_classes_count_nowhere()
    {
        // road: 3 of 4 right, 1 taken for a tree; tree: 1 of 2 right. Sky is predicted only where the label is left out, and there are no cows.
        var metrics = Evaluate([0, 0, 0, 0, 1, 1, 255, 255], [0, 0, 0, 1, 1, 0, 2, 1], FourNames);
        Assert.Equal([3 / 5d, 1 / 3d, double.NaN, double.NaN], metrics.PerClassIoU);
        Assert.Equal([6 / 8d, 2 / 4d, double.NaN, double.NaN], metrics.PerClassDice);
        Assert.Equal((3 / 5d + 1 / 3d) / 2, metrics.MeanIoU, 1e-15);
        Assert.Equal(0.625, metrics.MeanDice);
        Assert.Equal(4 / 6d, metrics.PixelAccuracy);
        Assert.Equal((3 / 4d + 1 / 2d) / 2, metrics.MeanClassAccuracy);
        Assert.Equal(4 / 6d * 3 / 5 + 2 / 6d / 3, metrics.FrequencyWeightedIoU, 1e-15);
        Assert.Equal((6L, 2L), (metrics.PixelCount, metrics.IgnoredPixelCount));
        Assert.Equal(FourNames, metrics.ClassNames);
        Assert.Equal([3 / 4d, 1 / 2d, double.NaN, double.NaN], metrics.ConfusionMatrix.PerClassRecall);
    }

    [Fact]
    public void A_class_that_is_only_predicted_is_all_wrong()
    {
        var metrics = Evaluate([0, 0, 1, 1], [0, 2, 1, 1]);
        Assert.Equal([0.5, 1, 0], metrics.PerClassIoU);
        Assert.Equal(0.5, metrics.MeanIoU);
        Assert.Equal((0.5 + 1) / 2, metrics.MeanClassAccuracy); // it has no labels
        Assert.Equal(2 / 4d * 0.5 + 2 / 4d, metrics.FrequencyWeightedIoU);
        Assert.Equal([1, 1, 0], metrics.ConfusionMatrix.PerClassPrecision);
    }

    [Fact]
    public void A_class_that_is_the_ignore_index_is_in_no_mean()
    {
        var metrics = Evaluate([0, 0, 1, 1, 2, 2], [1, 0, 1, 0, 2, 2], ignoreIndex: 0);
        Assert.Equal([double.NaN, 0.5, 1], metrics.PerClassIoU);
        Assert.Equal((0.75, 0.75), (metrics.MeanIoU, metrics.MeanClassAccuracy));
        Assert.Equal(3 / 4d, metrics.PixelAccuracy);
    }

    [Theory]
    [InlineData(new byte[] { 0, 1, 2, 2 }, 1)]
    [InlineData(new byte[] { 1, 2, 0, 0 }, 0)]
    public void Perfect_and_worst(byte[] predicted, double expected)
    {
        var metrics = Evaluate([0, 1, 2, 2], predicted);
        Assert.All([metrics.MeanIoU, metrics.MeanDice, metrics.PixelAccuracy, metrics.MeanClassAccuracy, metrics.FrequencyWeightedIoU, metrics.MeanImageIoU, metrics.MeanImageDice],
            value => Assert.Equal(expected, value));
    }

    [Fact]
    public void Each_images_own_metrics_are_averaged_too()
    {
        var ml = Models.Context();
        var view = Masks.Vectors(ml, [2, 2], ([0, 0, 0, 0], [0, 0, 0, 0]), ([0, 1, 1, 1], [1, 1, 1, 0]), ([255, 255, 255, 255], [0, 0, 0, 0]));
        var metrics = ml.ImageSegmentation.Evaluate(view);
        Assert.Equal((1 + (0 + 2 / 4d) / 2) / 2, metrics.MeanImageIoU); // an image left out as a whole does not count
        Assert.Equal((1 + (0 + 4 / 6d) / 2) / 2, metrics.MeanImageDice, 1e-15);
        Assert.Equal([4 / 6d, 2 / 4d], metrics.PerClassIoU);
        Assert.Equal((3L, 8L, 4L), (metrics.ImageCount, metrics.PixelCount, metrics.IgnoredPixelCount));
    }

    [Fact]
    public void Vectors_images_and_files_agree()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var random = new Random(1);
        byte[] Mask(bool ignored) => [.. Enumerable.Range(0, 35).Select(_ => ignored && random.Next(5) == 0 ? (byte)255 : (byte)random.Next(4))];
        var rows = Enumerable.Range(0, 20).Select(_ => (Mask(true), Mask(false))).ToArray();
        var expected = ml.ImageSegmentation.Evaluate(Masks.Vectors(ml, [5, 7], rows), classNames: FourNames).ToString();
        Assert.Equal(expected, ml.ImageSegmentation.Evaluate(Masks.Vectors(ml, [], rows), classNames: FourNames).ToString());
        Assert.Equal(expected, ml.ImageSegmentation.Evaluate(Masks.Images(ml, 5, 7, rows), classNames: FourNames).ToString());
        var paths = rows.Select((row, i) =>
        {
            Masks.WritePng(folder.File($"{i}.png"), 5, 7, 8, row.Item1);
            Masks.WritePng(folder.File($"p{i}.png"), 5, 7, 8, row.Item2);
            return new Paths { Label = $"{i}.png", PredictedMask = $"p{i}.png" };
        });
        var loaded = ml.Transforms.LoadImages("Label", folder.Path).Append(ml.Transforms.LoadImages("PredictedMask", folder.Path)).Fit(ml.Data.LoadFromEnumerable(paths)).Transform(ml.Data.LoadFromEnumerable(paths));
        Assert.Equal(expected, ml.ImageSegmentation.Evaluate(loaded, classNames: FourNames).ToString());
    }

    private sealed class Paths
    {
        public string Label { get; set; } = "";

        public string PredictedMask { get; set; } = "";
    }

    [Fact]
    public void Sizes_may_differ_from_row_to_row()
    {
        var ml = Models.Context();
        var vectors = Masks.Vectors(ml, [], ([0, 1], [0, 1]), ([0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]));
        Assert.Equal(7 / 8d, ml.ImageSegmentation.Evaluate(vectors).PixelAccuracy);
        var images = ml.Data.LoadFromEnumerable(new[]
        {
            new Masks.ImageRow { Label = Masks.Image(1, 2, [0, 1]), PredictedMask = Masks.Image(1, 2, [0, 1]) },
            new Masks.ImageRow { Label = Masks.Image(3, 2, [0, 1, 1, 1, 0, 0]), PredictedMask = Masks.Image(3, 2, [0, 1, 1, 0, 0, 0]) },
        });
        Assert.Equal(7 / 8d, ml.ImageSegmentation.Evaluate(images).PixelAccuracy);
    }

    [Fact]
    public void Class_names_come_with_the_column()
    {
        var ml = Models.Context();
        var named = new Named(Masks.Vectors(ml, [1, 2], ([0, 1], [0, 1])), FourNames);
        Assert.Equal(FourNames, ml.ImageSegmentation.Evaluate(named).ClassNames);
        Assert.Equal(TwoNames, ml.ImageSegmentation.Evaluate(named, classNames: TwoNames).ClassNames);
        Assert.Equal(["0", "1"], ml.ImageSegmentation.Evaluate(Masks.Vectors(ml, [1, 2], ([0, 1], [0, 1]))).ClassNames);
    }

    /// <summary>A view whose predicted column names its classes.</summary>
    private sealed class Named : IDataView
    {
        private readonly IDataView _source;

        public Named(IDataView source, string[] names)
        {
            var builder = new DataViewSchema.Builder();
            foreach (var column in source.Schema) builder.AddColumn(column.Name, column.Type, column.Name == "PredictedMask" ? MaskColumn.Annotations(names) : column.Annotations);
            (_source, Schema) = (source, builder.ToSchema());
        }

        public DataViewSchema Schema { get; }

        public bool CanShuffle => false;

        public long? GetRowCount() => null;

        public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random? rand = null)
            => _source.GetRowCursor(columnsNeeded.Select(column => _source.Schema[column.Index]), rand);

        public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random? rand = null) => [GetRowCursor(columnsNeeded, rand)];
    }

    [Fact]
    public void Black_and_white_images_are_two_classes()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        var fromImages = ml.ImageSegmentation.Evaluate(Masks.Images(ml, 2, 3, ([0, 0, 255, 255, 255, 0], [0, 1, 1, 1, 0, 0]), ([255, 255, 255, 255, 255, 255], [0, 0, 0, 0, 0, 0])), classNames: TwoNames);
        Assert.Equal([[2, 1], [7, 2]], fromImages.ConfusionMatrix.Counts);
        Assert.Equal(0, fromImages.IgnoredPixelCount);

        Masks.WritePng(folder.File("m.png"), 2, 3, 1, [0, 0, 1, 1, 1, 0]); // 1 bit per pixel is decoded as 0 and 255
        var rows = ml.Data.LoadFromEnumerable([new Masks.ImageRow { Label = MLImage.CreateFromFile(folder.File("m.png")), PredictedMask = Masks.Image(2, 3, [0, 1, 1, 1, 0, 0]) }]);
        Assert.Equal([[2, 1], [1, 2]], ml.ImageSegmentation.Evaluate(rows, classNames: TwoNames).ConfusionMatrix.Counts);
        Assert.Contains("Name the classes", Message(() => ml.ImageSegmentation.Evaluate(rows)));

        // With other numbers of classes, and in vectors, 255 is what it says.
        Assert.Equal(4, ml.ImageSegmentation.Evaluate(Masks.Images(ml, 1, 5, ([0, 255, 255, 255, 255], [0, 1, 1, 1, 0])), classNames: FourNames).IgnoredPixelCount);
        Assert.Equal(4, ml.ImageSegmentation.Evaluate(Masks.Vectors(ml, [1, 5], ([0, 255, 255, 255, 255], [0, 1, 1, 1, 0])), classNames: TwoNames).IgnoredPixelCount);
    }

    [Fact]
    public void White_is_left_out_where_an_image_shows_that_it_is_meant_so()
    {
        var ml = Models.Context();
        var (open, shows) = ((new byte[] { 0, 0, 255 }, new byte[] { 0, 0, 1 }), (new byte[] { 0, 1, 255 }, new byte[] { 0, 1, 1 }));
        Assert.Equal(2, ml.ImageSegmentation.Evaluate(Masks.Images(ml, 1, 3, shows, open), classNames: TwoNames).IgnoredPixelCount);
        var message = Message(() => ml.ImageSegmentation.Evaluate(Masks.Images(ml, 1, 3, open, shows), classNames: TwoNames));
        Assert.StartsWith("Row 1 of column 'Label' has 1 and 255, but row 0 has only 0 and 255", message);
        Assert.Contains("as the ignore index", message);
    }

    [Fact]
    public void Wrong_values_are_named_with_their_place()
    {
        var ml = Models.Context();
        var good = new byte[24];
        byte[] Bad(byte value) => [.. good.Select((_, i) => i == 17 ? value : (byte)0)];
        Assert.Equal("Row 1 of column 'Label' has class index 7 at (y 2, x 5); expected 0 to 3 or the ignore index 255.",
            Message(() => ml.ImageSegmentation.Evaluate(Masks.Vectors(ml, [4, 6], (good, good), (Bad(7), good)), classNames: FourNames)));
        Assert.Equal("Row 0 of column 'PredictedMask' has class index 255 at (y 2, x 5); expected 0 to 3.",
            Message(() => ml.ImageSegmentation.Evaluate(Masks.Images(ml, 4, 6, (good, Bad(255))), classNames: FourNames)));
        Assert.Equal("Row 0 of column 'Label' has class index 255 at pixel 17; expected 0 to 3.",
            Message(() => ml.ImageSegmentation.Evaluate(Masks.Vectors(ml, [], (Bad(255), good)), ignoreIndex: null, classNames: FourNames)));
    }

    [Fact]
    public void Images_that_are_no_masks_are_refused()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        string Refusal(MLImage? label) => Message(() => ml.ImageSegmentation.Evaluate(ml.Data.LoadFromEnumerable([new Masks.ImageRow { Label = label, PredictedMask = Masks.Image(1, 2, [0, 0]) }])));
        Assert.Contains("has the colour (R 128, G 1, B 2) at (y 0, x 1)", Refusal(MLImage.CreateFromPixels(2, 1, MLPixelFormat.Bgra32, [0, 0, 0, 255, 2, 1, 128, 255])));
        Assert.Contains("has the colour (R 128, G 1, B 2) at (y 0, x 1)", Refusal(MLImage.CreateFromPixels(2, 1, MLPixelFormat.Rgba32, [0, 0, 0, 255, 128, 1, 2, 255])));
        Assert.Contains("is half transparent (alpha 100) at (y 0, x 0)", Refusal(MLImage.CreateFromPixels(2, 1, MLPixelFormat.Bgra32, [1, 1, 1, 100, 0, 0, 0, 255])));
        Assert.Contains("Row 0 of column 'Label' has no mask", Refusal(null));
        Masks.WritePng(folder.File("palette.png"), 1, 2, 8, [0, 1], palette: [0, 0, 0, 128, 0, 0]);
        Assert.Contains("write masks as gray images", Refusal(MLImage.CreateFromFile(folder.File("palette.png"))));
    }

    [Fact]
    public void Gray_values_survive_decoding()
    {
        using var folder = new TemporaryFolder();
        var ml = Models.Context();
        byte[] all = [.. Enumerable.Range(0, 256).Select(value => (byte)value)];
        Masks.WritePng(folder.File("8.png"), 16, 16, 8, all);
        var row = new Masks.ImageRow { Label = MLImage.CreateFromFile(folder.File("8.png")), PredictedMask = Masks.Image(16, 16, all) };
        Assert.Equal(1, ml.ImageSegmentation.Evaluate(ml.Data.LoadFromEnumerable([row]), ignoreIndex: null).PixelAccuracy);
        Masks.WritePng(folder.File("4.png"), 1, 3, 4, [0, 1, 15]);
        Assert.Equal([0, 17, 255], ImagePixels.Of(MLImage.CreateFromFile(folder.File("4.png"))).ToArray().Select(pixel => (byte)pixel)); // decoders stretch fewer bits
    }

    [Fact]
    public void Sizes_that_differ_are_named()
    {
        var ml = Models.Context();
        var rows = ml.Data.LoadFromEnumerable(new[]
        {
            new Masks.ImageRow { Label = Masks.Image(1, 2, [0, 1]), PredictedMask = Masks.Image(1, 2, [0, 1]) },
            new Masks.ImageRow { Label = Masks.Image(4, 6, new byte[24]), PredictedMask = Masks.Image(6, 4, new byte[24]) },
        });
        Assert.Equal("Row 1 has a prediction of 6 x 4 pixels (height x width) in column 'PredictedMask'; expected 4 x 6 pixels (height x width) as in column 'Label'. Resize one of them.",
            Message(() => ml.ImageSegmentation.Evaluate(rows)));
        Assert.StartsWith("Row 0 has a prediction of 3 pixels in column 'PredictedMask'; expected 2 x 2 pixels",
            Message(() => ml.ImageSegmentation.Evaluate(Masks.Vectors(ml, [2, 2], [], [new Masks.VectorRow { Label = [0, 0, 0, 0], PredictedMask = [0, 0, 0] }]))));
        Assert.Contains("has no mask", Message(() => ml.ImageSegmentation.Evaluate(Masks.Vectors(ml, [], ([], [])))));
    }

    [Fact]
    public void Nothing_to_compare_and_wrong_columns_are_refused()
    {
        var ml = Models.Context();
        Assert.Contains("no rows to evaluate", Message(() => ml.ImageSegmentation.Evaluate(Masks.Vectors(ml, [1, 2]))));
        Assert.Contains("All pixels of the 2 images have the ignore index 255", Message(() => ml.ImageSegmentation.Evaluate(Masks.Vectors(ml, [1, 1], ([255], [0]), ([255], [1])))));
        var view = Masks.Vectors(ml, [1, 2], ([0, 1], [0, 1]));
        Assert.Contains("'Truth'", Message(() => ml.ImageSegmentation.Evaluate(view, "Truth")));
        Assert.Contains("'Mask'", Message(() => ml.ImageSegmentation.Evaluate(view, predictedMaskColumnName: "Mask")));
        Assert.Contains("a vector of Byte with dimensions [height, width], or an image", Message(() => ml.ImageSegmentation.Evaluate(Models.Series(ml), "Features", "Features")));
        Assert.Contains("There are 0 classes", Message(() => ml.ImageSegmentation.Evaluate(view, classNames: [])));
    }

    [Fact]
    public void Evaluation_can_be_cancelled()
    {
        var ml = Models.Context();
        IEnumerable<Masks.VectorRow> Rows()
        {
            for (var i = 0; ; i++)
            {
                if (i == 100) typeof(MLContext).GetMethod("CancelExecution", BindingFlags.Instance | BindingFlags.NonPublic)!.Invoke(ml, null);
                yield return new() { Label = [0, 1], PredictedMask = [0, 1] };
            }
        }
        Assert.ThrowsAny<OperationCanceledException>(() => ml.ImageSegmentation.Evaluate(Masks.Vectors(ml, [1, 2], [1, 2], Rows())));
    }

    [Fact]
    public void Texts_are_readable()
    {
        var metrics = Evaluate([0, 0, 0, 0, 1, 1, 255, 255], [0, 0, 0, 1, 1, 0, 2, 1], ["road", "tree", "sky", "a cow whose name is long"]);
        Assert.Equal("""
            1 images, 6 pixels compared, 2 left out
            mean IoU 0.4667, mean Dice 0.6250, pixel accuracy 0.6667, mean class accuracy 0.6250, frequency weighted IoU 0.5111
            per image: mean IoU 0.4667, mean Dice 0.6250
              road                      IoU 0.6000  Dice 0.7500
              tree                      IoU 0.3333  Dice 0.5000
              sky                       IoU      -  Dice      -
              a cow whose name is long  IoU      -  Dice      -
            """, metrics.ToString(), ignoreLineEndingDifferences: true);
        Assert.Equal("""
            label \ predicted              road    tree     sky       3  recall
            road                              3       1       0       0  0.7500
            tree                              1       1       0       0  0.5000
            sky                               0       0       0       0       -
            3: a cow whose name is long       0       0       0       0       -
            precision                    0.7500  0.5000       -       -

            """, metrics.GetFormattedConfusionTable(), ignoreLineEndingDifferences: true);
    }
}
