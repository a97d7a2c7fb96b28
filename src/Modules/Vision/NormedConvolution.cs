using TorchSharp;
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

    public override Tensor forward(Tensor x) => norm.call(_kernel == 1 ? Product(x) : IsMisread(x) ? InSingle(x) : convolution.call(x));

    // libtorch 2.10 convolves bfloat16 maps that have their features first in memory wrongly into 8 or 24 features (into 16 rightly) on CPUs with bfloat16 arithmetic; it takes a single feature for first.
    private static bool IsMisread(Tensor x) => x.dtype == bfloat16 && x.shape[1] == 1 && x.device_type == DeviceType.CPU;

    private Tensor InSingle(Tensor x)
        => nn.functional.conv2d(x.to(float32), convolution.weight.to(float32), null, strides: [_stride, _stride], padding: [_kernel / 2, _kernel / 2]).to(bfloat16);

    // A kernel of 1×1 is a matrix product over the features. (libtorch's convolution of many features, channels last, divides by zero in oneDNN on some virtual machines and ends the process.)
    private Tensor Product(Tensor x)
    {
        if (_stride > 1) x = x.slice(2, 0, x.shape[2], _stride).slice(3, 0, x.shape[3], _stride);
        return nn.functional.linear(x.permute(0, 2, 3, 1), convolution.weight.flatten(1)).permute(0, 3, 1, 2);
    }
}
