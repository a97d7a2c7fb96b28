using System.Numerics;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Softmax self-attention: <c>y = softmax(q kᵀ / √d) v</c> over the past (causal), over its last elements (a window), or over all positions.</summary>
/// <remarks>Vaswani et al. 2017, equation 1, with rotary positions (Su et al. 2021). h: heads, d: features per head. Its state is the key-value cache.</remarks>
internal sealed class SelfAttention : TokenMixer
{
    private const string Keys = "keys", Values = "values";
    private const int QueriesAtOnce = 64; // over spans

    private readonly Linear project, output;
    private readonly int _heads, _window;
    private readonly bool _causal, _rotary;

    public SelfAttention(int width, int heads, bool causal, int window = 0, bool rotary = true) : base(nameof(SelfAttention))
    {
        (_heads, _causal, _window, _rotary) = (heads, causal, window, rotary);
        project = nn.Linear(width, 3 * width, hasBias: false);
        output = nn.Linear(width, width, hasBias: false);
        RegisterComponents();
    }

    public override bool IsCausal => _causal;

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var (batch, time, width) = (x.shape[0], x.shape[1], x.shape[2]);
        var projected = project.call(x);
        var qkv = _rotary ? TurnedHeads.Run(projected, 3, _heads, state?.Position ?? 0) : projected.view(batch, time, 3, _heads, width / _heads).unbind(2); // 3 × [batch, time, h, d]
        var (q, k, v) = (qkv[0].transpose(1, 2), qkv[1].transpose(1, 2), qkv[2].transpose(1, 2)); // [batch, h, time, d]
        if (state is not null) (k, v) = Extend(state, k, v);
        var mask = Mask(time, k.shape[2], padding, x.device);
        var mixed = nn.functional.scaled_dot_product_attention(q, k, v, mask, is_casual: mask is null && _causal && time > 1); // [batch, h, time, d]
        return output.call(mixed.transpose(1, 2).reshape(batch, time, width));
    }

    // Queries are the last `time` of the `keys` positions. Right padding lies in the future of every real position, so the causal form need not mask it.
    private Tensor? Mask(long time, long keys, SequencePadding? padding, Device device)
    {
        if (!_causal && _window == 0) return padding?.Valid.view(-1, 1, 1, keys);
        var plain = _window == 0 || keys <= _window;
        if (_causal && plain && (time == keys || time == 1)) return null;
        var distance = (arange(keys - time, keys, device: device).unsqueeze(1) - arange(keys, device: device)); // query − key
        var mask = _causal ? distance.ge(0) : ones_like(distance, ScalarType.Bool);
        if (_window > 0) mask = mask.logical_and(distance.abs() < _window);
        return padding is null || _causal ? mask : mask.logical_and(padding.Valid.view(-1, 1, 1, keys));
    }

    // The cache with the new elements.
    private (Tensor Keys, Tensor Values) Extend(MixerState state, Tensor k, Tensor v)
    {
        Tensor Extended(string name, Tensor fresh)
        {
            var (known, kept, time) = (Kept(state.Position), Kept(state.Position + fresh.shape[2]), fresh.shape[2]);
            var past = known == 0 ? null : state[name]!.narrow(2, 0, known);
            var all = _window == 0 || past is null ? fresh : cat([past, fresh], 2);
            var cache = Cache(state, name, kept, fresh);
            if (_window == 0)
            {
                cache.narrow(2, known, time).copy_(fresh);
                return cache.narrow(2, 0, kept);
            }
            cache.narrow(2, 0, kept).copy_(all.narrow(2, all.shape[2] - kept, kept));
            return all;
        }
        return (Extended(Keys, k), Extended(Values, v));
    }

    // Of so many elements the cache keeps those that a later one can see: the last window − 1, or all.
    private long Kept(long elements) => _window > 0 ? Math.Min(elements, _window - 1) : elements;

    // The cache with room for so many elements, [batch, h, room, d]; it doubles when it is full.
    private Tensor Cache(MixerState state, string name, long kept, Tensor like)
    {
        var old = state[name];
        if (old is not null && old.shape[2] >= kept) return old;
        var cache = zeros([like.shape[0], _heads, Kept(Math.Max(16, (long)BitOperations.RoundUpToPowerOf2((ulong)kept))), like.shape[3]], like.dtype, like.device);
        if (old is not null) cache.narrow(2, 0, old.shape[2]).copy_(old);
        state.Set(name, cache);
        return cache;
    }

    internal override SpanMixer OverSpans()
    {
        var (into, outOf) = (new PackedLinear(project), new PackedLinear(output));
        var (heads, width, size) = (_heads, outOf.Inputs, outOf.Inputs / _heads);
        var rotary = _rotary ? new Rotary.OverSpans(size) : null;
        return (x, y, state, work) =>
        {
            var (position, time) = (state?.Position ?? 0, x.Count);
            var qkv = into.Apply(x, work);
            var mixed = work.Take(time, width);
            for (var t = 0; t < time && rotary is not null; t++)
            {
                using var frame = work.Open();
                Rotary.OverSpans.Turn(qkv[t][..(2 * width)], rotary.At(position + t, work));
            }
            var keys = Extend(Keys, qkv.Columns(width, width), state, work); // [h · room, d]
            var values = Extend(Values, qkv.Columns(2 * width, width), state, work);
            var (room, known) = (keys.Count / heads, (int)Kept(position));
            for (var h = 0; h < heads; h++)
                for (var from = 0; from < time; from += QueriesAtOnce)
                {
                    using var frame = work.Open();
                    var queries = qkv.Columns(h * size, size).Range(from, Math.Min(QueriesAtOnce, time - from));
                    var (first, end) = (Seen(known + from, known + time).First, Seen(known + from + queries.Count - 1, known + time).End); // by any of them
                    var weights = work.Take(queries.Count, end - first);
                    Products.Multiply(queries, keys.Range(h * room + first, end - first), weights, work);
                    for (var t = 0; t < queries.Count; t++)
                    {
                        var (mine, last) = Seen(known + from + t, known + time);
                        weights[t][..(mine - first)].Clear();
                        weights[t][(last - first)..].Clear();
                        var seen = weights[t][(mine - first)..(last - first)];
                        seen.Scale(1 / MathF.Sqrt(size));
                        seen.Softmax();
                    }
                    Products.WeightedSums(weights, values.Range(h * room + first, end - first), mixed.Columns(h * size, size).Range(from, queries.Count));
                }
            outOf.Apply(mixed, y);
        };
    }

    // Which of so many positions one of them sees.
    private (int First, int End) Seen(int position, int count)
    {
        var (first, end) = (0, _causal ? position + 1 : count);
        return _window == 0 ? (first, end) : (Math.Max(first, position - _window + 1), Math.Min(end, position + _window));
    }

    // The known elements, then the fresh ones, [h · room, d]: the cache itself, or a copy where it keeps a window or nothing.
    private Rows Extend(string name, Rows fresh, MixerState? state, Workspace work)
    {
        var (position, size) = (state?.Position ?? 0, fresh.Width / _heads);
        var (known, kept, count) = ((int)Kept(position), (int)Kept(position + fresh.Count), (int)Kept(position) + fresh.Count);
        var cache = state is null ? default : Cache(state, name, kept, size);
        var inPlace = state is not null && _window == 0;
        var all = inPlace ? cache : work.Take(_heads * count, size);
        for (var h = 0; h < _heads; h++)
        {
            var head = all.Range(h * (all.Count / _heads), count);
            var cached = h * (cache.Count / _heads);
            if (!inPlace) cache.Range(cached, known).CopyTo(head);
            for (var t = 0; t < fresh.Count; t++) fresh[t].Head(h, size).CopyTo(head[known + t]);
            if (!inPlace && state is not null) head.Range(count - kept, kept).CopyTo(cache.Range(cached, kept));
        }
        return all;
    }

    // The cache over spans, [h · room, d].
    private Rows Cache(MixerState state, string name, int kept, int size)
    {
        var numbers = state.InPlace(name, 1, _heads, 0, size);
        if (numbers.Length < _heads * kept * size)
        {
            using var scope = NewDisposeScope();
            Cache(state, name, kept, state[name]!);
            numbers = state.InPlace(name);
        }
        return new Rows(numbers, numbers.Length / size, size);
    }
}

/// <summary>The Transformer: self-attention in residual blocks. Vaswani et al., "Attention is all you need", 2017.</summary>
public sealed record TransformerBackbone : MultiHeadBackbone
{
    /// <summary>How far back a position sees, itself included; 0: without limit. A window bounds the memory of streaming. Bidirectional: to both sides.</summary>
    public int Window { get; init; }

    /// <summary>Whether queries and keys are turned by their position. Without, attention knows no order but what the elements tell.</summary>
    public bool Rotary { get; init; } = true;

    internal override TokenMixer CreateMixer(int layer) => new SelfAttention(Width, Heads, causal: !Bidirectional, Window, Rotary);

    internal override Backbone WithoutRotary() => this with { Rotary = false };

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (Window is < 0 or > 1 << 24) yield return $"Window is {Window}; expected 0 (no limit) to {1 << 24}.";
    }
}

public abstract partial record Backbone
{
    /// <summary>The Transformer (Vaswani et al. 2017) with rotary positions, in pre-norm residual blocks.</summary>
    /// <param name="width">Features per position.</param>
    /// <param name="depth">Blocks.</param>
    /// <param name="heads">Attention heads; 0 chooses one per 32 features.</param>
    /// <param name="dropout">Probability of dropping a feature of a block's update while training.</param>
    /// <param name="bidirectional">Attends both ways. Better for whole sequences; a causal model can also be streamed.</param>
    /// <param name="window">How far back a position sees, itself included; 0: without limit.</param>
    public static TransformerBackbone Transformer(int width = 128, int depth = 2, int heads = 0, double dropout = 0.1, bool bidirectional = false, int window = 0)
        => new() { Width = width, Depth = depth, Heads = heads == 0 ? MultiHeadBackbone.DefaultHeads(width) : heads, Dropout = dropout, Bidirectional = bidirectional, Window = window };
}
