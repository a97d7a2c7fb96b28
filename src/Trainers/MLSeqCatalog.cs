using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Trainers;
using MLSeq;

namespace Microsoft.ML;

/// <summary>MLSeq's trainers in ML.NET's catalogs.</summary>
public static class MLSeqCatalog
{
    /// <summary>Classifies sequences (text, token ids, time series) with any backbone.</summary>
    /// <param name="catalog">The trainer catalog.</param>
    /// <param name="labelColumnName">The label: a key.</param>
    /// <param name="featureColumnName">Text; a vector of keys or Int32; or a vector of Single, [time] or [time, channels].</param>
    /// <param name="backbone">The backbone, for example <see cref="Backbone.Lstm"/>.</param>
    /// <exception cref="ArgumentException">The backbone has a value out of range.</exception>
    public static SequenceClassificationTrainer SequenceClassification(this MulticlassClassificationCatalog.MulticlassClassificationTrainers catalog,
        string labelColumnName, string featureColumnName, Backbone backbone)
        => new(CatalogUtils.GetEnvironment(catalog), new() { LabelColumnName = labelColumnName, FeatureColumnName = featureColumnName, Backbone = backbone });

    /// <summary>Classifies sequences (text, token ids, time series) with any backbone.</summary>
    /// <param name="catalog">The trainer catalog.</param>
    /// <param name="options">What to train and how.</param>
    /// <exception cref="ArgumentException">An option is out of range; all problems are named at once.</exception>
    public static SequenceClassificationTrainer SequenceClassification(this MulticlassClassificationCatalog.MulticlassClassificationTrainers catalog,
        SequenceClassificationTrainer.Options options)
        => new(CatalogUtils.GetEnvironment(catalog), options);

    /// <summary>Classifies images with any vision backbone.</summary>
    /// <param name="catalog">The trainer catalog.</param>
    /// <param name="labelColumnName">The label: a key.</param>
    /// <param name="featureColumnName">An MLImage; the path of an image file; or a vector of Byte or Single, [channels, height, width]. Images of one size; for others set the size in the options.</param>
    /// <param name="backbone">The backbone, for example <see cref="VisionBackbone.ResNet"/>.</param>
    /// <exception cref="ArgumentException">The backbone has a value out of range.</exception>
    public static ImageClassificationTrainer ImageClassification(this MulticlassClassificationCatalog.MulticlassClassificationTrainers catalog,
        string labelColumnName, string featureColumnName, VisionBackbone backbone)
        => new(CatalogUtils.GetEnvironment(catalog), new() { LabelColumnName = labelColumnName, FeatureColumnName = featureColumnName, Backbone = backbone });

    /// <summary>Classifies images with any vision backbone.</summary>
    /// <param name="catalog">The trainer catalog.</param>
    /// <param name="options">What to train and how.</param>
    /// <exception cref="ArgumentException">An option is out of range; all problems are named at once.</exception>
    public static ImageClassificationTrainer ImageClassification(this MulticlassClassificationCatalog.MulticlassClassificationTrainers catalog,
        ImageClassificationTrainer.Options options)
        => new(CatalogUtils.GetEnvironment(catalog), options);

    /// <summary>Finds the class of every pixel, with any vision backbone.</summary>
    /// <param name="catalog">The trainer catalog.</param>
    /// <param name="labelColumnName">The masks: an MLImage whose gray values are class indices, or a vector of Byte [height, width].</param>
    /// <param name="featureColumnName">The images: an MLImage, or a vector of Byte or Single, [channels, height, width]. Images and masks of one size; for others, and for more than two classes, use the options.</param>
    /// <param name="backbone">The backbone, for example <see cref="VisionBackbone.ResNet"/>.</param>
    /// <exception cref="ArgumentException">The backbone has a value out of range.</exception>
    public static SemanticSegmentationTrainer SemanticSegmentation(this ImageSegmentationCatalog.ImageSegmentationTrainers catalog,
        string labelColumnName, string featureColumnName, VisionBackbone backbone)
        => catalog.SemanticSegmentation(new SemanticSegmentationTrainer.Options { LabelColumnName = labelColumnName, FeatureColumnName = featureColumnName, Backbone = backbone });

    /// <summary>Finds the class of every pixel, with any vision backbone.</summary>
    /// <param name="catalog">The trainer catalog.</param>
    /// <param name="options">What to train and how.</param>
    /// <exception cref="ArgumentException">An option is out of range; all problems are named at once.</exception>
    public static SemanticSegmentationTrainer SemanticSegmentation(this ImageSegmentationCatalog.ImageSegmentationTrainers catalog, SemanticSegmentationTrainer.Options options)
    {
        ArgumentNullException.ThrowIfNull(catalog);
        return new(catalog.Environment, options);
    }
}
