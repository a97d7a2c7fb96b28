using System.Drawing;

namespace MLSeq;

/// <summary>Where the names of the classes go in a painted image.</summary>
public enum LegendPlace
{
    /// <summary>Nowhere.</summary>
    None,

    /// <summary>Below the image.</summary>
    Below,

    /// <summary>To the right of the image.</summary>
    Right,
}

/// <summary>How masks are painted over images.</summary>
public sealed class PaintOptions
{
    /// <summary>Colours by class; null, and for classes beyond its end: those of <see cref="MaskPalette"/>.</summary>
    public IReadOnlyList<Color>? Colors { get; set; }

    /// <summary>The classes; null: as the mask column says (a <c>ClassNames</c> annotation), or else numbered. When there are names, a mask may have no other class.</summary>
    public IReadOnlyList<string>? ClassNames { get; set; }

    /// <summary>Indices of classes that stay unpainted and out of the legend, for example a background.</summary>
    public IReadOnlyCollection<int> NotPainted { get; set; } = [];

    /// <summary>Pixels with this value stay unpainted; null: there are none.</summary>
    public byte? IgnoreIndex { get; set; } = 255;

    /// <summary>Share of the class's colour in a painted pixel, 0 to 1; the rest is the image's.</summary>
    public double Opacity { get; set; } = 0.5;

    /// <summary>Pixels at a painted class's edge that are drawn in its full colour; 0: none; null: 1 for small images, more for large ones.</summary>
    public int? BoundaryWidth { get; set; }

    /// <summary>Where the legend goes. It lists the painted classes that are in the image, and widens a narrow image.</summary>
    public LegendPlace Legend { get; set; } = LegendPlace.Below;

    /// <summary>Pixels drawn for a pixel of the image, in each direction: enlarges small images.</summary>
    public int Scale { get; set; } = 1;
}
