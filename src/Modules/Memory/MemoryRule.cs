using System.Text.Json;
using System.Text.Json.Serialization;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>How an <see cref="AssociativeMemory"/> changes when a pair is written. Immutable, comparable by value, saved with the memory.</summary>
/// <remarks>
/// Every rule reads <c>f(q) = Hᵀ a(q)</c>. H is what was written; a(q) = q, except in a neural memory with a hidden layer, where <c>a(q) = silu(W₁ᵀ q)</c>. State: one [1, 1, inputs, outputs]
/// tensor per layer, H last; then, in a neural memory, the momentum of each.
/// </remarks>
[JsonPolymorphic(TypeDiscriminatorPropertyName = "kind")]
[JsonDerivedType(typeof(MatrixMemoryRule), "matrix")]
[JsonDerivedType(typeof(NeuralMemoryRule), "neural")]
public abstract record MemoryRule
{
    private static readonly JsonSerializerOptions JsonOptions = new() { UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow, MaxDepth = 4 };

    private protected MemoryRule()
    {
    }

    /// <summary><c>H ← H + β k vᵀ</c>: linear attention (Katharopoulos et al. 2020). Nothing written ever changes.</summary>
    public static MatrixMemoryRule Linear => new();

    /// <summary><c>H ← γ H + β k vᵀ</c>: retention (Sun et al. 2023). What was written n writes ago counts γⁿ.</summary>
    /// <param name="keep">γ, 0 to 1.</param>
    public static MatrixMemoryRule Retention(double keep) => new() { Keep = keep };

    /// <summary><c>H ← γ_t H + β k vᵀ</c>: gated retention (Sun et al. 2024). Each write says how much of the past is kept.</summary>
    public static MatrixMemoryRule Gated => new() { KeepPerWrite = true };

    /// <summary><c>H ← (I − β k kᵀ) H + β k vᵀ</c>: the delta rule (Schlag et al. 2021). A new value replaces the old one at the same key.</summary>
    public static MatrixMemoryRule Delta => new() { Erases = true };

    /// <summary><c>H ← γ_t (I − β k kᵀ) H + β k vᵀ</c>: the gated delta rule (Yang et al. 2024). Replaces, and each write says how much of the past is kept.</summary>
    public static MatrixMemoryRule GatedDelta => new() { Erases = true, KeepPerWrite = true };

    /// <summary>A neural memory (Titans, Behrouz et al. 2024): a small network that learns the pairs by gradient descent with momentum and decay.</summary>
    /// <param name="hidden">Hidden units; 0: one linear layer. About as many pairs can be held as there are hidden units.</param>
    /// <param name="rate">See <see cref="NeuralMemoryRule.Rate"/>.</param>
    /// <param name="momentum">η, from 0 to below 1.</param>
    /// <param name="keep">1 − α, 0 to 1.</param>
    /// <param name="seed">Fixes the hidden layer's first weights.</param>
    public static NeuralMemoryRule Titans(int hidden = 0, double rate = 0.5, double momentum = 0.5, double keep = 1, int seed = 1)
        => new() { Hidden = hidden, Rate = rate, Momentum = momentum, Keep = keep, KeepPerWrite = true, Seed = seed };

    /// <summary>γ, the share of the memory that is kept at each write that does not say otherwise, 0 to 1.</summary>
    public double Keep { get; init; } = 1;

    /// <summary>Whether a write may say how much is kept.</summary>
    public bool KeepPerWrite { get; init; }

    /// <summary>The rule's name, for messages and reports.</summary>
    [JsonIgnore]
    public abstract string Name { get; }

    /// <summary>The rule that rehearsal follows: one that corrects what the memory recalls.</summary>
    [JsonIgnore]
    internal virtual MemoryRule Rehearsal => this;

    /// <summary>Layers of the memory; H is the last.</summary>
    [JsonIgnore]
    internal virtual int Depth => 1;

    /// <summary>The state's parts in their order.</summary>
    internal abstract IEnumerable<(string Name, long[] Shape)> Parts(int keySize, int valueSize);

    /// <summary>The state of a memory that has seen nothing: every query reads zero.</summary>
    internal virtual Tensor[] Start(int keySize, int valueSize) => [.. Parts(keySize, valueSize).Select(part => zeros(part.Shape))];

    /// <summary>fB, and the part of fA that each write brings with it.</summary>
    /// <param name="state">The state before.</param>
    /// <param name="k">Keys of length 1, [1, t, 1, K].</param>
    /// <param name="v">Values, [1, t, 1, V].</param>
    /// <param name="strength">β, [1, t, 1].</param>
    /// <param name="logKeep">log γ, [1, t, 1]; null where everything is kept.</param>
    internal abstract Tensor[] Write(Tensor[] state, Tensor k, Tensor v, Tensor strength, Tensor? logKeep);

    /// <summary>fC: [1, t, 1, V] of queries [1, t, 1, K].</summary>
    internal Tensor Read(Tensor[] state, Tensor q) => NeuralMemory.Read(q.transpose(1, 2), state[..Depth]).transpose(1, 2);

    /// <summary>What every query reads becomes <paramref name="keep"/> times what it was, H ← keep H, and so do steps that momentum would still take.</summary>
    internal Tensor[] Fade(Tensor[] state, double keep) => [.. state.Select((part, i) => i < Depth - 1 ? part : part * keep)];

    /// <summary>H ← (I − a aᵀ) H with a = a(k) / ‖a(k)‖, so that k reads zero; the momentum of H likewise. It is the delta rule with a value of zero.</summary>
    internal Tensor[] Forget(Tensor[] state, Tensor k)
    {
        var a = UnitHeads.Normalize(NeuralMemory.LastInput(k.transpose(1, 2), state[..Depth])); // [1, 1, 1, inputs]: one position of one head
        Tensor Erased(Tensor h) => DeltaRecurrence.Run(a, a, zeros(1, 1, 1, h.shape[3]), ones(1, 1, 1), initialState: h).FinalState;
        return [.. state.Select((part, i) => i % Depth == Depth - 1 ? Erased(part) : part)];
    }

    /// <summary>Checks every value; all problems are reported at once.</summary>
    /// <exception cref="ArgumentException">A value is out of range.</exception>
    public void Validate()
    {
        var problems = Problems().ToList();
        if (problems.Count > 0) throw new ArgumentException($"{GetType().Name}: {string.Join(" ", problems)}");
    }

    private protected virtual IEnumerable<string> Problems()
    {
        if (Keep is not (>= 0 and <= 1)) yield return $"Keep is {Keep}; expected 0 (forget all at each write) to 1 (keep all).";
    }

    internal string ToJson() => JsonSerializer.Serialize(this, JsonOptions);

    internal static MemoryRule FromJson(string json)
    {
        try
        {
            var rule = JsonSerializer.Deserialize<MemoryRule>(json, JsonOptions) ?? throw new JsonException("It is null.");
            rule.Validate();
            return rule;
        }
        catch (Exception e) when (e is JsonException or NotSupportedException or ArgumentException)
        {
            throw new FormatException($"Not a memory rule of this version of MLSeq: {e.Message}", e);
        }
    }
}

/// <summary>A memory that is one matrix H, [K, V]: <c>H ← γ H + β k vᵀ</c> or, erasing, <c>H ← γ (I − β k kᵀ) H + β k vᵀ</c>; <c>read(q) = Hᵀ q</c>.</summary>
/// <remarks>The equations are those of <see cref="GatedLinearRecurrence"/> and <see cref="DeltaRecurrence"/>.</remarks>
public sealed record MatrixMemoryRule : MemoryRule
{
    /// <summary>Whether a write first takes away what its key holds.</summary>
    public bool Erases { get; init; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Name => (Erases, KeepPerWrite, Keep < 1) switch
    {
        (false, false, false) => nameof(Linear),
        (false, false, true) => nameof(Retention),
        (false, true, _) => nameof(Gated),
        (true, false, false) => nameof(Delta),
        _ => nameof(GatedDelta),
    };

    internal override MemoryRule Rehearsal => this with { Erases = true };

    internal override IEnumerable<(string Name, long[] Shape)> Parts(int keySize, int valueSize) => [("memory0", [1, 1, keySize, valueSize])];

    internal override Tensor[] Write(Tensor[] state, Tensor k, Tensor v, Tensor strength, Tensor? logKeep)
        => Erases ? [DeltaRecurrence.Run(k, k, v, strength, logKeep, state[0]).FinalState] : [GatedLinearRecurrence.Run(k, k, strength.unsqueeze(-1) * v, logKeep, state[0]).FinalState];
}

/// <summary>
/// A memory that is a network f of one or two layers, trained on what is written: <c>S ← η S − θ ∇ ½‖f(k) − v‖²</c>, <c>M ← γ M + S</c>; <c>read(q) = f(q)</c>.
/// </summary>
/// <remarks>
/// The equations are those of <see cref="NeuralMemory"/>, every element a chunk of its own. The last layer begins at zero, the hidden one at normally distributed weights. A decay at every write
/// (<see cref="MemoryRule.Keep"/> below 1) also wears down the hidden layer, as in the paper; <see cref="AssociativeMemory.Reflect(double)"/> does not.
/// </remarks>
public sealed record NeuralMemoryRule : MemoryRule
{
    /// <summary>Hidden units; 0: one linear layer.</summary>
    public int Hidden { get; init; }

    /// <summary>
    /// θ for a write of strength 1: of an error, one write removes this share at once, and rate / (1 − momentum) in the end. Exact for one layer, about right for two, whose last layer is given inputs
    /// of almost unit length.
    /// </summary>
    public double Rate { get; init; } = 0.5;

    /// <summary>η, the share of the last step that is repeated.</summary>
    public double Momentum { get; init; } = 0.5;

    /// <summary>Fixes the hidden layer's first weights.</summary>
    public int Seed { get; init; } = 1;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Name => nameof(Titans);

    internal override int Depth => Hidden == 0 ? 1 : 2;

    internal override IEnumerable<(string Name, long[] Shape)> Parts(int keySize, int valueSize)
    {
        long[][] layers = Hidden == 0 ? [[1, 1, keySize, valueSize]] : [[1, 1, keySize, Hidden], [1, 1, Hidden, valueSize]];
        foreach (var part in (string[])["memory", "momentum"])
            for (var layer = 0; layer < layers.Length; layer++) yield return ($"{part}{layer}", layers[layer]);
    }

    internal override Tensor[] Start(int keySize, int valueSize)
    {
        var state = base.Start(keySize, valueSize);
        if (Hidden == 0) return state;
        using var random = new Generator((ulong)Seed);
        state[0] = randn(state[0].shape, generator: random);
        return state;
    }

    internal override Tensor[] Write(Tensor[] state, Tensor k, Tensor v, Tensor strength, Tensor? logKeep)
    {
        var gates = new NeuralMemoryGates(strength * Rate, full_like(strength, Math.Log(Momentum)), logKeep ?? zeros_like(strength));
        var (_, after) = NeuralMemory.Run(k, k, v, gates, new NeuralMemoryState(state[..Depth], state[Depth..], state[..Depth], 0), chunk: 1);
        return [.. after.Memory, .. after.Momentum];
    }

    private protected override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (Hidden is < 0 or > 1 << 16) yield return $"Hidden is {Hidden}; expected 0 (one linear layer) to {1 << 16}.";
        if (Rate is not (> 0 and <= 2)) yield return $"Rate is {Rate}; expected above 0, at most 2 (beyond it, descent diverges).";
        if (Momentum is not (>= 0 and < 1)) yield return $"Momentum is {Momentum}; expected at least 0 and below 1.";
        if (Seed < 0) yield return $"Seed is {Seed}; expected 0 or more.";
    }
}
