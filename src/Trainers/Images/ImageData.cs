using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using Microsoft.ML;
using Microsoft.ML.Data;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What happens to a training row whose image or mask cannot be used.</summary>
public enum BadImages
{
    /// <summary>Training stops with an error that names the row.</summary>
    Fail,

    /// <summary>The row is left out; a warning counts such rows.</summary>
    Skip,
}

/// <summary>A row to train on.</summary>
/// <param name="Load">Gives the image, fitted with its margin: from memory, or from its file at each call.</param>
/// <param name="Height">Its rows.</param>
/// <param name="Width">Its columns.</param>
/// <param name="Label">Its class, when classifying.</param>
/// <param name="Mask">Its pixels' classes, when segmenting.</param>
internal sealed record ImageRow(Func<PixelImage> Load, int Height, int Width, int Label, byte[]? Mask);

/// <summary>Labelled images, read once: in host memory, or as the files they are decoded from when they would not fit.</summary>
internal sealed class ImageData(IReadOnlyList<ImageRow> rows, ImageInput input, long missingLabels, IReadOnlyList<string> bad)
{
    public ImageRow this[int row] => rows[row];

    public int Count => rows.Count;

    public ImageInput Input => input;

    /// <summary>Rows skipped because their label is missing.</summary>
    public long MissingLabels => missingLabels;

    /// <summary>Why each row that was left out was left out.</summary>
    public IReadOnlyList<string> Bad => bad;

    public int[] Labels { get; } = [.. rows.Select(row => row.Label)];

    /// <summary>Whether images are decoded anew each time.</summary>
    public bool IsDeferred { get; private init; }

    /// <summary>Bytes on a device when kept there whole.</summary>
    public long DeviceBytes => rows.Sum(row => (long)row.Height * row.Width * (input.Channels * (input.ElementType == uint8 ? 1 : sizeof(float)) + (row.Mask is null ? 0 : 1)));

    /// <summary>Adds what a checkpoint depends on: labels and masks, sizes, and the pixels of images in memory.</summary>
    public void AppendTo(IncrementalHash hash)
    {
        hash.Append<int>(Labels);
        foreach (var row in rows)
        {
            hash.Append<int>([row.Height, row.Width]);
            if (row.Mask is not null) hash.AppendData(row.Mask);
            if (!IsDeferred) hash.AppendData(row.Load().Data is byte[] bytes ? bytes : MemoryMarshal.AsBytes(((float[])row.Load().Data).AsSpan()));
        }
    }

    /// <summary>Reads what a cursor's current row is labelled with: a class of at least 0, or a mask; null when the label is missing.</summary>
    public delegate (int Class, byte[]? Mask)? LabelReader(PixelImage? image);

    /// <summary>How to read a view.</summary>
    /// <param name="FeatureColumn">The images.</param>
    /// <param name="LabelColumn">The classes or masks.</param>
    /// <param name="CreateLabelReader">Opens the label column of a cursor. The reader is called once per row, on the cursor's thread, with the image where there is one already.</param>
    /// <param name="NeedsImage">Whether the label reader wants the image.</param>
    /// <param name="Bad">What to do with rows that cannot be used.</param>
    /// <param name="MemoryBudget">Bytes of images that may be kept in host memory; more is decoded anew from files when needed.</param>
    /// <param name="DependsOnOrder">Asked after reading: whether what the label readers made of their rows depends on rows that another of them has read. They are then read anew in one go.</param>
    public sealed record Reading(string FeatureColumn, string LabelColumn, Func<DataViewRow, DataViewSchema.Column, LabelReader> CreateLabelReader, bool NeedsImage, BadImages Bad, long MemoryBudget,
        Func<bool>? DependsOnOrder = null);

    /// <summary>Reads a view, decoding on all cores.</summary>
    /// <exception cref="ArgumentException">A row cannot be used; the message names it.</exception>
    public static ImageData Read(IDataView view, ImageInput input, Reading reading, Action checkAlive)
    {
        var (feature, label) = (view.Schema[reading.FeatureColumn], view.Schema[reading.LabelColumn]);
        // Several cursors share a view's rows where its transforms allow that: ML.NET then decodes on as many threads. Files are decoded later.
        var cursors = input.Kind == ImageColumnKind.File && !reading.NeedsImage ? [] : view.GetRowCursorSet([feature, label], Environment.ProcessorCount);
        try
        {
            if (cursors.Length > 1)
            {
                var parts = new ConcurrentBag<Part>();
                try
                {
                    Parallel.ForEach(cursors, cursor => parts.Add(ReadPart(cursor, feature, label, input, reading, checkAlive)));
                    if (parts.All(part => part.Bad.Count == 0) && reading.DependsOnOrder?.Invoke() != true) return Finish([.. parts], input, reading, checkAlive);
                }
                catch (AggregateException e) when (e.InnerExceptions.All(inner => inner is not (OutOfMemoryException or OperationCanceledException)))
                {
                }
                // Which row of the whole is at fault, only a cursor over all of them can tell.
            }
        }
        finally
        {
            foreach (var cursor in cursors) cursor.Dispose();
        }
        using var single = view.GetRowCursor([feature, label]);
        return Finish([ReadPart(single, feature, label, input, reading, checkAlive)], input, reading, checkAlive);
    }

    /// <summary>The rows of one cursor: an image, or the way to a file's.</summary>
    private sealed record Part(List<(long Batch, int Order, Func<PixelImage>? File, PixelImage? Image, int Class, byte[]? Mask)> Rows, long Missing, List<string> Bad);

    private static Part ReadPart(DataViewRowCursor cursor, DataViewSchema.Column feature, DataViewSchema.Column label, ImageInput input, Reading reading, Action checkAlive)
    {
        var (part, missing) = (new Part([], 0, []), 0L);
        var readImage = input.CreateReader(cursor, feature);
        var readLabel = reading.CreateLabelReader(cursor, label);
        var order = 0;
        while (cursor.MoveNext())
        {
            if ((order++ & 63) == 0) checkAlive();
            try
            {
                var load = readImage();
                var image = input.Kind == ImageColumnKind.File && !reading.NeedsImage ? null : Checked(load(), cursor.Position, feature.Name);
                if (readLabel(image) is not { } found)
                {
                    missing++;
                    continue;
                }
                if (image is not null) image = input.WithMargin(image);
                part.Rows.Add((cursor.Batch, order, image is null ? load : null, image, found.Class, found.Mask));
            }
            catch (ArgumentException e) when (reading.Bad == BadImages.Skip)
            {
                part.Bad.Add(e.Message);
            }
        }
        return part with { Missing = missing };
    }

    private static ImageData Finish(Part[] parts, ImageInput input, Reading reading, Action checkAlive)
    {
        var read = parts.SelectMany(part => part.Rows).OrderBy(row => row.Batch).ThenBy(row => row.Order).ToArray();
        var bad = new ConcurrentBag<(int Row, string Message)>();
        // Files: of one size once fitted, so that the first tells what all need.
        var deferred = input.Kind == ImageColumnKind.File && input.Height > 0
            && (long)(input.Height / input.CropFraction * input.Width / input.CropFraction) * input.Channels * read.Length > reading.MemoryBudget;
        ImageRow? Prepare(int i)
        {
            if (i % 64 == 0) checkAlive();
            try
            {
                var (_, _, file, image, label, mask) = read[i];
                image ??= input.WithMargin(file!());
                return new ImageRow(deferred ? Decoded(file!, input) : Kept(image), image.Height, image.Width, label, mask);
            }
            catch (ArgumentException e) when (reading.Bad == BadImages.Skip)
            {
                bad.Add((i, e.Message));
                return null;
            }
        }
        int[] places = [.. Enumerable.Range(0, read.Length)];
        var rows = read.Any(row => row.Image is null) ? ManyCores.Select(places, Prepare) : [.. places.Select(Prepare)];
        return new ImageData([.. rows.OfType<ImageRow>()], input, parts.Sum(part => part.Missing), [.. parts.SelectMany(part => part.Bad), .. bad.OrderBy(entry => entry.Row).Select(entry => entry.Message)])
        {
            IsDeferred = deferred,
        };
    }

    // Each captures its own, so that a decoded image is not kept alive by the way to its file.
    private static Func<PixelImage> Kept(PixelImage image) => () => image;

    private static Func<PixelImage> Decoded(Func<PixelImage> file, ImageInput input) => () => input.WithMargin(file());

    private static PixelImage Checked(PixelImage image, long row, string column)
    {
        if (image.Data is not float[] values) return image;
        var at = Array.FindIndex(values, value => !float.IsFinite(value));
        if (at < 0) return image;
        throw new ArgumentException($"Row {row} of column '{column}' is {values[at]} at channel {at % image.Channels}, (y {at / image.Channels / image.Width}, x {at / image.Channels % image.Width}); " +
            "expected finite numbers. Replace or remove such rows first, or set BadImages to Skip.");
    }
}
