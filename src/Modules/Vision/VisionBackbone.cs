using System.Text.Json.Serialization;

namespace MLSeq;

/// <summary>
/// A vision backbone as data: which architecture, how wide, how deep. Immutable, comparable by value, and written into saved models as JSON.
/// </summary>
/// <remarks>It turns an image of any size into maps of features, one per stage or a single one. Make one with a factory such as <see cref="Cnn"/>, vary it with a <c>with</c> expression.</remarks>
public abstract partial record VisionBackbone
{
    /// <summary>
    /// Largest probability of leaving out a residual update of an image while training (stochastic depth, Huang et al. 2016); it grows linearly over the blocks, equation 4. 0: off.
    /// </summary>
    public double DropPath { get; init; }

    /// <summary>Initial value of a learned scale of each feature of every residual update (Touvron et al. 2021, "Going deeper with image transformers", equation 4). 0: none; in a ResNet, the scale of each block's last norm at the beginning.</summary>
    public double LayerScale { get; init; }

    /// <summary>The name that stands for this kind of backbone in the registry and in JSON.</summary>
    [JsonIgnore]
    public string Name => VisionBackboneRegistry.Kinds.NameOf(this);

    /// <summary>The names of all kinds of vision backbones.</summary>
    public static IReadOnlyList<string> Names => VisionBackboneRegistry.Kinds.Names;

    /// <summary>The names of all ready-made vision backbones.</summary>
    public static IReadOnlyList<string> Variants => [.. VisionBackboneRegistry.Variants.Select(variant => variant.Name)];

    /// <summary>Makes the ready-made backbone called <paramref name="variant"/>, for programs that let their user choose one.</summary>
    /// <param name="variant">One of <see cref="Variants"/>; letter case, hyphens and underscores do not matter.</param>
    /// <exception cref="ArgumentException">There is no such backbone.</exception>
    public static VisionBackbone Create(string variant)
    {
        ArgumentNullException.ThrowIfNull(variant);
        var make = VisionBackboneRegistry.Variants.FirstOrDefault(entry => KindNames.Same(entry.Name, variant)).Make
                   ?? throw new ArgumentException($"There is no vision backbone '{variant}'; expected one of {string.Join(", ", Variants)}.", nameof(variant));
        return make();
    }

    /// <summary>This backbone as a JSON object whose <c>name</c> tells its kind.</summary>
    public string ToJson() => VisionBackboneRegistry.Kinds.ToJson(this);

    /// <summary>Reads what <see cref="ToJson"/> wrote.</summary>
    /// <exception cref="FormatException">The text is not such an object, names an unknown backbone or member, or has a value out of range.</exception>
    public static VisionBackbone FromJson(string json) => VisionBackboneRegistry.Kinds.FromJson(json);

    /// <summary>Checks every value; all problems are reported at once.</summary>
    /// <exception cref="ArgumentException">A value is out of range.</exception>
    public void Validate() => VisionBackboneRegistry.Kinds.Validate(this);

    internal virtual IEnumerable<string> Problems()
    {
        if (DropPath is not (>= 0 and < 1)) yield return $"DropPath is {DropPath}; expected at least 0 and below 1.";
        if (LayerScale is not (>= 0 and <= 1)) yield return $"LayerScale is {LayerScale}; expected 0 (none) to 1.";
    }

    /// <summary>Hidden width of a classifier's head as a multiple of the last map's width; 0: the head is linear.</summary>
    internal virtual double HeadRatio => 0;

    /// <summary>A lower bound on the numbers in the module: a saved description of a network larger than its weights must not make us allocate it.</summary>
    internal abstract long LeastParameters(int channels);

    /// <summary>Features of the last map, or fewer.</summary>
    internal abstract int LeastFeatures { get; }

    /// <summary>The module, for images of <paramref name="channels"/> channels.</summary>
    /// <exception cref="ArgumentException">A value is out of range.</exception>
    internal abstract VisionStack CreateStack(int channels);
}

/// <summary>A vision backbone of several stages, each with its own width and number of blocks; from stage to stage the map shrinks by two.</summary>
public abstract record StagedVisionBackbone : VisionBackbone
{
    private const int MostStages = 6;

    /// <summary>Blocks per stage.</summary>
    public IntList Depths { get; init; } = [];

    /// <summary>Features per stage.</summary>
    public IntList Widths { get; init; } = [];

    // Every residual block has more than a square matrix of its stage's width, be it behind a bottleneck, and every stem more than four numbers per channel and feature.
    internal override long LeastParameters(int channels) => Depths.Zip(Widths, (depth, width) => (long)depth * width * width).Sum() + 4L * channels * Widths[0];

    internal override int LeastFeatures => Widths[^1];

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (Depths.Count is < 1 or > MostStages || Depths.Any(depth => depth is < 1 or > 256)) yield return $"Depths is {Depths}; expected 1 to {MostStages} numbers from 1 to 256.";
        if (Widths.Count != Depths.Count || Widths.Any(width => width is < 2 or > 16384 || width % 2 != 0))
            yield return $"Widths is {Widths}; expected as many even numbers from 2 to 16384 as Depths has ({Depths.Count}).";
    }
}
