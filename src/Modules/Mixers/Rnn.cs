using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Elman's recurrent network: <c>h_t = tanh(W x_t + U h_{t-1} + b)</c>, <c>y_t = h_t</c> (libtorch's own).</summary>
internal sealed class RnnMixer : TokenMixer
{
    private readonly RNN rnn;

    public RnnMixer(int width) : base("Rnn")
    {
        rnn = nn.RNN(width, width, batchFirst: true);
        RegisterComponents();
    }

    protected internal override Tensor Mix(Tensor x, SequencePadding? padding, MixerState? state)
    {
        var (y, last) = rnn.call(x, state?["hidden"]);
        state?.Set("hidden", last);
        return y;
    }

    internal override SpanMixer OverSpans()
    {
        var (input, hidden) = PackedLinear.Recurrent(rnn);
        return (x, y, state, work) =>
        {
            var h = work.Past(state, "hidden", 1, 1, x.Width);
            var fromHidden = work.Take(x.Width);
            input.Apply(x, y);
            for (var t = 0; t < x.Count; t++)
            {
                hidden.Apply(h, fromHidden);
                y[t].Add(fromHidden);
                TensorPrimitives.Tanh(y[t], h);
                h.CopyTo(y[t]);
            }
        };
    }
}

/// <summary>Elman's recurrent network in residual blocks. Elman, "Finding structure in time", 1990.</summary>
public sealed record RnnBackbone : Backbone
{
    internal override TokenMixer CreateMixer(int layer) => Directed(() => new RnnMixer(Width));
}

public abstract partial record Backbone
{
    /// <summary>Elman's recurrent network (1990) in pre-norm residual blocks.</summary>
    /// <param name="width">Features per position.</param>
    /// <param name="depth">Blocks.</param>
    /// <param name="dropout">Probability of dropping a feature of a block's update while training.</param>
    /// <param name="bidirectional">Reads both ways. Better for whole sequences; a one-way model can also be streamed.</param>
    public static RnnBackbone Rnn(int width = 128, int depth = 2, double dropout = 0.1, bool bidirectional = false)
        => new() { Width = width, Depth = depth, Dropout = dropout, Bidirectional = bidirectional };
}
