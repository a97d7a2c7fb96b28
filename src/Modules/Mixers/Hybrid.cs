using System.Text.Json.Serialization;

namespace MLSeq;

/// <summary>Two kinds of mixers in turn: several recurrent blocks, which carry the sequence in constant memory, then one of attention, which looks things up exactly.</summary>
/// <remarks>As in Jamba (Lieber et al. 2024) and the hybrids of Gated DeltaNet (Yang et al. 2024, section 3.4). With windowed attention the memory of streaming stays constant.</remarks>
public sealed record HybridBackbone : Backbone
{
    /// <summary>The kind of most blocks. Its width, depth, dropout and direction are taken from the hybrid.</summary>
    [JsonConverter(typeof(NestedJson))]
    public Backbone Recurrent { get; init; } = GatedDeltaNet();

    /// <summary>The kind of every last block of a period.</summary>
    [JsonConverter(typeof(NestedJson))]
    public Backbone Attention { get; init; } = Transformer();

    /// <summary>Blocks of the recurrent kind before each block of attention.</summary>
    public int RecurrentPerAttention { get; init; } = 3;

    internal override TokenMixer CreateMixer(int layer)
    {
        var kind = layer % (RecurrentPerAttention + 1) == RecurrentPerAttention ? Attention : Recurrent;
        return (kind with { Bidirectional = Bidirectional }).CreateMixer(layer);
    }

    internal override Backbone WithWidth(int width) => this with { Width = width, Recurrent = Recurrent.WithWidth(width), Attention = Attention.WithWidth(width) };

    internal override Backbone WithoutRotary() => this with { Recurrent = Recurrent.WithoutRotary(), Attention = Attention.WithoutRotary() };

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (RecurrentPerAttention is < 0 or > 256) yield return $"RecurrentPerAttention is {RecurrentPerAttention}; expected 0 to 256.";
        foreach (var (name, kind) in new[] { (nameof(Recurrent), Recurrent), (nameof(Attention), Attention) })
        {
            if (kind is null or HybridBackbone)
            {
                yield return $"{name} is {kind?.Name ?? "null"}; expected a backbone that is not a hybrid.";
                continue;
            }
            if (kind.Width != Width) yield return $"{name} has Width {kind.Width}; expected the hybrid's {Width}.";
            foreach (var problem in kind.Problems()) yield return $"{name}: {problem}";
        }
    }
}

public abstract partial record Backbone
{
    /// <summary>A hybrid: <paramref name="recurrentPerAttention"/> recurrent blocks, then one of attention, and so on.</summary>
    /// <param name="recurrent">The recurrent kind; null: Gated DeltaNet. Brought to <paramref name="width"/>.</param>
    /// <param name="attention">The attention kind; null: Transformer. Brought to <paramref name="width"/>.</param>
    /// <param name="recurrentPerAttention">Recurrent blocks before each block of attention.</param>
    /// <param name="width">Features per position.</param>
    /// <param name="depth">Blocks.</param>
    /// <param name="dropout">Probability of dropping a feature of a block's update while training.</param>
    /// <param name="bidirectional">Reads both ways. Better for whole sequences; a one-way model can also be streamed.</param>
    public static HybridBackbone Hybrid(Backbone? recurrent = null, Backbone? attention = null, int recurrentPerAttention = 3, int width = 128, int depth = 4, double dropout = 0.1, bool bidirectional = false)
        => new()
        {
            Recurrent = Resized(recurrent ?? GatedDeltaNet(width), width), Attention = Resized(attention ?? Transformer(width), width), RecurrentPerAttention = recurrentPerAttention,
            Width = width, Depth = depth, Dropout = dropout, Bidirectional = bidirectional,
        };

    private static Backbone Resized(Backbone backbone, int width) => backbone.Width == width ? backbone : backbone.WithWidth(width);
}
