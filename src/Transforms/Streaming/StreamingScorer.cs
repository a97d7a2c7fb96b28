using System.Security.Cryptography;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MLSeq;

/// <summary>One stream through a classifier: its state, and the prediction so far.</summary>
internal sealed class StreamingScorer : IDisposable
{
    private const int LongestPiece = 1 << 24;
    private const string Prediction = "prediction"; // a part of the pooling's state: what an empty piece returns again

    private readonly SequenceClassificationModel _model;
    private readonly Lazy<string> _owner;
    private readonly Workspace _work = new();
    private SequenceState _state;

    /// <exception cref="NotSupportedException">The model looks ahead.</exception>
    public StreamingScorer(SequenceClassificationModel model)
    {
        if (!model.Network.IsCausal)
            throw new NotSupportedException($"The model's backbone '{model.Spec.Backbone.Name}' is bidirectional: its predictions depend on elements that have not come yet, so it cannot be streamed. " +
                "Train it with bidirectional: false.");
        _model = model;
        _state = new SequenceState(model.Spec.Backbone.Depth);
        _owner = new Lazy<string>(Fingerprint);
        Input = model.Input with { MaxLength = LongestPiece }; // MaxLength bounds a row of training, not a stream
    }

    /// <summary>How a piece is read.</summary>
    public SequenceInput Input { get; }

    /// <summary>Elements so far.</summary>
    public long Position => _state.Position;

    /// <summary>Bytes that the state takes.</summary>
    public long StateBytes => _state.Bytes;

    /// <summary>Rows scored, empty ones included.</summary>
    public long Scored { get; private set; }

    /// <summary>Takes in the one row of <paramref name="piece"/> and writes the class probabilities so far.</summary>
    public void Score(SequenceBuffer piece, float[] probabilities)
    {
        Scored++;
        if (piece.LastRowWasEmpty && Position > 0) Known(_state).CopyTo(probabilities);
        else if (piece.LastRowWasEmpty)
        {
            using var nothing = new SequenceState(_model.Spec.Backbone.Depth); // as for an empty row; the stream has still not begun
            Advance(nothing, piece, probabilities);
        }
        else Advance(_state, piece, probabilities);
    }

    public void Reset() => _state.Clear();

    public void Save(Stream stream) => _state.Save(stream, _owner.Value);

    public void Load(Stream stream)
    {
        using var like = new SequenceState(_model.Spec.Backbone.Depth);
        var neutral = Input.CreateBuffer();
        neutral.EndRow(Input is TextInput { Encoding: WordTextEncoding words } ? words : null);
        Advance(like, neutral, new float[_model.Classes]);
        var loaded = SequenceState.Load(stream, _owner.Value, like, _model.Device);
        _state.Dispose();
        _state = loaded;
    }

    public void Dispose() => _state.Dispose();

    private void Advance(SequenceState state, SequenceBuffer piece, float[] probabilities)
    {
        _model.Score(piece, state, _work, probabilities.AsSpan(0, _model.Classes));
        probabilities.AsSpan(0, _model.Classes).CopyTo(Known(state));
    }

    private Span<float> Known(SequenceState state) => state.Pooling.InPlace(Prediction, 1, _model.Classes);

    // The state of one model means nothing to another.
    private string Fingerprint()
    {
        using var hash = SHA256.Create();
        using (var stream = new CryptoStream(Stream.Null, hash, CryptoStreamMode.Write))
            SafeTensors.Write(stream, _model.Network.State(), new Dictionary<string, string> { ["backbone"] = _model.Spec.Backbone.ToJson() });
        return Convert.ToHexStringLower(hash.Hash!);
    }
}

/// <summary>Takes the place of a classifier in a pipeline that is streamed: each row is the next piece of one sequence.</summary>
internal sealed class StreamingTransformer(SequenceClassificationTransformer classifier, StreamingScorer scorer) : ITransformer, IBatchedTransformer
{
    bool ITransformer.IsRowToRowMapper => true;

    int IBatchedTransformer.ReadAhead => 1;

    public DataViewSchema GetOutputSchema(DataViewSchema inputSchema) => classifier.OutputSchema(inputSchema, scorer.Input.AcceptsPiece);

    IRowToRowMapper ITransformer.GetRowToRowMapper(DataViewSchema inputSchema) => new BatchedRowMapper(this, inputSchema);

    ScoringSession IBatchedTransformer.CreateSession(DataViewRow row, DataViewSchema.Column features) => classifier.Model.CreateSession(row, features, scorer.Input, scorer.Score);

    DataViewSchema.Column IBatchedTransformer.FeatureColumn(DataViewSchema input) => classifier.FeatureColumn(input, scorer.Input.AcceptsPiece);

    IDataView ITransformer.Transform(IDataView input) => throw new NotSupportedException("A stream takes one element at a time; use StreamingEngine.Predict.");

    void ICanSaveModel.Save(ModelSaveContext ctx) => throw new NotSupportedException("Save the model that the engine was made from, and the engine's state with CheckPoint.");
}
