using System.Collections.Concurrent;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms.Image;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Trains a backbone with a segmentation head to find the class of every pixel.</summary>
/// <remarks>
/// <para>Label: the classes of an image's pixels: an MLImage whose gray values are class indices (or, of two classes, 0 and 255), or a vector of Byte [height, width].</para>
/// <para>Features: an MLImage (<c>Transforms.LoadImages</c>), or a vector of Byte or Single with dimensions [channels, height, width] or [height, width].</para>
/// <para>Output: <c>PredictedMask</c>, a vector of Byte [height, width] or a gray image, annotated with the classes' names; and on request <c>Score</c>, their probabilities [classes, height, width].</para>
/// </remarks>
public sealed class SemanticSegmentationTrainer : IEstimator<SemanticSegmentationTransformer>
{
    private readonly IHost _host;
    private readonly Options _options;

    internal SemanticSegmentationTrainer(IHostEnvironment env, Options options)
    {
        Contracts.CheckValue(env, nameof(env));
        _host = env.Register(nameof(SemanticSegmentationTrainer));
        _host.CheckValue(options, nameof(options));
        options.Validate();
        _options = options;
    }

    /// <summary>What to train and how.</summary>
    public sealed class Options : TrainingOptions
    {
        private int? _classes;

        /// <summary>Batches of 8, as images are large.</summary>
        public Options() => BatchSize = 8;

        /// <summary>The label column: masks.</summary>
        public string LabelColumnName { get; set; } = "Label";

        /// <summary>The feature column: images.</summary>
        public string FeatureColumnName { get; set; } = "Image";

        /// <summary>The column of masks that scoring adds.</summary>
        public string PredictedMaskColumnName { get; set; } = "PredictedMask";

        /// <summary>The column of probabilities [classes, height, width] that scoring adds; null: none.</summary>
        public string? ScoreColumnName { get; set; }

        /// <summary>The backbone.</summary>
        public VisionBackbone Backbone { get; set; } = VisionBackbone.ResNet();

        /// <summary>Classes of a pixel. With <see cref="ClassNames"/>, their number; else 2 unless set.</summary>
        public int Classes
        {
            get => _classes ?? ClassNames?.Count ?? 2;
            set => _classes = value;
        }

        /// <summary>Names of the classes, in the order of the masks' values; null: their numbers.</summary>
        public IReadOnlyList<string>? ClassNames { get; set; }

        /// <summary>Pixels with this value in the label are left out of loss and metric; null: none are.</summary>
        public byte? IgnoreIndex { get; set; } = 255;

        /// <summary>Rows of the parts that training draws from each image; 0 (with <see cref="CropWidth"/>): whole images, which then must be alike. A multiple of the coarsest stride (32) wastes nothing.</summary>
        public int CropHeight { get; set; }

        /// <summary>Columns of the parts that training draws from each image.</summary>
        public int CropWidth { get; set; }

        /// <summary>Channels made of an MLImage: 3 (red, green, blue) or 1 (gray). A vector's dimensions tell its own.</summary>
        public int Channels { get; set; } = 3;

        /// <summary>Features of the segmentation head at strides of 4 and more; it has fewer at finer ones.</summary>
        public int HeadWidth { get; set; } = 64;

        /// <summary>Weight of the Dice loss beside the cross-entropy: it counts classes alike, however few pixels they have. 0: cross-entropy alone.</summary>
        public double DiceWeight { get; set; } = 1;

        /// <summary>Weight of each class in the cross-entropy; null: all alike.</summary>
        public IReadOnlyList<double>? ClassWeights { get; set; }

        /// <summary>How training images and their masks are varied.</summary>
        public ImageAugmentation Augmentation { get; set; } = ImageAugmentation.None;

        /// <summary>Mirror images over which scoring averages, with the image itself: better, and as many times slower.</summary>
        public ImageFlips TestTimeFlips { get; set; }

        /// <summary>Images larger than this, in pixels, are scored by overlapping parts of this size. Of such images, validation while training judges the middle.</summary>
        public int TileSize { get; set; } = 512;

        /// <summary>Share of such a part that its neighbour covers too.</summary>
        public double TileOverlap { get; set; } = 0.25;

        /// <summary>Whether masks come out as gray images, each of its own image's size, rather than as vectors of one size.</summary>
        public bool MaskAsImage { get; set; }

        /// <summary>Rows to which masks are scaled, for vectors from images that differ in size; 0 (with <see cref="MaskWidth"/>): the images' own, which then must be alike.</summary>
        public int MaskHeight { get; set; }

        /// <summary>Columns to which masks are scaled.</summary>
        public int MaskWidth { get; set; }

        /// <summary>What to do with training rows whose image or mask is missing, unreadable or wrong.</summary>
        public BadImages BadImages { get; set; } = BadImages.Fail;

        /// <summary>A fitted model to go on from: it gives the weights, and must have the same backbone. Classes and channels may differ.</summary>
        public SemanticSegmentationTransformer? WarmStart { get; set; }

        internal override IEnumerable<string> Problems()
        {
            foreach (var problem in base.Problems()) yield return problem;
            foreach (var (name, value) in new[] { (nameof(LabelColumnName), LabelColumnName), (nameof(FeatureColumnName), FeatureColumnName), (nameof(PredictedMaskColumnName), PredictedMaskColumnName), (nameof(ScoreColumnName), ScoreColumnName ?? "none") })
                if (string.IsNullOrWhiteSpace(value)) yield return $"{name} is empty; expected a column's name.";
            if (Backbone is null) yield return "Backbone is null; expected one, for example VisionBackbone.ResNet().";
            else foreach (var problem in Backbone.Problems()) yield return $"Backbone: {problem}";
            foreach (var problem in Augmentation?.Problems(masks: true) ?? ["Augmentation is null; expected one, for example ImageAugmentation.None."]) yield return problem;
            if (Classes is < 2 or > MaskColumn.MostClasses) yield return $"Classes is {Classes}; expected 2 to {MaskColumn.MostClasses}.";
            if (ClassNames is not null && ClassNames.Count != Classes) yield return $"ClassNames has {ClassNames.Count} names for {Classes} classes.";
            if (ClassNames?.Any(string.IsNullOrWhiteSpace) == true) yield return "ClassNames has an empty name.";
            foreach (var problem in SizeProblems(nameof(CropHeight), CropHeight, nameof(CropWidth), CropWidth)) yield return problem;
            foreach (var problem in SizeProblems(nameof(MaskHeight), MaskHeight, nameof(MaskWidth), MaskWidth)) yield return problem;
            if (Augmentation?.QuarterTurns == true && CropHeight != CropWidth) yield return $"Augmentation.QuarterTurns needs square images; the size is {CropHeight} × {CropWidth}.";
            if (Channels is not (1 or 3)) yield return $"Channels is {Channels}; expected 3 (red, green, blue) or 1 (gray).";
            if (HeadWidth is < 4 or > 4096) yield return $"HeadWidth is {HeadWidth}; expected 4 to 4096.";
            if (DiceWeight is not (>= 0 and <= 100)) yield return $"DiceWeight is {DiceWeight}; expected 0 to 100.";
            if (ClassWeights is not null && ClassWeights.Count != Classes) yield return $"ClassWeights has {ClassWeights.Count} numbers for {Classes} classes.";
            foreach (var problem in WeightProblems(ClassWeights)) yield return problem;
            if (TileSize is < 16 or > 1 << 15) yield return $"TileSize is {TileSize}; expected 16 to {1 << 15} pixels.";
            if (TileOverlap is not (>= 0 and <= 0.75)) yield return $"TileOverlap is {TileOverlap}; expected 0 to 0.75.";
            if (ScoreColumnName is not null && MaskAsImage) yield return "ScoreColumnName is set with MaskAsImage; scores are vectors of one size. Set one of them.";
        }

        internal override IEnumerable<object> FingerprintParts()
            => [.. base.FingerprintParts(), Augmentation, Classes, IgnoreIndex ?? -1, CropHeight, CropWidth, HeadWidth, DiceWeight, TileSize, BadImages, .. (ClassWeights ?? []).Cast<object>()];
    }

    /// <summary>Trains on a view.</summary>
    /// <exception cref="ArgumentException">A column is missing or of a type that cannot be used, or an image or mask cannot be read or is wrong; the message names the row.</exception>
    /// <exception cref="InvalidOperationException">There are no rows, or images differ in size where they may not; or a checkpoint belongs to another training.</exception>
    /// <exception cref="TrainingDivergedException">The loss is not finite.</exception>
    /// <exception cref="OperationCanceledException">Cancelled, and <see cref="TrainingOptions.ReturnBestOnCancellation"/> is off or nothing was trained yet.</exception>
    public SemanticSegmentationTransformer Fit(IDataView input)
    {
        _host.CheckValue(input, nameof(input));
        CheckColumns(SchemaShape.Create(input.Schema));
        using var channel = _host.Start("Training");
        var run = new TrainingRun(_host, channel, _options);
        var (imageInput, data) = Read(channel, input, run.Seed);
        var (cropHeight, cropWidth, scoring) = Sizes(imageInput, data.Training);
        var spec = new ImageSegmenterSpec(_options.Backbone, imageInput.Channels, _options.Classes, _options.HeadWidth);
        run.CheckWarmStart(_options.WarmStart?.Backbone.ToJson(), spec.Backbone.ToJson());

        using var scope = NewDisposeScope();
        using var network = run.CreateNetwork(() => new ImageSegmenter(spec), _options.WarmStart?.Model.Network);
        channel.Info($"{spec.Backbone.Name}: {network.parameters().Sum(parameter => parameter.numel()):N0} parameters, {data.TrainingRows.Length:N0} training images, " +
            $"{data.ValidationRows.Length:N0} validation images, {run.Precision} on {run.Device}");
        var augmenter = new ImageAugmenter(_options.Augmentation, imageInput, cropHeight, cropWidth, run.Precision, run.Device);
        using var task = new SegmentationTask(network, augmenter, data, (long)cropHeight * cropWidth, _options, run.Device);
        var checkpoint = run.Checkpoint([spec.Backbone.ToJson(), imageInput with { Mean = [], Scale = [] }], hash =>
        {
            foreach (var part in data.Distinct) part.AppendTo(hash);
        });
        return run.Run(task, checkpoint, data.ValidationRows.Length > 0, () => new ImageSegmenter(spec), trained => new SemanticSegmentationTransformer(_host,
            new SegmentationModel(spec, imageInput, scoring, trained, run.Device), new(_options.FeatureColumnName, _options.PredictedMaskColumnName, _options.ScoreColumnName)));
    }

    /// <summary>The shape of the output, for pipelines.</summary>
    public SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        _host.CheckValue(inputSchema, nameof(inputSchema));
        CheckColumns(inputSchema);
        var columns = inputSchema.ToDictionary(column => column.Name);
        var names = new SchemaShape([new SchemaShape.Column(MaskColumn.ClassNamesKind, SchemaShape.Column.VectorKind.Vector, TextDataViewType.Instance, false)]);
        columns[_options.PredictedMaskColumnName] = _options.MaskAsImage
            ? new SchemaShape.Column(_options.PredictedMaskColumnName, SchemaShape.Column.VectorKind.Scalar, new ImageDataViewType(), false, names)
            : new SchemaShape.Column(_options.PredictedMaskColumnName, SchemaShape.Column.VectorKind.Vector, NumberDataViewType.Byte, false, names);
        if (_options.ScoreColumnName is { } score) columns[score] = new SchemaShape.Column(score, SchemaShape.Column.VectorKind.Vector, NumberDataViewType.Single, false);
        return new SchemaShape(columns.Values);
    }

    private void CheckColumns(SchemaShape schema)
    {
        ImageColumns.CheckFeature(_host, schema, _options.FeatureColumnName, files: false);
        if (!schema.TryFindColumn(_options.LabelColumnName, out var label)) throw _host.ExceptSchemaMismatch("inputSchema", "label", _options.LabelColumnName);
        var isMask = label.Kind == SchemaShape.Column.VectorKind.Scalar ? label.ItemType is ImageDataViewType : !label.IsKey && label.ItemType == NumberDataViewType.Byte;
        if (!isMask) throw _host.ExceptSchemaMismatch("inputSchema", "label", label.Name, MaskColumn.Expected, label.GetTypeString());
    }

    private (ImageInput Input, TrainingSplit<ImageData> Data) Read(IChannel channel, IDataView view, ulong seed)
    {
        var input = ImageInput.For(view.Schema[_options.FeatureColumnName], _options.Channels);
        ImageColumns.CheckAugmentation(_host, _options.Augmentation, input);
        var readers = new ConcurrentBag<MaskReader>();
        var reading = new ImageData.Reading(_options.FeatureColumnName, _options.LabelColumnName, (row, column) => ReadMasks(row, column, readers), NeedsImage: true, _options.BadImages, long.MaxValue,
            DependsOnOrder: () => readers.Any(reader => reader.WhiteIsClass) && readers.Any(reader => reader.WhiteIsIgnored));
        var training = ImageData.Read(view, input, reading, _host.CheckAlive);
        ImageColumns.WarnOfBad(channel, training, "training");
        if (training.Count == 0) throw _host.Except($"There are no training images{(training.Bad.Count > 0 ? " that can be used" : "")}.");
        // Masks have no classes to divide evenly.
        var (data, fitted) = ImageColumns.Split(_host, _options, training, view.Schema[_options.FeatureColumnName], view.Schema[_options.LabelColumnName], seed,
            BatchPlan.Split(new int[training.Count], _options.ValidationFraction, seed), other => ImageData.Read(other, input, reading, _host.CheckAlive), channel);
        return (fitted, data);
    }

    private ImageData.LabelReader ReadMasks(DataViewRow row, DataViewSchema.Column column, ConcurrentBag<MaskReader> readers)
    {
        var reader = new MaskReader(row, column, _options.Classes, _options.IgnoreIndex);
        readers.Add(reader);
        return image =>
        {
            reader.Read();
            if (reader.Height > 0 ? (reader.Height, reader.Width) != (image!.Height, image.Width) : reader.Count != image!.Pixels)
                throw new ArgumentException($"Row {row.Position}: the mask in '{column.Name}' has {reader.Size}, its image has {image.Height} x {image.Width} (height x width); expected a mask of the image's size. " +
                    "Correct or remove the row, or set BadImages to Skip.");
            return (0, reader.Pixels.ToArray());
        };
    }

    private (int CropHeight, int CropWidth, SegmentationScoring Scoring) Sizes(ImageInput input, ImageData training)
    {
        var (height, width) = (training[0].Height, training[0].Width);
        var other = Enumerable.Range(0, training.Count).FirstOrDefault(row => (training[row].Height, training[row].Width) != (height, width), -1);
        string Differ(string remedy) => $"The images differ in size: the first is {height} × {width}, image {other + 1} is {training[other].Height} × {training[other].Width} (height × width). {remedy}";
        if (_options.CropHeight == 0 && other >= 0) throw _host.Except(Differ("Set CropHeight and CropWidth, the size of the parts to train on."));
        if (_options.CropHeight == 0 && _options.Augmentation.QuarterTurns && height != width) throw _host.Except($"Augmentation.QuarterTurns needs square images; these are {height} × {width}. Set CropHeight and CropWidth, or turn it off.");
        if (_options.MaskHeight == 0 && !_options.MaskAsImage && other >= 0)
            throw _host.Except(Differ("Set MaskAsImage, for masks of each image's own size, or MaskHeight and MaskWidth, to which masks are scaled."));
        var (maskHeight, maskWidth) = _options.MaskHeight > 0 ? (_options.MaskHeight, _options.MaskWidth) : _options.MaskAsImage ? (0, 0) : (height, width);
        var names = _options.ClassNames ?? [.. Enumerable.Range(0, _options.Classes).Select(i => i.ToString(System.Globalization.CultureInfo.InvariantCulture))];
        var scoring = new SegmentationScoring([.. names], maskHeight, maskWidth, _options.MaskAsImage, _options.TileSize, _options.TileOverlap, _options.TestTimeFlips);
        return _options.CropHeight > 0 ? (_options.CropHeight, _options.CropWidth, scoring) : (height, width, scoring);
    }
}
