using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Mamba-2's block: one decay per head makes the selective state space a gated linear recurrence, <c>S_t = e^{Δ_t A} S_{t−1} + B_t (Δ_t u_t)ᵀ</c>, <c>y_t = S_tᵀ C_t + D u_t</c>, with keys B and queries C
/// shared by all heads; (u, B, C) come from one projection and a short convolution, and the result is <c>W norm(y ∘ silu(z))</c>.
/// </summary>
/// <remarks>Dao and Gu 2024, equation 2 and section 7 (figure 6). e: inner channels, h: heads, n: state size. State: S and the convolution's last elements.</remarks>
internal sealed class Mamba2Mixer : TokenMixer
{
    private const string Memory = "memory";

    private readonly Linear project, output;
    private readonly ShortConvolution convolution;
    private readonly Parameter logRate, stepBias, skip; // log(−A), bias of Δ, D: [h]
    private readonly GatedHeadNorm norm;
    private readonly int _inner, _heads, _states;

    public Mamba2Mixer(int width, int expansion, int headSize, int states) : base("Mamba2")
    {
        (_inner, _heads, _states) = (width * expansion, width * expansion / headSize, states);
        project = nn.Linear(width, 2 * _inner + 2 * states + _heads, hasBias: false);
        convolution = new ShortConvolution(_inner + 2 * states);
        logRate = StateSpaceInit.LogRates(_heads);
        stepBias = nn.Parameter(zeros(_heads));
        StateSpaceInit.StepBias(stepBias);
        skip = nn.Parameter(ones(_heads));
        norm = new GatedHeadNorm(_inner);
        output = nn.Linear(_inner, width, hasBias: false);
        RegisterComponents();
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var type = Chunks.StateType(x);
        var projected = project.call(x).Parts(_inner, _inner + 2 * _states, _heads); // z, (u, B, C), Δ
        var parts = convolution.call(projected[1], state).Parts(_inner, _states, _states);
        var u = parts[0].SplitHeads(_heads); // [batch, time, h, e/h]
        var delta = nn.functional.softplus(projected[2].to(type) + stepBias); // [batch, time, h]
        Tensor Shared(Tensor map) => map.unsqueeze(2).expand(-1, -1, _heads, -1); // [batch, time, h, n]
        var (read, memory) = GatedLinearRecurrence.Run(Shared(parts[2]), Shared(parts[1]), u * delta.unsqueeze(-1).to(u.dtype), -logRate.to(type).exp() * delta, state?[Memory]);
        state?.Set(Memory, memory);
        return output.call(SkipNorm.Run(read, u, skip, projected[0], norm.Weight));
    }

    internal override SpanMixer OverSpans()
    {
        var (into, outOf, convolve, normalize) = (new PackedLinear(project), new PackedLinear(output), convolution.OverSpans(), norm.OverSpans());
        var (rate, bias, skips) = (logRate.exp().Numbers(), stepBias.Numbers(), skip.Numbers());
        var (inner, heads, states, size) = (_inner, _heads, _states, _inner / _heads);
        return (x, y, state, work) =>
        {
            var projected = into.Apply(x, work); // z, (u, B, C), Δ
            var read = work.Take(x.Count, inner);
            var z = projected.Columns(0, inner);
            var parts = projected.Columns(inner, inner + 2 * states);
            var delta = projected.Columns(2 * inner + 2 * states, heads);
            var memory = work.Past(state, Memory, 1, heads, states, size);
            var written = work.Take(size);
            convolve(parts, state, work);
            for (var t = 0; t < x.Count; t++)
            {
                delta[t].Add(bias);
                delta[t].Apply<Functions.LogOnePlusExp>();
                var b = parts[t].Slice(inner, states);
                var c = parts[t][(inner + states)..];
                for (var h = 0; h < heads; h++)
                {
                    var u = parts[t].Head(h, size);
                    var o = read[t].Head(h, size);
                    var step = delta[t][h];
                    u.CopyTo(written);
                    written.Scale(step);
                    GatedLinearRecurrence.Step(memory.Head(h, states * size), c, b, written, [MathF.Exp(-rate[h] * step)], o);
                    o.AddProduct(u, skips[h]);
                }
                z[t].Apply<Functions.Silu>();
                read[t].Multiply(z[t]);
                normalize(read[t], []);
            }
            outOf.Apply(read, y);
        };
    }
}

/// <summary>Mamba-2 in residual blocks; its mixer contains what an MLP would do, so there is none by default. Dao and Gu, "Transformers are SSMs", 2024.</summary>
public sealed record Mamba2Backbone : Backbone
{
    /// <summary>Inner channels as a multiple of the width.</summary>
    public int Expansion { get; init; } = 2;

    /// <summary>Channels per head; must divide the inner channels.</summary>
    public int HeadSize { get; init; } = 64;

    /// <summary>State size: how many keys a head can tell apart.</summary>
    public int States { get; init; } = 64;

    internal override TokenMixer CreateMixer(int layer) => Directed(() => new Mamba2Mixer(Width, Expansion, HeadSize, States));

    internal override Backbone WithWidth(int width) => this with { Width = width, HeadSize = DefaultHeadSize(width * Expansion) };

    // The paper's 64, smaller for narrow networks.
    internal static int DefaultHeadSize(int inner) => Enumerable.Range(1, Math.Min(64, Math.Max(1, inner / 2))).Last(size => inner % size == 0);

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (Expansion is < 1 or > 16) yield return $"Expansion is {Expansion}; expected 1 to 16.";
        if (HeadSize < 1 || Width * Expansion % HeadSize != 0) yield return $"HeadSize is {HeadSize}; expected a divisor of the {Width * Expansion} inner channels.";
        if (States is < 1 or > 1024) yield return $"States is {States}; expected 1 to 1024.";
    }
}

public abstract partial record Backbone
{
    /// <summary>Mamba-2 (Dao and Gu 2024): Mamba with one decay per head, so that it computes in matrix products and affords larger states. Constant memory and cost per step.</summary>
    /// <param name="width">Features per position.</param>
    /// <param name="depth">Blocks.</param>
    /// <param name="states">State size: how many keys a head can tell apart.</param>
    /// <param name="dropout">Probability of dropping a feature of a block's update while training.</param>
    /// <param name="bidirectional">Reads both ways. Better for whole sequences; a one-way model can also be streamed.</param>
    public static Mamba2Backbone Mamba2(int width = 128, int depth = 2, int states = 64, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, States = states, HeadSize = Mamba2Backbone.DefaultHeadSize(2 * width), Dropout = dropout, Bidirectional = bidirectional, MlpRatio = 0 };
}
