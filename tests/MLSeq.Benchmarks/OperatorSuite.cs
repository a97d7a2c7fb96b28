using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Benchmarks;

/// <summary>B batch, T time, H heads, D features per head.</summary>
internal sealed record OperatorShape(string Name, int Batch, int Time, int Heads, int Size)
{
    /// <summary>Positions of all heads.</summary>
    public double Tokens => (double)Batch * Time * Heads;

    /// <summary>Numbers of one tensor [B, T, H, D].</summary>
    public double Numbers => Tokens * Size;
}

/// <summary>What an operator cannot do without, of one pass.</summary>
/// <param name="Bytes">Inputs read and outputs written once.</param>
/// <param name="Flops">The recurrence's own arithmetic (a multiplication and an addition are two).</param>
internal readonly record struct OperatorCost(double Bytes, double Flops);

/// <param name="Name">The operator.</param>
/// <param name="Against">What the reference times belong to.</param>
/// <param name="Reference">Milliseconds forward and forward with backward on one H200 (bf16), per shape; none where it was not measured.</param>
/// <param name="Inputs">Random inputs by name, float32.</param>
/// <param name="Naive">The specification.</param>
/// <param name="Run">What users get: the form that <see cref="MLSeqRuntime.Operators"/> chooses.</param>
/// <param name="Cost">Forward, and forward with backward, for numbers of a given size in bytes.</param>
internal sealed record MeasuredOperator(string Name, string Against, (double Forward, double Both)[] Reference, Func<OperatorShape, Dictionary<string, Tensor>> Inputs,
    Func<IReadOnlyDictionary<string, Tensor>, Tensor> Naive, Func<IReadOnlyDictionary<string, Tensor>, Tensor> Run, Func<OperatorShape, int, (OperatorCost Forward, OperatorCost Both)> Cost);

/// <summary>All operators that are measured, with the times that the best alternatives reach on one H200 (bf16; PyTorch 2.11, flash-linear-attention, mamba-ssm, cuDNN).</summary>
internal static class OperatorSuite
{
    public static readonly OperatorShape[] Shapes = [new("B8_T4096_H16_D128", 8, 4096, 16, 128), new("B64_T1024_H8_D64", 64, 1024, 8, 64), new("B1_T32768_H16_D64", 1, 32768, 16, 64)];

    private const int SsdStates = 128, ScanStates = 16, Taps = 4;

    public static IEnumerable<MeasuredOperator> All()
    {
        yield return Linear("linear", "fla linear attention", [(0.37, 1.68), (0.228, 1.25), (0.558, 2.08)], _ => null, gateSize: 0);
        yield return Linear("retention", "fla retention", [(0.60, 2.18), (0.439, 1.51), (0.831, 2.44)], s => log1p(-pow(2.0, -5 - arange(s.Heads, dtype: float32))), gateSize: 0, constant: true);
        yield return Linear("scalar_gate", "fla retention", [(0.60, 2.18), (0.439, 1.51), (0.831, 2.44)], s => Gate(s.Batch, s.Time, s.Heads), gateSize: 1);
        yield return Linear("vector_gate", "fla gated linear attention", [(1.33, 6.01), (0.712, 2.90), (1.40, 5.09)], s => Gate(s.Batch, s.Time, s.Heads, s.Size), gateSize: 2);
        foreach (var gated in (bool[])[false, true])
            yield return new(gated ? "gated_delta" : "delta", "fla delta rule", [(1.00, 2.77), (0.693, 1.83), (0.928, 2.83)], s =>
            {
                var inputs = Heads(s);
                inputs["k"] = nn.functional.normalize(inputs["k"], dim: -1);
                inputs["beta"] = rand(s.Batch, s.Time, s.Heads);
                if (gated) inputs["g"] = Gate(s.Batch, s.Time, s.Heads);
                return inputs;
            },
                x => DeltaRecurrence.Naive(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g")).Output,
                x => DeltaRecurrence.Run(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g")).Output,
                (s, bytes) => (new(4 * s.Numbers * bytes, 6 * s.Numbers * s.Size), new(11 * s.Numbers * bytes, 24 * s.Numbers * s.Size)));
        static Tensor Shared(IReadOnlyDictionary<string, Tensor> x, string name) => x[name].unsqueeze(2).expand(-1, -1, x["x"].shape[2], -1);
        yield return new("ssd", "mamba-ssm Mamba-2, state 128", [(0.463, 3.56), (0.438, 3.20), (0.808, 3.83)], s => new()
        {
            ["x"] = randn(s.Batch, s.Time, s.Heads, s.Size), ["B"] = randn(s.Batch, s.Time, SsdStates) / Math.Sqrt(SsdStates), ["C"] = randn(s.Batch, s.Time, SsdStates) / Math.Sqrt(SsdStates), ["g"] = Gate(s.Batch, s.Time, s.Heads),
        },
            x => GatedLinearRecurrence.Naive(Shared(x, "C"), Shared(x, "B"), x["x"], x["g"]).Output,
            x => GatedLinearRecurrence.Run(Shared(x, "C"), Shared(x, "B"), x["x"], x["g"]).Output,
            (s, bytes) =>
            {
                double map = (double)s.Batch * s.Time * SsdStates, gates = s.Tokens * 4;
                return (new((2 * s.Numbers + 2 * map) * bytes + gates, 4 * s.Numbers * SsdStates), new((5 * s.Numbers + 6 * map) * bytes + 3 * gates, 16 * s.Numbers * SsdStates));
            });
        yield return new("scan", "mamba-ssm selective scan, state 16", [(1.04, 5.56), (0.506, 2.71), (0.671, 3.50)], s => new()
        {
            ["x"] = randn(s.Batch, s.Time, s.Heads * s.Size), ["delta"] = nn.functional.softplus(randn(s.Batch, s.Time, s.Heads * s.Size) - 4), ["A"] = -arange(1, ScanStates + 1, dtype: float32).repeat(s.Heads * s.Size, 1),
            ["B"] = randn(s.Batch, s.Time, ScanStates), ["C"] = randn(s.Batch, s.Time, ScanStates),
        },
            x => SelectiveScan.Naive(x["x"], x["delta"], x["A"], x["B"], x["C"]).Output,
            x => SelectiveScan.Run(x["x"], x["delta"], x["A"], x["B"], x["C"]).Output,
            (s, bytes) => (new(3 * s.Numbers * bytes, 6 * s.Numbers * ScanStates), new(8 * s.Numbers * bytes, 24 * s.Numbers * ScanStates)));
        yield return new("conv", "cuDNN causal depthwise conv1d, width 4, without SiLU", [(0.87, 2.00), (0.441, 1.04), (0.440, 1.06)], s => new()
        {
            ["x"] = randn(s.Batch, s.Time, s.Heads * s.Size), ["w"] = randn(Taps, s.Heads * s.Size) / Math.Sqrt(Taps),
        },
            x => CausalConvolution.Naive(x["x"], x["w"]).Output,
            x => CausalConvolution.Run(x["x"], x["w"]).Output,
            (s, bytes) => (new(2 * s.Numbers * bytes, 2 * s.Numbers * Taps), new(5 * s.Numbers * bytes, 6 * s.Numbers * Taps)));
        yield return new("attention", "SDPA", [(0.91, 4.04), (0.207, 0.884), (4.94, 17.8)], Heads, x => Attention(x), x => Attention(x), (s, bytes) =>
        {
            var flops = 2 * s.Numbers * s.Time; // the causal half of q kᵀ and of p v
            return (new(4 * s.Numbers * bytes, flops), new(11 * s.Numbers * bytes, 3.5 * flops));
        });
    }

    private static MeasuredOperator Linear(string name, string against, (double, double)[] reference, Func<OperatorShape, Tensor?> gate, int gateSize, bool constant = false)
    {
        static Tensor? Decay(IReadOnlyDictionary<string, Tensor> x) => x.GetValueOrDefault("g") ?? x.GetValueOrDefault("constant");
        return new(name, against, reference, s =>
        {
            var inputs = Heads(s);
            if (gate(s) is { } g) inputs[constant ? "constant" : "g"] = g;
            return inputs;
        },
            x => GatedLinearRecurrence.Naive(x["q"], x["k"], x["v"], Decay(x)).Output,
            x => GatedLinearRecurrence.Run(x["q"], x["k"], x["v"], Decay(x)).Output,
            (s, bytes) =>
            {
                var gates = 4 * (gateSize == 2 ? s.Numbers : gateSize == 1 ? s.Tokens : 0); // float32, read forward and backward, its gradient written
                return (new(4 * s.Numbers * bytes + gates, 4 * s.Numbers * s.Size), new(11 * s.Numbers * bytes + 3 * gates, 16 * s.Numbers * s.Size));
            });
    }

    private static Tensor Attention(IReadOnlyDictionary<string, Tensor> x)
        => nn.functional.scaled_dot_product_attention(x["q"].transpose(1, 2), x["k"].transpose(1, 2), x["v"].transpose(1, 2), is_casual: true).transpose(1, 2);

    private static Dictionary<string, Tensor> Heads(OperatorShape s) => new()
    {
        ["q"] = randn(s.Batch, s.Time, s.Heads, s.Size) / Math.Sqrt(s.Size), ["k"] = randn(s.Batch, s.Time, s.Heads, s.Size) / Math.Sqrt(s.Size), ["v"] = randn(s.Batch, s.Time, s.Heads, s.Size),
    };

    private static Tensor Gate(params long[] shape) => nn.functional.logsigmoid(randn(shape)) / 16;

    /// <summary>Inputs on a device, in the element type of the measurement (decays and A stay float32), asking for gradients.</summary>
    public static Dictionary<string, Tensor> Prepared(this Dictionary<string, Tensor> inputs, Device device, ScalarType type)
        => inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(pair.Key is "g" or "constant" or "A" ? float32 : type).to(device).requires_grad_(pair.Key != "constant"));

    /// <summary>Largest relative errors (norms) of the outputs and of the gradients against the naive form in float64.</summary>
    public static (double Outputs, double Gradients) Errors(this MeasuredOperator op, OperatorShape shape, Device device, ScalarType type)
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        var inputs = op.Inputs(shape).Prepared(device, type);
        var exact = inputs.ToDictionary(pair => pair.Key, pair => pair.Value.detach().cpu().to(float64).requires_grad_());
        var (expected, got) = (op.Naive(exact), op.Run(inputs));
        var upstream = randn_like(expected.detach()).to(type);
        expected.backward([upstream.to(float64)]);
        got.backward([upstream.to(device)]);
        static double Error(Tensor a, Tensor b) => ((a.cpu().to(float64) - b).norm() / b.norm()).item<double>();
        var gradients = inputs.Where(pair => pair.Key != "constant").Max(pair => Error(pair.Value.grad!, exact[pair.Key].grad!));
        Clear(inputs);
        Clear(exact);
        return (Error(got.detach(), expected.detach()), gradients);
    }

    /// <summary>Frees the gradients.</summary>
    public static void Clear(IReadOnlyDictionary<string, Tensor> inputs)
    {
        foreach (var input in inputs.Values)
        {
            input.grad?.Dispose();
            input.grad = null;
        }
    }
}
