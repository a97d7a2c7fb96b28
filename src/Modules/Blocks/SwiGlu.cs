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
}
