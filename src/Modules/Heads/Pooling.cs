using TorchSharp;
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

/// <summary>[batch, time, width] to [batch, width], over real positions only; with a state, over all positions since it was empty.</summary>
internal abstract class Pooling(string name) : nn.Module<Tensor, SequencePadding?, MixerState?, Tensor>(name)
{
    public static Pooling Create(SequencePooling kind, int width) => kind switch
    {
        SequencePooling.LearnedQuery => new LearnedQueryPooling(width),
        SequencePooling.Mean => new MeanPooling(),
        SequencePooling.Max => new MaxPooling(),
        SequencePooling.Last => new LastPooling(),
        _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, "Unknown pooling."),
    };

    public sealed override Tensor forward(Tensor x, SequencePadding? padding, MixerState? state)
    {
        if (state is null) return Pool(x, padding);
        var pooled = Continue(x, state);
        state.Position += x.shape[1];
        return pooled;
    }

    protected abstract Tensor Pool(Tensor x, SequencePadding? padding);

    /// <summary>Pools what the state knows together with x, and lets it know x. The state's position still is that of x's first element.</summary>
    protected abstract Tensor Continue(Tensor x, MixerState state);

    /// <summary><see cref="forward"/> over spans.</summary>
    internal SpanPooling OverSpans()
    {
        var pool = SpanForm();
        return (x, pooled, state, work) =>
        {
            using var frame = work.Open();
            pool(x, pooled, state, work);
            if (state is not null) state.Position += x.Count;
        };
    }

    /// <summary><see cref="Continue"/> over spans; without a state nothing precedes.</summary>
    protected abstract SpanPooling SpanForm();

    private sealed class MeanPooling() : Pooling("MeanPooling")
    {
        protected override Tensor Pool(Tensor x, SequencePadding? padding)
            => padding is null ? x.mean([1]) : padding.Fill(x, 0).sum(1) / padding.Lengths.unsqueeze(1).to(x.dtype);

        protected override Tensor Continue(Tensor x, MixerState state)
        {
            var sum = x.to(Chunks.StateType(x)).sum(1);
            if (state["sum"] is { } before) sum = sum + before;
            state.Set("sum", sum);
            return (sum / (state.Position + x.shape[1])).to(x.dtype);
        }

        protected override SpanPooling SpanForm() => (x, pooled, state, work) =>
        {
            var sum = work.Past(state, "sum", 1, x.Width);
            for (var t = 0; t < x.Count; t++) sum.Add(x[t]);
            TensorPrimitives.Divide(sum, (state?.Position ?? 0) + x.Count, pooled);
        };
    }

    private sealed class MaxPooling() : Pooling("MaxPooling")
    {
        protected override Tensor Pool(Tensor x, SequencePadding? padding) => (padding?.Fill(x, double.NegativeInfinity) ?? x).amax([1]);

        protected override Tensor Continue(Tensor x, MixerState state)
        {
            var most = state["max"] is { } before ? x.amax([1]).maximum(before) : x.amax([1]);
            state.Set("max", most);
            return most;
        }

        protected override SpanPooling SpanForm() => (x, pooled, state, work) =>
        {
            var most = work.Past(state, "max", 1, x.Width);
            if (state is null or { Position: 0 }) most.Fill(float.NegativeInfinity);
            for (var t = 0; t < x.Count; t++) TensorPrimitives.Max(most, x[t], most);
            most.CopyTo(pooled);
        };
    }

    private sealed class LastPooling() : Pooling("LastPooling")
    {
        protected override Tensor Pool(Tensor x, SequencePadding? padding)
            => padding is null
                ? x.select(1, x.shape[1] - 1)
                : x.gather(1, (padding.Lengths - 1).view(-1, 1, 1).expand(x.shape[0], 1, x.shape[2])).squeeze(1);

        protected override Tensor Continue(Tensor x, MixerState state) => Pool(x, null);

        protected override SpanPooling SpanForm() => (x, pooled, _, _) => x[x.Count - 1].CopyTo(pooled);
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

        protected override Tensor Pool(Tensor x, SequencePadding? padding)
        {
            var (scores, values) = Score(x, 0);
            if (padding is not null) scores = scores.masked_fill(padding.Valid.logical_not().unsqueeze(1), double.NegativeInfinity);
            var weights = scores.softmax(-1).to(x.dtype);
            return weights.unsqueeze(2).matmul(values).view(x.shape[0], -1); // [batch, h·d]
        }

        // The softmax of all scores so far, from its largest score, the sum of e^(score − largest) and the values weighted alike (Milakov and Gimelshein 2018).
        protected override Tensor Continue(Tensor x, MixerState state)
        {
            var (scores, values) = Score(x, state.Position);
            var largest = scores.amax([-1L], keepdim: true); // [batch, h, 1]
            if (state["largest"] is { } before) largest = largest.maximum(before);
            var weights = (scores - largest).exp();
            var (sum, weighted) = (weights.sum([-1L], keepdim: true), weights.unsqueeze(2).matmul(values.to(weights.dtype)).squeeze(2)); // [batch, h, 1], [batch, h, d]
            if (state["largest"] is { } old)
            {
                var shrink = (old - largest).exp();
                (sum, weighted) = (sum + shrink * state["sum"]!, weighted + shrink * state["weighted"]!);
            }
            state.Set("largest", largest);
            state.Set("sum", sum);
            state.Set("weighted", weighted);
            return (weighted / sum).to(x.dtype).view(x.shape[0], -1);
        }

        protected override SpanPooling SpanForm()
        {
            var (map, queries, rotary) = (new PackedLinear(keysAndValues), query.Numbers(), new Rotary.OverSpans((int)_size));
            var (heads, size) = ((int)_heads, (int)_size);
            return (x, pooled, state, work) =>
            {
                var position = state?.Position ?? 0;
                var largest = work.Past(state, "largest", 1, heads, 1);
                var sum = work.Past(state, "sum", 1, heads, 1);
                var weighted = work.Past(state, "weighted", 1, heads, size);
                if (position == 0) largest.Fill(float.NegativeInfinity);
                var kv = map.Apply(x, work);
                for (var t = 0; t < x.Count; t++)
                {
                    using var frame = work.Open();
                    Rotary.OverSpans.Turn(kv[t][..x.Width], rotary.At(position + t, work));
                    for (var h = 0; h < heads; h++)
                    {
                        var score = TensorPrimitives.Dot<float>(kv[t].Head(h, size), queries.AsSpan().Head(h, size)) / MathF.Sqrt(size);
                        var most = MathF.Max(largest[h], score);
                        var (shrink, weight) = (MathF.Exp(largest[h] - most), MathF.Exp(score - most));
                        (largest[h], sum[h]) = (most, sum[h] * shrink + weight);
                        var head = weighted.Head(h, size);
                        head.Scale(shrink);
                        head.AddProduct(kv[t].Head(heads + h, size), weight);
                    }
                }
                for (var h = 0; h < heads; h++) TensorPrimitives.Divide(weighted.Head(h, size), sum[h], pooled.Head(h, size));
            };
        }

        // Scores, [batch, h, time] in float32 or better, and values, [batch, h, time, d].
        private (Tensor Scores, Tensor Values) Score(Tensor x, long start)
        {
            var (batch, time) = (x.shape[0], x.shape[1]);
            var kv = keysAndValues.call(x).view(batch, time, 2, _heads, _size).unbind(2); // 2 × [batch, time, h, d]
            var keys = new Rotary(time, _size, x, start).Apply(kv[0]);
            return ((keys * query).sum(-1).transpose(1, 2).to(Chunks.StateType(x)) / Math.Sqrt(_size), kv[1].transpose(1, 2));
        }
    }
}
