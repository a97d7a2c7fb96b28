using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Shape errors of the operators: got, expected.</summary>
internal static class OperatorShapes
{
    /// <summary>Checks a tensor against the shapes that are allowed.</summary>
    public static void Check(Tensor x, string name, params ReadOnlySpan<long[]> allowed)
    {
        foreach (var shape in allowed)
            if (x.shape.SequenceEqual(shape)) return;
        var expected = new List<string>();
        foreach (var shape in allowed) expected.Add(Text(shape));
        throw new ArgumentException($"{name} is {Text(x.shape)}; expected {string.Join(" or ", expected)}.", name);
    }

    /// <summary>Checks q, k [b, t, h, K] and v [b, t, h, V].</summary>
    public static void CheckHeads(Tensor q, Tensor k, Tensor v)
    {
        if (q.dim() != 4 || q.shape[1] < 1) throw new ArgumentException($"q is {Text(q.shape)}; expected [batch, time, heads, size] with at least one position.", nameof(q));
        Check(k, nameof(k), q.shape);
        if (v.dim() != 4) throw new ArgumentException($"v is {Text(v.shape)}; expected [batch, time, heads, size].", nameof(v));
        Check(v, nameof(v), [q.shape[0], q.shape[1], q.shape[2], v.shape[3]]);
    }

    private static string Text(long[] shape) => $"[{string.Join(", ", shape)}]";
}
