using System.Text.Json;
using System.Text.Json.Serialization;

namespace MLSeq;

/// <summary>
/// A sequence backbone as data: which token mixer, how wide, how deep. Immutable, comparable by value, and written into saved models as JSON.
/// </summary>
/// <remarks>
/// All backbones are stacks of pre-norm residual blocks, <c>x = x + mixer(norm(x)); x = x + mlp(norm(x))</c>, and differ in the mixer alone.
/// Make one with a factory such as <see cref="Lstm"/>, vary it with a <c>with</c> expression.
/// </remarks>
public abstract partial record Backbone
{
    /// <summary>Features per position.</summary>
    public int Width { get; init; } = 128;

    /// <summary>Residual blocks.</summary>
    public int Depth { get; init; } = 2;

    /// <summary>Probability of dropping a feature of a block's update while training.</summary>
    public double Dropout { get; init; } = 0.1;

    /// <summary>Whether positions see both past and future. A one-way (causal) model can also be streamed.</summary>
    public bool Bidirectional { get; init; }

    /// <summary>Hidden width of each block's SwiGLU as a multiple of the width, rounded up to a multiple of 64; 0 leaves it out.</summary>
    public double MlpRatio { get; init; } = 8.0 / 3;

    /// <summary>The name that stands for this kind of backbone in the registry, in JSON and on command lines.</summary>
    [JsonIgnore]
    public string Name => BackboneRegistry.Kinds.NameOf(this);

    /// <summary>The names of all sequence backbones.</summary>
    public static IReadOnlyList<string> Names => BackboneRegistry.Kinds.Names;

    /// <summary>Makes the backbone called <paramref name="name"/> with its defaults, for programs that let their user choose one.</summary>
    /// <param name="name">One of <see cref="Names"/>; letter case, hyphens and underscores do not matter.</param>
    /// <param name="width">Features per position.</param>
    /// <param name="depth">Blocks; 0 keeps the default.</param>
    /// <param name="bidirectional">Whether positions see both past and future.</param>
    /// <exception cref="ArgumentException">There is no such backbone.</exception>
    public static Backbone Create(string name, int width = 128, int depth = 0, bool bidirectional = false)
    {
        var backbone = BackboneRegistry.Kinds.Create(name) with { Bidirectional = bidirectional };
        backbone = backbone.WithWidth(width);
        return depth == 0 ? backbone : backbone with { Depth = depth };
    }

    /// <summary>This backbone as a JSON object whose <c>name</c> tells its kind.</summary>
    public string ToJson() => BackboneRegistry.Kinds.ToJson(this);

    /// <summary>Reads what <see cref="ToJson"/> wrote.</summary>
    /// <exception cref="FormatException">The text is not such an object, names an unknown backbone or member, or has a value out of range.</exception>
    public static Backbone FromJson(string json) => BackboneRegistry.Kinds.FromJson(json);

    /// <summary>Checks every value; all problems are reported at once.</summary>
    /// <exception cref="ArgumentException">A value is out of range.</exception>
    public void Validate() => BackboneRegistry.Kinds.Validate(this);

    internal virtual IEnumerable<string> Problems()
    {
        if (Width is < 2 or > 16384 || Width % 2 != 0) yield return $"Width is {Width}; expected an even number from 2 to 16384.";
        if (Depth is < 1 or > 256) yield return $"Depth is {Depth}; expected 1 to 256.";
        if (Dropout is not (>= 0 and < 1)) yield return $"Dropout is {Dropout}; expected at least 0 and below 1.";
        if (MlpRatio is not (>= 0 and <= 16)) yield return $"MlpRatio is {MlpRatio}; expected 0 to 16.";
    }

    /// <summary>Hidden width of the SwiGLU; 0: none.</summary>
    internal int MlpWidth => (int)Math.Ceiling(Math.Round(Width * MlpRatio, 6) / 64) * 64;

    /// <summary>The token mixer of block <paramref name="layer"/>.</summary>
    internal abstract TokenMixer CreateMixer(int layer);

    /// <summary>The same kind at another width, with what depends on the width (such as heads) chosen anew.</summary>
    internal virtual Backbone WithWidth(int width) => this with { Width = width };

    /// <summary>The same without rotary positions, where they are an option: for elements that carry their positions, as the places of an image do.</summary>
    internal virtual Backbone WithoutRotary() => this;

    /// <summary>A backbone inside another, as an object of its own.</summary>
    internal sealed class NestedJson : JsonConverter<Backbone>
    {
        public override Backbone Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
        {
            using var inner = JsonDocument.ParseValue(ref reader);
            return FromJson(inner.RootElement.GetRawText());
        }

        public override void Write(Utf8JsonWriter writer, Backbone value, JsonSerializerOptions options) => writer.WriteRawValue(value.ToJson());
    }

    /// <summary>One causal mixer, or two that read in opposite directions.</summary>
    private protected TokenMixer Directed(Func<TokenMixer> causal) => Bidirectional ? new Bidirectional(causal) : causal();
}
