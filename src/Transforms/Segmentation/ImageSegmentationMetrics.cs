using System.Globalization;
using System.Text;
using Microsoft.ML.Data;

namespace MLSeq;

/// <summary>How predicted masks agree with true ones. From <c>ml.ImageSegmentation.Evaluate</c>.</summary>
/// <remarks>
/// For a class let h be the pixels that have it as label and as prediction, l those that have it as label, p those that have it as prediction, over all images. Pixels to be left out
/// count nowhere. Means over classes are over those that occur: a class in neither labels nor predictions has not-a-number and is in no mean.
/// </remarks>
public sealed class ImageSegmentationMetrics
{
    internal ImageSegmentationMetrics()
    {
    }

    /// <summary>The classes, in the order of all lists here.</summary>
    public required IReadOnlyList<string> ClassNames { get; init; }

    /// <summary>Intersection over union (Jaccard index) of each class: h / (l + p − h).</summary>
    public required IReadOnlyList<double> PerClassIoU { get; init; }

    /// <summary>Mean of <see cref="PerClassIoU"/> over the classes that occur.</summary>
    public required double MeanIoU { get; init; }

    /// <summary>Dice coefficient (F1 score) of each class: 2 h / (l + p).</summary>
    public required IReadOnlyList<double> PerClassDice { get; init; }

    /// <summary>Mean of <see cref="PerClassDice"/> over the classes that occur.</summary>
    public required double MeanDice { get; init; }

    /// <summary>Share of pixels predicted right.</summary>
    public required double PixelAccuracy { get; init; }

    /// <summary>Mean over the classes that occur as label of h / l.</summary>
    public required double MeanClassAccuracy { get; init; }

    /// <summary>Intersection over union, each class weighted with its share of the labels.</summary>
    public required double FrequencyWeightedIoU { get; init; }

    /// <summary>Each image's own mean intersection over union, over the classes that occur in it, averaged over images. Images that are left out as a whole do not count.</summary>
    public required double MeanImageIoU { get; init; }

    /// <summary>Each image's own mean Dice coefficient, over the classes that occur in it, averaged over images.</summary>
    public required double MeanImageDice { get; init; }

    /// <summary>Counts of pixels, by label (outer list) and prediction, and each class's precision h / p and recall h / l.</summary>
    public required ConfusionMatrix ConfusionMatrix { get; init; }

    /// <summary>Images compared.</summary>
    public required long ImageCount { get; init; }

    /// <summary>Pixels compared.</summary>
    public required long PixelCount { get; init; }

    /// <summary>Pixels left out, as they have the ignore index as label.</summary>
    public required long IgnoredPixelCount { get; init; }

    /// <summary>The metrics, in lines to read.</summary>
    public override string ToString()
    {
        var width = ClassNames.Max(name => name.Length);
        var text = new StringBuilder()
            .AppendLine(Line($"{ImageCount:N0} images, {PixelCount:N0} pixels compared, {IgnoredPixelCount:N0} left out"))
            .AppendLine(Line($"mean IoU {MeanIoU:F4}, mean Dice {MeanDice:F4}, pixel accuracy {PixelAccuracy:F4}, mean class accuracy {MeanClassAccuracy:F4}, frequency weighted IoU {FrequencyWeightedIoU:F4}"))
            .Append(Line($"per image: mean IoU {MeanImageIoU:F4}, mean Dice {MeanImageDice:F4}"));
        for (var index = 0; index < ClassNames.Count; index++)
            text.AppendLine().Append(Line($"  {ClassNames[index].PadRight(width)}  IoU {Ratio(PerClassIoU[index])}  Dice {Ratio(PerClassDice[index])}"));
        return text.ToString();
    }

    /// <summary>The confusion matrix as a table to read: counts of pixels, recall at the right, precision below.</summary>
    public string GetFormattedConfusionTable()
    {
        // ML.NET's own table has columns of five characters, which counts of pixels overflow.
        const string Corner = "label \\ predicted", Precision = "precision";
        var n = ClassNames.Count;
        var counts = ConfusionMatrix.Counts.Select(row => row.Select(count => Line($"{count:N0}")).ToArray()).ToArray();
        var names = ClassNames.Select((name, index) => name.Length <= 16 ? name : $"{index}").ToArray(); // long names head their rows only
        var rowNames = ClassNames.Select((name, index) => names[index] == name ? name : $"{index}: {name}").ToArray();
        var first = Math.Max(Corner.Length, rowNames.Max(name => name.Length));
        var widths = Enumerable.Range(0, n).Select(column => Math.Max(6, Math.Max(names[column].Length, counts.Max(row => row[column].Length)))).ToArray();
        var text = new StringBuilder(Corner.PadRight(first));
        for (var column = 0; column < n; column++) text.Append("  ").Append(names[column].PadLeft(widths[column]));
        text.AppendLine("  recall");
        for (var row = 0; row < n; row++)
        {
            text.Append(rowNames[row].PadRight(first));
            for (var column = 0; column < n; column++) text.Append("  ").Append(counts[row][column].PadLeft(widths[column]));
            text.Append("  ").AppendLine(Ratio(ConfusionMatrix.PerClassRecall[row]));
        }
        text.Append(Precision.PadRight(first));
        for (var column = 0; column < n; column++) text.Append("  ").Append(Ratio(ConfusionMatrix.PerClassPrecision[column]).PadLeft(widths[column]));
        return text.AppendLine().ToString();
    }

    private static string Ratio(double value) => double.IsNaN(value) ? "     -" : Line($"{value:F4}");

    private static string Line(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
}
