using System.Globalization;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Trains a backbone to classify sequences.</summary>
/// <remarks>
/// <para>Label: a key (make one with <c>Conversion.MapValueToKey</c>); rows whose label is missing are skipped and counted in a warning.</para>
/// <para>Features: text; a (variable) vector of keys or Int32 token ids; or a (variable) vector of Single with dimensions [time] or [time, channels].</para>
/// <para>Output: <c>PredictedLabel</c> (key with the label's values) and <c>Score</c> (class probabilities, named after the classes).</para>
/// </remarks>
public sealed class SequenceClassificationTrainer : IEstimator<SequenceClassificationTransformer>
{
    private readonly IHost _host;
    private readonly Options _options;

    internal SequenceClassificationTrainer(IHostEnvironment env, Options options)
    {
        Contracts.CheckValue(env, nameof(env));
        _host = env.Register(nameof(SequenceClassificationTrainer));
        _host.CheckValue(options, nameof(options));
        options.Validate();
        _options = options;
    }

    /// <summary>What to train and how.</summary>
    public sealed class Options : TrainingOptions
    {
        /// <summary>The label column: a key.</summary>
        public string LabelColumnName { get; set; } = "Label";

        /// <summary>The feature column.</summary>
        public string FeatureColumnName { get; set; } = "Features";

        /// <summary>The column of class probabilities that scoring adds.</summary>
        public string ScoreColumnName { get; set; } = "Score";

        /// <summary>The column of the likeliest class that scoring adds.</summary>
        public string PredictedLabelColumnName { get; set; } = "PredictedLabel";

        /// <summary>The backbone.</summary>
        public Backbone Backbone { get; set; } = Backbone.Gru(bidirectional: true);

        /// <summary>How the vectors of all positions become one.</summary>
        public SequencePooling Pooling { get; set; } = SequencePooling.LearnedQuery;

        /// <summary>Probability of dropping a pooled feature while training.</summary>
        public double HeadDropout { get; set; } = 0.1;

        /// <summary>How a text column becomes a sequence.</summary>
        public TextEncoding TextEncoding { get; set; } = TextEncoding.Words();

        /// <summary>Probability of dropping a whole element (a word, a base, a sample) while training: the strongest guard of small data sets against learning by heart.</summary>
        public double ElementDropout { get; set; } = 0.1;

        /// <summary>Positions kept of a longer sequence: its beginning. A warning counts the rows that were cut.</summary>
        public int MaxLength { get; set; } = 1024;

        /// <summary>Numbers per position of a flat vector of Single, laid out time by time. A column with dimensions [time, channels] says so itself.</summary>
        public int Channels { get; set; } = 1;

        /// <summary>Whether numbers are shifted and scaled to mean 0 and variance 1 per channel, as found in the training data.</summary>
        public bool Standardize { get; set; } = true;

        /// <summary>Weight of each class in the loss, in the order of the label's keys; null: all alike.</summary>
        public IReadOnlyList<double>? ClassWeights { get; set; }

        /// <summary>A fitted model to go on from: it gives the weights, the vocabulary and the scale, and must have the same backbone.</summary>
        public SequenceClassificationTransformer? WarmStart { get; set; }

        internal override IEnumerable<string> Problems()
        {
            foreach (var problem in base.Problems()) yield return problem;
            foreach (var (name, value) in new[] { (nameof(LabelColumnName), LabelColumnName), (nameof(FeatureColumnName), FeatureColumnName), (nameof(ScoreColumnName), ScoreColumnName), (nameof(PredictedLabelColumnName), PredictedLabelColumnName) })
                if (string.IsNullOrWhiteSpace(value)) yield return $"{name} is empty; expected a column's name.";
            if (Backbone is null) yield return "Backbone is null; expected one, for example Backbone.Gru().";
            else foreach (var problem in Backbone.Problems()) yield return $"Backbone: {problem}";
            if (TextEncoding is null) yield return "TextEncoding is null; expected one, for example TextEncoding.Words().";
            if (HeadDropout is not (>= 0 and < 1)) yield return $"HeadDropout is {HeadDropout}; expected at least 0 and below 1.";
            if (ElementDropout is not (>= 0 and < 1)) yield return $"ElementDropout is {ElementDropout}; expected at least 0 and below 1.";
            if (MaxLength < 1) yield return $"MaxLength is {MaxLength}; expected at least 1.";
            if (Channels < 1) yield return $"Channels is {Channels}; expected at least 1.";
            if (ClassWeights is not null && ClassWeights.Any(weight => weight is not (>= 0 and < double.PositiveInfinity))) yield return "ClassWeights must be finite and not negative.";
        }
    }

    /// <summary>Trains on a view.</summary>
    /// <exception cref="ArgumentException">A column is missing or of a type that cannot be used, or a feature is not a finite number.</exception>
    /// <exception cref="InvalidOperationException">There are no rows, or only one class; or a checkpoint belongs to another training.</exception>
    /// <exception cref="TrainingDivergedException">The loss is not finite.</exception>
    /// <exception cref="OperationCanceledException">Cancelled, and <see cref="TrainingOptions.ReturnBestOnCancellation"/> is off or nothing was trained yet.</exception>
    public SequenceClassificationTransformer Fit(IDataView input)
    {
        _host.CheckValue(input, nameof(input));
        CheckColumns(SchemaShape.Create(input.Schema));
        var labelColumn = input.Schema[_options.LabelColumnName];
        var classes = checked((int)((KeyDataViewType)labelColumn.Type).Count);
        if (classes < 2) throw _host.Except($"The label '{labelColumn.Name}' has {classes} class; a classifier needs at least 2.");
        if (_options.ClassWeights is { } weights && weights.Count != classes) throw _host.Except($"ClassWeights has {weights.Count} numbers; the label '{labelColumn.Name}' has {classes} classes.");

        using var channel = _host.Start("Training");
        var device = DeviceChoice.Resolve(_host, _options.Device, text => channel.Warning(text));
        var precision = _options.Precision == Precision.BFloat16 || _options.Precision == Precision.Auto && device.type == DeviceType.CUDA ? bfloat16 : float32;
        var seed = (ulong)(_options.Seed ?? (_host as IHostEnvironmentInternal)?.Seed ?? Random.Shared.Next());

        var (sequenceInput, training) = ReadTraining(channel, input);
        var (validation, trainingRows, validationRows) = ReadValidation(channel, training, sequenceInput, labelColumn, seed);
        var spec = new SequenceClassifierSpec(_options.Backbone, sequenceInput.Element, _options.Pooling, classes, _options.ElementDropout, _options.HeadDropout);

        using var scope = NewDisposeScope();
        using var network = CreateNetwork(channel, spec, seed);
        channel.Info($"{spec.Backbone.Name}: {network.parameters().Sum(parameter => parameter.numel()):N0} parameters, {trainingRows.Length:N0} training rows, " +
            $"{validationRows.Length:N0} validation rows, {precision} on {device}");
        using var task = new SequenceClassificationTask(network, training, trainingRows, validation, validationRows, _options.ClassWeights?.ToArray(), _options, device);
        var checkpoint = _options.CheckpointFolder is { } folder ? new Checkpoint(folder, Fingerprint(spec, sequenceInput, training, validation, precision, seed)) : null;
        using var loop = new TrainingLoop(task, _options, precision, device, seed, checkpoint, progress => Report(channel, progress), _host.CheckAlive);
        SequenceClassificationTransformer Model()
        {
            var fresh = new SequenceClassifier(spec);
            loop.CopyModelTo(fresh);
            fresh.MoveTo(device);
            foreach (var parameter in fresh.parameters()) parameter.DetachFromDisposeScope().requires_grad = false;
            var label = new LabelColumn(new DataViewSchema.DetachedColumn(labelColumn));
            return new(_host, new SequenceClassificationModel(spec, sequenceInput, fresh, device), label, new(_options.FeatureColumnName, _options.ScoreColumnName, _options.PredictedLabelColumnName));
        }
        try
        {
            loop.Run();
        }
        catch (TrainingDivergedException e)
        {
            throw new TrainingDivergedException(e.Message, loop.HasModel && validationRows.Length > 0 ? Model() : null);
        }
        if (loop.WasCancelled)
        {
            if (!_options.ReturnBestOnCancellation || !loop.HasModel) throw new OperationCanceledException("Training was cancelled.", _options.CancellationToken);
            channel.Warning("Training was cancelled; returning the best model so far.");
        }
        return Model();
    }

    /// <summary>The shape of the output, for pipelines.</summary>
    public SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        _host.CheckValue(inputSchema, nameof(inputSchema));
        var label = CheckColumns(inputSchema);
        var columns = inputSchema.ToDictionary(column => column.Name);
        columns[_options.ScoreColumnName] = new SchemaShape.Column(_options.ScoreColumnName, SchemaShape.Column.VectorKind.Vector, NumberDataViewType.Single, false,
            new SchemaShape(AnnotationUtils.AnnotationsForMulticlassScoreColumn(label)));
        var keyValues = label.Annotations.TryFindColumn(AnnotationUtils.Kinds.KeyValues, out var values) ? new[] { values } : [];
        columns[_options.PredictedLabelColumnName] = new SchemaShape.Column(_options.PredictedLabelColumnName, SchemaShape.Column.VectorKind.Scalar, NumberDataViewType.UInt32, true,
            new SchemaShape(keyValues.Concat(AnnotationUtils.GetTrainerOutputAnnotation())));
        return new SchemaShape(columns.Values);
    }

    private SchemaShape.Column CheckColumns(SchemaShape schema)
    {
        if (!schema.TryFindColumn(_options.FeatureColumnName, out var feature)) throw _host.ExceptSchemaMismatch("inputSchema", "feature", _options.FeatureColumnName);
        var isText = feature.Kind == SchemaShape.Column.VectorKind.Scalar && feature.ItemType is TextDataViewType;
        var isVector = feature.Kind != SchemaShape.Column.VectorKind.Scalar
                       && (feature.IsKey && feature.ItemType == NumberDataViewType.UInt32 || feature.ItemType == NumberDataViewType.Int32 || feature.ItemType == NumberDataViewType.Single);
        if (!isText && !isVector)
            throw _host.ExceptSchemaMismatch("inputSchema", "feature", feature.Name, "Text, a vector of Key<UInt32> or Int32, or a vector of Single", feature.GetTypeString());
        if (!schema.TryFindColumn(_options.LabelColumnName, out var label)) throw _host.ExceptSchemaMismatch("inputSchema", "label", _options.LabelColumnName);
        if (!label.IsKey || label.ItemType != NumberDataViewType.UInt32)
            throw _host.ExceptSchemaMismatch("inputSchema", "label", label.Name, "Key<UInt32> (make one with Conversion.MapValueToKey)", label.GetTypeString());
        return label;
    }

    private (SequenceInput Input, SequenceData Data) ReadTraining(IChannel channel, IDataView view)
    {
        var input = _options.WarmStart?.Model.Input
                    ?? SequenceInput.For(view.Schema[_options.FeatureColumnName], _options.TextEncoding, _options.Channels, _options.Standardize, _options.MaxLength);
        CheckReadable(input, view.Schema);
        var data = SequenceData.Read(view, _options.LabelColumnName, _options.FeatureColumnName, input, _host.CheckAlive);
        if (data.MissingLabels > 0) channel.Warning($"Skipped {data.MissingLabels} training rows with a missing label.");
        if (data.Count == 0)
            throw _host.Except($"There are no training rows with a label{(data.MissingLabels > 0 ? $" ({data.MissingLabels} rows have a missing one)" : "")}.");
        if (data.Labels.AsSpan().IndexOfAnyExcept(data.Labels[0]) < 0)
            throw _host.Except($"All {data.Count} training rows have the same label; a classifier needs at least 2 classes.");
        WarnOfTruncation(channel, data, "training");
        if (_options.WarmStart is null) input = input.Fit(data.Sequences);
        input.Validate();
        return (input, data);
    }

    private (SequenceData Data, int[] TrainingRows, int[] ValidationRows) ReadValidation(IChannel channel, SequenceData training, SequenceInput input, DataViewSchema.Column label, ulong seed)
    {
        if (_options.ValidationSet is not { } view)
        {
            var (train, apart) = BatchPlan.Split(training.Labels, _options.ValidationFraction, seed);
            if (_options.ValidationFraction > 0 && apart.Length == 0)
                throw _host.Except($"ValidationFraction {_options.ValidationFraction} of {training.Count} rows leaves no validation rows; raise it, or set ValidationSet.");
            return (training, train, apart);
        }
        if (view.Schema.GetColumnOrNull(label.Name) is not { } other || !other.Type.Equals(label.Type))
            throw _host.Except($"ValidationSet has no label '{label.Name}' of type {label.Type}; transform it with the same fitted pipeline as the training data.");
        CheckReadable(input, view.Schema);
        var data = SequenceData.Read(view, _options.LabelColumnName, _options.FeatureColumnName, input, _host.CheckAlive);
        if (data.Count == 0) throw _host.Except("ValidationSet has no rows with a label.");
        WarnOfTruncation(channel, data, "validation");
        return (data, [.. Enumerable.Range(0, training.Count)], [.. Enumerable.Range(0, data.Count)]);
    }

    private void CheckReadable(SequenceInput input, DataViewSchema schema)
    {
        var column = schema.GetColumnOrNull(_options.FeatureColumnName) ?? throw _host.ExceptSchemaMismatch("inputSchema", "feature", _options.FeatureColumnName);
        if (!input.Accepts(column.Type)) throw _host.ExceptSchemaMismatch("inputSchema", "feature", column.Name, input.ColumnType.ToString(), column.Type.ToString());
    }

    private void WarnOfTruncation(IChannel channel, SequenceData data, string which)
    {
        if (data.Sequences.TruncatedRows > 0)
            channel.Warning($"{data.Sequences.TruncatedRows} of {data.Count} {which} rows are longer than MaxLength {_options.MaxLength} and lost their end.");
    }

    private SequenceClassifier CreateNetwork(IChannel channel, SequenceClassifierSpec spec, ulong seed)
    {
        manual_seed((long)(seed >> 1));
        var network = new SequenceClassifier(spec);
        if (_options.WarmStart is not { } start) return network;
        if (start.Backbone != spec.Backbone) throw _host.Except($"WarmStart has the backbone {start.Backbone.ToJson()}; expected {spec.Backbone.ToJson()}.");
        using var _ = no_grad();
        var known = start.Model.Network.named_parameters().ToDictionary(entry => entry.name, entry => entry.parameter);
        foreach (var (name, parameter) in network.named_parameters())
        {
            if (known.TryGetValue(name, out var value) && value.shape.SequenceEqual(parameter.shape)) parameter.copy_(value);
            else channel.Warning($"WarmStart has no weights of the right size for '{name}'; they start anew.");
        }
        return network;
    }

    /// <summary>Tells whether a checkpoint belongs to this training: everything that its result depends on.</summary>
    private string Fingerprint(SequenceClassifierSpec spec, SequenceInput input, SequenceData training, SequenceData validation, ScalarType precision, ulong seed)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        var o = _options;
        object[] parts =
        [
            1, spec.Backbone.ToJson(), input, spec.Pooling, spec.Classes, spec.ElementDropout, spec.HeadDropout, precision, seed, o.Epochs, o.BatchSize, o.GradientAccumulation, o.LearningRate, o.WarmupFraction, o.WeightDecay,
            o.GradientClipping, o.LabelSmoothing, o.Ema, o.ValidationFraction, o.EarlyStoppingPatience, .. (o.ClassWeights ?? []).Cast<object>(),
        ];
        hash.AppendData(Encoding.UTF8.GetBytes(string.Join('|', parts.Select(part => Convert.ToString(part, CultureInfo.InvariantCulture)))));
        foreach (var data in ReferenceEquals(training, validation) ? new[] { training } : [training, validation])
        {
            hash.AppendData(MemoryMarshal.AsBytes(data.Labels.AsSpan()));
            hash.AppendData(MemoryMarshal.AsBytes(data.Sequences.Values));
            hash.AppendData(MemoryMarshal.AsBytes(data.Sequences.Tokens));
        }
        return Convert.ToHexString(hash.GetHashAndReset());
    }

    private void Report(IChannel channel, TrainingProgress progress)
    {
        if (progress.IsEpochEnd) channel.Info(progress.ToString());
        _options.Progress?.Report(progress);
    }
}
