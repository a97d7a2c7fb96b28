using System.Numerics;
using System.Runtime.InteropServices;

namespace MLSeq;

/// <summary>A function of each number by itself.</summary>
internal interface IFunction
{
    static abstract Vector<float> Of(Vector<float> x);
}

/// <summary>What stands between products, on spans and in place. Within some units in the last place of libtorch's.</summary>
internal static class Functions
{
    /// <summary>x = f(x).</summary>
    public static void Apply<TFunction>(this Span<float> x) where TFunction : IFunction
    {
        var vectors = MemoryMarshal.Cast<float, Vector<float>>(x);
        foreach (ref var vector in vectors) vector = TFunction.Of(vector);
        var rest = x[(vectors.Length * Vector<float>.Count)..];
        if (rest.IsEmpty) return;
        Span<float> last = stackalloc float[Vector<float>.Count];
        rest.CopyTo(last);
        TFunction.Of(new Vector<float>(last)).CopyTo(last);
        last[..rest.Length].CopyTo(rest);
    }

    /// <summary>x = x ∘ y.</summary>
    public static void Multiply(this Span<float> x, ReadOnlySpan<float> y) => TensorPrimitives.Multiply(x, y, x);

    /// <summary>x = x y.</summary>
    public static void Scale(this Span<float> x, float y) => TensorPrimitives.Multiply(x, y, x);

    /// <summary>x = x + y.</summary>
    public static void Add(this Span<float> x, ReadOnlySpan<float> y) => TensorPrimitives.Add(x, y, x);

    /// <summary>x = x + y z.</summary>
    public static void AddProduct(this Span<float> x, ReadOnlySpan<float> y, float z) => TensorPrimitives.MultiplyAdd(y, z, x, x);

    /// <summary>x = x + y ∘ z.</summary>
    public static void AddProduct(this Span<float> x, ReadOnlySpan<float> y, ReadOnlySpan<float> z) => TensorPrimitives.MultiplyAdd(y, z, x, x);

    /// <summary>x = e^x / Σ e^x.</summary>
    public static void Softmax(this Span<float> x)
    {
        TensorPrimitives.Subtract(x, TensorPrimitives.Max(x), x);
        x.Apply<Exp>();
        x.Scale(1 / TensorPrimitives.Sum(x));
    }

    /// <summary>x = σ(x)^{1/root}.</summary>
    public static void SigmoidRoot(this Span<float> x, double root)
    {
        x.Scale(-1);
        x.Apply<LogOnePlusExp>(); // −log σ
        x.Scale((float)(-1 / root));
        x.Apply<Exp>();
    }

    /// <summary>log(1 + e^x) = max(x, 0) + log(1 + u), u = e^−|x|; the last by the series of 2 artanh(u / (2 + u)), which loses nothing where u is small.</summary>
    public static Vector<float> Softplus(Vector<float> x)
    {
        var u = Exponential(-Vector.Abs(x));
        var z = u / (new Vector<float>(2) + u); // at most 1/3
        var square = z * z;
        var series = new Vector<float>(1 / 13f);
        series = Vector.MultiplyAddEstimate(series, square, new Vector<float>(1 / 11f));
        series = Vector.MultiplyAddEstimate(series, square, new Vector<float>(1 / 9f));
        series = Vector.MultiplyAddEstimate(series, square, new Vector<float>(1 / 7f));
        series = Vector.MultiplyAddEstimate(series, square, new Vector<float>(1 / 5f));
        series = Vector.MultiplyAddEstimate(series, square, new Vector<float>(1 / 3f));
        series = Vector.MultiplyAddEstimate(series, square, Vector<float>.One);
        return Vector.MultiplyAddEstimate(z + z, series, Vector.Max(x, Vector<float>.Zero));
    }

    /// <summary>e^x = 2^n e^r with x = n log 2 + r; e^r by its Taylor series, whose next term is below the rounding. Below e^−87 it stays there.</summary>
    public static Vector<float> Exponential(Vector<float> x)
    {
        var bounded = Vector.MaxNative(new Vector<float>(-87.3f), Vector.MinNative(new Vector<float>(88.8f), x)); // in this order they keep not-a-number
        var n = Vector.Round(bounded * new Vector<float>(1.44269504f));
        var r = Vector.MultiplyAddEstimate(n, new Vector<float>(-1.42860677e-6f), Vector.MultiplyAddEstimate(n, new Vector<float>(-0.693145752f), bounded)); // log 2 in two parts
        var power = new Vector<float>(1 / 720f);
        power = Vector.MultiplyAddEstimate(power, r, new Vector<float>(1 / 120f));
        power = Vector.MultiplyAddEstimate(power, r, new Vector<float>(1 / 24f));
        power = Vector.MultiplyAddEstimate(power, r, new Vector<float>(1 / 6f));
        power = Vector.MultiplyAddEstimate(power, r, new Vector<float>(1 / 2f));
        power = Vector.MultiplyAddEstimate(power, r, Vector<float>.One);
        power = Vector.MultiplyAddEstimate(power, r, Vector<float>.One);
        return power * Vector.AsVectorSingle(Vector.ShiftLeft(Vector.ConvertToInt32Native(n) + new Vector<int>(127), 23)); // the exponent's bits
    }

    /// <summary>e^x.</summary>
    public readonly struct Exp : IFunction
    {
        public static Vector<float> Of(Vector<float> x) => Exponential(x);
    }

    /// <summary>1 / (1 + e^−x).</summary>
    public readonly struct Sigmoid : IFunction
    {
        public static Vector<float> Of(Vector<float> x) => Vector<float>.One / (Vector<float>.One + Exponential(-x));
    }

    /// <summary>x σ(x).</summary>
    public readonly struct Silu : IFunction
    {
        public static Vector<float> Of(Vector<float> x) => x / (Vector<float>.One + Exponential(-x));
    }

    /// <summary>log(1 + e^x).</summary>
    public readonly struct LogOnePlusExp : IFunction
    {
        public static Vector<float> Of(Vector<float> x) => Softplus(x);
    }

    /// <summary>elu(x) + 1: e^x up to 0, x + 1 beyond.</summary>
    public readonly struct EluPlusOne : IFunction
    {
        public static Vector<float> Of(Vector<float> x) => Vector.ConditionalSelect(Vector.GreaterThan(x, Vector<float>.Zero), x + Vector<float>.One, Exponential(x));
    }

    /// <summary>x Φ(x), Φ the normal distribution, <c>Φ(x) = (1 + erf(x / √2)) / 2</c>; erf after Abramowitz and Stegun 1964, 7.1.26.</summary>
    public readonly struct Gelu : IFunction
    {
        public static Vector<float> Of(Vector<float> x)
        {
            var z = Vector.Abs(x) * new Vector<float>(0.707106781f);
            var t = Vector<float>.One / Vector.MultiplyAddEstimate(z, new Vector<float>(0.3275911f), Vector<float>.One);
            var tail = new Vector<float>(1.061405429f);
            tail = Vector.MultiplyAddEstimate(tail, t, new Vector<float>(-1.453152027f));
            tail = Vector.MultiplyAddEstimate(tail, t, new Vector<float>(1.421413741f));
            tail = Vector.MultiplyAddEstimate(tail, t, new Vector<float>(-0.284496736f));
            tail = Vector.MultiplyAddEstimate(tail, t, new Vector<float>(0.254829592f));
            tail *= t * Exponential(-z * z); // 1 − erf z
            return Vector.Max(x, Vector<float>.Zero) - new Vector<float>(0.5f) * Vector.Abs(x) * tail; // Φ(−z) = 1 − Φ(z)
        }
    }
}
