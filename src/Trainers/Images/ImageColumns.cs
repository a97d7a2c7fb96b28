using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms.Image;

namespace MLSeq;

/// <summary>What the trainers of vision models share about their columns and rows.</summary>
internal static class ImageColumns
{
    private const int ImagesForScale = 1000;

    /// <summary>Checks the image column.</summary>
    public static void CheckFeature(IExceptionContext context, SchemaShape schema, string name, bool files)
    {
        if (!schema.TryFindColumn(name, out var feature)) throw context.ExceptSchemaMismatch("inputSchema", "feature", name);
        var isImage = feature.Kind == SchemaShape.Column.VectorKind.Scalar && (feature.ItemType is ImageDataViewType || files && feature.ItemType is TextDataViewType);
        var isVector = feature.Kind == SchemaShape.Column.VectorKind.Vector && !feature.IsKey && (feature.ItemType == NumberDataViewType.Byte || feature.ItemType == NumberDataViewType.Single);
        if (!isImage && !isVector)
            throw context.ExceptSchemaMismatch("inputSchema", "feature", feature.Name, (files ? "Image, Text (the path of a file)" : "Image") + ", or a vector of Byte or Single of known size", feature.GetTypeString());
    }

    /// <summary>Checks that images of this kind can be varied so.</summary>
    public static void CheckAugmentation(IExceptionContext context, ImageAugmentation augmentation, ImageInput input)
    {
        if (input.Kind == ImageColumnKind.Singles && augmentation.RandAugmentLayers > 0)
            throw context.Except("Augmentation.RandAugmentLayers needs images of bytes, 0 to 255; the column holds Singles. Set it to 0, or convert the column to Byte.");
    }

    /// <summary>Joins training with validation data, and learns the channels' scale from the rows to train on.</summary>
    public static (TrainingSplit<ImageData> Data, ImageInput Input) Split(IHost host, TrainingOptions options, ImageData training, DataViewSchema.Column feature, DataViewSchema.Column label, ulong seed,
        (int[] Training, int[] Validation) apart, Func<IDataView, ImageData> read, IChannel channel)
    {
        TrainingSplit<ImageData> data;
        if (options.ValidationSet is not { } view)
        {
            if (options.ValidationFraction > 0 && apart.Validation.Length == 0)
                throw host.Except($"ValidationFraction {options.ValidationFraction} of {training.Count} rows leaves no validation rows; raise it, or set ValidationSet.");
            data = new(training, apart.Training, training, apart.Validation);
        }
        else
        {
            foreach (var column in (DataViewSchema.Column[])[feature, label])
                if (view.Schema.GetColumnOrNull(column.Name) is not { } other || !other.Type.Equals(column.Type))
                    throw host.Except($"ValidationSet has no column '{column.Name}' of type {column.Type}; transform it with the same fitted pipeline as the training data.");
            var validation = read(view);
            WarnOfBad(channel, validation, "validation");
            if (validation.Count == 0) throw host.Except("ValidationSet has no rows with a label.");
            data = new(training, [.. Enumerable.Range(0, training.Count)], validation, [.. Enumerable.Range(0, validation.Count)]);
        }
        var chosen = BatchPlan.Shuffled(data.TrainingRows, ImagesForScale, seed)[0];
        return (data, training.Input.Fit(chosen.Select(row => training[row].Load())));
    }

    /// <summary>Says how many rows were left out, and why the first was.</summary>
    public static void WarnOfBad(IChannel channel, ImageData data, string which)
    {
        if (data.Bad.Count > 0) channel.Warning($"Left out {data.Bad.Count} {which} rows that cannot be used. The first: {data.Bad[0]}");
    }
}
