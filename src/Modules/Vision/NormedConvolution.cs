using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>A convolution without bias and the norm that follows it, <c>norm(W ∗ x)</c>: [batch, inputs, h, w] to [batch, outputs, ⌈h / stride⌉, ⌈w / stride⌉].</summary>
/// <remarks>Starts as He et al. 2015 ("Delving deep into rectifiers", equation 14): variance 2 / fan out, which keeps the size of gradients through ReLUs.</remarks>
internal sealed class NormedConvolution : nn.Module<Tensor, Tensor>
{
    private readonly Conv2d convolution;
    private readonly BatchNorm norm;
    private readonly int _kernel, _stride;

    /// <param name="inputs">Features of the input.</param>
    /// <param name="outputs">Features of the output.</param>
    /// <param name="kernel">An odd number of places in each direction; the borders are padded with zeros.</param>
    /// <param name="stride">Places of the input per place of the output, in each direction.</param>
    /// <param name="scale">The norm's γ at the beginning.</param>
    public NormedConvolution(int inputs, int outputs, int kernel, int stride = 1, double scale = 1) : base(nameof(NormedConvolution))
    {
        (_kernel, _stride) = (kernel, stride);
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding: kernel / 2, bias: false);
        nn.init.kaiming_normal_(convolution.weight, mode: nn.init.FanInOut.FanOut, nonlinearity: nn.init.NonlinearityType.ReLU);
        norm = new BatchNorm(outputs, scale);
        RegisterComponents();
    }

    /// <summary>Numbers that make up one number of the result.</summary>
    public long WeightsPerOutput => convolution.weight.numel() / convolution.weight.shape[0];

    public override Tensor forward(Tensor x) => norm.call(_kernel == 1 ? Product(x) : convolution.Apply(x, _stride, _kernel / 2));

    // A kernel of 1×1 is a matrix product over the features. (libtorch's convolution of many features, channels last, divides by zero in oneDNN on some virtual machines and ends the process.)
    private Tensor Product(Tensor x)
    {
        if (_stride > 1) x = x.slice(2, 0, x.shape[2], _stride).slice(3, 0, x.shape[3], _stride);
        return nn.functional.linear(x.permute(0, 2, 3, 1), convolution.weight.flatten(1)).permute(0, 3, 1, 2);
    }
}
