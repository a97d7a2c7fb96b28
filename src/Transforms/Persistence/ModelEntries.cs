using System.Security.Cryptography;
using System.Text.Json;
using System.Text.Json.Serialization;
using Microsoft.ML;
using Microsoft.ML.Runtime;
using TorchSharp;

namespace MLSeq;

/// <summary>
/// What a fitted MLSeq model keeps inside ML.NET's model zip: a description (<c>MLSeq.json</c>), <c>Weights.safetensors</c>, the label's values (<c>Label</c>), and
/// <c>Checksums.json</c>, SHA-256 of the others, because zip readers do not notice a flipped bit.
/// </summary>
/// <remarks>Files come from anywhere: every entry is bounded and checked, the network is made only when the weights that are there can fill it, and any
/// fault ends in one <see cref="FormatException"/> with nothing loaded.</remarks>
internal sealed class ModelEntries
{
    public const string Description = "MLSeq.json", Weights = "Weights.safetensors", Label = "Label";
    private const string Checksums = "Checksums.json";

    private const int MaxDescriptionBytes = 256 << 20; // a vocabulary may be inside
    private const int MaxLabelBytes = 256 << 20;
    private const int MaxChecksumBytes = 1 << 12;

    private static readonly JsonSerializerOptions JsonOptions = new()
    {
        UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow,
        Converters = { new JsonStringEnumConverter() },
        MaxDepth = 16,
    };

    private readonly IHostEnvironment _env;
    private readonly ModelLoadContext _context;
    private readonly Dictionary<string, string>? _checksums;

    /// <summary>Opens a saved model; the version information was checked.</summary>
    public ModelEntries(IHostEnvironment env, ModelLoadContext context)
    {
        (_env, _context) = (env, context);
        _checksums = Read(Checksums, MaxChecksumBytes, stream => JsonSerializer.Deserialize<Dictionary<string, string>>(stream) ?? []);
    }

    /// <summary>The version information of a transformer of this assembly.</summary>
    public static VersionInfo Version(string signature, string loaderSignature) => new(
        modelSignature: signature,
        verWrittenCur: 0x00010001,
        verReadableCur: 0x00010001,
        verWeCanReadBack: 0x00010001,
        loaderSignature: loaderSignature,
        loaderAssemblyName: typeof(ModelEntries).Assembly.GetName().Name); // the simple name survives version changes

    /// <summary>Writes a model.</summary>
    public static void Save<TDescription>(IHost host, ModelSaveContext context, TDescription description, torch.nn.Module network, LabelColumn? label)
    {
        var checksums = new Dictionary<string, string>();
        void Write(string entry, Action<Stream> write) => context.SaveBinaryStream(entry, writer =>
        {
            using var hash = SHA256.Create();
            using (var stream = new CryptoStream(writer.BaseStream, hash, CryptoStreamMode.Write, leaveOpen: true)) write(stream);
            checksums[entry] = Convert.ToHexStringLower(hash.Hash!);
        });
        Write(Description, stream => JsonSerializer.Serialize(stream, description, JsonOptions));
        Write(Weights, stream => SafeTensors.Write(stream, network.State()));
        if (label is not null) Write(Label, stream => label.Save(host, stream));
        context.SaveBinaryStream(Checksums, writer => JsonSerializer.Serialize(writer.BaseStream, checksums));
    }

    /// <summary>Reads the description and checks it by turning it into something usable.</summary>
    public (TDescription Description, TSpec Spec) ReadDescription<TDescription, TSpec>(Func<TDescription, TSpec> specify)
    {
        var description = Read(Description, MaxDescriptionBytes, stream => JsonSerializer.Deserialize<TDescription>(stream, JsonOptions) ?? throw new FormatException("It is empty."));
        return (description, Checked(Description, () => specify(description)));
    }

    /// <summary>Checks a description's format number.</summary>
    public static void CheckFormat(int got, int expected)
    {
        if (got != expected) throw new FormatException($"Its format is {got}; this version of MLSeq reads {expected}.");
    }

    /// <summary>Checks a description's column names.</summary>
    public static void CheckNames(params ReadOnlySpan<string?> names)
    {
        foreach (var name in names)
            if (string.IsNullOrEmpty(name)) throw new FormatException("A column has no name.");
    }

    /// <summary>Checks a description's mirror images.</summary>
    public static void CheckFlips(ImageFlips flips)
    {
        if ((flips & ~(ImageFlips.Horizontal | ImageFlips.Vertical)) != 0) throw new FormatException($"TestTimeFlips is {flips}.");
    }

    /// <summary>Reads the label's values, of which there must be <paramref name="classes"/>.</summary>
    public LabelColumn ReadLabel(int classes)
    {
        var label = Read(Label, MaxLabelBytes, stream => LabelColumn.Load(_env, Copy(stream)));
        return label.Count == (ulong)classes ? label : throw Refusal(Label, $"It names {label.Count?.ToString() ?? "no"} classes; expected {classes}.", null);
    }

    /// <summary>Makes a network and fills it.</summary>
    /// <param name="create">Makes the network.</param>
    /// <param name="leastParameters">A lower bound on the network's size: a description of one larger than its weights must not make us allocate it.</param>
    /// <returns>The network in host memory.</returns>
    public TNetwork ReadNetwork<TNetwork>(Func<TNetwork> create, long leastParameters) where TNetwork : torch.nn.Module
        => Read(Weights, long.MaxValue, stream =>
        {
            if (stream.Length < leastParameters * sizeof(float))
                throw new FormatException($"It has {stream.Length} bytes, but a network as described needs at least {leastParameters * sizeof(float)}.");
            MLSeqRuntime.EnsureLoaded();
            var network = create();
            try
            {
                SafeTensors.Read(stream, network.State());
                // As after training: libtorch chooses another matrix product, with other last bits, for weights that ask for gradients.
                foreach (var (_, value) in network.State()) value.requires_grad = false;
                return network;
            }
            catch
            {
                network.Dispose();
                throw;
            }
        });

    private T Read<T>(string name, long maxBytes, Func<Stream, T> read)
    {
        T? result = default;
        var found = Checked(name, () => _context.TryLoadBinaryStream(name, reader =>
        {
            var stream = reader.BaseStream;
            if (stream.Length > maxBytes) throw new FormatException($"It has {stream.Length} bytes; expected at most {maxBytes}.");
            if (_checksums is not null)
            {
                if (Convert.ToHexStringLower(SHA256.HashData(stream)) != _checksums.GetValueOrDefault(name)) throw new FormatException("Its checksum differs.");
                stream.Position = 0;
            }
            result = read(stream);
        }));
        return found ? result! : throw Refusal(name, "It is missing.", null);
    }

    private T Checked<T>(string name, Func<T> read)
    {
        try
        {
            return read();
        }
        catch (Exception e) when (e is not (OutOfMemoryException or LibTorchLoadException))
        {
            throw Refusal(name, e.Message, e);
        }
    }

    private Exception Refusal(string entry, string reason, Exception? inner)
        => _env.ExceptDecode(inner, $"The model cannot be loaded: its entry '{entry}' is damaged or was not written by MLSeq. {reason} Nothing was loaded; save the model again from its source.");

    private static MemoryStream Copy(Stream stream)
    {
        var copy = new MemoryStream(); // BinaryLoader keeps the stream
        stream.CopyTo(copy);
        copy.Position = 0;
        return copy;
    }
}
