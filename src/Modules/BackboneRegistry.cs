namespace MLSeq;

/// <summary>All sequence backbones. A new one is a file in Mixers/ and a line here; the line enrols it in JSON, in command lines and in the conformance tests.</summary>
internal static class BackboneRegistry
{
    public static KindRegistry<Backbone> Kinds { get; } = new("backbone", backbone => backbone.Problems(),
        ("rnn", () => Backbone.Rnn()),
        ("lstm", () => Backbone.Lstm()),
        ("gru", () => Backbone.Gru()),
        ("transformer", () => Backbone.Transformer()),
        ("linearattention", () => Backbone.LinearAttention()),
        ("retnet", () => Backbone.RetNet()),
        ("gatedretention", () => Backbone.GatedRetention()),
        ("gatedlinearattention", () => Backbone.GatedLinearAttention()),
        ("mamba", () => Backbone.Mamba()),
        ("mamba2", () => Backbone.Mamba2()),
        ("deltanet", () => Backbone.DeltaNet()),
        ("gateddeltanet", () => Backbone.GatedDeltaNet()),
        ("titans", () => Backbone.Titans()),
        ("cnn", () => Backbone.Cnn()),
        ("hybrid", () => Backbone.Hybrid()));
}
