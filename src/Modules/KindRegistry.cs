using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.Json.Serialization;

namespace MLSeq;

/// <summary>The kinds of a family of immutable records: their names, their defaults, their JSON, <c>{"name": kind, members}</c>, and their validation.</summary>
/// <param name="what">What one is called in messages.</param>
/// <param name="problems">All that is wrong with one.</param>
/// <param name="kinds">Names, in small letters, and defaults.</param>
internal sealed class KindRegistry<T>(string what, Func<T, IEnumerable<string>> problems, params (string Name, Func<T> Default)[] kinds) where T : class
{
    private static readonly JsonSerializerOptions JsonOptions = new() { UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow, MaxDepth = 16 };

    private readonly Entry[] _entries = [.. kinds.Select(kind => new Entry(kind.Name, kind.Default))];

    public IReadOnlyList<string> Names { get; } = [.. kinds.Select(kind => kind.Name)];

    /// <summary>The kind's default.</summary>
    /// <exception cref="ArgumentException">There is no such kind.</exception>
    public T Create(string name) => Find(name).Default();

    public string NameOf(T value) => _entries.Single(entry => entry.Type == value.GetType()).Name;

    /// <exception cref="ArgumentException">A value is out of range; all problems are reported at once.</exception>
    public void Validate(T value)
    {
        var found = problems(value).ToList();
        if (found.Count > 0) throw new ArgumentException($"{value.GetType().Name}: {string.Join(" ", found)}");
    }

    public string ToJson(T value)
    {
        var json = JsonSerializer.SerializeToNode(value, value.GetType(), JsonOptions)!.AsObject();
        json.Insert(0, "name", NameOf(value));
        return json.ToJsonString();
    }

    /// <exception cref="FormatException">The text is not such an object, names an unknown kind or member, or has a value out of range.</exception>
    public T FromJson(string json)
    {
        try
        {
            var members = JsonNode.Parse(json, documentOptions: new JsonDocumentOptions { MaxDepth = 16 })!.AsObject();
            var name = members["name"]?.GetValue<string>() ?? throw new FormatException($"A {what}'s JSON needs a 'name'.");
            members.Remove("name");
            var value = (T)members.Deserialize(Find(name).Type, JsonOptions)!;
            Validate(value);
            return value;
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or ArgumentException or NullReferenceException)
        {
            throw new FormatException($"Not a {what} of this version of MLSeq: {e.Message}", e);
        }
    }

    private Entry Find(string name)
        => _entries.FirstOrDefault(entry => KindNames.Same(entry.Name, name)) ?? throw new ArgumentException($"There is no {what} '{name}'; expected one of {string.Join(", ", Names)}.", nameof(name));

    private sealed record Entry(string Name, Func<T> Default)
    {
        public Type Type { get; } = Default().GetType();
    }
}

/// <summary>Names that users type.</summary>
internal static class KindNames
{
    /// <summary>Whether two names differ in nothing but letter case, hyphens and underscores.</summary>
    public static bool Same(string a, string b) => Plain(a).Equals(Plain(b), StringComparison.OrdinalIgnoreCase);

    private static string Plain(string name) => name.Replace("-", "", StringComparison.Ordinal).Replace("_", "", StringComparison.Ordinal);
}
