using System.Buffers.Binary;
using System.IO.Compression;

namespace MLSeq.Examples;

/// <summary>The IDX format of MNIST and its relatives: an array of bytes with its shape, gzipped or not.</summary>
public static class IdxFile
{
    private const int UnsignedByte = 8;

    /// <summary>Reads a file whose elements are bytes.</summary>
    /// <returns>The shape, such as [60000, 28, 28], and the elements, last dimension fastest.</returns>
    public static (int[] Shape, byte[] Elements) Read(string path)
    {
        using var file = File.OpenRead(path);
        using Stream stream = path.EndsWith(".gz", StringComparison.OrdinalIgnoreCase) ? new GZipStream(file, CompressionMode.Decompress) : file;

        Span<byte> magic = stackalloc byte[4]; // 0, 0, type, dimensions
        stream.ReadExactly(magic);
        if (magic[0] != 0 || magic[1] != 0 || magic[2] != UnsignedByte || magic[3] == 0)
            throw new InvalidDataException(
                $"{path} begins with {Convert.ToHexString(magic)}; expected 000008 and the number of dimensions: an IDX file of bytes.");

        var shape = new int[magic[3]];
        Span<byte> size = stackalloc byte[4];
        for (var dimension = 0; dimension < shape.Length; dimension++)
        {
            stream.ReadExactly(size);
            shape[dimension] = BinaryPrimitives.ReadInt32BigEndian(size);
        }
        var elements = new byte[shape.Aggregate(1, (product, length) => checked(product * length))];
        stream.ReadExactly(elements);
        return (shape, elements);
    }
}
