namespace MLSeq;

/// <summary>All vision backbones. A new one is a file in Vision/ and a line here; the line enrols it in JSON, in command lines and in the conformance tests.</summary>
internal static class VisionBackboneRegistry
{
    private static readonly Entry[] Entries =
    [
        new("cnn", () => VisionBackbone.Cnn(), PlainCnnBackbone.ReadyMade),
        new("resnet", () => VisionBackbone.ResNet(), ResNetBackbone.ReadyMade),
        new("mambaout", () => VisionBackbone.MambaOut(), MambaOutBackbone.ReadyMade),
        new("patch", () => VisionBackbone.Patch(Backbone.Transformer(bidirectional: true)), PatchBackbone.ReadyMade),
        new("hierarchical", () => VisionBackbone.Hierarchical(Backbone.Mamba2(bidirectional: true)), HierarchicalBackbone.ReadyMade),
    ];

    public static KindRegistry<VisionBackbone> Kinds { get; } = new("vision backbone", backbone => backbone.Problems(), [.. Entries.Select(entry => (entry.Name, entry.Default))]);

    /// <summary>Ready-made backbones of all kinds.</summary>
    public static IReadOnlyList<(string Name, Func<VisionBackbone> Make)> Variants { get; } = [.. Entries.SelectMany(entry => entry.Variants)];

    private sealed record Entry(string Name, Func<VisionBackbone> Default, IEnumerable<(string Name, Func<VisionBackbone> Make)> Variants);
}
