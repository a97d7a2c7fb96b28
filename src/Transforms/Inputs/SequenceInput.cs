using System.Text.Json.Serialization;
using Microsoft.ML;
using Microsoft.ML.Data;

namespace MLSeq;

/// <summary>How a column becomes a sequence, in training and in scoring alike. Part of the saved model.</summary>
[JsonPolymorphic(TypeDiscriminatorPropertyName = "kind", UnknownDerivedTypeHandling = JsonUnknownDerivedTypeHandling.FailSerialization)]
[JsonDerivedType(typeof(TextInput), "text")]
[JsonDerivedType(typeof(TokenInput), "tokens")]
[JsonDerivedType(typeof(SeriesInput), "series")]
internal abstract record SequenceInput
{
    /// <summary>Positions kept of a longer row: its beginning.</summary>
    public required int MaxLength { get; init; }

    /// <summary>What a position is to the network.</summary>
    internal abstract ElementKind Element { get; }

    /// <summary>The column type that scoring needs, for error messages and for ML.NET's permutation feature importance.</summary>
    internal abstract DataViewType ColumnType { get; }

    /// <summary>Whether the scorer can read a column of this type.</summary>
    public abstract bool Accepts(DataViewType type);

    /// <summary>Whether pieces of a sequence can be read from a column of this type.</summary>
    public virtual bool AcceptsPiece(DataViewType type) => Accepts(type);

    /// <summary>An empty buffer for this kind of element.</summary>
    public virtual SequenceBuffer CreateBuffer() => new(0, MaxLength);

    /// <summary>Reads <paramref name="column"/> of a cursor: each call of the result appends the current row to a buffer.</summary>
    public abstract Action<SequenceBuffer> CreateReader(DataViewRow row, DataViewSchema.Column column);

    /// <summary>Learns what has to be known of the training data (vocabulary size, scale) and applies it to them.</summary>
    public virtual SequenceInput Fit(SequenceBuffer buffer) => this;

    /// <summary>Checks values that may come from a file.</summary>
    public virtual void Validate()
    {
        if (MaxLength is < 1 or > 1 << 24) throw new ArgumentException($"MaxLength is {MaxLength}; expected 1 to {1 << 24}.");
    }

    /// <summary>Chooses how to read a column for training.</summary>
    /// <param name="column">The feature column.</param>
    /// <param name="text">The encoding of a text column.</param>
    /// <param name="channels">Numbers per position of a vector without [time, channels] dimensions.</param>
    /// <param name="standardize">Whether numbers are shifted and scaled to mean 0 and variance 1 per channel.</param>
    /// <param name="maxLength">Positions kept of a longer row.</param>
    /// <exception cref="ArgumentException">No sequence can be made of this type.</exception>
    public static SequenceInput For(DataViewSchema.Column column, TextEncoding text, int channels, bool standardize, int maxLength)
        => column.Type switch
        {
            TextDataViewType => new TextInput { Encoding = text, MaxLength = maxLength },
            VectorDataViewType { ItemType: KeyDataViewType key } when key.RawType == typeof(uint)
                => new TokenInput { Count = checked((int)Math.Min(key.Count, int.MaxValue - 1)) + 1, FromKeys = true, MaxLength = maxLength },
            VectorDataViewType { ItemType: NumberDataViewType item } when item == NumberDataViewType.Int32
                => new TokenInput { Count = 0, FromKeys = false, MaxLength = maxLength },
            VectorDataViewType { ItemType: NumberDataViewType item } vector when item == NumberDataViewType.Single
                => SeriesInput.For(column.Name, vector, channels, standardize, maxLength),
            _ => throw new ArgumentException(
                $"Column '{column.Name}' is {column.Type}; a sequence is Text, a vector of keys or Int32 (token ids), or a vector of Single with dimensions " +
                "[time] or [time, channels]. Convert it first, for example with Conversion.ConvertType or Conversion.MapValueToKey."),
        };

    private protected static Delegate Getter<T>(DataViewRow row, DataViewSchema.Column column) => row.GetGetter<T>(column);
}

/// <summary>A text column.</summary>
internal sealed record TextInput : SequenceInput
{
    public required TextEncoding Encoding { get; init; }

    internal override ElementKind Element => Encoding.Element;

    internal override DataViewType ColumnType => TextDataViewType.Instance;

    public override bool Accepts(DataViewType type) => type is TextDataViewType;

    public override void Validate()
    {
        base.Validate();
        Encoding.Validate();
    }

    public override Action<SequenceBuffer> CreateReader(DataViewRow row, DataViewSchema.Column column)
    {
        var getter = row.GetGetter<ReadOnlyMemory<char>>(column);
        var words = Encoding as WordTextEncoding;
        ReadOnlyMemory<char> text = default;
        return buffer =>
        {
            getter(ref text);
            Encoding.Encode(text.Span, buffer);
            buffer.EndRow(words);
        };
    }
}

/// <summary>A vector of keys or of Int32 ids. Id i is token i + 1 and key k is token k; token 0 stands for missing and for ids never seen in training.</summary>
internal sealed record TokenInput : SequenceInput
{
    private const int MostTokens = 1 << 22;

    /// <summary>Tokens, the unknown one included.</summary>
    public required int Count { get; init; }

    public required bool FromKeys { get; init; }

    internal override ElementKind Element => new ElementKind.Tokens(Count);

    internal override DataViewType ColumnType
        => new VectorDataViewType(FromKeys ? new KeyDataViewType(typeof(uint), Count - 1) : NumberDataViewType.Int32);

    public override bool Accepts(DataViewType type) => type is VectorDataViewType vector && (FromKeys
        ? vector.ItemType is KeyDataViewType key && key.RawType == typeof(uint) && key.Count == (ulong)(Count - 1)
        : vector.ItemType == NumberDataViewType.Int32);

    public override void Validate()
    {
        base.Validate();
        if (Count is < 1 or > MostTokens)
            throw new ArgumentException($"There are {Count - 1} distinct tokens; expected at most {MostTokens - 1}. Map rare values to keys first (Conversion.MapValueToKey with maximumNumberOfKeys).");
    }

    public override Action<SequenceBuffer> CreateReader(DataViewRow row, DataViewSchema.Column column)
        => FromKeys ? Reader<uint>(row, column, key => key > (uint)Count ? 0 : (int)key)
            : Count == 0 ? Reader<int>(row, column, id => id is >= 0 and < MostTokens
                ? id + 1
                : throw new ArgumentException($"Row {row.Position} of column '{column.Name}' has the id {id}; expected 0 to {MostTokens - 1}. Map the values to keys first (Conversion.MapValueToKey)."))
            : Reader<int>(row, column, id => id >= 0 && id < Count - 1 ? id + 1 : 0);

    public override SequenceInput Fit(SequenceBuffer buffer) => FromKeys ? this : this with { Count = buffer.MaxToken + 1 };

    private static Action<SequenceBuffer> Reader<T>(DataViewRow row, DataViewSchema.Column column, Func<T, int> token)
    {
        var getter = row.GetGetter<VBuffer<T>>(column);
        VBuffer<T> vector = default;
        return buffer =>
        {
            getter(ref vector);
            foreach (var (_, value) in vector.Items(all: true)) buffer.AddToken(token(value));
            buffer.EndRow();
        };
    }
}

/// <summary>A vector of Single, [time] or [time, channels].</summary>
internal sealed record SeriesInput : SequenceInput
{
    public required int Channels { get; init; }

    /// <summary>Length of a vector of known size; 0: it varies.</summary>
    public required int Size { get; init; }

    /// <summary>Per channel, subtracted. Null before <see cref="Fit"/>, or when numbers are taken as they are.</summary>
    public float[]? Mean { get; init; }

    /// <summary>Per channel, multiplied.</summary>
    public float[]? Scale { get; init; }

    [JsonIgnore]
    public bool Standardize { get; init; }

    internal override ElementKind Element => new ElementKind.Series(Channels);

    internal override DataViewType ColumnType => Size > 0 ? new VectorDataViewType(NumberDataViewType.Single, Size) : new VectorDataViewType(NumberDataViewType.Single);

    public override bool Accepts(DataViewType type) => type is VectorDataViewType vector && vector.ItemType == NumberDataViewType.Single && vector.Size == Size;

    // One element has [channels] numbers, whatever the length of the sequences of training.
    public override bool AcceptsPiece(DataViewType type) => type is VectorDataViewType vector && vector.ItemType == NumberDataViewType.Single && vector.Size % Channels == 0;

    public override SequenceBuffer CreateBuffer() => new(Channels, MaxLength);

    public static SeriesInput For(string name, VectorDataViewType type, int channels, bool standardize, int maxLength)
    {
        var dimensions = type.Dimensions;
        if (dimensions.Length > 2)
            throw new ArgumentException($"Column '{name}' is {type}; a series has dimensions [time] or [time, channels].");
        if (dimensions.Length == 2) channels = dimensions[1];
        if (channels < 1 || type.Size % channels != 0)
            throw new ArgumentException($"Column '{name}' is {type} and Channels is {channels}; the vector's size must be a multiple of the channels.");
        return new SeriesInput { Channels = channels, Size = type.Size, Standardize = standardize, MaxLength = maxLength };
    }

    public override void Validate()
    {
        base.Validate();
        if (Channels is < 1 or > 1 << 20 || Size < 0 || Size % Channels != 0) throw new ArgumentException($"A series of {Channels} channels and size {Size}.");
        if (Mean?.Length != Scale?.Length || Mean is not null && Mean.Length != Channels) throw new ArgumentException("Mean and Scale need one number per channel.");
    }

    public override Action<SequenceBuffer> CreateReader(DataViewRow row, DataViewSchema.Column column)
    {
        var getter = row.GetGetter<VBuffer<float>>(column);
        VBuffer<float> vector = default;
        var dense = Array.Empty<float>();
        return buffer =>
        {
            getter(ref vector);
            if (vector.Length % Channels != 0)
                throw new ArgumentException($"Row {row.Position} of column '{column.Name}' has {vector.Length} numbers; expected a multiple of the {Channels} channels.");
            if (dense.Length < vector.Length) dense = new float[vector.Length];
            vector.CopyTo(dense);
            var values = dense.AsSpan(0, vector.Length);
            if (Mean is not null) Apply(values, Mean, Scale!);
            buffer.AddValues(values);
            buffer.EndRow();
        };
    }

    public override SequenceInput Fit(SequenceBuffer buffer)
    {
        if (!Standardize) return this;
        var (mean, scale) = (new float[Channels], new float[Channels]);
        var values = buffer.Values;
        for (var channel = 0; channel < Channels; channel++)
        {
            double sum = 0, squares = 0, count = values.Length / Channels;
            for (var i = channel; i < values.Length; i += Channels) sum += values[i];
            var average = sum / count;
            for (var i = channel; i < values.Length; i += Channels) squares += (values[i] - average) * (values[i] - average);
            var deviation = Math.Sqrt(squares / count);
            (mean[channel], scale[channel]) = ((float)average, deviation > 1e-12 ? (float)(1 / deviation) : 1);
        }
        Apply(values, mean, scale);
        return this with { Mean = mean, Scale = scale };
    }

    private static void Apply(Span<float> values, float[] mean, float[] scale)
    {
        for (int i = 0, channel = 0; i < values.Length; i++)
        {
            values[i] = (values[i] - mean[channel]) * scale[channel];
            if (++channel == mean.Length) channel = 0;
        }
    }
}
