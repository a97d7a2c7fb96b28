using System.Diagnostics;
using System.Globalization;
using System.Text;
using MLSeq.Examples;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Benchmarks;

/// <summary>
/// The operators in their chunked form at three shapes: correctness against the naive form in float64 first, then the median time forward and forward with backward, beside what the best alternatives reach on one H200
/// (bf16; PyTorch 2.11, flash-linear-attention, mamba-ssm).
/// </summary>
internal static class OperatorBenchmark
{
    private sealed record Shape(string Name, int Batch, int Time, int Heads, int Size);

    /// <param name="Name">The operator.</param>
    /// <param name="Against">What the reference times belong to.</param>
    /// <param name="Reference">Milliseconds forward and forward with backward, per shape.</param>
    /// <param name="Inputs">Random inputs by name, float32.</param>
    /// <param name="Run">The chunked form (or the naive one).</param>
    private sealed record Operator(string Name, string Against, (double Forward, double Both)[] Reference, Func<Shape, Dictionary<string, Tensor>> Inputs,
        Func<IReadOnlyDictionary<string, Tensor>, bool, (Tensor Output, Tensor State)> Run);

    private static readonly Shape[] Shapes = [new("B8_T4096_H16_D128", 8, 4096, 16, 128), new("B64_T1024_H8_D64", 64, 1024, 8, 64), new("B1_T32768_H16_D64", 1, 32768, 16, 64)];

    private static IEnumerable<Operator> Operators()
    {
        yield return Linear("linear", "fla linear attention", [(0.37, 1.68), (0.228, 1.25), (0.558, 2.08)], _ => null);
        yield return Linear("retention", "fla retention", [(0.60, 2.18), (0.439, 1.51), (0.831, 2.44)], s => log1p(-pow(2.0, -5 - arange(s.Heads, dtype: float32))), constant: true);
        yield return Linear("scalar_gate", "fla retention", [(0.60, 2.18), (0.439, 1.51), (0.831, 2.44)], s => Gate(s.Batch, s.Time, s.Heads));
        yield return Linear("vector_gate", "fla gated linear attention", [(1.33, 6.01), (0.712, 2.90), (1.40, 5.09)], s => Gate(s.Batch, s.Time, s.Heads, s.Size));
        foreach (var gated in (bool[])[false, true])
            yield return new(gated ? "gated_delta" : "delta", "fla delta rule", [(1.00, 2.77), (0.693, 1.83), (0.928, 2.83)], s =>
            {
                var inputs = Heads(s);
                inputs["k"] = nn.functional.normalize(inputs["k"], dim: -1);
                inputs["beta"] = rand(s.Batch, s.Time, s.Heads);
                if (gated) inputs["g"] = Gate(s.Batch, s.Time, s.Heads);
                return inputs;
            }, (x, naive) => naive ? DeltaRecurrence.Naive(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g")) : DeltaRecurrence.Chunked(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g")));
        yield return new("ssd", "mamba-ssm Mamba-2, state 128", [(0.463, 3.56), (0.438, 3.20), (0.808, 3.83)], s => new()
        {
            ["x"] = randn(s.Batch, s.Time, s.Heads, s.Size), ["B"] = randn(s.Batch, s.Time, 128) / Math.Sqrt(128), ["C"] = randn(s.Batch, s.Time, 128) / Math.Sqrt(128), ["g"] = Gate(s.Batch, s.Time, s.Heads),
        }, (x, naive) =>
        {
            Tensor Shared(string name) => x[name].unsqueeze(2).expand(-1, -1, x["x"].shape[2], -1);
            return naive ? GatedLinearRecurrence.Naive(Shared("C"), Shared("B"), x["x"], x["g"]) : GatedLinearRecurrence.Chunked(Shared("C"), Shared("B"), x["x"], x["g"]);
        });
        yield return new("scan", "mamba-ssm selective scan, state 16", [(1.04, 5.56), (0.506, 2.71), (0.671, 3.50)], s => new()
        {
            ["x"] = randn(s.Batch, s.Time, s.Heads * s.Size), ["delta"] = nn.functional.softplus(randn(s.Batch, s.Time, s.Heads * s.Size) - 4), ["A"] = -arange(1, 17, dtype: float32).repeat(s.Heads * s.Size, 1),
            ["B"] = randn(s.Batch, s.Time, 16), ["C"] = randn(s.Batch, s.Time, 16),
        }, (x, naive) => naive ? SelectiveScan.Naive(x["x"], x["delta"], x["A"], x["B"], x["C"]) : SelectiveScan.Chunked(x["x"], x["delta"], x["A"], x["B"], x["C"]));
    }

    private static Operator Linear(string name, string against, (double, double)[] reference, Func<Shape, Tensor?> gate, bool constant = false)
        => new(name, against, reference, s =>
        {
            var inputs = Heads(s);
            if (gate(s) is { } g) inputs[constant ? "constant" : "g"] = g;
            return inputs;
        }, (x, naive) =>
        {
            var g = x.GetValueOrDefault("g") ?? x.GetValueOrDefault("constant");
            return naive ? GatedLinearRecurrence.Naive(x["q"], x["k"], x["v"], g) : GatedLinearRecurrence.Chunked(x["q"], x["k"], x["v"], g);
        });

    private static Dictionary<string, Tensor> Heads(Shape s) => new()
    {
        ["q"] = randn(s.Batch, s.Time, s.Heads, s.Size) / Math.Sqrt(s.Size), ["k"] = randn(s.Batch, s.Time, s.Heads, s.Size) / Math.Sqrt(s.Size), ["v"] = randn(s.Batch, s.Time, s.Heads, s.Size),
    };

    private static Tensor Gate(params long[] shape) => nn.functional.logsigmoid(randn(shape)) / 16;

    public static void Run(CommandLine command)
    {
        MLSeqRuntime.EnsureLoaded();
        var quick = command.Has("--quick");
        var device = command.Get("--device", cuda.is_available() ? "cuda" : "cpu") == "cuda" ? CUDA : CPU;
        var type = command.Get("--precision", device.type == DeviceType.CUDA ? "bfloat16" : "float32") == "bfloat16" ? bfloat16 : float32;
        var wanted = command.Get("--operators", "");
        var comparable = !quick && device.type == DeviceType.CUDA; // the table's times are a GPU's at full size
        var table = new StringBuilder("| operator | shape | forward | with backward | reference | ratio forward | ratio with backward | error of outputs | of gradients |\n|---|---|---|---|---|---|---|---|---|\n");
        var results = new List<string>();
        foreach (var op in Operators().Where(op => wanted.Length == 0 || wanted.Split(',').Contains(op.Name)))
        {
            var (outputError, gradientError) = Errors(op, device, type, command);
            for (var i = 0; i < Shapes.Length; i++)
            {
                var shape = quick ? Shapes[i] with { Batch = 1, Time = 256, Heads = 2 } : Shapes[i];
                var (forward, both) = Measure(op, shape, device, type, quick ? 2 : 20);
                var (referenceForward, referenceBoth) = op.Reference[i];
                foreach (var (pass, ms, reference) in new[] { ("fwd", forward, referenceForward), ("fwdbwd", both, referenceBoth) })
                    results.Add(FormattableString.Invariant($"RESULT op={op.Name} shape={shape.Name} pass={pass} ms={ms:F3} ratio_to_table={(comparable ? ms / reference : double.NaN):F2} output_error={outputError:E1} gradient_error={gradientError:E1}"));
                table.AppendLine(CultureInfo.InvariantCulture, $"| {op.Name} | {shape.Name} | {forward:F2} | {both:F2} | {referenceForward} / {referenceBoth} ({op.Against}) | {(comparable ? $"{forward / referenceForward:F2}" : "–")} | {(comparable ? $"{both / referenceBoth:F2}" : "–")} | {outputError:E0} | {gradientError:E0} |");
                Console.WriteLine(results[^1]);
            }
        }
        Console.WriteLine($"\n{device}, {type}, chunked form, milliseconds (median of 20)\n\n{table}");
        results.ForEach(Console.WriteLine);
    }

    private static (double Forward, double Both) Measure(Operator op, Shape shape, Device device, ScalarType type, int repeats)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var inputs = Prepared(op.Inputs(shape), device, type);
        var upstream = randn_like(op.Run(inputs, false).Output.detach());
        double Median(Func<bool> step)
        {
            var times = new double[repeats];
            for (var i = -3; i < repeats; i++)
            {
                if (device.type == DeviceType.CUDA) cuda.synchronize();
                var clock = Stopwatch.StartNew();
                using (NewDisposeScope()) step();
                if (device.type == DeviceType.CUDA) cuda.synchronize();
                if (i >= 0) times[i] = clock.Elapsed.TotalMilliseconds;
            }
            return times.Order().ElementAt(repeats / 2);
        }
        var forward = Median(() =>
        {
            using var _ = no_grad();
            op.Run(inputs, false);
            return true;
        });
        var both = Median(() =>
        {
            op.Run(inputs, false).Output.backward([upstream]);
            Clear(inputs);
            return true;
        });
        return (forward, both);
    }

    /// <summary>Largest relative errors (norms) of the outputs and of the gradients against the naive form in float64, on a sequence of one head pair that takes more than one group of chunks.</summary>
    private static (double Outputs, double Gradients) Errors(Operator op, Device device, ScalarType type, CommandLine command)
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        var inputs = Prepared(op.Inputs(new Shape("check", 1, command.Has("--quick") ? 300 : 4200, 2, 64)), device, type);
        var exact = inputs.ToDictionary(pair => pair.Key, pair => pair.Value.detach().cpu().to(float64).requires_grad_());
        var (expected, got) = (op.Run(exact, true).Output, op.Run(inputs, false).Output);
        var upstream = randn_like(expected.detach()).to(type);
        expected.backward([upstream.to(float64)]);
        got.backward([upstream.to(device)]);
        static double Error(Tensor a, Tensor b) => ((a.cpu().to(float64) - b).norm() / b.norm()).item<double>();
        var gradients = inputs.Where(pair => pair.Key != "constant").Max(pair => Error(pair.Value.grad!, exact[pair.Key].grad!));
        Clear(inputs);
        Clear(exact);
        return (Error(got.detach(), expected.detach()), gradients);
    }

    private static Dictionary<string, Tensor> Prepared(Dictionary<string, Tensor> inputs, Device device, ScalarType type)
        => inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(pair.Key is "g" or "constant" or "A" ? float32 : type).to(device).requires_grad_(pair.Key != "constant"));

    private static void Clear(IReadOnlyDictionary<string, Tensor> inputs)
    {
        foreach (var input in inputs.Values)
        {
            input.grad?.Dispose();
            input.grad = null;
        }
    }
}
