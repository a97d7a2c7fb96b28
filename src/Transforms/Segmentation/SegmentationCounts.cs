using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace MLSeq;

/// <summary>Counts pixels by label and prediction, image after image.</summary>
/// <param name="classes">An upper bound of the classes.</param>
/// <param name="ignoreIndex">The label of pixels that are left out.</param>
internal sealed class SegmentationCounts(int classes, byte? ignoreIndex)
{
    private readonly long[,] _pixels = new long[classes, classes]; // by label and prediction
    private readonly long[] _hits = new long[classes], _labelled = new long[classes], _predicted = new long[classes]; // of one image
    private double _imageIoU, _imageDice;
    private long _imagesCompared;

    /// <summary>Images added.</summary>
    public long Images { get; private set; }

    /// <summary>Pixels compared.</summary>
    public long Pixels { get; private set; }

    /// <summary>Pixels left out.</summary>
    public long Ignored { get; private set; }

    /// <summary>Adds an image's masks, which have the same size and values below the number of classes, or the ignore index as label.</summary>
    public void Add(ReadOnlySpan<byte> label, ReadOnlySpan<byte> predicted)
    {
        Array.Clear(_hits);
        Array.Clear(_labelled);
        Array.Clear(_predicted);
        var compared = 0;
        for (var i = 0; i < label.Length; i++)
        {
            var (truth, guess) = (label[i], predicted[i]);
            if (truth == ignoreIndex) continue;
            compared++;
            _pixels[truth, guess]++;
            _labelled[truth]++;
            _predicted[guess]++;
            if (truth == guess) _hits[truth]++;
        }
        Images++;
        Pixels += compared;
        Ignored += label.Length - compared;
        if (compared == 0) return;
        _imagesCompared++;
        _imageIoU += Mean(PerClass(classes, _hits, _labelled, _predicted, IoU));
        _imageDice += Mean(PerClass(classes, _hits, _labelled, _predicted, Dice));
    }

    /// <summary>The metrics of all images added.</summary>
    /// <param name="host">For ML.NET's confusion matrix.</param>
    /// <param name="classNames">The classes; null: as many as were seen, named by their index.</param>
    public ImageSegmentationMetrics ToMetrics(IHost host, IReadOnlyList<string>? classNames)
    {
        var names = classNames ?? [.. Enumerable.Range(0, Seen()).Select(index => $"{index}")];
        var n = names.Count;
        var (hits, labelled, predicted) = (new long[n], new long[n], new long[n]);
        var rows = new double[n][];
        for (var truth = 0; truth < n; truth++)
        {
            rows[truth] = new double[n];
            hits[truth] = _pixels[truth, truth];
            for (var guess = 0; guess < n; guess++)
            {
                rows[truth][guess] = _pixels[truth, guess];
                labelled[truth] += _pixels[truth, guess];
                predicted[guess] += _pixels[truth, guess];
            }
        }
        var (iou, dice) = (PerClass(n, hits, labelled, predicted, IoU), PerClass(n, hits, labelled, predicted, Dice));
        var (precision, recall) = (PerClass(n, hits, labelled, predicted, Precision), PerClass(n, hits, labelled, predicted, Recall));
        return new ImageSegmentationMetrics
        {
            ClassNames = names,
            PerClassIoU = iou,
            MeanIoU = Mean(iou),
            PerClassDice = dice,
            MeanDice = Mean(dice),
            PixelAccuracy = hits.Sum() / (double)Pixels,
            MeanClassAccuracy = Mean(recall),
            FrequencyWeightedIoU = Enumerable.Range(0, n).Where(index => labelled[index] > 0).Sum(index => labelled[index] / (double)Pixels * iou[index]),
            MeanImageIoU = _imageIoU / _imagesCompared,
            MeanImageDice = _imageDice / _imagesCompared,
            ConfusionMatrix = new ConfusionMatrix(host, precision, recall, rows, [.. names.Select(name => name.AsMemory())], isSampled: false, isBinary: false),
            ImageCount = Images,
            PixelCount = Pixels,
            IgnoredPixelCount = Ignored,
        };
    }

    private static double IoU(long hits, long labelled, long predicted) => hits / (double)(labelled + predicted - hits);

    private static double Dice(long hits, long labelled, long predicted) => 2 * hits / (double)(labelled + predicted);

    private static double Precision(long hits, long labelled, long predicted) => hits / (double)predicted;

    private static double Recall(long hits, long labelled, long predicted) => hits / (double)labelled;

    // A class absent from label and prediction is 0 / 0, not-a-number. So is one that is left out: where it is the label nothing is compared, so it could only be wrong.
    private double[] PerClass(int count, long[] hits, long[] labelled, long[] predicted, Func<long, long, long, double> metric)
        => [.. Enumerable.Range(0, count).Select(index => index == ignoreIndex ? double.NaN : metric(hits[index], labelled[index], predicted[index]))];

    private static double Mean(IEnumerable<double> values) => values.Where(value => !double.IsNaN(value)).DefaultIfEmpty(double.NaN).Average();

    private int Seen()
    {
        var seen = 0;
        for (var truth = 0; truth < classes; truth++)
            for (var guess = 0; guess < classes; guess++)
                if (_pixels[truth, guess] > 0) seen = Math.Max(seen, Math.Max(truth, guess) + 1);
        return seen;
    }
}
