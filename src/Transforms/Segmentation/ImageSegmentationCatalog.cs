using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using MLSeq;

namespace Microsoft.ML;

/// <summary>MLSeq's addition to <see cref="MLContext"/>.</summary>
public static class MLSeqContext
{
    extension(MLContext context)
    {
        /// <summary>Training, evaluating and painting of image segmentation: a class for every pixel.</summary>
        public ImageSegmentationCatalog ImageSegmentation => new(context);
    }
}

/// <summary>Training, evaluating and painting of image segmentation. Reached as <c>ml.ImageSegmentation</c>.</summary>
public sealed class ImageSegmentationCatalog
{
    internal ImageSegmentationCatalog(IHostEnvironment env)
    {
        ArgumentNullException.ThrowIfNull(env);
        Environment = env;
        Trainers = new ImageSegmentationTrainers(env);
    }

    internal IHostEnvironment Environment { get; }

    /// <summary>Trainers of image segmentation.</summary>
    public ImageSegmentationTrainers Trainers { get; }

    /// <summary>Compares predicted masks with true ones, pixel by pixel.</summary>
    /// <param name="scored">Scored data. Read once, row by row; the memory needed does not depend on their number.</param>
    /// <param name="labelColumnName">The true masks: a vector of Byte with dimensions [height, width], or an image whose gray values are class indices. With two classes an image of
    /// only 0 and 255 has 255 as class 1.</param>
    /// <param name="predictedMaskColumnName">The predicted masks, likewise, of the same sizes.</param>
    /// <param name="ignoreIndex">Pixels with this label are left out; null: none are. When it is a class's index, that class is left out of all means.</param>
    /// <param name="classNames">The classes; null: as the columns say (a <c>ClassNames</c> annotation), or else as many as there are values in the masks.</param>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or holds no masks.</exception>
    /// <exception cref="ArgumentException">A mask has a value that is no class, or another size than its prediction; the message names row and place.</exception>
    /// <exception cref="InvalidOperationException">There are no rows, or no pixel is left to compare.</exception>
    public ImageSegmentationMetrics Evaluate(IDataView scored, string labelColumnName = "Label", string predictedMaskColumnName = "PredictedMask", byte? ignoreIndex = 255,
        IReadOnlyList<string>? classNames = null)
    {
        ArgumentNullException.ThrowIfNull(scored);
        var host = Environment.Register("ImageSegmentationEvaluation");
        var labelColumn = MaskColumn.Find(host, scored.Schema, "label", labelColumnName);
        var predictedColumn = MaskColumn.Find(host, scored.Schema, "predicted mask", predictedMaskColumnName);
        var names = classNames ?? MaskColumn.ClassNames(predictedColumn) ?? MaskColumn.ClassNames(labelColumn);

        using var cursor = scored.GetRowCursor([labelColumn, predictedColumn]);
        var label = new MaskReader(cursor, labelColumn, names?.Count, ignoreIndex);
        var predicted = new MaskReader(cursor, predictedColumn, names?.Count, ignoreIndex: null);
        var counts = new SegmentationCounts(names?.Count ?? MaskColumn.MostClasses, ignoreIndex);
        while (cursor.MoveNext())
        {
            host.CheckAlive();
            label.Read();
            predicted.Read();
            CheckSizes(cursor.Position, label, predicted, labelColumnName, predictedMaskColumnName);
            counts.Add(label.Pixels, predicted.Pixels);
        }
        if (counts.Images == 0) throw host.Except($"There are no rows to evaluate; expected masks in '{labelColumnName}' and '{predictedMaskColumnName}'.");
        if (counts.Pixels == 0)
            throw host.Except($"All pixels of the {counts.Images} images have the ignore index {ignoreIndex} in '{labelColumnName}', so there is nothing to compare. Give another ignoreIndex, or null.");
        return counts.ToMetrics(host, names);
    }

    /// <summary>Adds a column with images that show masks: every class's colour blended over the image, outlines drawn stronger, and a legend.</summary>
    /// <param name="outputColumnName">The column to add: an image. As with ML.NET's own image columns, an image lives until the next row is read.</param>
    /// <param name="imageColumnName">The images: an image column, or a vector of Byte with dimensions [1 or 3, height, width].</param>
    /// <param name="maskColumnName">The masks: a vector of Byte with dimensions [height, width], or an image whose gray values are class indices. A mask of another size than its image
    /// is scaled (nearest neighbour).</param>
    /// <param name="options">Colours, names and layout.</param>
    /// <exception cref="ArgumentException">An option is out of range; all problems are named at once.</exception>
    public MaskPaintingEstimator PaintMask(string outputColumnName, string imageColumnName, string maskColumnName, PaintOptions? options = null)
        => new(Environment, MaskPainting.From(outputColumnName, imageColumnName, maskColumnName, options ?? new PaintOptions()));

    // Sizes that are unknown, as of vectors without dimensions, are compared by their number of pixels.
    private static void CheckSizes(long row, MaskReader label, MaskReader predicted, string labelName, string predictedName)
    {
        var bothKnown = label.Height > 0 && predicted.Height > 0;
        if (bothKnown ? (label.Height, label.Width) == (predicted.Height, predicted.Width) : label.Count == predicted.Count) return;
        throw new ArgumentException($"Row {row} has a prediction of {predicted.Size} in column '{predictedName}'; expected {label.Size} as in column '{labelName}'. Resize one of them.");
    }

    /// <summary>Trainers of image segmentation. Reached as <c>ml.ImageSegmentation.Trainers</c>.</summary>
    public sealed class ImageSegmentationTrainers
    {
        internal ImageSegmentationTrainers(IHostEnvironment env) => Environment = env;

        internal IHostEnvironment Environment { get; }
    }
}
