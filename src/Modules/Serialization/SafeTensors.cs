using System.Buffers.Binary;
using System.Text.Json;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// The safetensors format: eight bytes of header length, a JSON header {"name": {"dtype", "shape", "data_offsets": [begin, end]}}, then the data.
/// Format: https://github.com/huggingface/safetensors#format.
/// </summary>
/// <remarks>
/// Reading trusts nothing: the header is bounded, and every name, type, shape and size is compared with the tensors that are expected
/// before a byte of data is stored.
/// </remarks>
internal static class SafeTensors
{
    private const int MaxHeaderBytes = 16 << 20;
    private const string MetadataKey = "__metadata__";

    /// <summary>Writes the tensors in the order given, from whichever device.</summary>
    public static void Write(Stream stream, IReadOnlyList<(string Name, Tensor Value)> tensors, IReadOnlyDictionary<string, string>? metadata = null)
    {
        using var header = new MemoryStream();
        using (var json = new Utf8JsonWriter(header))
        {
            json.WriteStartObject();
            if (metadata is not null)
            {
                json.WriteStartObject(MetadataKey);
                foreach (var (key, value) in metadata) json.WriteString(key, value);
                json.WriteEndObject();
            }
            long offset = 0;
            foreach (var (name, value) in tensors)
            {
                json.WriteStartObject(name);
                json.WriteString("dtype", TypeName(value.dtype));
                json.WriteStartArray("shape");
                foreach (var size in value.shape) json.WriteNumberValue(size);
                json.WriteEndArray();
                json.WriteStartArray("data_offsets");
                json.WriteNumberValue(offset);
                json.WriteNumberValue(offset += ByteCount(value));
                json.WriteEndArray();
                json.WriteEndObject();
            }
            json.WriteEndObject();
        }
        while (header.Length % 8 != 0) header.WriteByte((byte)' '); // the format's alignment
        Span<byte> length = stackalloc byte[8];
        BinaryPrimitives.WriteInt64LittleEndian(length, header.Length);
        stream.Write(length);
        stream.Write(header.GetBuffer(), 0, (int)header.Length);
        foreach (var (_, value) in tensors)
        {
            using var scope = NewDisposeScope();
            var host = value.detach().cpu().contiguous();
            if (host.numel() > 0) host.WriteBytesToStream(stream, ChunkSize(host));
        }
    }

    /// <summary>Fills the tensors of <paramref name="expected"/> in place.</summary>
    /// <param name="stream">A stream that holds the format and nothing after it.</param>
    /// <param name="expected">Every tensor that must be there, and no other.</param>
    /// <returns>The metadata.</returns>
    /// <exception cref="FormatException">The stream is damaged, cut short, too long, or holds other tensors than expected. Nothing was stored if the header was at fault.</exception>
    public static IReadOnlyDictionary<string, string> Read(Stream stream, IReadOnlyList<(string Name, Tensor Value)> expected)
    {
        var (entries, metadata) = ReadHeader(stream);
        var byName = expected.ToDictionary(tensor => tensor.Name, tensor => tensor.Value);
        foreach (var entry in entries)
            if (!byName.ContainsKey(entry.Name)) throw new FormatException($"Unexpected tensor '{entry.Name}'.");
        long total = 0;
        foreach (var (name, value) in byName)
        {
            var entry = entries.FirstOrDefault(entry => entry.Name == name) ?? throw new FormatException($"Tensor '{name}' is missing.");
            var got = $"{entry.Type} [{string.Join(", ", entry.Shape)}]";
            var want = $"{TypeName(value.dtype)} [{string.Join(", ", value.shape)}]";
            if (got != want) throw new FormatException($"Tensor '{name}' is {got}; expected {want}.");
            if (entry.End - entry.Begin != ByteCount(value)) throw new FormatException($"Tensor '{name}' has {entry.End - entry.Begin} bytes; expected {ByteCount(value)}.");
            total += ByteCount(value);
        }
        long position = 0;
        foreach (var entry in entries.OrderBy(entry => entry.Begin).ThenBy(entry => entry.End))
        {
            if (entry.Begin != position) throw new FormatException($"Tensor '{entry.Name}' does not follow the one before it.");
            position = entry.End;
        }
        foreach (var entry in entries.OrderBy(entry => entry.Begin).ThenBy(entry => entry.End)) ReadData(stream, entry.Name, byName[entry.Name]);
        if (stream.ReadByte() >= 0) throw new FormatException($"There is more after the {total} bytes of data.");
        return metadata;
    }

    /// <summary>Reads whatever tensors there are.</summary>
    /// <param name="stream">A stream that holds the format and nothing after it.</param>
    /// <param name="maxBytes">The most data to accept: nothing is allocated for a header that claims more.</param>
    /// <returns>The tensors, which belong to the caller's scope, and the metadata.</returns>
    /// <exception cref="FormatException">The stream is damaged, cut short, too long, or claims more than <paramref name="maxBytes"/>.</exception>
    public static (IReadOnlyDictionary<string, Tensor> Tensors, IReadOnlyDictionary<string, string> Metadata) ReadAll(Stream stream, long maxBytes)
    {
        var (entries, metadata) = ReadHeader(stream);
        long position = 0;
        foreach (var entry in entries.OrderBy(entry => entry.Begin))
        {
            var size = ElementSize(TypeOf(entry));
            foreach (var length in entry.Shape)
                size = length >= 0 && (length == 0 || size <= maxBytes / length) ? size * length : throw new FormatException($"Tensor '{entry.Name}' has shape [{string.Join(", ", entry.Shape)}]; at most {maxBytes} bytes are accepted.");
            if (entry.Begin != position || entry.End - entry.Begin != size || entry.End > maxBytes)
                throw new FormatException($"Tensor '{entry.Name}' lies at {entry.Begin} to {entry.End}; expected {position} to {position + size}, and no more than {maxBytes} bytes in all.");
            position = entry.End;
        }
        var tensors = new Dictionary<string, Tensor>();
        try
        {
            foreach (var entry in entries.OrderBy(entry => entry.Begin))
            {
                tensors[entry.Name] = zeros(entry.Shape, TypeOf(entry));
                ReadData(stream, entry.Name, tensors[entry.Name]);
            }
            if (stream.ReadByte() >= 0) throw new FormatException($"There is more after the {position} bytes of data.");
        }
        catch
        {
            foreach (var tensor in tensors.Values) tensor.Dispose();
            throw;
        }
        return (tensors, metadata);
    }

    /// <summary>The metadata alone.</summary>
    public static IReadOnlyDictionary<string, string> ReadMetadata(Stream stream) => ReadHeader(stream).Metadata;

    private static void ReadData(Stream stream, string name, Tensor target)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var host = zeros(target.shape, target.dtype);
        try
        {
            if (host.numel() > 0) host.ReadBytesFromStream(stream, ChunkSize(host));
        }
        catch (EndOfStreamException)
        {
            throw new FormatException($"The data end inside tensor '{name}'.");
        }
        target.copy_(host);
    }

    private static (List<Entry> Entries, Dictionary<string, string> Metadata) ReadHeader(Stream stream)
    {
        Span<byte> lengthBytes = stackalloc byte[8];
        var metadata = new Dictionary<string, string>();
        var entries = new List<Entry>();
        try
        {
            stream.ReadExactly(lengthBytes);
            var length = BinaryPrimitives.ReadUInt64LittleEndian(lengthBytes);
            if (length is < 2 or > MaxHeaderBytes) throw new FormatException($"The header claims {length} bytes; expected 2 to {MaxHeaderBytes}.");
            var header = new byte[length];
            stream.ReadExactly(header);
            using var json = JsonDocument.Parse(header, new JsonDocumentOptions { MaxDepth = 8 });
            foreach (var member in json.RootElement.EnumerateObject())
            {
                if (member.NameEquals(MetadataKey))
                {
                    foreach (var pair in member.Value.EnumerateObject()) metadata[pair.Name] = pair.Value.GetString() ?? "";
                    continue;
                }
                if (entries.Any(entry => entry.Name == member.Name)) throw new FormatException($"Tensor '{member.Name}' appears twice.");
                var offsets = member.Value.GetProperty("data_offsets");
                entries.Add(new Entry(member.Name, member.Value.GetProperty("dtype").GetString()!,
                    [.. member.Value.GetProperty("shape").EnumerateArray().Select(size => size.GetInt64())], offsets[0].GetInt64(), offsets[1].GetInt64()));
            }
        }
        catch (Exception e) when (e is EndOfStreamException or JsonException or InvalidOperationException or KeyNotFoundException or IndexOutOfRangeException)
        {
            throw new FormatException($"Not a safetensors header: {e.Message}", e);
        }
        return (entries, metadata);
    }

    private static int ChunkSize(Tensor value) => (int)Math.Min(ByteCount(value), 1 << 20);

    private static long ByteCount(Tensor value) => value.numel() * value.ElementSize;

    private static readonly (ScalarType Type, string Name, long Size)[] Types =
    [
        (ScalarType.Float32, "F32", 4), (ScalarType.Float64, "F64", 8), (ScalarType.BFloat16, "BF16", 2), (ScalarType.Int64, "I64", 8),
        (ScalarType.Int32, "I32", 4), (ScalarType.Byte, "U8", 1), (ScalarType.Bool, "BOOL", 1),
    ];

    private static string TypeName(ScalarType type)
        => Types.FirstOrDefault(known => known.Type == type).Name ?? throw new NotSupportedException($"{type} has no safetensors name here.");

    private static ScalarType TypeOf(Entry entry)
        => Types.Any(known => known.Name == entry.Type) ? Types.First(known => known.Name == entry.Type).Type : throw new FormatException($"Tensor '{entry.Name}' is of the unknown type '{entry.Type}'.");

    private static long ElementSize(ScalarType type) => Types.First(known => known.Type == type).Size;

    private sealed record Entry(string Name, string Type, long[] Shape, long Begin, long End);
}
