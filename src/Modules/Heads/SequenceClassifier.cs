using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What a sequence classifier is made of; with its weights, all there is to know.</summary>
/// <param name="Backbone">The stack of blocks.</param>
/// <param name="Input">What an element is.</param>
/// <param name="Pooling">How positions become one vector.</param>
/// <param name="Classes">Classes to tell apart.</param>
/// <param name="ElementDropout">Probability of dropping an element (a word, a base, a sample) while training.</param>
/// <param name="HeadDropout">Probability of dropping a pooled feature while training.</param>
internal sealed record SequenceClassifierSpec(Backbone Backbone, ElementKind Input, SequencePooling Pooling, int Classes, double ElementDropout = 0, double HeadDropout = 0);

/// <summary>What the elements of a sequence are to the network.</summary>
internal abstract record ElementKind
{
    public abstract SequenceEmbedding CreateEmbedding(int width);

    /// <summary>Numbers, <paramref name="Channels"/> at each position.</summary>
    public sealed record Series(int Channels) : ElementKind
    {
        public override SequenceEmbedding CreateEmbedding(int width) => new SeriesEmbedding(Channels, width);
    }

    /// <summary>Ids from 0 to <paramref name="Count"/> − 1.</summary>
    public sealed record Tokens(int Count) : ElementKind
    {
        public override SequenceEmbedding CreateEmbedding(int width) => new TokenEmbedding(Count, width);
    }

    /// <summary>Words as sets of hashed pieces, 1 to <paramref name="Buckets"/>.</summary>
    public sealed record Words(int Buckets) : ElementKind
    {
        public override SequenceEmbedding CreateEmbedding(int width) => new WordPieceEmbedding(Buckets, width);
    }
}

/// <summary>Embedding, backbone, pooling and a linear head: a batch of sequences to Single logits [batch, classes].</summary>
internal sealed class SequenceClassifier : nn.Module<SequenceBatch, SequenceState?, Tensor>
{
    private readonly SequenceEmbedding embedding;
    private readonly SequenceStack backbone;
    private readonly Pooling pooling;
    private readonly Linear head;
    private readonly double _elementDropout, _headDropout;

    public SequenceClassifier(SequenceClassifierSpec spec) : base(nameof(SequenceClassifier))
    {
        embedding = spec.Input.CreateEmbedding(spec.Backbone.Width);
        backbone = new SequenceStack(spec.Backbone);
        pooling = Pooling.Create(spec.Pooling, spec.Backbone.Width);
        head = nn.Linear(spec.Backbone.Width, spec.Classes);
        (_elementDropout, _headDropout) = (spec.ElementDropout, spec.HeadDropout);
        RegisterComponents();
    }

    /// <summary>Whether it can go on from a state.</summary>
    public bool IsCausal => modules().OfType<TokenMixer>().All(mixer => mixer.IsCausal);

    /// <summary>Numbers that the backbone has learned; about the multiplications per element.</summary>
    public long BackboneParameters => backbone.parameters().Sum(parameter => parameter.numel());

    /// <param name="batch">The sequences, or their next elements.</param>
    /// <param name="state">What precedes the batch; afterwards it includes the batch. Null: nothing precedes, and nothing is kept.</param>
    public override Tensor forward(SequenceBatch batch, SequenceState? state)
    {
        var x = embedding.call(batch);
        // Whole elements: keeps a small data set from being learned by heart through a few telling positions.
        if (training && _elementDropout > 0) x = x * rand(x.shape[0], x.shape[1], 1, device: x.device).ge(_elementDropout).to(x.dtype);
        x = backbone.call(x, batch.Padding, state?.Blocks);
        var pooled = pooling.call(x, batch.Padding, state?.Pooling);
        if (training && _headDropout > 0) pooled = nn.functional.dropout(pooled, _headDropout);
        return head.call(pooled).to(float32);
    }

    /// <summary><see cref="forward"/> when not training, and the softmax, over spans: for one sequence on the CPU. Null when a mixer has no such form, or the network is elsewhere or not in float32.</summary>
    public SpanClassifier? OverSpans()
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        if (parameters().Any(parameter => parameter.device_type != DeviceType.CPU || parameter.dtype != float32)) return null;
        if (backbone.OverSpans() is not { } stack) return null;
        var (embed, pool, classify, width) = (embedding.OverSpans(), pooling.OverSpans(), new PackedLinear(head), (int)head.weight.shape[1]);
        return (row, state, work, probabilities) =>
        {
            using var frame = work.Open();
            var x = work.Take(row.Count, width);
            var pooled = work.Take(width);
            embed(row, x);
            stack(x, state?.Blocks, work);
            pool(x, pooled, state?.Pooling, work);
            classify.Apply(pooled, probabilities);
            probabilities.Softmax();
        };
    }
}
