using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms.Image;

namespace MLSeq;

/// <summary>Adds a column with images that show masks; see <c>ml.ImageSegmentation.PaintMask</c>. It learns nothing from data.</summary>
public sealed class MaskPaintingEstimator : IEstimator<MaskPaintingTransformer>
{
    private readonly IHost _host;
    private readonly MaskPainting _painting;

    internal MaskPaintingEstimator(IHostEnvironment env, MaskPainting painting) => (_host, _painting) = (env.Register(nameof(MaskPaintingEstimator)), painting);

    /// <summary>The transformer, after a check of the columns.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another type.</exception>
    public MaskPaintingTransformer Fit(IDataView input)
    {
        _host.CheckValue(input, nameof(input));
        var transformer = new MaskPaintingTransformer(_host, _painting);
        transformer.GetOutputSchema(input.Schema);
        return transformer;
    }

    /// <summary>The schema with the image column added.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of another type.</exception>
    public SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        _host.CheckValue(inputSchema, nameof(inputSchema));
        Check(inputSchema, "image", _painting.Image, PaintedImageReader.Expected);
        Check(inputSchema, "mask", _painting.Mask, MaskColumn.Expected);
        var columns = inputSchema.ToDictionary(column => column.Name);
        columns[_painting.Output] = new SchemaShape.Column(_painting.Output, SchemaShape.Column.VectorKind.Scalar, new ImageDataViewType(), false);
        return new SchemaShape(columns.Values);
    }

    private void Check(SchemaShape schema, string role, string name, string expected)
    {
        if (!schema.TryFindColumn(name, out var column)) throw _host.ExceptSchemaMismatch(nameof(schema), role, name);
        var isVector = column.Kind != SchemaShape.Column.VectorKind.Scalar && !column.IsKey && column.ItemType == NumberDataViewType.Byte;
        if (!isVector && column.ItemType is not ImageDataViewType) throw _host.ExceptSchemaMismatch(nameof(schema), role, name, expected, column.GetTypeString());
    }
}
