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
