using System.Collections;
using System.Runtime.CompilerServices;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace MLSeq;

/// <summary>A few whole numbers, such as a width per stage: immutable, compared by value, written as a JSON array and as a collection expression, <c>[64, 128]</c>.</summary>
[CollectionBuilder(typeof(IntList), nameof(Create))]
[JsonConverter(typeof(Json))]
public sealed class IntList : IReadOnlyList<int>, IEquatable<IntList>
{
    private readonly int[] _values;

    private IntList(int[] values) => _values = values;

    /// <summary>How many numbers.</summary>
    public int Count => _values.Length;

    /// <summary>The number at <paramref name="index"/>.</summary>
    public int this[int index] => _values[index];

    /// <summary>Makes a list of copies of <paramref name="values"/>.</summary>
    public static IntList Create(ReadOnlySpan<int> values) => new(values.ToArray());

    /// <inheritdoc/>
    public IEnumerator<int> GetEnumerator() => ((IEnumerable<int>)_values).GetEnumerator();

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();

    /// <summary>Whether both hold the same numbers in the same order.</summary>
    public bool Equals(IntList? other) => other is not null && _values.AsSpan().SequenceEqual(other._values);

    /// <inheritdoc/>
    public override bool Equals(object? obj) => Equals(obj as IntList);

    /// <inheritdoc/>
    public override int GetHashCode()
    {
        var hash = new HashCode();
        foreach (var value in _values) hash.Add(value);
        return hash.ToHashCode();
    }

    /// <summary>The numbers in brackets.</summary>
    public override string ToString() => $"[{string.Join(", ", _values)}]";

    internal sealed class Json : JsonConverter<IntList>
    {
        public override IntList Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options) => new(JsonSerializer.Deserialize<int[]>(ref reader, options)!);

        public override void Write(Utf8JsonWriter writer, IntList value, JsonSerializerOptions options) => JsonSerializer.Serialize(writer, value._values, options);
    }
}
