using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using MLSeq;

[assembly: LoadableClass(typeof(SequenceClassificationTransformer), null, typeof(SignatureLoadModel), "MLSeq sequence classification", SequenceClassificationTransformer.LoaderSignature)]

namespace MLSeq;

/// <summary>A fitted sequence classifier: adds <c>PredictedLabel</c> (key with the label's values) and <c>Score</c> (class probabilities).</summary>
/// <remarks>
/// Safe to use from many threads. Not-a-number in the features gives not-a-number scores and a missing <c>PredictedLabel</c>, as with ML.NET's own
/// trainers. It computes on <c>MLContext.GpuDeviceId</c> if set, else on the first CUDA device, else on the CPU.
/// </remarks>
public sealed class SequenceClassificationTransformer : ITransformer, ISingleFeaturePredictionTransformer<object>, IBatchedTransformer
{
    internal const string LoaderSignature = "MLSeqSequenceClassifier";

    private readonly IHost _host;
    private readonly LabelColumn _label;

    internal SequenceClassificationTransformer(IHostEnvironment env, SequenceClassificationModel model, LabelColumn label, ClassifierColumns columns)
    {
        _host = env.Register(nameof(SequenceClassificationTransformer));
        (Model, _label, Columns) = (model, label, columns);
    }

    internal SequenceClassificationModel Model { get; }

    internal ClassifierColumns Columns { get; }

    /// <summary>The backbone.</summary>
    public Backbone Backbone => Model.Spec.Backbone;

    /// <summary>Trained numbers in the network.</summary>
    public long ParameterCount => Model.Network.parameters().Sum(parameter => parameter.numel());

    /// <summary>Where it computes: <c>cpu</c> or <c>cuda:N</c>.</summary>
    public string Device => Model.Device.ToString();

    /// <summary>The column that is read.</summary>
    public string FeatureColumnName => Columns.Feature;

    DataViewType ISingleFeaturePredictionTransformer<object>.FeatureColumnType => Model.Input.ColumnType;

    object IPredictionTransformer<object>.Model => Model;

    bool ITransformer.IsRowToRowMapper => true;

    int IBatchedTransformer.ReadAhead => 1024;

    /// <summary>The input's schema with <c>PredictedLabel</c> and <c>Score</c> added.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The feature column is missing or of another type than in training.</exception>
    public DataViewSchema GetOutputSchema(DataViewSchema inputSchema) => OutputSchema(inputSchema, Model.Input.Accepts);

    /// <summary>The output schema, the feature column being judged by <paramref name="accepts"/>.</summary>
    internal DataViewSchema OutputSchema(DataViewSchema inputSchema, Func<DataViewType, bool> accepts)
    {
        _host.CheckValue(inputSchema, nameof(inputSchema));
        FeatureColumn(inputSchema, accepts);
        var builder = new DataViewSchema.Builder();
        builder.AddColumns(inputSchema);
        _label.AddScoreColumns(builder, inputSchema, Model.Classes, Columns.PredictedLabel, Columns.Score);
        return builder.ToSchema();
    }

    /// <summary>Scores a view, lazily and in batches.</summary>
    public IDataView Transform(IDataView input)
    {
        _host.CheckValue(input, nameof(input));
        return new BatchedDataView(this, input);
    }

    IRowToRowMapper ITransformer.GetRowToRowMapper(DataViewSchema inputSchema) => new BatchedRowMapper(this, inputSchema);

    ScoringSession IBatchedTransformer.CreateSession(DataViewRow row, DataViewSchema.Column features) => Model.CreateSession(row, features);

    DataViewSchema.Column IBatchedTransformer.FeatureColumn(DataViewSchema input) => FeatureColumn(input, Model.Input.Accepts);

    internal DataViewSchema.Column FeatureColumn(DataViewSchema schema, Func<DataViewType, bool> accepts)
    {
        var column = schema.GetColumnOrNull(Columns.Feature) ?? throw _host.ExceptSchemaMismatch("inputSchema", "feature", Columns.Feature);
        if (!accepts(column.Type))
            throw _host.ExceptSchemaMismatch("inputSchema", "feature", column.Name, Model.Input.ColumnType.ToString(), column.Type.ToString());
        return column;
    }

    void ICanSaveModel.Save(ModelSaveContext ctx) => SequenceModelFile.Save(_host, ctx, this, _label);

    // Found by ML.NET's component catalog through the LoadableClass attribute.
    private static SequenceClassificationTransformer Create(IHostEnvironment env, ModelLoadContext ctx) => SequenceModelFile.Load(env, ctx);
}

/// <summary>Names of the columns that a classifier reads and writes.</summary>
internal sealed record ClassifierColumns(string Feature, string Score, string PredictedLabel);
