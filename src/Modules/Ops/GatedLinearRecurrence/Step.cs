using System.Numerics;
using System.Runtime.Intrinsics;

namespace MLSeq;

public static unsafe partial class GatedLinearRecurrence
{
    /// <summary>One element of one head, over spans, the state in place.</summary>
    /// <param name="state">S, [K, V].</param>
    /// <param name="q">The query, [K].</param>
    /// <param name="k">The key, [K].</param>
    /// <param name="v">The value, [V].</param>
    /// <param name="decay">a (not its logarithm): one number, or [K].</param>
    /// <param name="output">o, [V]; may be the memory of v.</param>
    internal static void Step(Span<float> state, ReadOnlySpan<float> q, ReadOnlySpan<float> k, ReadOnlySpan<float> v, ReadOnlySpan<float> decay, Span<float> output)
    {
        var (keys, values, perKey) = (k.Length, v.Length, decay.Length == 1 ? 0 : 1);
        if (state.Length != keys * values || q.Length != keys || output.Length != values || decay.Length != 1 && decay.Length != keys) throw new ArgumentException($"S has {state.Length} numbers; expected {keys} × {values}.", nameof(state));
        fixed (float* ps = state, pq = q, pk = k, pv = v, pd = decay, po = output)
        {
            var column = 0;
            if (Vector512.IsHardwareAccelerated)
                for (; column + WideLanes.Count <= values; column += WideLanes.Count) Step<WideLanes, Vector512<float>>(ps + column, values, pq, pk, keys, pv + column, pd, perKey, po + column);
            for (; column + Lanes.Count <= values; column += Lanes.Count) Step<Lanes, Vector<float>>(ps + column, values, pq, pk, keys, pv + column, pd, perKey, po + column);
            for (; column < values; column++) Step<SingleLane, float>(ps + column, values, pq, pk, keys, pv + column, pd, perKey, po + column);
        }
    }

    // One vector of columns. Two keys at a time, because a sum must wait for the one before.
    private static void Step<TLanes, TVector>(float* state, int stride, float* q, float* k, int keys, float* v, float* decay, int perKey, float* output) where TLanes : ILanes<TVector> where TVector : struct
    {
        var value = TLanes.Load(v);
        TVector even = default, odd = default;
        var i = 0;
        for (; i + 2 <= keys; i += 2, state += 2 * stride)
        {
            even = TLanes.MultiplyAdd(Advance<TLanes, TVector>(state, k[i], value, decay[i * perKey]), q[i], even);
            odd = TLanes.MultiplyAdd(Advance<TLanes, TVector>(state + stride, k[i + 1], value, decay[(i + 1) * perKey]), q[i + 1], odd);
        }
        if (i < keys) even = TLanes.MultiplyAdd(Advance<TLanes, TVector>(state, k[i], value, decay[i * perKey]), q[i], even);
        TLanes.Store(TLanes.Add(even, odd), output);
    }

    private static TVector Advance<TLanes, TVector>(float* row, float key, TVector value, float decay) where TLanes : ILanes<TVector> where TVector : struct
    {
        var next = TLanes.MultiplyAdd(value, key, TLanes.Multiply(TLanes.Load(row), decay));
        TLanes.Store(next, row);
        return next;
    }
}
