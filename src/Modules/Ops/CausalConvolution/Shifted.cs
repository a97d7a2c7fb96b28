using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// The sum of <see cref="CausalConvolution"/>, <c>z_t = Σ_j w_j ∘ x_{t + j}</c>, as shifted products: a few passes over the data, several times faster than the general convolution of libtorch.
/// </summary>
internal sealed class ShiftedProducts : OperatorFunction<ShiftedProducts>
{
    // Inputs: x [b, taps − 1 + t, c], weight [taps, c]. Output: z [b, t, c].
    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (x, weight) = ((Tensor)inputs[0]!, (Tensor)inputs[1]!);
        var (taps, time) = (weight.shape[0], x.shape[1] - weight.shape[0] + 1);
        var y = x.narrow(1, 0, time) * weight.select(0, 0);
        for (var tap = 1; tap < taps; tap++) y.addcmul_(x.narrow(1, tap, time), weight.select(0, tap), 1);
        return ([y], [x, weight]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (x, weight, dy) = (saved[0]!, saved[1]!, gradients[0]!);
        var (taps, time) = (weight.shape[0], dy.shape[1]);
        var (dx, dWeight) = (zeros_like(x), new Tensor[taps]);
        for (var tap = 0; tap < taps; tap++)
        {
            dx.narrow(1, tap, time).addcmul_(dy, weight.select(0, tap), 1);
            dWeight[tap] = (dy * x.narrow(1, tap, time)).sum([0, 1]);
        }
        return [dx, stack(dWeight)];
    }
}
