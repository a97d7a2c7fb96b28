using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms.Image;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Trains a backbone to classify images.</summary>
/// <remarks>
/// <para>Label: a key (make one with <c>Conversion.MapValueToKey</c>); rows whose label is missing are skipped and counted in a warning.</para>
/// <para>Features: an MLImage (<c>Transforms.LoadImages</c>); Text, the path of an image file, which is then decoded by the trainer on all cores; or a vector of Byte or Single with dimensions
/// [channels, height, width] or [height, width].</para>
/// <para>Output: <c>PredictedLabel</c> (key with the label's values) and <c>Score</c> (class probabilities, named after the classes).</para>
/// </remarks>
public sealed class ImageClassificationTrainer : IEstimator<ImageClassificationTransformer>
{
    private readonly IHost _host;
    private readonly Options _options;

    internal ImageClassificationTrainer(IHostEnvironment env, Options options)
    {
        Contracts.CheckValue(env, nameof(env));
        _host = env.Register(nameof(ImageClassificationTrainer));
        _host.CheckValue(options, nameof(options));
        options.Validate();
        _options = options;
    }

    /// <summary>What to train and how.</summary>
    public sealed class Options : ClassificationOptions
    {
        /// <summary>The backbone.</summary>
        public VisionBackbone Backbone { get; set; } = VisionBackbone.ResNet();

        /// <summary>Rows that the network sees; 0 (with <see cref="ImageWidth"/>): those of the images, which then must be alike.</summary>
        public int ImageHeight { get; set; }

        /// <summary>Columns that the network sees.</summary>
        public int ImageWidth { get; set; }

        /// <summary>How images of another size are fitted, in training and in scoring.</summary>
        public ImageResize Resize { get; set; } = ImageResize.Crop;

        /// <summary>Share of each side of the fitted image that scoring sees, about its centre; training draws from all of it. 0.875 (224 of 256 pixels) is usual for photographs. Below 1 it needs a vector column or a size, <see cref="ImageHeight"/>.</summary>
        public double CropFraction { get; set; } = 1;

        /// <summary>Channels made of an MLImage or a file: 3 (red, green, blue) or 1 (gray). A vector's dimensions tell its own.</summary>
        public int Channels { get; set; } = 3;

        /// <summary>Where the relative paths of a text column begin; the current folder when empty. Kept in the saved model; leave it empty, and give full paths, for models that move.</summary>
        public string ImageFolder { get; set; } = "";

        /// <summary>How training images are varied.</summary>
        public ImageAugmentation Augmentation { get; set; } = ImageAugmentation.None;

        /// <summary>Mirror images over which scoring averages, with the image itself: better, and as many times slower.</summary>
        public ImageFlips TestTimeFlips { get; set; }

        /// <summary>What to do with training rows whose image is missing or unreadable.</summary>
        public BadImages BadImages { get; set; } = BadImages.Fail;

        /// <summary>Bytes of fitted images that may be kept in host memory. More files than that, when they are fitted to <see cref="ImageHeight"/>, are decoded anew in every epoch, ahead of need and on all cores; all else is always kept.</summary>
        public long HostDataBudget { get; set; } = 8L << 30;

        /// <summary>A fitted model to go on from: it gives the weights, and must have the same backbone. Classes, channels and sizes may differ.</summary>
        public ImageClassificationTransformer? WarmStart { get; set; }

        internal override IEnumerable<string> Problems()
        {
            foreach (var problem in base.Problems()) yield return problem;
            if (Backbone is null) yield return "Backbone is null; expected one, for example VisionBackbone.ResNet().";
            else foreach (var problem in Backbone.Problems()) yield return $"Backbone: {problem}";
            foreach (var problem in Augmentation?.Problems(masks: false) ?? ["Augmentation is null; expected one, for example ImageAugmentation.None."]) yield return problem;
            foreach (var problem in SizeProblems(nameof(ImageHeight), ImageHeight, nameof(ImageWidth), ImageWidth)) yield return problem;
            if (Augmentation?.QuarterTurns == true && ImageHeight != ImageWidth) yield return $"Augmentation.QuarterTurns needs square images; the size is {ImageHeight} × {ImageWidth}.";
            if (CropFraction is not (>= ImageInput.LeastCropFraction and <= 1)) yield return $"CropFraction is {CropFraction}; expected {ImageInput.LeastCropFraction} to 1.";
            if (Channels is not (1 or 3)) yield return $"Channels is {Channels}; expected 3 (red, green, blue) or 1 (gray).";
            if (ImageFolder is null) yield return "ImageFolder is null; expected a folder, or an empty string.";
            if (HostDataBudget < 0) yield return $"HostDataBudget is {HostDataBudget}; expected 0 or more bytes.";
        }

        internal override IEnumerable<object> FingerprintParts() => [.. base.FingerprintParts(), Augmentation, BadImages];
    }

    /// <summary>Trains on a view.</summary>
    /// <exception cref="ArgumentException">A column is missing or of a type that cannot be used, or an image cannot be read.</exception>
    /// <exception cref="InvalidOperationException">There are no rows, or only one class; or a checkpoint belongs to another training.</exception>
    /// <exception cref="TrainingDivergedException">The loss is not finite.</exception>
    /// <exception cref="OperationCanceledException">Cancelled, and <see cref="TrainingOptions.ReturnBestOnCancellation"/> is off or nothing was trained yet.</exception>
    public ImageClassificationTransformer Fit(IDataView input)
    {
        _host.CheckValue(input, nameof(input));
        CheckColumns(SchemaShape.Create(input.Schema));
        var labelColumn = input.Schema[_options.LabelColumnName];
        var classes = ClassificationColumns.Count(_host, labelColumn, _options.ClassWeights);
        using var channel = _host.Start("Training");
        var run = new TrainingRun(_host, channel, _options);
        var (imageInput, data) = Read(channel, input, labelColumn, run.Seed);
        var spec = new ImageClassifierSpec(_options.Backbone, imageInput.Channels, classes, _options.HeadDropout);
        run.CheckWarmStart(_options.WarmStart?.Backbone.ToJson(), spec.Backbone.ToJson());

        using var scope = NewDisposeScope();
        using var network = run.CreateNetwork(() => new ImageClassifier(spec), _options.WarmStart?.Model.Network);
        channel.Info($"{spec.Backbone.Name}: {network.parameters().Sum(parameter => parameter.numel()):N0} parameters, {data.TrainingRows.Length:N0} training images, " +
            $"{data.ValidationRows.Length:N0} validation images, {run.Precision} on {run.Device}");
        var augmenter = new ImageAugmenter(_options.Augmentation, imageInput, imageInput.Height, imageInput.Width, run.Precision, run.Device);
        using var task = new ImageClassificationTask(network, augmenter, imageInput, data, _options, run.Device);
        var checkpoint = run.Checkpoint([spec.Backbone.ToJson(), imageInput with { Mean = [], Scale = [] }, classes], hash =>
        {
            foreach (var part in data.Distinct) part.AppendTo(hash);
        });
        return run.Run(task, checkpoint, data.ValidationRows.Length > 0, () => new ImageClassifier(spec), trained =>
        {
            var label = new LabelColumn(new DataViewSchema.DetachedColumn(labelColumn));
            return new ImageClassificationTransformer(_host, new ImageClassificationModel(spec, imageInput, trained, run.Device, _options.TestTimeFlips), label,
                new(_options.FeatureColumnName, _options.ScoreColumnName, _options.PredictedLabelColumnName));
        });
    }

    /// <summary>The shape of the output, for pipelines.</summary>
    public SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        _host.CheckValue(inputSchema, nameof(inputSchema));
        return ClassificationColumns.Scored(inputSchema, CheckColumns(inputSchema), _options);
    }

    private SchemaShape.Column CheckColumns(SchemaShape schema)
    {
        ImageColumns.CheckFeature(_host, schema, _options.FeatureColumnName, files: true);
        return ClassificationColumns.Label(_host, schema, _options.LabelColumnName);
    }

    private (ImageInput Input, TrainingSplit<ImageData> Data) Read(IChannel channel, IDataView view, DataViewSchema.Column label, ulong seed)
    {
        var input = ImageInput.For(view.Schema[_options.FeatureColumnName], _options.Channels) with
        {
            Height = _options.ImageHeight,
            Width = _options.ImageWidth,
            Resize = _options.Resize,
            CropFraction = _options.CropFraction,
            Folder = _options.ImageFolder,
        };
        ImageColumns.CheckAugmentation(_host, _options.Augmentation, input);
        if (input.Height == 0 && input.ColumnHeight > 0) input = input with { Height = input.ColumnHeight, Width = input.ColumnWidth };
        if (input.Height == 0 && input.CropFraction < 1)
            throw _host.Except($"CropFraction is {input.CropFraction}, but there is no size that images are fitted to. Set ImageHeight and ImageWidth, or leave CropFraction at 1.");
        var reading = new ImageData.Reading(_options.FeatureColumnName, label.Name, ReadKeys, NeedsImage: false, _options.BadImages, _options.HostDataBudget);
        var training = ImageData.Read(view, input, reading, _host.CheckAlive);
        ImageColumns.WarnOfBad(channel, training, "training");
        ClassificationColumns.CheckTrainable(_host, channel, training.Labels, training.MissingLabels);
        if (input.Height == 0)
        {
            input = input with { Height = training[0].Height, Width = training[0].Width };
            for (var row = 1; row < training.Count; row++)
                if ((training[row].Height, training[row].Width) != (input.Height, input.Width))
                    throw _host.Except($"The images differ in size: the first is {input.Height} × {input.Width}, image {row + 1} is {training[row].Height} × {training[row].Width} (height × width). " +
                        "Set ImageHeight and ImageWidth; images are then fitted as Resize says.");
        }
        if (_options.Augmentation.QuarterTurns && input.Height != input.Width) throw _host.Except($"Augmentation.QuarterTurns needs square images; these are {input.Height} × {input.Width}.");
        var (data, fitted) = ImageColumns.Split(_host, _options, training, view.Schema[_options.FeatureColumnName], label, seed, BatchPlan.Split(training.Labels, _options.ValidationFraction, seed),
            other => ImageData.Read(other, input, reading, _host.CheckAlive), channel);
        return (fitted with { Height = input.Height, Width = input.Width }, data);
    }

    private static ImageData.LabelReader ReadKeys(DataViewRow row, DataViewSchema.Column column)
    {
        var getter = row.GetGetter<uint>(column);
        uint key = 0;
        return _ =>
        {
            getter(ref key);
            return key == 0 ? null : ((int)key - 1, null);
        };
    }
}
