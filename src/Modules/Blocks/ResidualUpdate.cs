using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// What happens to a residual update before it is added, <c>x = x + drop(γ ∘ f(x))</c>: a learned scale of each feature (Touvron et al. 2021, equation 4), dropout of features, and stochastic depth, which
/// leaves out the whole update of a row with probability p and divides the others by 1 − p (Huang et al. 2016; the division at training time instead of the multiplication afterwards).
/// </summary>
internal sealed class ResidualUpdate : nn.Module<Tensor, Tensor>
{
    private readonly Parameter? scale; // γ: [width]
    private readonly double _dropout, _dropPath;

    /// <param name="width">Features, the last dimension of an update.</param>
    /// <param name="dropout">Probability of dropping a feature.</param>
    /// <param name="dropPath">p.</param>
    /// <param name="layerScale">γ at the beginning; 0: no γ.</param>
    public ResidualUpdate(long width, double dropout = 0, double dropPath = 0, double layerScale = 0) : base(nameof(ResidualUpdate))
    {
        if (layerScale > 0) scale = nn.Parameter(full(width, layerScale));
        (_dropout, _dropPath) = (dropout, dropPath);
        RegisterComponents();
    }

    /// <summary>p of block number <paramref name="block"/> (from 0), growing linearly up to <paramref name="largest"/>. Huang et al. 2016, equation 4.</summary>
    public static double DropPath(double largest, int block, int blocks) => largest * (block + 1) / blocks;

    /// <param name="update">[batch, …]; with a scale, [batch, …, width].</param>
    public override Tensor forward(Tensor update)
    {
        if (scale is not null) update = update * scale;
        if (!training) return update;
        if (_dropout > 0) update = nn.functional.dropout(update, _dropout);
        return _dropPath > 0 ? update * (Kept(update) / (1 - _dropPath)) : update;
    }

    /// <summary>What it does when not training, over spans.</summary>
    internal SpanUpdate OverSpans()
    {
        var factors = scale?.Numbers();
        return (update, _, _) =>
        {
            for (var t = 0; t < update.Count && factors is not null; t++) update[t].Multiply(factors);
        };
    }

    // 1 for rows that keep their update, 0 for the others: [batch, 1, …].
    private Tensor Kept(Tensor update)
    {
        var shape = update.shape.Select((size, dimension) => dimension == 0 ? size : 1).ToArray();
        return rand(shape, device: update.device).ge(_dropPath).to(update.dtype);
    }
}
