using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Long short-term memory (libtorch's own): gates i, f, o = σ(W x_t + U h_{t-1} + b), <c>c_t = f ⊙ c_{t-1} + i ⊙ tanh(W_c x_t + U_c h_{t-1} + b_c)</c>,
/// <c>y_t = h_t = o ⊙ tanh(c_t)</c>.
/// </summary>
internal sealed class LstmMixer : TokenMixer
{
    private readonly LSTM lstm;

    public LstmMixer(int width) : base("Lstm")
    {
        lstm = nn.LSTM(width, width, batchFirst: true);
        RegisterComponents();
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var wanted = is_grad_enabled();
        // libtorch's form for scoring (oneDNN, libtorch 2.10) gives wrong numbers at some widths on some CPUs; the one for training, which is chosen when gradients are kept, does not.
        using var _ = x.device_type == DeviceType.CPU ? enable_grad() : null;
        var (y, hidden, cell) = lstm.call(x, state?["hidden"] is { } h ? (h, state["cell"]!) : null);
        if (!wanted) (y, hidden, cell) = (y.detach(), hidden.detach(), cell.detach());
        state?.Set("hidden", hidden);
        state?.Set("cell", cell);
        return y;
    }

    internal override SpanMixer OverSpans()
    {
        var (input, hidden) = PackedLinear.Recurrent(lstm); // i, f, candidate, o
        return (x, y, state, work) =>
        {
            var width = x.Width;
            var h = work.Past(state, "hidden", 1, 1, width);
            var c = work.Past(state, "cell", 1, 1, width);
            var fromInput = input.Apply(x, work);
            var fromHidden = work.Take(4 * width);
            for (var t = 0; t < x.Count; t++)
            {
                hidden.Apply(h, fromHidden);
                var gates = fromInput[t];
                gates.Add(fromHidden);
                var candidate = gates.Slice(2 * width, width);
                TensorPrimitives.Tanh(candidate, candidate);
                gates[..(2 * width)].Apply<Functions.Sigmoid>();
                gates[(3 * width)..].Apply<Functions.Sigmoid>();
                c.Multiply(gates.Slice(width, width));
                c.AddProduct(gates[..width], candidate);
                TensorPrimitives.Tanh(c, h);
                h.Multiply(gates[(3 * width)..]);
                h.CopyTo(y[t]);
            }
        };
    }
}

/// <summary>LSTM in residual blocks. Hochreiter and Schmidhuber, "Long short-term memory", 1997.</summary>
public sealed record LstmBackbone : Backbone
{
    internal override TokenMixer CreateMixer(int layer) => Directed(() => new LstmMixer(Width));
}

public abstract partial record Backbone
{
    /// <summary>Long short-term memory (Hochreiter and Schmidhuber 1997) in pre-norm residual blocks.</summary>
    /// <inheritdoc cref="Rnn(int, int, double, bool)"/>
    public static LstmBackbone Lstm(int width = 128, int depth = 2, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, Dropout = dropout, Bidirectional = bidirectional };
}
