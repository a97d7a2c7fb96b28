using System.Text.Json.Serialization;

namespace MLSeq;

/// <summary>
/// MambaOut with a sequence backbone's token mixer in the blocks of some stages: "MambaOut plus a state-space model", plus attention, plus a delta rule. Where convolution sees a neighbourhood, the mixer sees the image.
/// </summary>
/// <remarks>The comparison of Yu and Wang 2024, here the other way round. See <see cref="GatedCnnBlock"/> for the equation.</remarks>
public sealed record HierarchicalBackbone : GatedCnnBackbone
{
    /// <summary>Gives the mixers: its kind, its direction and its mixer's options count. Width (and with it heads) is each stage's; depth, dropout and MLP are not used.</summary>
    [JsonConverter(typeof(Backbone.NestedJson))]
    public Backbone Backbone { get; init; } = Backbone.Mamba2(bidirectional: true);

    /// <summary>The stages, counted from 0, whose blocks have a mixer.</summary>
    public IntList MixerStages { get; init; } = [2, 3];

    /// <summary>The order in which mixers read the places of a map.</summary>
    [JsonConverter(typeof(JsonStringEnumConverter<VisionScan>))]
    public VisionScan Scan { get; init; }

    internal static IEnumerable<(string, Func<VisionBackbone>)> ReadyMade
        => Backbone.Names.Select(name => ($"hierarchical-{name}", (Func<VisionBackbone>)(() => Hierarchical(Backbone.Create(name, bidirectional: true)))));

    internal override (TokenMixer? Mixer, int Direction) CreateMixer(int stage, int layer)
        => MixerStages.Contains(stage) ? (Backbone.WithWidth(Widths[stage]).CreateMixer(layer), Scan.Direction(layer)) : (null, 0);

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (!Enum.IsDefined(Scan)) yield return $"Scan is {Scan}; expected {string.Join(" or ", Enum.GetNames<VisionScan>())}.";
        if (MixerStages.Distinct().Count() != MixerStages.Count || MixerStages.Any(stage => stage < 0 || stage >= Widths.Count))
            yield return $"MixerStages is {MixerStages}; expected different numbers from 0 to {Widths.Count - 1}.";
        foreach (var stage in MixerStages.Where(stage => stage >= 0 && stage < Widths.Count))
            foreach (var problem in Backbone.WithWidth(Widths[stage]).Problems()) yield return $"Backbone at stage {stage}: {problem}";
    }
}

public abstract partial record VisionBackbone
{
    /// <summary>MambaOut's stages whose last two add a token mixer to the convolution of their blocks.</summary>
    /// <param name="backbone">Gives the mixers; brought to the stages' widths. Rotary positions are turned off, because convolutions tell places apart.</param>
    /// <param name="size">Depths and widths.</param>
    /// <param name="scan">The order in which mixers read the places of a map.</param>
    /// <param name="dropPath">Largest probability of leaving out a residual update while training.</param>
    public static HierarchicalBackbone Hierarchical(Backbone backbone, MambaOutSize size = MambaOutSize.Femto, VisionScan scan = VisionScan.RowMajor, double dropPath = 0)
    {
        ArgumentNullException.ThrowIfNull(backbone);
        var (depths, widths) = GatedCnnBackbone.Of(size);
        return new() { Backbone = backbone.WithoutRotary(), Depths = depths, Widths = widths, Scan = scan, DropPath = dropPath };
    }
}
