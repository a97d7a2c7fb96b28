using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Rotary position embedding: feature pairs turn by an angle proportional to the position, so that q·k depends on the distance alone.</summary>
/// <remarks>Su et al., "RoFormer", 2021, equation 34, with the halves of a head as the pairs. d: features per head (even).</remarks>
internal sealed class Rotary
{
    private readonly Tensor _cos, _sin;

    /// <summary>The angles of positions 0 … <paramref name="time"/> − 1: θ_{t,i} = t · 10000^(−2i/d).</summary>
    /// <param name="time">Positions.</param>
    /// <param name="size">Features per head (d).</param>
    /// <param name="like">Gives device and element type.</param>
    public Rotary(long time, long size, Tensor like)
    {
        var frequency = pow(10000.0, arange(0, size / 2, dtype: float32, device: like.device) * (-2.0 / size));
        var angle = outer(arange(0, time, dtype: float32, device: like.device), frequency); // [time, d/2]
        _cos = cat([angle.cos(), angle.cos()], -1).to(like.dtype); // [time, d]
        // The minus of the rotation (x1 cos − x2 sin) lives in the table, so that a roll serves as "rotate half".
        _sin = cat([-angle.sin(), angle.sin()], -1).to(like.dtype);
    }

    /// <summary>Turns <paramref name="x"/> [..., time, d].</summary>
    public Tensor Apply(Tensor x) => (x * _cos).addcmul(x.roll(x.shape[^1] / 2, -1), _sin, 1);
}
