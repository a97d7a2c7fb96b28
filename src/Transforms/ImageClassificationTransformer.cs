using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using MLSeq;

[assembly: LoadableClass(typeof(ImageClassificationTransformer), null, typeof(SignatureLoadModel), "MLSeq image classification", ImageClassificationTransformer.LoaderSignature)]

namespace MLSeq;

/// <summary>A fitted image classifier: adds <c>PredictedLabel</c> (key with the label's values) and <c>Score</c> (class probabilities).</summary>
/// <remarks>Safe to use from many threads. It computes on <c>MLContext.GpuDeviceId</c> if set, else on the first CUDA device, else on the CPU.</remarks>
public sealed class ImageClassificationTransformer : ITransformer, ISingleFeaturePredictionTransformer<object>, IBatchedTransformer
{
    internal const string LoaderSignature = "MLSeqImageClassifier";

    private readonly IHost _host;
    private readonly LabelColumn _label;

    internal ImageClassificationTransformer(IHostEnvironment env, ImageClassificationModel model, LabelColumn label, ClassifierColumns columns)
    {
        _host = env.Register(nameof(ImageClassificationTransformer));
        (Model, _label, Columns) = (model, label, columns);
    }

    internal ImageClassificationModel Model { get; }

    internal ClassifierColumns Columns { get; }

    /// <summary>The backbone.</summary>
    public VisionBackbone Backbone => Model.Spec.Backbone;

    /// <summary>Trained numbers in the network.</summary>
    public long ParameterCount => Model.Network.parameters().Sum(parameter => parameter.numel());

    /// <summary>Where it computes: <c>cpu</c> or <c>cuda:N</c>.</summary>
    public string Device => Model.Device.ToString();

    /// <summary>The column that is read.</summary>
    public string FeatureColumnName => Columns.Feature;

    DataViewType ISingleFeaturePredictionTransformer<object>.FeatureColumnType => Model.Input.ColumnType;

    object IPredictionTransformer<object>.Model => Model;

    bool ITransformer.IsRowToRowMapper => true;

    int IBatchedTransformer.ReadAhead => 256;

    /// <summary>The input's schema with <c>PredictedLabel</c> and <c>Score</c> added.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The feature column is missing or of another type than in training.</exception>
    public DataViewSchema GetOutputSchema(DataViewSchema inputSchema)
    {
        _host.CheckValue(inputSchema, nameof(inputSchema));
        Model.Input.Find(_host, inputSchema, Columns.Feature);
        var builder = new DataViewSchema.Builder();
        builder.AddColumns(inputSchema);
        _label.AddScoreColumns(builder, inputSchema, Model.Spec.Classes, Columns.PredictedLabel, Columns.Score);
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

    DataViewSchema.Column IBatchedTransformer.FeatureColumn(DataViewSchema input) => Model.Input.Find(_host, input, Columns.Feature);

    void ICanSaveModel.Save(ModelSaveContext ctx) => ImageClassificationModelFile.Save(_host, ctx, this, _label);

    // Found by ML.NET's component catalog through the LoadableClass attribute.
    private static ImageClassificationTransformer Create(IHostEnvironment env, ModelLoadContext ctx) => ImageClassificationModelFile.Load(env, ctx);
}
