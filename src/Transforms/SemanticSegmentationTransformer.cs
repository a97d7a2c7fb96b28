using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms.Image;
using MLSeq;

[assembly: LoadableClass(typeof(SemanticSegmentationTransformer), null, typeof(SignatureLoadModel), "MLSeq semantic segmentation", SemanticSegmentationTransformer.LoaderSignature)]

namespace MLSeq;

/// <summary>A fitted segmenter: adds <c>PredictedMask</c>, the class of every pixel, and on request <c>Score</c>, the classes' probabilities.</summary>
/// <remarks>
/// <c>PredictedMask</c> is a vector of Byte [height, width] or, by option, a gray image of each image's own size; it is annotated with the names of the classes. Images of any size are scored, those larger
/// than a tile by overlapping parts. Safe to use from many threads. It computes on <c>MLContext.GpuDeviceId</c> if set, else on the first CUDA device, else on the CPU.
/// </remarks>
public sealed class SemanticSegmentationTransformer : ITransformer, IBatchedTransformer
{
    internal const string LoaderSignature = "MLSeqSegmenter";

    private readonly IHost _host;

    internal SemanticSegmentationTransformer(IHostEnvironment env, SegmentationModel model, SegmenterColumns columns)
    {
        _host = env.Register(nameof(SemanticSegmentationTransformer));
        (Model, Columns) = (model, columns);
    }

    internal SegmentationModel Model { get; }

    internal SegmenterColumns Columns { get; }

    /// <summary>The backbone.</summary>
    public VisionBackbone Backbone => Model.Spec.Backbone;

    /// <summary>The classes, in the order of the masks' values.</summary>
    public IReadOnlyList<string> ClassNames => Model.Scoring.ClassNames;

    /// <summary>Trained numbers in the network.</summary>
    public long ParameterCount => Model.Network.parameters().Sum(parameter => parameter.numel());

    /// <summary>Where it computes: <c>cpu</c> or <c>cuda:N</c>.</summary>
    public string Device => Model.Device.ToString();

    /// <summary>The column that is read.</summary>
    public string FeatureColumnName => Columns.Feature;

    bool ITransformer.IsRowToRowMapper => true;

    int IBatchedTransformer.ReadAhead => 32;

    /// <summary>The input's schema with <c>PredictedMask</c> and, when asked for in training, <c>Score</c> added.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The feature column is missing or of another type than in training.</exception>
    public DataViewSchema GetOutputSchema(DataViewSchema inputSchema)
    {
        _host.CheckValue(inputSchema, nameof(inputSchema));
        Model.Input.Find(_host, inputSchema, Columns.Feature);
        var (scoring, builder) = (Model.Scoring, new DataViewSchema.Builder());
        builder.AddColumns(inputSchema);
        DataViewType masks = scoring.AsImage ? new ImageDataViewType() : new VectorDataViewType(NumberDataViewType.Byte, scoring.Height, scoring.Width);
        builder.AddColumn(Columns.PredictedMask, masks, MaskColumn.Annotations(scoring.ClassNames));
        if (Columns.Score is { } score) builder.AddColumn(score, new VectorDataViewType(NumberDataViewType.Single, Model.Spec.Classes, scoring.Height, scoring.Width));
        return builder.ToSchema();
    }

    /// <summary>Scores a view, lazily and in batches.</summary>
    public IDataView Transform(IDataView input)
    {
        _host.CheckValue(input, nameof(input));
        return new BatchedDataView(this, input);
    }

    IRowToRowMapper ITransformer.GetRowToRowMapper(DataViewSchema inputSchema) => new BatchedRowMapper(this, inputSchema);

    ScoringSession IBatchedTransformer.CreateSession(DataViewRow row, DataViewSchema.Column features) => Model.CreateSession(row, features, withScores: Columns.Score is not null);

    DataViewSchema.Column IBatchedTransformer.FeatureColumn(DataViewSchema input) => Model.Input.Find(_host, input, Columns.Feature);

    void ICanSaveModel.Save(ModelSaveContext ctx) => SegmentationModelFile.Save(_host, ctx, this);

    // Found by ML.NET's component catalog through the LoadableClass attribute.
    private static SemanticSegmentationTransformer Create(IHostEnvironment env, ModelLoadContext ctx) => SegmentationModelFile.Load(env, ctx);
}

/// <summary>Names of the columns that a segmenter reads and writes.</summary>
internal sealed record SegmenterColumns(string Feature, string PredictedMask, string? Score);
