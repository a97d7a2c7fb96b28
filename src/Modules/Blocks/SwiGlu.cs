using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Gated feed-forward layer: <c>y = W₃ (silu(W₁ x) ⊙ W₂ x)</c>. Shazeer, "GLU variants improve Transformer", 2020, equation 6.</summary>
internal sealed class SwiGlu : nn.Module<Tensor, Tensor>
{
    private readonly Linear gateAndValue, output;

    public SwiGlu(int width, int hidden) : base(nameof(SwiGlu))
    {
        gateAndValue = nn.Linear(width, 2 * hidden, hasBias: false); // W₁ and W₂ in one product
        output = nn.Linear(hidden, width, hasBias: false);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x) => output.call(GatedProduct.Run(gateAndValue.call(x)));

    /// <summary>The rows of x, [time, width], to those of y.</summary>
    internal SpanMixer OverSpans()
    {
        var (into, outOf) = (new PackedLinear(gateAndValue), new PackedLinear(output));
        return (x, y, _, work) =>
        {
            var halves = into.Apply(x, work);
            var gate = halves.Columns(0, outOf.Inputs);
            var value = halves.Columns(outOf.Inputs, outOf.Inputs);
            for (var t = 0; t < x.Count; t++)
            {
                gate[t].Apply<Functions.Silu>();
                gate[t].Multiply(value[t]);
            }
            outOf.Apply(gate, y);
        };
    }
}
