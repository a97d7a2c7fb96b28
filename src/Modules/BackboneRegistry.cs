namespace MLSeq;

/// <summary>All sequence backbones. A new one is a file in Mixers/ and a line here; the line enrols it in JSON, in command lines and in the conformance tests.</summary>
internal static class BackboneRegistry
{
    private static readonly Entry[] Entries =
    [
        new("rnn", () => Backbone.Rnn()),
        new("lstm", () => Backbone.Lstm()),
        new("gru", () => Backbone.Gru()),
        new("transformer", () => Backbone.Transformer()),
        new("linearattention", () => Backbone.LinearAttention()),
        new("retnet", () => Backbone.RetNet()),
        new("gatedretention", () => Backbone.GatedRetention()),
        new("gatedlinearattention", () => Backbone.GatedLinearAttention()),
        new("mamba", () => Backbone.Mamba()),
        new("mamba2", () => Backbone.Mamba2()),
        new("deltanet", () => Backbone.DeltaNet()),
        new("gateddeltanet", () => Backbone.GatedDeltaNet()),
        new("titans", () => Backbone.Titans()),
        new("cnn", () => Backbone.Cnn()),
        new("hybrid", () => Backbone.Hybrid()),
    ];

    public static IReadOnlyList<string> Names { get; } = [.. Entries.Select(entry => entry.Name)];

    public static Backbone Create(string name) => Find(name).Default();

    public static Type TypeOf(string name) => Find(name).Type;

    public static string NameOf(Type type) => Entries.Single(entry => entry.Type == type).Name;

    private static Entry Find(string name)
    {
        var plain = name.Replace("-", "", StringComparison.Ordinal).Replace("_", "", StringComparison.Ordinal);
        return Entries.FirstOrDefault(entry => entry.Name.Equals(plain, StringComparison.OrdinalIgnoreCase))
               ?? throw new ArgumentException($"There is no backbone '{name}'; expected one of {string.Join(", ", Names)}.", nameof(name));
    }

    private sealed record Entry(string Name, Func<Backbone> Default)
    {
        public Type Type { get; } = Default().GetType();
    }
}
