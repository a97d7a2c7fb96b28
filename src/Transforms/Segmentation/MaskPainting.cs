using System.Drawing;
using System.Text.Json.Serialization;

namespace MLSeq;

/// <summary>What a painting transformer does: columns and <see cref="PaintOptions"/>, copied. Part of the saved model.</summary>
internal sealed record MaskPainting
{
    public required string Output { get; init; }

    public required string Image { get; init; }

    public required string Mask { get; init; }

    public required string[]? ClassNames { get; init; }

    /// <summary>0xAARRGGBB.</summary>
    public required int[]? Colors { get; init; }

    public required int[] NotPainted { get; init; }

    public required byte? IgnoreIndex { get; init; }

    public required double Opacity { get; init; }

    public required int? BoundaryWidth { get; init; }

    public required LegendPlace Legend { get; init; }

    public required int Scale { get; init; }

    [JsonIgnore]
    public IReadOnlyList<Color>? Palette => Colors is null ? null : [.. Colors.Select(Color.FromArgb)];

    /// <exception cref="ArgumentException">An option is out of range; all problems are named at once.</exception>
    public static MaskPainting From(string output, string image, string mask, PaintOptions options)
    {
        var painting = new MaskPainting
        {
            Output = output,
            Image = image,
            Mask = mask,
            ClassNames = options.ClassNames?.ToArray(),
            Colors = options.Colors?.Select(color => color.ToArgb()).ToArray(),
            NotPainted = [.. options.NotPainted ?? []],
            IgnoreIndex = options.IgnoreIndex,
            Opacity = options.Opacity,
            BoundaryWidth = options.BoundaryWidth,
            Legend = options.Legend,
            Scale = options.Scale,
        };
        painting.Validate();
        return painting;
    }

    /// <summary>Checks values that may come from a file.</summary>
    public void Validate()
    {
        var problems = Problems().ToList();
        if (problems.Count > 0) throw new ArgumentException(string.Join(" ", problems));
    }

    private IEnumerable<string> Problems()
    {
        foreach (var (role, name) in new[] { ("output", Output), ("image", Image), ("mask", Mask) })
            if (string.IsNullOrEmpty(name)) yield return $"The {role} column has no name.";
        if (ClassNames is { Length: 0 or > MaskColumn.MostClasses }) yield return $"ClassNames has {ClassNames.Length} names; expected 1 to {MaskColumn.MostClasses}.";
        if (ClassNames?.Any(name => name is null) == true) yield return "ClassNames has a name that is null.";
        if (Colors is { Length: > MaskColumn.MostClasses }) yield return $"Colors has {Colors.Length} colours; expected at most {MaskColumn.MostClasses}.";
        foreach (var index in (NotPainted ?? []).Where(index => index is < 0 or >= MaskColumn.MostClasses))
            yield return $"NotPainted has the class {index}; expected 0 to {MaskColumn.MostClasses - 1}.";
        if (NotPainted is null) yield return "NotPainted is null.";
        if (!(Opacity is >= 0 and <= 1)) yield return $"Opacity is {Opacity}; expected 0 to 1.";
        if (BoundaryWidth is < 0 or > 64) yield return $"BoundaryWidth is {BoundaryWidth}; expected 0 to 64.";
        if (!Enum.IsDefined(Legend)) yield return $"Legend is {Legend}; expected {string.Join(", ", Enum.GetNames<LegendPlace>())}.";
        if (Scale is < 1 or > 64) yield return $"Scale is {Scale}; expected 1 to 64.";
    }
}
