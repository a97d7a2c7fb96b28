using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Titans with memory as a layer: a neural memory per head learns the sequence's keys and values by gradient descent while it reads (see <see cref="NeuralMemory"/>); persistent tokens, the same for every sequence, come
/// before it; attention over a short window, where there is one, looks at what the memory returned.
/// </summary>
/// <remarks>
/// Behrouz et al. 2024, sections 3 and 4.3 (equations 29 to 31). η = 0.9 σ(w_ηᵀ x); θ = (1 − η) σ(w_θᵀ x) / b, so that a chunk of b equal keys, repeated by the momentum, cannot overshoot; α = σ(w_αᵀ x), starting near 0.01.
/// State: memory, momentum, the open chunk's start, the convolution's last elements and the window's keys and values.
/// </remarks>
internal sealed class TitansMixer : TokenMixer
{
    private const double ForgettingBias = -4.6; // σ(−4.6) = 0.01
    private const double MostMomentum = 0.9;
    private static readonly double LogMostMomentum = Math.Log(MostMomentum);

    private readonly Linear project, gates, output;
    private readonly ShortConvolution convolution;
    private readonly GatedHeadNorm norm;
    private readonly Parameter? persistent; // [tokens, width]
    private readonly ParameterList weights; // of the memory before it has seen anything, [h, inputs, outputs] per layer
    private readonly SelfAttention? attention;
    private readonly int _heads, _chunk;

    public TitansMixer(TitansBackbone backbone) : base("Titans")
    {
        var (width, size) = (backbone.Width, backbone.Width / backbone.Heads);
        (_heads, _chunk) = (backbone.Heads, backbone.Chunk);
        project = nn.Linear(width, 4 * width, hasBias: false);
        convolution = new ShortConvolution(3 * width);
        gates = nn.Linear(width, 3 * _heads); // of θ, η, 1 − α
        using (no_grad()) gates.bias!.zero_().narrow(0, 2 * _heads, _heads).fill_(-ForgettingBias);
        norm = new GatedHeadNorm(size);
        output = nn.Linear(width, width, hasBias: false);
        if (backbone.PersistentTokens > 0) persistent = nn.Parameter(randn(backbone.PersistentTokens, width));
        weights = new ParameterList([.. Layers(size, backbone).Select(shape => nn.Parameter(randn(_heads, shape.Inputs, shape.Outputs) / Math.Sqrt(shape.Inputs)))]);
        if (backbone.Window > 0) attention = new SelfAttention(width, _heads, causal: true, backbone.Window);
        RegisterComponents();
    }

    private static IEnumerable<(int Inputs, int Outputs)> Layers(int size, TitansBackbone backbone)
    {
        for (var layer = 0; layer < backbone.MemoryDepth; layer++)
            yield return (layer == 0 ? size : size * backbone.MemoryExpansion, layer == backbone.MemoryDepth - 1 ? size : size * backbone.MemoryExpansion);
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var batch = x.shape[0];
        var memory = Restore(state) ?? Start(batch);
        (var read, memory) = Remember(x, memory, state);
        if (state is not null) Keep(memory, state);
        return attention is null ? read : read + attention.Mix(read, padding, state); // its parts live in the same state
    }

    internal override SpanMixer? OverSpans()
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var (into, control, outOf, convolve, normalize, attend) = (new PackedLinear(project), new PackedLinear(gates), new PackedLinear(output), convolution.OverSpans(), norm.OverSpans(), attention?.OverSpans());
        var (heads, width, size, chunk) = (_heads, outOf.Inputs, outOf.Inputs / _heads, _chunk);
        var start = Start(batch: 1);
        var memory = Enumerable.Range(0, weights.Count).Select(l => (Weights: start.Memory[l].Numbers(), Momentum: start.Momentum[l].Numbers(), Inputs: weights[l].shape[1], Outputs: weights[l].shape[2],
            Name: "memory" + l, MomentumName: "momentum" + l, StartName: "start" + l)).ToArray();
        return (x, y, state, work) =>
        {
            var (position, time) = (state?.Position ?? 0, x.Count);
            var projected = into.Apply(x, work); // q, k, v, gate of the output
            var gate = control.Apply(x, work); // θ, η, 1 − α
            var read = work.Take(time, width);
            convolve(projected.Columns(0, 3 * width), state, work);
            Span<NeuralMemory.SpanLayer> layers = stackalloc NeuralMemory.SpanLayer[memory.Length];
            for (var l = 0; l < layers.Length; l++)
            {
                var layer = memory[l];
                var m = work.Past(state, layer.Name, 1, heads, layer.Inputs, layer.Outputs);
                var s = work.Past(state, layer.MomentumName, 1, heads, layer.Inputs, layer.Outputs);
                layers[l] = new(m, s, work.Past(state, layer.StartName, 1, heads, layer.Inputs, layer.Outputs), (int)layer.Inputs, (int)layer.Outputs);
                if (position > 0) continue;
                layer.Weights.CopyTo(m);
                layer.Momentum.CopyTo(s);
            }
            for (var t = 0; t < time; t++)
            {
                gate[t].Apply<Functions.Sigmoid>();
                for (var h = 0; h < heads; h++)
                {
                    projected[t].QueryKeyValue(h, heads, size, out var q, out var k, out var v);
                    UnitHeads.Normalize(q);
                    UnitHeads.Normalize(k);
                    var momentum = (float)MostMomentum * gate[t][heads + h];
                    NeuralMemory.Step(layers, h, (position + t) % chunk == 0, q, k, v, gate[t][h] * (1 - momentum) / chunk, momentum, gate[t][2 * heads + h], read[t].Head(h, size), work);
                }
                normalize(read[t], projected[t][(3 * width)..]);
            }
            outOf.Apply(read, y);
            if (attend is null) return;
            attend(y, read, state, work);
            for (var t = 0; t < time; t++) y[t].Add(read[t]);
        };
    }

    // The memory before a sequence: what it has learned to begin with, and the persistent tokens.
    private NeuralMemoryState Start(long batch)
    {
        var memory = NeuralMemoryState.Start(weights, batch);
        if (persistent is not null) (_, memory) = Remember(persistent.unsqueeze(0).expand(batch, -1, -1), memory, null);
        return memory with { Seen = 0 }; // the sequence begins a chunk
    }

    private (Tensor Read, NeuralMemoryState Memory) Remember(Tensor x, NeuralMemoryState memory, MixerState? state)
    {
        var (width, type) = (x.shape[2], Chunks.StateType(x));
        var projected = project.call(x).Parts(3 * width, width);
        var parts = convolution.call(projected[0], state).Parts(width, width, width); // q, k, v
        var (q, k, v) = (UnitHeads.Normalize(parts[0].SplitHeads(_heads)), UnitHeads.Normalize(parts[1].SplitHeads(_heads)), parts[2].SplitHeads(_heads));
        var gate = gates.call(x).to(type).Parts(_heads, _heads, _heads); // [batch, time, h] each
        var logMomentum = nn.functional.logsigmoid(gate[1]) + LogMostMomentum;
        var control = new NeuralMemoryGates(gate[0].sigmoid() * (1 - logMomentum.exp()) / _chunk, logMomentum, nn.functional.logsigmoid(gate[2]));
        var (o, after) = NeuralMemory.Run(q, k, v, control, memory, _chunk);
        return (output.call(norm.call(o, projected[1])), after);
    }

    private NeuralMemoryState? Restore(MixerState? state)
    {
        if (state?["memory0"] is null) return null;
        Tensor[] All(string name) => [.. Enumerable.Range(0, weights.Count).Select(layer => state[name + layer]!)];
        return new NeuralMemoryState(All("memory"), All("momentum"), All("start"), state.Position);
    }

    // Copies first: the open chunk's start may be the very memory that the state is about to replace.
    private static void Keep(NeuralMemoryState memory, MixerState state)
    {
        Tensor[] Copies(IReadOnlyList<Tensor> layers) => [.. layers.Select(layer => layer.clone())];
        var parts = new[] { ("memory", Copies(memory.Memory)), ("momentum", Copies(memory.Momentum)), ("start", Copies(memory.ChunkStart)) };
        foreach (var (name, layers) in parts)
            for (var layer = 0; layer < layers.Length; layer++) state.Set(name + layer, layers[layer]);
    }
}

/// <summary>Titans' neural memory in residual blocks. Behrouz, Zhong and Mirrokni, "Titans: learning to memorize at test time", 2024.</summary>
public sealed record TitansBackbone : MultiHeadBackbone
{
    /// <summary>Layers of the memory network: 1 (linear) or more.</summary>
    public int MemoryDepth { get; init; } = 2;

    /// <summary>Hidden width of the memory network as a multiple of a head's features.</summary>
    public int MemoryExpansion { get; init; } = 2;

    /// <summary>Elements whose gradients are taken at the same memory: larger is faster to train, smaller learns faster.</summary>
    public int Chunk { get; init; } = 8;

    /// <summary>Learned tokens that the memory reads before every sequence.</summary>
    public int PersistentTokens { get; init; } = 4;

    /// <summary>Attention over the last elements of what the memory returned; 0 leaves it out (the paper's plain neural memory, LMM).</summary>
    public int Window { get; init; } = 32;

    internal override TokenMixer CreateMixer(int layer) => Directed(() => new TitansMixer(this));

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (MemoryDepth is < 1 or > 8) yield return $"MemoryDepth is {MemoryDepth}; expected 1 to 8.";
        if (MemoryExpansion is < 1 or > 16) yield return $"MemoryExpansion is {MemoryExpansion}; expected 1 to 16.";
        if (Chunk is < 1 or > 1024) yield return $"Chunk is {Chunk}; expected 1 to 1024.";
        if (PersistentTokens is < 0 or > 4096) yield return $"PersistentTokens is {PersistentTokens}; expected 0 to 4096.";
        if (Window is < 0 or > 1 << 24) yield return $"Window is {Window}; expected 0 (none) to {1 << 24}.";
    }
}

public abstract partial record Backbone
{
    /// <summary>Titans (Behrouz et al. 2024): a small network that is trained on the sequence while it reads it. Constant memory and cost per step.</summary>
    /// <inheritdoc cref="LinearAttention(int, int, int, double, bool)"/>
    public static TitansBackbone Titans(int width = 128, int depth = 2, int heads = 0, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, Heads = heads == 0 ? MultiHeadBackbone.DefaultHeads(width) : heads, Dropout = dropout, Bidirectional = bidirectional };
}
