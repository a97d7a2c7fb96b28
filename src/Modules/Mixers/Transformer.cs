using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Softmax self-attention: <c>y = softmax(q kᵀ / √d) v</c> over the past (causal), over its last elements (a window), or over all positions.</summary>
/// <remarks>Vaswani et al. 2017, equation 1, with rotary positions (Su et al. 2021). h: heads, d: features per head. Its state is the key-value cache.</remarks>
internal sealed class SelfAttention : TokenMixer
{
    private const string Keys = "keys", Values = "values";

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

    // The cache with the new elements: the last `window` before them, or all (in a buffer that doubles when it is full).
    private (Tensor Keys, Tensor Values) Extend(MixerState state, Tensor k, Tensor v)
    {
        Tensor Grown(string name, Tensor fresh)
        {
            var (past, time) = (state[name], fresh.shape[2]);
            if (_window > 0)
            {
                var all = past is null ? fresh : cat([past, fresh], 2);
                var kept = Math.Min(all.shape[2], _window - 1);
                state.Set(name, all.narrow(2, all.shape[2] - kept, kept).clone());
                return all;
            }
            var count = state.Position + time;
            if (past is null || past.shape[2] < count)
            {
                var buffer = zeros([fresh.shape[0], fresh.shape[1], Math.Max(16, (long)System.Numerics.BitOperations.RoundUpToPowerOf2((ulong)count)), fresh.shape[3]], fresh.dtype, fresh.device);
                if (past is not null) buffer.narrow(2, 0, state.Position).copy_(past.narrow(2, 0, state.Position));
                state.Set(name, past = buffer);
            }
            past.narrow(2, state.Position, time).copy_(fresh);
            return past.narrow(2, 0, count);
        }
        return (Grown(Keys, k), Grown(Values, v));
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
