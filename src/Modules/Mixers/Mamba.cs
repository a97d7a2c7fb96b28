using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Mamba's block: u = silu(conv(W_u x)) runs through the selective scan <c>h_t = e^{Δ_t A} ∘ h_{t−1} + Δ_t u_t B_tᵀ</c>, <c>y_t = h_t C_t + D ∘ u_t</c>, with Δ = softplus(W_Δ (W_r u) + b), B and C linear in u;
/// the result is <c>W (y ∘ silu(W_z x))</c>.
/// </summary>
/// <remarks>Gu and Dao 2023, algorithm 2 and figure 3. e: inner channels, n: states per channel, r: rank of Δ. State: h and the convolution's last elements.</remarks>
internal sealed class MambaMixer : TokenMixer
{
    private const string Memory = "memory";

    private readonly Linear project, select, step, output;
    private readonly ShortConvolution convolution;
    private readonly Parameter logRate; // log(−A), [e · n]: 1 … n for each channel (S4D-real); a vector, so that weight decay leaves it alone
    private readonly Parameter skip; // D, [e]
    private readonly int _inner, _states, _rank;

    public MambaMixer(int width, int expansion, int states) : base("Mamba")
    {
        (_inner, _states, _rank) = (width * expansion, states, (width + 15) / 16);
        project = nn.Linear(width, 2 * _inner, hasBias: false);
        convolution = new ShortConvolution(_inner);
        select = nn.Linear(_inner, _rank + 2 * states, hasBias: false);
        step = nn.Linear(_rank, _inner);
        nn.init.uniform_(step.weight, -1 / Math.Sqrt(_rank), 1 / Math.Sqrt(_rank));
        StateSpaceInit.StepBias(step.bias!);
        logRate = nn.Parameter(arange(1, states + 1, dtype: float32).log().repeat(_inner));
        skip = nn.Parameter(ones(_inner));
        output = nn.Linear(_inner, width, hasBias: false);
        RegisterComponents();
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var type = Chunks.StateType(x);
        var parts = project.call(x).Parts(_inner, _inner);
        var u = convolution.call(parts[0], state); // [batch, time, e]
        var selected = select.call(u).Parts(_rank, _states, _states); // of Δ, B, C
        var delta = nn.functional.softplus(step.call(selected[0]).to(type));
        var a = -logRate.to(type).exp().view(_inner, _states);
        var (y, memory) = SelectiveScan.Run(u, delta, a, selected[1], selected[2], state?[Memory]);
        state?.Set(Memory, memory);
        return output.call(y.addcmul(u, skip, 1) * nn.functional.silu(parts[1]));
    }

    internal override SpanMixer OverSpans()
    {
        var (into, selection, steps, outOf, convolve) = (new PackedLinear(project), new PackedLinear(select), new PackedLinear(step), new PackedLinear(output), convolution.OverSpans());
        var (inner, states, rank, a, skips) = (_inner, _states, _rank, (-logRate.exp()).Numbers(), skip.Numbers());
        return (x, y, state, work) =>
        {
            var parts = into.Apply(x, work);
            var u = parts.Columns(0, inner);
            var z = parts.Columns(inner, inner);
            var read = work.Take(x.Count, inner);
            convolve(u, state, work);
            var selected = selection.Apply(u, work); // of Δ, B, C
            var delta = steps.Apply(selected.Columns(0, rank), work);
            var memory = work.Past(state, Memory, 1, inner, states);
            for (var t = 0; t < x.Count; t++)
            {
                delta[t].Apply<Functions.LogOnePlusExp>();
                SelectiveScan.Step(memory, u[t], delta[t], a, selected[t].Slice(rank, states), selected[t][(rank + states)..], read[t]);
                read[t].AddProduct(u[t], skips);
                z[t].Apply<Functions.Silu>();
                read[t].Multiply(z[t]);
            }
            outOf.Apply(read, y);
        };
    }
}

/// <summary>Mamba in residual blocks; its mixer contains what an MLP would do, so there is none by default. Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023.</summary>
public sealed record MambaBackbone : Backbone
{
    /// <summary>Inner channels as a multiple of the width.</summary>
    public int Expansion { get; init; } = 2;

    /// <summary>States per channel.</summary>
    public int States { get; init; } = 16;

    internal override TokenMixer CreateMixer(int layer) => Directed(() => new MambaMixer(Width, Expansion, States));

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        if (Expansion is < 1 or > 16) yield return $"Expansion is {Expansion}; expected 1 to 16.";
        if (States is < 1 or > 1024) yield return $"States is {States}; expected 1 to 1024.";
    }
}

public abstract partial record Backbone
{
    /// <summary>Mamba (Gu and Dao 2023): a selective state-space model; what is written, kept and read depends on the input. Constant memory and cost per step.</summary>
    /// <param name="width">Features per position.</param>
    /// <param name="depth">Blocks.</param>
    /// <param name="states">States per channel.</param>
    /// <param name="dropout">Probability of dropping a feature of a block's update while training.</param>
    /// <param name="bidirectional">Reads both ways. Better for whole sequences; a one-way model can also be streamed.</param>
    public static MambaBackbone Mamba(int width = 128, int depth = 2, int states = 16, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, States = states, Dropout = dropout, Bidirectional = bidirectional, MlpRatio = 0 };
}
