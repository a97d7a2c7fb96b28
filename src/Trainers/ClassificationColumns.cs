using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace MLSeq;

/// <summary>The columns of a classifier, as ML.NET's own trainers treat them.</summary>
internal static class ClassificationColumns
{
    /// <summary>Finds the label, which must be a key.</summary>
    public static SchemaShape.Column Label(IExceptionContext context, SchemaShape schema, string name)
    {
        if (!schema.TryFindColumn(name, out var label)) throw context.ExceptSchemaMismatch("inputSchema", "label", name);
        if (!label.IsKey || label.ItemType != NumberDataViewType.UInt32)
            throw context.ExceptSchemaMismatch("inputSchema", "label", label.Name, "Key<UInt32> (make one with Conversion.MapValueToKey)", label.GetTypeString());
        return label;
    }

    /// <summary>The classes of a label, of which there must be two.</summary>
    public static int Count(IExceptionContext context, DataViewSchema.Column label, IReadOnlyList<double>? weights)
    {
        var classes = checked((int)((KeyDataViewType)label.Type).Count);
        if (classes < 2) throw context.Except($"The label '{label.Name}' has {classes} class; a classifier needs at least 2.");
        if (weights is not null && weights.Count != classes) throw context.Except($"ClassWeights has {weights.Count} numbers; the label '{label.Name}' has {classes} classes.");
        return classes;
    }

    /// <summary>Checks what was read to train on.</summary>
    public static void CheckTrainable(IExceptionContext context, IChannel channel, ReadOnlySpan<int> labels, long missing)
    {
        if (missing > 0) channel.Warning($"Skipped {missing} training rows with a missing label.");
        if (labels.IsEmpty) throw context.Except($"There are no training rows with a label{(missing > 0 ? $" ({missing} rows have a missing one)" : "")}.");
        if (labels.IndexOfAnyExcept(labels[0]) < 0) throw context.Except($"All {labels.Length} training rows have the same label; a classifier needs at least 2 classes.");
    }

    /// <summary>The schema with the two columns that scoring adds.</summary>
    public static SchemaShape Scored(SchemaShape schema, SchemaShape.Column label, ClassificationOptions options)
    {
        var columns = schema.ToDictionary(column => column.Name);
        columns[options.ScoreColumnName] = new SchemaShape.Column(options.ScoreColumnName, SchemaShape.Column.VectorKind.Vector, NumberDataViewType.Single, false,
            new SchemaShape(AnnotationUtils.AnnotationsForMulticlassScoreColumn(label)));
        var keyValues = label.Annotations.TryFindColumn(AnnotationUtils.Kinds.KeyValues, out var values) ? new[] { values } : [];
        columns[options.PredictedLabelColumnName] = new SchemaShape.Column(options.PredictedLabelColumnName, SchemaShape.Column.VectorKind.Scalar, NumberDataViewType.UInt32, true,
            new SchemaShape(keyValues.Concat(AnnotationUtils.GetTrainerOutputAnnotation())));
        return new SchemaShape(columns.Values);
    }
}
