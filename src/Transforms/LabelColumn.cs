using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Data.IO;
using Microsoft.ML.Runtime;

namespace MLSeq;

/// <summary>The label column of training, kept for its key values: they name the classes in scored data.</summary>
internal sealed class LabelColumn(DataViewSchema.DetachedColumn column)
{
    /// <summary>Classes; null when this is not a key.</summary>
    public ulong? Count => (column.Type as KeyDataViewType)?.Count;

    /// <summary>Adds the two columns every multiclass scorer of ML.NET has, with the annotations its evaluator and converters look for.</summary>
    public void AddScoreColumns(DataViewSchema.Builder builder, DataViewSchema input, int classes, string predictedLabel, string score)
    {
        var keyValues = column.Annotations.Schema.GetColumnOrNull(AnnotationUtils.Kinds.KeyValues);
        var setId = input.GetMaxAnnotationKind(out _, AnnotationUtils.Kinds.ScoreColumnSetId) + 1;

        var predicted = Common(setId, AnnotationUtils.Const.ScoreValueKind.PredictedLabel);
        predicted.Add(column.Annotations, kind => kind == AnnotationUtils.Kinds.KeyValues);
        builder.AddColumn(predictedLabel, new KeyDataViewType(typeof(uint), classes), predicted.ToAnnotations());

        var scores = Common(setId, AnnotationUtils.Const.ScoreValueKind.Score);
        if (keyValues is { } values)
        {
            var getter = AnnotationGetter(column.Annotations, values);
            if (((VectorDataViewType)values.Type).ItemType is TextDataViewType) scores.Add(AnnotationUtils.Kinds.SlotNames, values.Type, getter);
            scores.Add(AnnotationUtils.Kinds.TrainingLabelValues, values.Type, getter);
        }
        builder.AddColumn(score, new VectorDataViewType(NumberDataViewType.Single, classes), scores.ToAnnotations());
    }

    private static DataViewSchema.Annotations.Builder Common(uint setId, string valueKind)
    {
        var annotations = new DataViewSchema.Annotations.Builder();
        annotations.Add(AnnotationUtils.Kinds.ScoreColumnSetId, AnnotationUtils.ScoreColumnSetIdType, (ref uint value) => value = setId);
        annotations.AddPrimitiveValue(AnnotationUtils.Kinds.ScoreColumnKind, TextDataViewType.Instance, AnnotationUtils.Const.ScoreColumnKind.MulticlassClassification.AsMemory());
        annotations.AddPrimitiveValue(AnnotationUtils.Kinds.ScoreValueKind, TextDataViewType.Instance, valueKind.AsMemory());
        return annotations;
    }

    private static Delegate AnnotationGetter(DataViewSchema.Annotations annotations, DataViewSchema.Column column)
        => (Delegate)typeof(DataViewSchema.Annotations).GetMethod(nameof(DataViewSchema.Annotations.GetGetter))!.MakeGenericMethod(column.Type.RawType).Invoke(annotations, [column])!;

    /// <summary>Writes the column, without rows, in ML.NET's own binary format.</summary>
    public void Save(IHost host, Stream stream)
    {
        var builder = new DataViewSchema.Builder();
        builder.AddColumn(column.Name, column.Type, column.Annotations);
        using var channel = host.Start("Saving the label's values");
        using var copy = new MemoryStream(); // the saver seeks
        DataSaverUtils.SaveDataView(channel, new BinarySaver(host, new BinarySaver.Arguments { Silent = true }), new EmptyDataView(host, builder.ToSchema()), copy);
        copy.WriteTo(stream);
    }

    public static LabelColumn Load(IHostEnvironment env, Stream stream)
        => new(new DataViewSchema.DetachedColumn(new BinaryLoader(env, new BinaryLoader.Arguments(), stream).Schema[0]));
}
