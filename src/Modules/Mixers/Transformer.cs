using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Softmax self-attention: <c>y = softmax(q kᵀ / √d) v</c> over the past (causal) or over all positions.</summary>
/// <remarks>Vaswani et al. 2017, equation 1, with rotary positions (Su et al. 2021). h: heads, d: features per head.</remarks>
internal sealed class SelfAttention : TokenMixer
{
    private readonly Linear project, output;
    private readonly int _heads;
    private readonly bool _causal;

    public SelfAttention(int width, int heads, bool causal) : base(nameof(SelfAttention))
    {
        (_heads, _causal) = (heads, causal);
        project = nn.Linear(width, 3 * width, hasBias: false);
        output = nn.Linear(width, width, hasBias: false);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x, SequencePadding? padding)
    {
        var (batch, time, width) = (x.shape[0], x.shape[1], x.shape[2]);
        var qkv = project.call(x).view(batch, time, 3, _heads, width / _heads).unbind(2); // 3 × [batch, time, h, d]
        var rotary = new Rotary(time, width / _heads, x);
        var (q, k, v) = (rotary.Apply(qkv[0]).transpose(1, 2), rotary.Apply(qkv[1]).transpose(1, 2), qkv[2].transpose(1, 2)); // [batch, h, time, d]
        // Right padding lies in the future of every real position, so the causal form needs no mask.
        var mask = _causal || padding is null ? null : padding.Valid.view(batch, 1, 1, time);
        var mixed = nn.functional.scaled_dot_product_attention(q, k, v, mask, is_casual: _causal); // [batch, h, time, d]
        return output.call(mixed.transpose(1, 2).reshape(batch, time, width));
    }
}

/// <summary>The Transformer: self-attention in residual blocks. Vaswani et al., "Attention is all you need", 2017.</summary>
public sealed record TransformerBackbone : Backbone
{
    /// <summary>Attention heads; must divide the width into even parts.</summary>
    public int Heads { get; init; } = 4;

    internal override TokenMixer CreateMixer(int layer) => new SelfAttention(Width, Heads, causal: !Bidirectional);

    internal override Backbone WithWidth(int width) => this with { Width = width, Heads = DefaultHeads(width) };

    internal static int DefaultHeads(int width) => Math.Max(1, width / 32);

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (Heads < 1 || Width % (2 * Heads) != 0)
            yield return $"Heads is {Heads} with Width {Width}; expected a positive number that divides the width into even parts.";
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
    public static TransformerBackbone Transformer(int width = 128, int depth = 2, int heads = 0, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, Heads = heads == 0 ? TransformerBackbone.DefaultHeads(width) : heads, Dropout = dropout, Bidirectional = bidirectional };
}
