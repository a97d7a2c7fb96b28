using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace MLSeq;

public static partial class NeuralMemory
{
    /// <summary>A layer of the memories of all heads, over spans of memory that does not move: [h, inputs, outputs] each.</summary>
    /// <param name="memory">M.</param>
    /// <param name="momentum">S.</param>
    /// <param name="start">The M that the open chunk began with.</param>
    /// <param name="inputs">What the layer is given.</param>
    /// <param name="outputs">What it gives.</param>
    internal readonly unsafe struct SpanLayer(Span<float> memory, Span<float> momentum, Span<float> start, int inputs, int outputs)
    {
        private readonly float* _memory = Address(memory), _momentum = Address(momentum), _start = Address(start);

        public int Inputs => inputs;

        public int Outputs => outputs;

        public Span<float> Memory(int head) => new(_memory + head * inputs * outputs, inputs * outputs);

        public Span<float> Momentum(int head) => new(_momentum + head * inputs * outputs, inputs * outputs);

        public Span<float> Start(int head) => new(_start + head * inputs * outputs, inputs * outputs);

        private static float* Address(Span<float> span) => (float*)Unsafe.AsPointer(ref MemoryMarshal.GetReference(span));
    }

    /// <summary>One element of one head, over spans, the memory in place.</summary>
    /// <param name="layers">The memory.</param>
    /// <param name="head">Which head's.</param>
    /// <param name="beginsChunk">Whether the element is the first of a chunk.</param>
    /// <param name="q">The query, [K].</param>
    /// <param name="k">The key, [K].</param>
    /// <param name="v">The value, [V].</param>
    /// <param name="rate">θ.</param>
    /// <param name="momentum">η.</param>
    /// <param name="keep">1 − α.</param>
    /// <param name="output">o, [V].</param>
    /// <param name="work">For what lies between the layers.</param>
    internal static void Step(ReadOnlySpan<SpanLayer> layers, int head, bool beginsChunk, Span<float> q, Span<float> k, Span<float> v, float rate, float momentum, float keep, Span<float> output, Workspace work)
    {
        using var frame = work.Open();
        var (count, widest) = (layers.Length, 0);
        foreach (var layer in layers) widest = Math.Max(widest, Math.Max(layer.Inputs, layer.Outputs));
        var inputs = work.Take(count + 1, widest);
        var sums = work.Take(count, widest);
        var errors = work.Take(count, widest);
        var shortenings = work.Take(count);

        // a_0 = k, z_l = M_lᵀ a_l, a_{l+1} = activation(z_l), at the chunk's start.
        k.CopyTo(inputs[0]);
        for (var l = 0; l < count; l++)
        {
            if (beginsChunk) layers[l].Memory(head).CopyTo(layers[l].Start(head));
            var z = sums[l][..layers[l].Outputs];
            var next = inputs[l + 1][..layers[l].Outputs];
            Products.WeightedSum(inputs[l][..layers[l].Inputs], new Rows(layers[l].Start(head), layers[l].Inputs, layers[l].Outputs), z);
            z.CopyTo(next);
            if (l < count - 1) shortenings[l] = Activation(next);
        }
        // e of the last layer is z − v; e_l = ∂a_{l+1}/∂z_l (M_{l+1} e_{l+1}).
        TensorPrimitives.Subtract(sums[count - 1][..v.Length], v, errors[count - 1]);
        for (var l = count - 2; l >= 0; l--)
        {
            var above = layers[l + 1];
            var error = errors[l][..layers[l].Outputs];
            Products.Dots(errors[l + 1][..above.Outputs], new Rows(above.Start(head), above.Inputs, above.Outputs), error);
            var a = inputs[l + 1][..error.Length];
            var gate = sums[l][..error.Length];
            error.AddProduct(a, -TensorPrimitives.Dot<float>(a, error));
            gate.Apply<Functions.Sigmoid>();
            for (var i = 0; i < error.Length; i++) error[i] *= shortenings[l] * gate[i] + a[i] * (1 - gate[i]); // silu'(z) = σ + silu(z) (1 − σ), silu(z) = a / shortening
        }
        // S = η S − θ a eᵀ, M = (1 − α) M + S.
        for (var l = 0; l < count; l++)
        {
            var layer = layers[l];
            var a = inputs[l][..layers[l].Inputs];
            a.Scale(-rate);
            GatedLinearRecurrence.Step(layer.Momentum(head), a, a, errors[l][..layer.Outputs], [momentum], sums[l][..layer.Outputs]);
            TensorPrimitives.MultiplyAdd(layer.Memory(head), keep, layer.Momentum(head), layer.Memory(head));
        }
        q.CopyTo(inputs[0]);
        for (var l = 0; l < count; l++)
        {
            var y = l == count - 1 ? output : inputs[l + 1][..layers[l].Outputs];
            Products.WeightedSum(inputs[l][..layers[l].Inputs], new Rows(layers[l].Memory(head), layers[l].Inputs, layers[l].Outputs), y);
            if (l < count - 1) Activation(y);
        }
    }

    // z to a = s / √(1 + ‖s‖²), s = silu(z). Returns 1 / √(1 + ‖s‖²).
    private static float Activation(Span<float> z)
    {
        z.Apply<Functions.Silu>();
        var shortening = 1 / MathF.Sqrt(1 + TensorPrimitives.SumOfSquares<float>(z));
        z.Scale(shortening);
        return shortening;
    }
}
