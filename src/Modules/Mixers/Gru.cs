using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Gated recurrent unit (libtorch's own): gates r, z = σ(W x_t + U h_{t-1} + b), candidate <c>n = tanh(W_n x_t + b_n + r ⊙ (U_n h_{t-1} + c_n))</c>,
/// <c>y_t = h_t = (1 − z) ⊙ n + z ⊙ h_{t-1}</c>.
/// </summary>
internal sealed class GruMixer : TokenMixer
{
    private readonly GRU gru;

    public GruMixer(int width) : base("Gru")
    {
        gru = nn.GRU(width, width, batchFirst: true);
        RegisterComponents();
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var (y, last) = gru.call(x, state?["hidden"]);
        state?.Set("hidden", last);
        return y;
    }

    internal override SpanMixer OverSpans()
    {
        var (input, hidden) = PackedLinear.Recurrent(gru); // r, z, n
        return (x, y, state, work) =>
        {
            var width = x.Width;
            var h = work.Past(state, "hidden", 1, 1, width);
            var fromInput = input.Apply(x, work);
            var fromHidden = work.Take(3 * width);
            for (var t = 0; t < x.Count; t++)
            {
                hidden.Apply(h, fromHidden);
                var gates = fromInput[t][..(2 * width)];
                var n = fromInput[t][(2 * width)..];
                gates.Add(fromHidden[..(2 * width)]);
                gates.Apply<Functions.Sigmoid>();
                n.AddProduct(gates[..width], fromHidden[(2 * width)..]);
                TensorPrimitives.Tanh(n, n);
                TensorPrimitives.Lerp(n, h, gates[width..], h); // (1 − z) n + z h
                h.CopyTo(y[t]);
            }
        };
    }
}

/// <summary>GRU in residual blocks. Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014.</summary>
public sealed record GruBackbone : Backbone
{
    internal override TokenMixer CreateMixer(int layer) => Directed(() => new GruMixer(Width));
}

public abstract partial record Backbone
{
    /// <summary>Gated recurrent unit (Cho et al. 2014) in pre-norm residual blocks.</summary>
    /// <inheritdoc cref="Rnn(int, int, double, bool)"/>
    public static GruBackbone Gru(int width = 128, int depth = 2, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, Dropout = dropout, Bidirectional = bidirectional };
}
