using System.Numerics;
using System.Runtime.Intrinsics;

namespace MLSeq;

/// <summary>Products of a vector with rows of numbers.</summary>
internal static unsafe class Products
{
    /// <summary>y = Σ_i x_i row_i = xᵀ rows.</summary>
    /// <param name="x">One number per row.</param>
    /// <param name="rows">[x, y] numbers.</param>
    /// <param name="y">As many numbers as a row has.</param>
    public static void WeightedSum(ReadOnlySpan<float> x, Rows rows, Span<float> y)
    {
        Check(x.Length == rows.Count && y.Length == rows.Width, rows);
        fixed (float* px = x, pr = rows.Values, py = y)
        {
            var column = 0;
            if (Vector512.IsHardwareAccelerated)
                for (; column + WideLanes.Count <= y.Length; column += WideLanes.Count) WeightedSum<WideLanes, Vector512<float>>(px, x.Length, pr + column, rows.Stride, py + column);
            for (; column + Lanes.Count <= y.Length; column += Lanes.Count) WeightedSum<Lanes, Vector<float>>(px, x.Length, pr + column, rows.Stride, py + column);
            for (; column < y.Length; column++) WeightedSum<SingleLane, float>(px, x.Length, pr + column, rows.Stride, py + column);
        }
    }

    // One vector of y. Four sums at a time, because an addition takes as long as four can be begun in.
    public static void WeightedSum<TLanes, TVector>(float* x, int count, float* rows, int stride, float* y) where TLanes : ILanes<TVector> where TVector : struct
    {
        TVector a = default, b = default, c = default, d = default;
        var i = 0;
        for (; i + 4 <= count; i += 4, rows += 4 * stride)
        {
            a = TLanes.MultiplyAdd(TLanes.Load(rows), x[i], a);
            b = TLanes.MultiplyAdd(TLanes.Load(rows + stride), x[i + 1], b);
            c = TLanes.MultiplyAdd(TLanes.Load(rows + 2 * stride), x[i + 2], c);
            d = TLanes.MultiplyAdd(TLanes.Load(rows + 3 * stride), x[i + 3], d);
        }
        for (; i < count; i++, rows += stride) a = TLanes.MultiplyAdd(TLanes.Load(rows), x[i], a);
        TLanes.Store(TLanes.Add(TLanes.Add(a, b), TLanes.Add(c, d)), y);
    }

    /// <summary>y_i = row_i · x.</summary>
    /// <param name="x">As many numbers as a row has.</param>
    /// <param name="rows">[y, x] numbers.</param>
    /// <param name="y">One number per row.</param>
    public static void Dots(ReadOnlySpan<float> x, Rows rows, Span<float> y)
    {
        Check(x.Length == rows.Width && y.Length == rows.Count, rows);
        fixed (float* px = x, pr = rows.Values, py = y)
            for (var row = 0; row < rows.Count; row++) py[row] = Dot(px, pr + (long)row * rows.Stride, x.Length);
    }

    private static float Dot(float* x, float* y, int count)
    {
        var sum = Vector<float>.Zero;
        var i = 0;
        for (; i + Vector<float>.Count <= count; i += Vector<float>.Count) sum = Vector.MultiplyAddEstimate(Vector.Load(x + i), Vector.Load(y + i), sum);
        var dot = Vector.Sum(sum);
        for (; i < count; i++) dot += x[i] * y[i];
        return dot;
    }

    /// <summary>y = x wᵀ: every row of x with every row of w.</summary>
    /// <param name="x">[t, d].</param>
    /// <param name="w">[n, d].</param>
    /// <param name="y">[t, n].</param>
    /// <param name="work">For w turned around, which pays from some rows of x on.</param>
    public static void Multiply(Rows x, Rows w, Rows y, Workspace work)
    {
        if (x.Count < RowsPerTile)
        {
            for (var t = 0; t < x.Count; t++) Dots(x[t], w, y[t]);
            return;
        }
        using var frame = work.Open();
        var turned = work.Take(w.Width, w.Count);
        for (var n = 0; n < w.Count; n++)
        {
            var row = w[n];
            var column = turned.Values[n..];
            for (var i = 0; i < row.Length; i++) column[i * turned.Stride] = row[i];
        }
        WeightedSums(x, turned, y);
    }

    /// <summary>y = x rows: for every row of x, the rows' weighted sum.</summary>
    /// <param name="x">[t, n].</param>
    /// <param name="rows">[n, d].</param>
    /// <param name="y">[t, d].</param>
    public static void WeightedSums(Rows x, Rows rows, Rows y)
    {
        Check(x.Width == rows.Count && y.Width == rows.Width && x.Count == y.Count, rows);
        var column = 0;
        if (Vector512.IsHardwareAccelerated) column = Tiles<WideLanes, Vector512<float>>(x, rows, y, column);
        column = Tiles<Lanes, Vector<float>>(x, rows, y, column);
        for (var t = 0; t < x.Count; t++)
        {
            var from = t < x.Count / RowsPerTile * RowsPerTile ? column : 0;
            if (from < y.Width) WeightedSum(x[t], rows.Columns(from, y.Width - from), y[t][from..]);
        }
    }

    private static void Check(bool fits, Rows rows)
    {
        if (!fits) throw new ArgumentException($"What is multiplied does not fit [{rows.Count}, {rows.Width}].");
    }

    // From a column on, as many as whole tiles cover. Returns the first column that is left.
    private static int Tiles<TLanes, TVector>(Rows x, Rows rows, Rows y, int column) where TLanes : ILanes<TVector> where TVector : struct
    {
        fixed (float* px = x.Values, pr = rows.Values, py = y.Values)
            for (; column + 2 * TLanes.Count <= y.Width; column += 2 * TLanes.Count)
                for (var t = 0; t + RowsPerTile <= x.Count; t += RowsPerTile)
                    Tile<TLanes, TVector>(px + (long)t * x.Stride, x.Stride, x.Width, pr + column, pr + column + TLanes.Count, rows.Stride, py + (long)t * y.Stride + column, y.Stride);
        return column;
    }

    /// <summary>Rows and vectors of columns in a tile: with them, a processor's registers are full.</summary>
    public const int RowsPerTile = 4, VectorsPerTile = 2;

    /// <summary>Four rows of x with two vectors of columns. Each number that is read is used at least twice.</summary>
    /// <param name="x">Four rows.</param>
    /// <param name="xStride">From row to row.</param>
    /// <param name="count">Numbers in a row of x.</param>
    /// <param name="left">One vector for each number of x.</param>
    /// <param name="right">Likewise, the columns that follow.</param>
    /// <param name="stride">From vector to vector.</param>
    /// <param name="y">Four rows.</param>
    /// <param name="yStride">From row to row.</param>
    public static void Tile<TLanes, TVector>(float* x, int xStride, int count, float* left, float* right, int stride, float* y, int yStride) where TLanes : ILanes<TVector> where TVector : struct
    {
        TVector a0 = default, a1 = default, b0 = default, b1 = default, c0 = default, c1 = default, d0 = default, d1 = default;
        float* xb = x + xStride, xc = xb + xStride, xd = xc + xStride;
        for (var i = 0; i < count; i++, left += stride, right += stride)
        {
            var (w0, w1) = (TLanes.Load(left), TLanes.Load(right));
            (a0, a1) = (TLanes.MultiplyAdd(w0, x[i], a0), TLanes.MultiplyAdd(w1, x[i], a1));
            (b0, b1) = (TLanes.MultiplyAdd(w0, xb[i], b0), TLanes.MultiplyAdd(w1, xb[i], b1));
            (c0, c1) = (TLanes.MultiplyAdd(w0, xc[i], c0), TLanes.MultiplyAdd(w1, xc[i], c1));
            (d0, d1) = (TLanes.MultiplyAdd(w0, xd[i], d0), TLanes.MultiplyAdd(w1, xd[i], d1));
        }
        TLanes.Store(a0, y);
        TLanes.Store(a1, y + TLanes.Count);
        TLanes.Store(b0, y += yStride);
        TLanes.Store(b1, y + TLanes.Count);
        TLanes.Store(c0, y += yStride);
        TLanes.Store(c1, y + TLanes.Count);
        TLanes.Store(d0, y += yStride);
        TLanes.Store(d1, y + TLanes.Count);
    }
}
