using Microsoft.ML;
using Microsoft.ML.Data;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>How a segmenter scores, besides its network.</summary>
/// <param name="ClassNames">Class by class.</param>
/// <param name="Height">Rows of the masks that come out; 0: those of each image.</param>
/// <param name="Width">Columns of the masks that come out.</param>
/// <param name="AsImage">Whether masks come out as gray images.</param>
/// <param name="TileSize">Images larger than this, in pixels, are scored by overlapping parts of this size.</param>
/// <param name="TileOverlap">Share of a tile that its neighbour covers too.</param>
/// <param name="TestTimeFlips">Mirror images over which probabilities are averaged.</param>
internal sealed record SegmentationScoring(string[] ClassNames, int Height, int Width, bool AsImage, int TileSize, double TileOverlap, ImageFlips TestTimeFlips)
{
    /// <summary>Checks values that may come from a file.</summary>
    public IEnumerable<string> Problems()
    {
        if (ClassNames is null || ClassNames.Length is < 2 or > MaskColumn.MostClasses || ClassNames.Any(string.IsNullOrEmpty)) yield return $"There are {ClassNames?.Length ?? 0} class names; expected 2 to {MaskColumn.MostClasses}, none empty.";
        if (Height is < 0 or > 1 << 15 || Width is < 0 or > 1 << 15 || Height == 0 != (Width == 0)) yield return $"The mask's size is {Height} × {Width}; expected both 1 to {1 << 15}, or both 0.";
        if (Height == 0 && !AsImage) yield return "Masks without a size must be images.";
        if (TileSize is < 16 or > 1 << 15) yield return $"TileSize is {TileSize}; expected 16 to {1 << 15} pixels.";
        if (TileOverlap is not (>= 0 and <= 0.75)) yield return $"TileOverlap is {TileOverlap}; expected 0 to 0.75.";
    }
}

/// <summary>A trained segmenter ready to score: network, input and device. Used by many threads at once; nothing in it changes.</summary>
internal sealed class SegmentationModel
{
    /// <summary>Bound on rows × pixels × classes of a batch.</summary>
    private const long BatchElements = 1 << 22;

    public SegmentationModel(ImageSegmenterSpec spec, ImageInput input, SegmentationScoring scoring, ImageSegmenter network, Device device)
    {
        (Spec, Input, Scoring, Network, Device) = (spec, input, scoring, network, device);
        network.eval();
    }

    public ImageSegmenterSpec Spec { get; }

    public ImageInput Input { get; }

    public SegmentationScoring Scoring { get; }

    public ImageSegmenter Network { get; }

    public Device Device { get; }

    /// <summary>Reads rows of a cursor and scores them.</summary>
    /// <param name="row">The cursor.</param>
    /// <param name="features">The image column.</param>
    /// <param name="withScores">Whether probabilities are wanted besides masks.</param>
    public ScoringSession CreateSession(DataViewRow row, DataViewSchema.Column features, bool withScores) => new Session(this, Input.CreateReader(row, features), withScores);

    /// <summary>A scored image.</summary>
    /// <param name="Mask">[height, width].</param>
    /// <param name="Height">Rows.</param>
    /// <param name="Width">Columns.</param>
    /// <param name="Scores">[classes, height, width], when asked for.</param>
    private sealed record Segmented(byte[] Mask, int Height, int Width, float[]? Scores);

    private Segmented[] Score(IReadOnlyList<PixelImage> images, bool withScores)
    {
        var results = new Segmented[images.Count];
        foreach (var alike in Enumerable.Range(0, images.Count).GroupBy(i => (images[i].Height, images[i].Width)))
        {
            var (height, width) = alike.Key;
            var batchRows = (int)Math.Clamp(BatchElements / ((long)height * width * Math.Max(Spec.Classes, Spec.HeadWidth / 2)), 1, 64);
            foreach (var rows in alike.Chunk(batchRows))
            {
                using var scope = NewDisposeScope();
                using var _ = inference_mode();
                var probabilities = Probabilities(Input.Stack([.. rows.Select(row => images[row])], Device));
                if (Scoring.Height > 0 && (height, width) != (Scoring.Height, Scoring.Width))
                    probabilities = nn.functional.interpolate(probabilities, [Scoring.Height, Scoring.Width], mode: InterpolationMode.Bilinear, align_corners: false, antialias: true);
                var (masks, size) = (probabilities.argmax(1).to(uint8).cpu(), probabilities.shape);
                var scores = withScores ? probabilities.cpu() : null;
                for (var i = 0; i < rows.Length; i++)
                    results[rows[i]] = new Segmented(masks[i].contiguous().data<byte>().ToArray(), (int)size[2], (int)size[3], scores?[i].contiguous().data<float>().ToArray());
            }
        }
        return results;
    }

    /// <summary>[batch, classes, height, width] of images [batch, channels, height, width]: at once, or tile by tile with weights that fall towards a tile's border.</summary>
    private Tensor Probabilities(Tensor images)
    {
        var (tile, height, width) = (Scoring.TileSize, images.shape[2], images.shape[3]);
        Tensor Whole(Tensor part) => Scoring.TestTimeFlips.Average(part, flipped => Network.call(flipped).softmax(1), restore: true);
        if (height <= tile && width <= tile) return Whole(images);
        var sum = zeros([images.shape[0], Spec.Classes, height, width], device: Device);
        var weights = zeros([height, width], device: Device);
        foreach (var top in Starts(height, tile))
            foreach (var left in Starts(width, tile))
            {
                using var scope = NewDisposeScope();
                var (rows, columns) = (Math.Min(tile, height - top), Math.Min(tile, width - left));
                var weight = outer(Ramp(rows), Ramp(columns));
                sum.narrow(2, top, rows).narrow(3, left, columns).add_(Whole(images.narrow(2, top, rows).narrow(3, left, columns)) * weight);
                weights.narrow(0, top, rows).narrow(1, left, columns).add_(weight);
            }
        return sum / weights;
    }

    private IEnumerable<long> Starts(long length, long tile)
    {
        if (length <= tile) return [0];
        var step = Math.Max(1, (long)(tile * (1 - Scoring.TileOverlap)));
        var count = (length - tile + step - 1) / step + 1;
        return Enumerable.Range(0, (int)count).Select(i => Math.Min(i * step, length - tile)).Distinct();
    }

    // 1 in the middle, falling to nearly 0 over the overlap.
    private Tensor Ramp(long length)
    {
        var place = arange(length, dtype: float32, device: Device);
        var overlap = (float)Math.Max(1, Scoring.TileSize * Scoring.TileOverlap);
        return (minimum(place, length - 1 - place).add(0.5) / overlap).clamp_max(1);
    }

    private sealed class Session(SegmentationModel model, Func<Func<PixelImage>> read, bool withScores) : ScoringSession
    {
        private readonly List<PixelImage> _images = [];
        private Segmented[] _segmented = [];

        public override void Append() => _images.Add(read()());

        public override void Score()
        {
            _segmented = model.Score(_images, withScores);
            _images.Clear();
        }

        public override Delegate CreateGetter(int output, Func<int> row)
        {
            if (output == 1) return (ValueGetter<VBuffer<float>>)((ref VBuffer<float> value) => Copy(At(row()).Scores!, ref value));
            if (!model.Scoring.AsImage) return (ValueGetter<VBuffer<byte>>)((ref VBuffer<byte> value) => Copy(At(row()).Mask, ref value));
            return (ValueGetter<MLImage>)((ref MLImage value) =>
            {
                var segmented = At(row());
                value?.Dispose(); // as ML.NET's own image getters do with the image handed back to them
                value = MaskColumn.ToGrayImage(segmented.Mask, segmented.Height, segmented.Width);
            });
        }

        // A method of its own: asking for the row may score it, which makes a new array.
        private Segmented At(int row) => _segmented[row];

        private static void Copy<T>(T[] from, ref VBuffer<T> value)
        {
            var editor = VBufferEditor.Create(ref value, from.Length);
            from.CopyTo(editor.Values);
            value = editor.Commit();
        }
    }
}
