using System.Numerics;
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
        var angle = outer(arange(start, start + time, dtype: float32, device: like.device), Frequencies(size, like.device)); // [time, d/2]
        _cos = cat([angle.cos(), angle.cos()], -1).to(like.dtype).unsqueeze(1);
        _sin = cat([-angle.sin(), angle.sin()], -1).to(like.dtype).unsqueeze(1); // the minus of (x1 cos − x2 sin, x2 cos + x1 sin)
    }

    /// <summary>Turns <paramref name="x"/> [batch, time, heads, d].</summary>
    public Tensor Apply(Tensor x)
    {
        var halves = x.chunk(2, -1);
        return (x * _cos).addcmul(cat([halves[1], halves[0]], -1), _sin, 1);
    }

    private static Tensor Frequencies(long size, Device device) => pow(10000.0, arange(0, size / 2, dtype: float32, device: device) * (-2.0 / size)); // [d/2]

    /// <summary>The same over spans, one position after another.</summary>
    public sealed class OverSpans
    {
        private readonly float[] _frequencies;

        /// <param name="size">Features per head (d).</param>
        public OverSpans(int size)
        {
            using var scope = NewDisposeScope();
            _frequencies = Frequencies(size, CPU).Numbers();
        }

        /// <summary>The cosines, then the sines, of a position: [d].</summary>
        public Span<float> At(long position, Workspace work)
        {
            var half = _frequencies.Length;
            var angles = work.Take(2 * half);
            TensorPrimitives.Multiply(_frequencies, position, angles[half..]);
            TensorPrimitives.Cos(angles[half..], angles[..half]);
            TensorPrimitives.Sin(angles[half..], angles[half..]);
            return angles;
        }

        /// <summary>Turns heads, [heads · d], in place.</summary>
        public static void Turn(Span<float> heads, ReadOnlySpan<float> angles)
        {
            var half = angles.Length / 2;
            var cos = angles[..half];
            var sin = angles[half..];
            for (; !heads.IsEmpty; heads = heads[(2 * half)..])
            {
                var x = heads[..half];
                var y = heads[half..(2 * half)];
                var i = 0;
                for (; i + Vector<float>.Count <= half; i += Vector<float>.Count)
                {
                    Vector<float> a = new(x[i..]), b = new(y[i..]), c = new(cos[i..]), s = new(sin[i..]);
                    (a * c - b * s).CopyTo(x[i..]);
                    (b * c + a * s).CopyTo(y[i..]);
                }
                for (; i < half; i++) (x[i], y[i]) = (x[i] * cos[i] - y[i] * sin[i], y[i] * cos[i] + x[i] * sin[i]);
            }
        }
    }
}
