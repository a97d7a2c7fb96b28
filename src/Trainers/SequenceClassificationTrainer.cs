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
    public sealed class Options : ClassificationOptions
    {
        /// <summary>The backbone.</summary>
        public Backbone Backbone { get; set; } = Backbone.Gru(bidirectional: true);

        /// <summary>How the vectors of all positions become one.</summary>
        public SequencePooling Pooling { get; set; } = SequencePooling.LearnedQuery;

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

        /// <summary>A fitted model to go on from: it gives the weights, the vocabulary and the scale, and must have the same backbone.</summary>
        public SequenceClassificationTransformer? WarmStart { get; set; }

        internal override IEnumerable<string> Problems()
        {
            foreach (var problem in base.Problems()) yield return problem;
            if (Backbone is null) yield return "Backbone is null; expected one, for example Backbone.Gru().";
            else foreach (var problem in Backbone.Problems()) yield return $"Backbone: {problem}";
            if (TextEncoding is null) yield return "TextEncoding is null; expected one, for example TextEncoding.Words().";
            if (ElementDropout is not (>= 0 and < 1)) yield return $"ElementDropout is {ElementDropout}; expected at least 0 and below 1.";
            if (MaxLength < 1) yield return $"MaxLength is {MaxLength}; expected at least 1.";
            if (Channels < 1) yield return $"Channels is {Channels}; expected at least 1.";
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
        var classes = ClassificationColumns.Count(_host, labelColumn, _options.ClassWeights);
        using var channel = _host.Start("Training");
        var run = new TrainingRun(_host, channel, _options);
        var (sequenceInput, training) = ReadTraining(channel, input);
        var (validation, trainingRows, validationRows) = ReadValidation(channel, training, sequenceInput, labelColumn, run.Seed);
        var spec = new SequenceClassifierSpec(_options.Backbone, sequenceInput.Element, _options.Pooling, classes, _options.ElementDropout, _options.HeadDropout);
        run.CheckWarmStart(_options.WarmStart?.Backbone.ToJson(), spec.Backbone.ToJson());

        using var scope = NewDisposeScope();
        using var network = run.CreateNetwork(() => new SequenceClassifier(spec), _options.WarmStart?.Model.Network);
        channel.Info($"{spec.Backbone.Name}: {network.parameters().Sum(parameter => parameter.numel()):N0} parameters, {trainingRows.Length:N0} training rows, " +
            $"{validationRows.Length:N0} validation rows, {run.Precision} on {run.Device}");
        using var task = new SequenceClassificationTask(network, training, trainingRows, validation, validationRows, _options.ClassWeights?.ToArray(), _options, run.Device);
        var checkpoint = run.Checkpoint([spec.Backbone.ToJson(), sequenceInput, spec.Pooling, classes, _options.ElementDropout], hash =>
        {
            foreach (var data in ReferenceEquals(training, validation) ? new[] { training } : [training, validation])
            {
                hash.Append<int>(data.Labels);
                hash.Append<float>(data.Sequences.Values);
                hash.Append<int>(data.Sequences.Tokens);
            }
        });
        return run.Run(task, checkpoint, validationRows.Length > 0, () => new SequenceClassifier(spec), trained =>
        {
            var label = new LabelColumn(new DataViewSchema.DetachedColumn(labelColumn));
            return new SequenceClassificationTransformer(_host, new SequenceClassificationModel(spec, sequenceInput, trained, run.Device), label,
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
        if (!schema.TryFindColumn(_options.FeatureColumnName, out var feature)) throw _host.ExceptSchemaMismatch("inputSchema", "feature", _options.FeatureColumnName);
        var isText = feature.Kind == SchemaShape.Column.VectorKind.Scalar && feature.ItemType is TextDataViewType;
        var isVector = feature.Kind != SchemaShape.Column.VectorKind.Scalar
                       && (feature.IsKey && feature.ItemType == NumberDataViewType.UInt32 || feature.ItemType == NumberDataViewType.Int32 || feature.ItemType == NumberDataViewType.Single);
        if (!isText && !isVector)
            throw _host.ExceptSchemaMismatch("inputSchema", "feature", feature.Name, "Text, a vector of Key<UInt32> or Int32, or a vector of Single", feature.GetTypeString());
        return ClassificationColumns.Label(_host, schema, _options.LabelColumnName);
    }

    private (SequenceInput Input, SequenceData Data) ReadTraining(IChannel channel, IDataView view)
    {
        var input = _options.WarmStart?.Model.Input
                    ?? SequenceInput.For(view.Schema[_options.FeatureColumnName], _options.TextEncoding, _options.Channels, _options.Standardize, _options.MaxLength);
        CheckReadable(input, view.Schema);
        var data = SequenceData.Read(view, _options.LabelColumnName, _options.FeatureColumnName, input, _host.CheckAlive);
        ClassificationColumns.CheckTrainable(_host, channel, data.Labels, data.MissingLabels);
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
}
