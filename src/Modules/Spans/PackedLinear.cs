using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>y = W x + b with the weights laid out for it: for one vector of outputs after the other, what each input contributes. Reads memory from one end to the other, as fast as the caches give it.</summary>
/// <remarks>After Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008. A copy of the weights; the network need not live on.</remarks>
internal sealed unsafe class PackedLinear
{
    private const int RowsPerTile = Products.RowsPerTile, PanelsPerTile = Products.VectorsPerTile;

    private readonly float[] _weights; // [panels, inputs, lanes]; pinned, so that the alignment lasts
    private readonly float* _first; // in _weights, at a cache line's beginning
    private readonly float[]? _bias;

    public PackedLinear(Linear linear) : this(linear.weight, linear.bias)
    {
    }

    /// <param name="weight">W, [outputs, inputs].</param>
    /// <param name="bias">b, [outputs], or null.</param>
    public PackedLinear(Tensor weight, Tensor? bias)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        (Outputs, Inputs) = (checked((int)weight.shape[0]), checked((int)weight.shape[1]));
        var panels = (Outputs + PanelsPerTile * Lane - 1) / (PanelsPerTile * Lane) * PanelsPerTile;
        var padded = nn.functional.pad(weight, [0, 0, 0, panels * Lane - Outputs]);
        _weights = HostNumbers.Aligned(padded.view(panels, Lane, Inputs).transpose(1, 2), out _first);
        _bias = bias?.Numbers();
    }

    /// <summary>The two maps of libtorch's recurrent layers: of the input, and of the hidden state.</summary>
    public static (PackedLinear Input, PackedLinear Hidden) Recurrent(nn.Module layer)
    {
        var parameters = layer.named_parameters().ToDictionary(parameter => parameter.name, parameter => parameter.parameter);
        return (new(parameters["weight_ih_l0"], parameters["bias_ih_l0"]), new(parameters["weight_hh_l0"], parameters["bias_hh_l0"]));
    }

    public int Inputs { get; }

    public int Outputs { get; }

    private static int Lane => Vector512.IsHardwareAccelerated ? WideLanes.Count : Lanes.Count;

    /// <summary>One x, [inputs], to one y, [outputs].</summary>
    public void Apply(Span<float> x, Span<float> y) => Apply(new Rows(x, 1, Inputs), new Rows(y, 1, Outputs));

    /// <summary>Every row of x, [time, inputs].</summary>
    /// <returns>[time, outputs], in the workspace.</returns>
    public Rows Apply(Rows x, Workspace work)
    {
        var y = work.Take(x.Count, Outputs);
        Apply(x, y);
        return y;
    }

    /// <summary>Every row of x, [time, inputs], to a row of y, [time, outputs].</summary>
    public void Apply(Rows x, Rows y)
    {
        if (x.Width != Inputs || y.Width != Outputs || x.Count != y.Count) throw new ArgumentException($"Got [{x.Count}, {x.Width}] and [{y.Count}, {y.Width}]; expected [t, {Inputs}] and [t, {Outputs}].");
        if (Vector512.IsHardwareAccelerated) Multiply<WideLanes, Vector512<float>>(x, y);
        else Multiply<Lanes, Vector<float>>(x, y);
        if (_bias is null) return;
        for (var t = 0; t < y.Count; t++) y[t].Add(_bias);
    }

    private void Multiply<TLanes, TVector>(Rows x, Rows y) where TLanes : ILanes<TVector> where TVector : struct
    {
        var lanes = TLanes.Count;
        var scratch = stackalloc float[RowsPerTile * PanelsPerTile * lanes]; // for the last panels, whose last columns are not there
        fixed (float* px = x.Values, py = y.Values)
        {
            var tiled = x.Count / RowsPerTile * RowsPerTile;
            for (var column = 0; column < Outputs && tiled > 0; column += PanelsPerTile * lanes)
            {
                var panel = _first + (long)column * Inputs;
                var whole = column + PanelsPerTile * lanes <= Outputs;
                for (var row = 0; row < tiled; row += RowsPerTile)
                {
                    var target = py + (long)row * y.Stride + column;
                    Products.Tile<TLanes, TVector>(px + (long)row * x.Stride, x.Stride, Inputs, panel, panel + (long)lanes * Inputs, lanes, whole ? target : scratch, whole ? y.Stride : PanelsPerTile * lanes);
                    for (var i = 0; i < RowsPerTile && !whole; i++) Copy(scratch + i * PanelsPerTile * lanes, target + (long)i * y.Stride, Outputs - column);
                }
            }
            for (var row = tiled; row < x.Count; row++)
                for (var column = 0; column < Outputs; column += lanes)
                {
                    var target = py + (long)row * y.Stride + column;
                    var whole = column + lanes <= Outputs;
                    Products.WeightedSum<TLanes, TVector>(px + (long)row * x.Stride, Inputs, _first + (long)column * Inputs, lanes, whole ? target : scratch);
                    if (!whole) Copy(scratch, target, Outputs - column);
                }
        }
    }

    private static void Copy(float* from, float* to, int count) => new ReadOnlySpan<float>(from, count).CopyTo(new Span<float>(to, count));
}

/// <summary>Numbers of tensors in host memory.</summary>
internal static unsafe class HostNumbers
{
    private const int CacheLine = 64;

    /// <summary>A copy of all numbers, in order.</summary>
    public static float[] Numbers(this Tensor values)
    {
        using var scope = NewDisposeScope();
        return values.detach().to(float32).cpu().contiguous().data<float>().ToArray();
    }

    /// <summary>The same, at the beginning of a cache line, and it does not move.</summary>
    /// <param name="values">Any tensor.</param>
    /// <param name="first">Where the numbers begin; valid as long as the returned array lives.</param>
    public static float[] Aligned(Tensor values, out float* first)
    {
        var numbers = values.Numbers();
        var memory = GC.AllocateUninitializedArray<float>(numbers.Length + CacheLine / sizeof(float), pinned: true);
        var address = (nuint)Unsafe.AsPointer(ref memory[0]);
        var skipped = (int)((CacheLine - address % CacheLine) % CacheLine / sizeof(float));
        numbers.CopyTo(memory.AsSpan(skipped));
        first = (float*)address + skipped;
        return memory;
    }
}
