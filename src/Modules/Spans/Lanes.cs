using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace MLSeq;

/// <summary>What the products need of a processor's vectors.</summary>
/// <typeparam name="TVector">A vector of Single.</typeparam>
internal unsafe interface ILanes<TVector> where TVector : struct
{
    /// <summary>Numbers in a vector.</summary>
    static abstract int Count { get; }

    static abstract TVector Load(float* source);

    static abstract void Store(TVector vector, float* target);

    static abstract TVector Add(TVector a, TVector b);

    /// <summary>x y.</summary>
    static abstract TVector Multiply(TVector x, float y);

    /// <summary>x y + sum, rounded once where the processor can.</summary>
    static abstract TVector MultiplyAdd(TVector x, float y, TVector sum);
}

/// <summary>Vectors of 16, for processors that have them.</summary>
internal readonly unsafe struct WideLanes : ILanes<Vector512<float>>
{
    public static int Count => Vector512<float>.Count;

    public static Vector512<float> Load(float* source) => Vector512.Load(source);

    public static void Store(Vector512<float> vector, float* target) => vector.Store(target);

    public static Vector512<float> Add(Vector512<float> a, Vector512<float> b) => a + b;

    public static Vector512<float> Multiply(Vector512<float> x, float y) => x * y;

    public static Vector512<float> MultiplyAdd(Vector512<float> x, float y, Vector512<float> sum) => Vector512.MultiplyAddEstimate(x, Vector512.Create(y), sum);
}

/// <summary>Vectors as long as .NET's Vector: 8 with AVX, 4 on Arm.</summary>
internal readonly unsafe struct Lanes : ILanes<Vector<float>>
{
    public static int Count => Vector<float>.Count;

    public static Vector<float> Load(float* source) => Vector.Load(source);

    public static void Store(Vector<float> vector, float* target) => vector.Store(target);

    public static Vector<float> Add(Vector<float> a, Vector<float> b) => a + b;

    public static Vector<float> Multiply(Vector<float> x, float y) => x * y;

    public static Vector<float> MultiplyAdd(Vector<float> x, float y, Vector<float> sum) => Vector.MultiplyAddEstimate(x, new Vector<float>(y), sum);
}

/// <summary>Vectors of one number, for what is left over.</summary>
internal readonly unsafe struct SingleLane : ILanes<float>
{
    public static int Count => 1;

    public static float Load(float* source) => *source;

    public static void Store(float vector, float* target) => *target = vector;

    public static float Add(float a, float b) => a + b;

    public static float Multiply(float x, float y) => x * y;

    public static float MultiplyAdd(float x, float y, float sum) => float.MultiplyAddEstimate(x, y, sum);
}
