using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Shapes and products as the operators need them.</summary>
internal static class Matrices
{
    /// <summary>a b over batches of matrices, [.., n, m] by [.., m, p]; leading dimensions of 1, or missing ones, serve all.</summary>
    /// <remarks>Tensor.matmul would do, but TorchSharp lets its native errors (out of memory among them) end the process.</remarks>
    public static Tensor Times(this Tensor a, Tensor b)
    {
        if (a.dim() == 3 && b.dim() == 3 && a.shape[0] == b.shape[0]) return a.bmm(b);
        var rank = (int)Math.Max(a.dim(), b.dim());
        var batch = new long[rank - 2];
        for (var i = 0; i < batch.Length; i++) batch[i] = Math.Max(Length(a, i - rank), Length(b, i - rank));
        return Batch(a, batch).bmm(Batch(b, batch)).view([.. batch, a.shape[^2], b.shape[^1]]);
    }

    /// <summary>sum + a b over batches of matrices, in one pass over the sum.</summary>
    /// <remarks>TorchSharp 0.107 hands baddbmm's operands on in another order than it names them: the sum comes last.</remarks>
    public static Tensor PlusProduct(this Tensor sum, Tensor a, Tensor b)
        => a.flatten(0, -3).baddbmm(b.flatten(0, -3), sum.flatten(0, -3)).view(sum.shape);

    /// <summary>The transposed matrices.</summary>
    public static Tensor Transposed(this Tensor x) => x.transpose(-1, -2);

    /// <summary>Splits a dimension; unlike TorchSharp's, it may be counted from the end.</summary>
    public static Tensor Unflatten(this Tensor x, int dimension, params long[] sizes) => x.unflatten(dimension < 0 ? x.dim() + dimension : dimension, sizes);

    private static long Length(Tensor x, int fromEnd) => x.dim() + fromEnd < 0 ? 1 : x.shape[x.dim() + fromEnd];

    private static Tensor Batch(Tensor x, long[] batch)
        => (x.shape.AsSpan(0, (int)x.dim() - 2).SequenceEqual(batch) ? x : x.expand([.. batch, x.shape[^2], x.shape[^1]])).flatten(0, -3);
}
