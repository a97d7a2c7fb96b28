using System.Numerics;

namespace MLSeq;

public static unsafe partial class SelectiveScan
{
    /// <summary>One element, over spans, the state in place.</summary>
    /// <param name="state">h, [c, n].</param>
    /// <param name="x">Input, [c].</param>
    /// <param name="delta">Δ, [c].</param>
    /// <param name="a">A, [c, n].</param>
    /// <param name="inputMap">B, [n].</param>
    /// <param name="outputMap">C, [n].</param>
    /// <param name="output">y, [c].</param>
    internal static void Step(Span<float> state, ReadOnlySpan<float> x, ReadOnlySpan<float> delta, ReadOnlySpan<float> a, ReadOnlySpan<float> inputMap, ReadOnlySpan<float> outputMap, Span<float> output)
    {
        var (channels, states, lanes) = (x.Length, inputMap.Length, Vector<float>.Count);
        if (state.Length != channels * states || a.Length != state.Length || outputMap.Length != states) throw new ArgumentException($"h has {state.Length} numbers, A has {a.Length}; expected {channels} × {states}.", nameof(state));
        fixed (float* ps = state, pa = a, pb = inputMap, pc = outputMap)
        {
            float* h = ps, rate = pa;
            for (var c = 0; c < channels; c++, h += states, rate += states)
            {
                var (step, written, read, rest) = (delta[c], delta[c] * x[c], Vector<float>.Zero, 0f);
                var i = 0;
                for (; i + lanes <= states; i += lanes)
                {
                    var next = Vector.MultiplyAddEstimate(Functions.Exponential(Vector.Load(rate + i) * step), Vector.Load(h + i), Vector.Load(pb + i) * written);
                    next.Store(h + i);
                    read = Vector.MultiplyAddEstimate(next, Vector.Load(pc + i), read);
                }
                for (; i < states; i++) rest += (h[i] = MathF.Exp(rate[i] * step) * h[i] + pb[i] * written) * pc[i];
                output[c] = Vector.Sum(read) + rest;
            }
        }
    }
}
