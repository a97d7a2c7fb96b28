using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Batch normalization of a map: <c>y = γ (x − μ) / √(σ² + ε) + β</c> for each feature, with the mean and variance over batch and places while training, and their running averages afterwards.
/// </summary>
/// <remarks>Ioffe and Szegedy 2015, algorithms 1 and 2. Stays float32 in a bfloat16 network; the map may be bfloat16.</remarks>
internal sealed class BatchNorm : nn.Module<Tensor, Tensor>, IKeepsFloat32
{
    private const double Momentum = 0.1, Epsilon = 1e-5;

    private readonly Parameter weight, bias; // γ, β: [width]
    private Tensor mean, variance; // running: [width]; TorchSharp puts another tensor here when the module moves

    /// <param name="width">Features.</param>
    /// <param name="scale">γ at the beginning.</param>
    public BatchNorm(long width, double scale = 1) : base(nameof(BatchNorm))
    {
        weight = nn.Parameter(full(width, scale));
        bias = nn.Parameter(zeros(width));
        mean = zeros(width);
        variance = ones(width);
        RegisterComponents();
    }

    /// <param name="x">[batch, width, height, width of the map].</param>
    public override Tensor forward(Tensor x)
    {
        var several = x.shape[0] * x.shape[2] * x.shape[3] > 1; // one value has no variance: the running one stands in
        return nn.functional.batch_norm(x, mean, variance, weight, bias, training && several, Momentum, Epsilon);
    }
}

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

    public override Tensor forward(Tensor x) => norm.call(_kernel == 1 ? Product(x) : convolution.call(x));

    // A kernel of 1×1 is a matrix product over the features. (libtorch's convolution of many features, channels last, divides by zero in oneDNN on some virtual machines and ends the process.)
    private Tensor Product(Tensor x)
    {
        if (_stride > 1) x = x.slice(2, 0, x.shape[2], _stride).slice(3, 0, x.shape[3], _stride);
        return nn.functional.linear(x.permute(0, 2, 3, 1), convolution.weight.flatten(1)).permute(0, 3, 1, 2);
    }
}
