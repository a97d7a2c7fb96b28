using Microsoft.ML;
using Microsoft.ML.Data;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>A trained classifier ready to score: network, input and device. Used by many threads at once; nothing in it changes.</summary>
internal sealed class SequenceClassificationModel
{
    /// <summary>Rows that go through the network together; rows of like length are put together first.</summary>
    private const int BatchRows = 256;

    /// <summary>Bound on rows × positions of a batch, so that long sequences do not exhaust memory.</summary>
    private const long BatchElements = 1 << 17;

    /// <summary>Bounds of what is computed over spans, on one core: a network's weights (they are copied), elements (attention costs their square), weights × elements. Beyond, libtorch's several cores may be faster.</summary>
    private const long SpanWeights = 1 << 25, SpanElements = 1 << 11, SpanWork = 1 << 28;

    private readonly Lazy<SpanClassifier?> _overSpans;
    private readonly long _weights;

    public SequenceClassificationModel(SequenceClassifierSpec spec, SequenceInput input, SequenceClassifier network, Device device)
    {
        (Spec, Input, Network, Device) = (spec, input, network, device);
        network.eval();
        _weights = network.BackboneParameters;
        _overSpans = new(() => _weights <= SpanWeights ? network.OverSpans() : null);
    }

    public SequenceClassifierSpec Spec { get; }

    public SequenceInput Input { get; }

    public SequenceClassifier Network { get; }

    public Device Device { get; }

    public int Classes => Spec.Classes;

    /// <summary>Class probabilities of the only row of <paramref name="piece"/>, or with a state of the sequence that it goes on with.</summary>
    /// <param name="piece">One row.</param>
    /// <param name="state">What precedes; afterwards it includes the row. Null: nothing precedes, and nothing is kept.</param>
    /// <param name="work">Scratch memory of the caller's thread.</param>
    /// <param name="probabilities">[classes].</param>
    public void Score(SequenceBuffer piece, SequenceState? state, Workspace work, Span<float> probabilities)
    {
        if (FormOverSpans(piece.Length(0)) is { } overSpans)
        {
            overSpans(piece.Row(0), state, work, probabilities);
            return;
        }
        using var scope = NewDisposeScope();
        using var _ = inference_mode();
        Network.call(piece.Gather([0], Device), state).softmax(1).cpu().data<float>().CopyTo(probabilities);
    }

    private SpanClassifier? FormOverSpans(long elements)
        => OperatorChoice.AllowsSpans && elements <= SpanElements && elements * _weights <= SpanWork ? _overSpans.Value : null;

    /// <summary>Class probabilities of every row of <paramref name="buffer"/>, [rows, classes] row by row, into <paramref name="probabilities"/>.</summary>
    public void Score(SequenceBuffer buffer, Workspace work, Span<float> probabilities)
    {
        if (buffer.Count == 1)
        {
            Score(buffer, null, work, probabilities[..Classes]);
            return;
        }
        var rows = Enumerable.Range(0, buffer.Count).ToArray();
        Array.Sort([.. rows.Select(buffer.Length)], rows);
        for (int from = 0, count; from < rows.Length; from += count)
        {
            count = 1;
            while (count < BatchRows && from + count < rows.Length && (count + 1L) * buffer.Length(rows[from + count]) <= BatchElements) count++;
            using var scope = NewDisposeScope();
            using var _ = inference_mode();
            var batch = rows.AsSpan(from, count);
            var scores = Network.call(buffer.Gather(batch, Device), null).softmax(1).cpu();
            var values = scores.data<float>().ToArray();
            for (var i = 0; i < count; i++) values.AsSpan(i * Classes, Classes).CopyTo(probabilities[(batch[i] * Classes)..]);
        }
    }

    /// <summary>Reads and scores rows of a cursor.</summary>
    public ScoringSession CreateSession(DataViewRow row, DataViewSchema.Column features)
    {
        var work = new Workspace();
        return CreateSession(row, features, Input, (buffer, probabilities) => Score(buffer, work, probabilities));
    }

    /// <summary>Reads rows of a cursor as <paramref name="input"/> says, and scores them by <paramref name="score"/>: class probabilities, [rows, classes].</summary>
    public ScoringSession CreateSession(DataViewRow row, DataViewSchema.Column features, SequenceInput input, Action<SequenceBuffer, float[]> score)
        => new Session(this, input.CreateBuffer(), input.CreateReader(row, features), score);

    private sealed class Session(SequenceClassificationModel model, SequenceBuffer buffer, Action<SequenceBuffer> read, Action<SequenceBuffer, float[]> score) : ScoringSession
    {
        private readonly ClassScores _scores = new(model.Classes);

        public override void Append() => read(buffer);

        public override void Score()
        {
            score(buffer, _scores.Rows(buffer.Count));
            buffer.Clear();
        }

        public override Delegate CreateGetter(int output, Func<int> row) => _scores.CreateGetter(output, row);
    }
}
