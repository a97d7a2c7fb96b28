namespace MLSeq;

/// <summary>
/// How training images are varied, so that a network learns what does not depend on it. Everything is drawn from the training's seed, per image, and computed on the
/// training's device. Geometry moves an image and its mask alike; colours change the image alone.
/// </summary>
/// <remarks>Start from <see cref="None"/>, <see cref="Light"/>, <see cref="Standard"/> or <see cref="Strong"/> and vary with a <c>with</c> expression. What leaves the image is mirrored at its border.</remarks>
public sealed record ImageAugmentation
{
    /// <summary>Probability of mirroring left and right. Not for letters and digits.</summary>
    public double HorizontalFlip { get; init; }

    /// <summary>Probability of mirroring top and bottom: for images without an up, as from a microscope or a satellite.</summary>
    public double VerticalFlip { get; init; }

    /// <summary>Whether images are also turned by quarters: for images without an up. Needs square images.</summary>
    public bool QuarterTurns { get; init; }

    /// <summary>A part of this share of the area, up to all of it, is scaled to the whole (Szegedy et al. 2015); 1: off. When segmenting, of the area of the crop.</summary>
    public double MinimumArea { get; init; } = 1;

    /// <summary>Largest ratio of the two sides' scales in such a part.</summary>
    public double MaximumAspect { get; init; } = 4.0 / 3;

    /// <summary>Largest shift, as a share of the sides. In whole pixels, so that nothing is blurred, unless other geometry is on.</summary>
    public double Translation { get; init; }

    /// <summary>Largest rotation to either side, in degrees.</summary>
    public double Rotation { get; init; }

    /// <summary>Largest change of scale: 0.2 draws factors between 1/1.2 and 1.2.</summary>
    public double Zoom { get; init; }

    /// <summary>Largest change of brightness: 0.4 draws factors between 0.6 and 1.4. Also of contrast and (of three channels) saturation.</summary>
    public double ColorJitter { get; init; }

    /// <summary>Random operations in a row (RandAugment, Cubuk et al. 2020): shears, shifts, rotation, contrast, brightness, saturation, sharpness, solarize, posterize, autocontrast, equalize; 0: off.</summary>
    public int RandAugmentLayers { get; init; }

    /// <summary>How strong they are, 0 to 10.</summary>
    public double RandAugmentMagnitude { get; init; } = 9;

    /// <summary>Mixes pairs of images, and their labels, in shares drawn from Beta(α, α) (Zhang et al. 2018); 0: off. Classification only.</summary>
    public double Mixup { get; init; }

    /// <summary>Pastes a part of one image into another, and mixes their labels by its area, drawn from Beta(α, α) (Yun et al. 2019); 0: off. With <see cref="Mixup"/> each batch draws one of the two. Classification only.</summary>
    public double CutMix { get; init; }

    /// <summary>Probability of replacing a rectangle of 2 % to a third of the image with noise (Zhong et al. 2020). Classification only.</summary>
    public double Erasing { get; init; }

    /// <summary>Images as they are.</summary>
    public static ImageAugmentation None { get; } = new();

    /// <summary>Small shifts: for small images whose orientation matters, such as digits.</summary>
    public static ImageAugmentation Light { get; } = new() { Translation = 0.1 };

    /// <summary>Mirroring, parts and colours: for photographs.</summary>
    public static ImageAugmentation Standard { get; } = new() { HorizontalFlip = 0.5, MinimumArea = 0.35, ColorJitter = 0.3 };

    /// <summary>For long trainings of large networks: RandAugment, mixup, CutMix and erasing, as in DeiT (Touvron et al. 2021).</summary>
    public static ImageAugmentation Strong { get; } = new() { HorizontalFlip = 0.5, MinimumArea = 0.08, RandAugmentLayers = 2, Mixup = 0.8, CutMix = 1, Erasing = 0.25 };

    /// <summary>For images without an up, and their masks: mirroring both ways, quarter turns, rotation, zoom and colours.</summary>
    public static ImageAugmentation Overhead { get; } = new() { HorizontalFlip = 0.5, VerticalFlip = 0.5, QuarterTurns = true, Rotation = 15, Zoom = 0.25, ColorJitter = 0.2 };

    internal bool HasGeometry => HorizontalFlip > 0 || VerticalFlip > 0 || QuarterTurns || MinimumArea < 1 || Translation > 0 || Rotation > 0 || Zoom > 0 || RandAugmentLayers > 0;

    /// <summary>Whether every pixel of the result is a pixel of the image.</summary>
    internal bool IsExact => MinimumArea >= 1 && Rotation == 0 && Zoom == 0 && RandAugmentLayers == 0;

    internal IEnumerable<string> Problems(bool masks)
    {
        foreach (var (name, value) in new[] { (nameof(HorizontalFlip), HorizontalFlip), (nameof(VerticalFlip), VerticalFlip), (nameof(Erasing), Erasing) })
            if (value is not (>= 0 and <= 1)) yield return $"Augmentation.{name} is {value}; expected a probability, 0 to 1.";
        if (MinimumArea is not (> 0 and <= 1)) yield return $"Augmentation.MinimumArea is {MinimumArea}; expected above 0, at most 1.";
        if (MaximumAspect is not (>= 1 and <= 10)) yield return $"Augmentation.MaximumAspect is {MaximumAspect}; expected 1 to 10.";
        if (Translation is not (>= 0 and <= 0.5)) yield return $"Augmentation.Translation is {Translation}; expected 0 to 0.5.";
        if (Rotation is not (>= 0 and <= 180)) yield return $"Augmentation.Rotation is {Rotation}; expected 0 to 180 degrees.";
        if (Zoom is not (>= 0 and <= 3)) yield return $"Augmentation.Zoom is {Zoom}; expected 0 to 3.";
        if (ColorJitter is not (>= 0 and <= 1)) yield return $"Augmentation.ColorJitter is {ColorJitter}; expected 0 to 1.";
        if (RandAugmentLayers is < 0 or > 10) yield return $"Augmentation.RandAugmentLayers is {RandAugmentLayers}; expected 0 to 10.";
        if (RandAugmentMagnitude is not (>= 0 and <= 10)) yield return $"Augmentation.RandAugmentMagnitude is {RandAugmentMagnitude}; expected 0 to 10.";
        if (Mixup is not (>= 0 and <= 10)) yield return $"Augmentation.Mixup is {Mixup}; expected 0 to 10.";
        if (CutMix is not (>= 0 and <= 10)) yield return $"Augmentation.CutMix is {CutMix}; expected 0 to 10.";
        if (masks && (Mixup > 0 || CutMix > 0 || Erasing > 0)) yield return "Augmentation.Mixup, CutMix and Erasing are for classification; set them to 0 for segmentation.";
    }
}
