using System.Buffers.Binary;
using System.IO.Compression;
using System.Text;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MLSeq.Tests.Support;

/// <summary>Masks as vectors, images and PNG files.</summary>
internal static class Masks
{
    public sealed class VectorRow
    {
        public byte[] Label { get; set; } = [];

        public byte[] PredictedMask { get; set; } = [];
    }

    public sealed class ImageRow
    {
        public MLImage? Label { get; set; }

        public MLImage? PredictedMask { get; set; }
    }

    /// <summary>A view of vectors, [height, width]; without dimensions, of unknown size.</summary>
    public static IDataView Vectors(MLContext ml, int[] dimensions, params (byte[] Label, byte[] Predicted)[] rows)
        => Vectors(ml, dimensions, dimensions, rows.Select(row => new VectorRow { Label = row.Label, PredictedMask = row.Predicted }));

    public static IDataView Vectors(MLContext ml, int[] labelDimensions, int[] predictedDimensions, IEnumerable<VectorRow> rows)
    {
        var schema = SchemaDefinition.Create(typeof(VectorRow));
        schema[nameof(VectorRow.Label)].ColumnType = VectorType(labelDimensions);
        schema[nameof(VectorRow.PredictedMask)].ColumnType = VectorType(predictedDimensions);
        return ml.Data.LoadFromEnumerable(rows, schema);
    }

    public static VectorDataViewType VectorType(int[] dimensions) => dimensions.Length == 0 ? new(NumberDataViewType.Byte) : new(NumberDataViewType.Byte, dimensions);

    /// <summary>A view of gray images.</summary>
    public static IDataView Images(MLContext ml, int height, int width, params (byte[] Label, byte[] Predicted)[] rows)
        => ml.Data.LoadFromEnumerable(rows.Select(row => new ImageRow { Label = Image(height, width, row.Label), PredictedMask = Image(height, width, row.Predicted) }).ToList());

    public static MLImage Image(int height, int width, byte[] mask) => MaskColumn.ToGrayImage(mask, height, width);

    /// <summary>Writes a PNG file whose samples have so many bits; with a palette they are indices.</summary>
    public static void WritePng(string path, int height, int width, int bits, byte[] samples, byte[]? palette = null)
    {
        var scanlines = new MemoryStream();
        using (var zlib = new ZLibStream(scanlines, CompressionMode.Compress, leaveOpen: true))
            for (var y = 0; y < height; y++)
            {
                var line = new byte[1 + (width * bits + 7) / 8]; // a filter of 0, then the samples, packed
                for (var x = 0; x < width; x++) line[1 + x * bits / 8] |= (byte)(samples[y * width + x] << 8 - bits - x * bits % 8);
                zlib.Write(line);
            }
        using var file = File.Create(path);
        file.Write([137, 80, 78, 71, 13, 10, 26, 10]);
        var header = new byte[13];
        BinaryPrimitives.WriteInt32BigEndian(header, width);
        BinaryPrimitives.WriteInt32BigEndian(header.AsSpan(4), height);
        (header[8], header[9]) = ((byte)bits, (byte)(palette is null ? 0 : 3));
        Chunk(file, "IHDR", header);
        if (palette is not null) Chunk(file, "PLTE", palette);
        Chunk(file, "IDAT", scanlines.ToArray());
        Chunk(file, "IEND", []);
    }

    private static void Chunk(Stream file, string name, byte[] data)
    {
        byte[] content = [.. Encoding.ASCII.GetBytes(name), .. data];
        var crc = uint.MaxValue;
        foreach (var value in content)
        {
            crc ^= value;
            for (var bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) * 0xEDB88320);
        }
        var number = new byte[4];
        BinaryPrimitives.WriteInt32BigEndian(number, data.Length);
        file.Write(number);
        file.Write(content);
        BinaryPrimitives.WriteUInt32BigEndian(number, ~crc);
        file.Write(number);
    }
}
