using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Rotary position embedding: feature pairs turn by an angle proportional to the position, so that q·k depends on the distance alone.</summary>
/// <remarks>Su et al., "RoFormer", 2021, equation 34, with the halves of a head as the pairs. d: features per head (even).</remarks>
internal sealed class Rotary
{
    private readonly Tensor _cos, _sin; // [time, heads = 1, d]

    /// <summary>The angles of positions <paramref name="start"/> … <paramref name="start"/> + <paramref name="time"/> − 1: θ_{t,i} = t · 10000^(−2i/d).</summary>
    /// <param name="time">Positions.</param>
    /// <param name="size">Features per head (d).</param>
    /// <param name="like">Gives device and element type.</param>
    /// <param name="start">The first position.</param>
    public Rotary(long time, long size, Tensor like, long start = 0)
    {
        var frequency = pow(10000.0, arange(0, size / 2, dtype: float32, device: like.device) * (-2.0 / size));
        var angle = outer(arange(start, start + time, dtype: float32, device: like.device), frequency); // [time, d/2]
        _cos = cat([angle.cos(), angle.cos()], -1).to(like.dtype).unsqueeze(1);
        _sin = cat([-angle.sin(), angle.sin()], -1).to(like.dtype).unsqueeze(1); // the minus of (x1 cos − x2 sin, x2 cos + x1 sin)
    }

    /// <summary>Turns <paramref name="x"/> [batch, time, heads, d].</summary>
    public Tensor Apply(Tensor x)
    {
        var halves = x.chunk(2, -1);
        return (x * _cos).addcmul(cat([halves[1], halves[0]], -1), _sin, 1);
    }
}
