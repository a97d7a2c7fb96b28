using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>How the vectors of all positions become one.</summary>
public enum SequencePooling
{
    /// <summary>Attention by learned queries over all positions: finds a splice site or a keyword wherever it sits. The default.</summary>
    LearnedQuery,

    /// <summary>The mean over real positions.</summary>
    Mean,

    /// <summary>The maximum of each feature over real positions.</summary>
    Max,

    /// <summary>The last real position: the natural choice for a causal model that is to be streamed.</summary>
    Last,
}

/// <summary>[batch, time, width] to [batch, width], over real positions only.</summary>
internal abstract class Pooling(string name) : nn.Module<Tensor, SequencePadding?, Tensor>(name)
{
    public static Pooling Create(SequencePooling kind, int width) => kind switch
    {
        SequencePooling.LearnedQuery => new LearnedQueryPooling(width),
        SequencePooling.Mean => new MeanPooling(),
        SequencePooling.Max => new MaxPooling(),
        SequencePooling.Last => new LastPooling(),
        _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, "Unknown pooling."),
    };

    private sealed class MeanPooling() : Pooling("MeanPooling")
    {
        public override Tensor forward(Tensor x, SequencePadding? padding)
            => padding is null ? x.mean([1]) : padding.Fill(x, 0).sum(1) / padding.Lengths.unsqueeze(1).to(x.dtype);
    }

    private sealed class MaxPooling() : Pooling("MaxPooling")
    {
        public override Tensor forward(Tensor x, SequencePadding? padding) => (padding?.Fill(x, double.NegativeInfinity) ?? x).amax([1]);
    }

    private sealed class LastPooling() : Pooling("LastPooling")
    {
        public override Tensor forward(Tensor x, SequencePadding? padding)
            => padding is null
                ? x.select(1, x.shape[1] - 1)
                : x.gather(1, (padding.Lengths - 1).view(-1, 1, 1).expand(x.shape[0], 1, x.shape[2])).squeeze(1);
    }

    /// <summary>
    /// Each head h has a learned query q_h: <c>a_h = softmax_t(q_h · rot_t(K_h x_t) / √d)</c>, <c>y_h = Σ_t a_{h,t} V_h x_t</c>. The rotation of the keys
    /// by their position lets a query ask for a place as well as for a content.
    /// </summary>
    private sealed class LearnedQueryPooling : Pooling
    {
        private readonly Linear keysAndValues;
        private readonly Parameter query; // [h, d]
        private readonly long _heads, _size;

        public LearnedQueryPooling(int width) : base(nameof(LearnedQueryPooling))
        {
            _heads = Enumerable.Range(1, 4).Last(heads => width % (2 * heads) == 0);
            _size = width / _heads;
            keysAndValues = nn.Linear(width, 2 * width);
            query = nn.Parameter(randn(_heads, _size));
            RegisterComponents();
        }

        public override Tensor forward(Tensor x, SequencePadding? padding)
        {
            var (batch, time) = (x.shape[0], x.shape[1]);
            var kv = keysAndValues.call(x).view(batch, time, 2, _heads, _size).unbind(2); // 2 × [batch, time, h, d]
            var keys = new Rotary(time, _size, x).Apply(kv[0]);
            var scores = (keys * query).sum(-1).transpose(1, 2).to(float32) / Math.Sqrt(_size); // [batch, h, time]
            if (padding is not null) scores = scores.masked_fill(padding.Valid.logical_not().unsqueeze(1), double.NegativeInfinity);
            var weights = scores.softmax(-1).to(x.dtype);
            return weights.unsqueeze(2).matmul(kv[1].transpose(1, 2)).view(batch, -1); // [batch, h·d]
        }
    }
}
