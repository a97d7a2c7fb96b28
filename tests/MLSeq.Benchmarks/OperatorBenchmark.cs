using System.Diagnostics;
using System.Globalization;
using System.Text;
using MLSeq.Examples;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Benchmarks;

/// <summary>
/// The operators at three shapes: correctness against the naive form in float64 first, then the median time forward and forward with backward, what share of it the device would need for the bytes and the arithmetic
/// alone, and the ratio to what the best alternatives reach.
/// </summary>
internal static class OperatorBenchmark
{
    public static void Run(CommandLine command)
    {
        MLSeqRuntime.EnsureLoaded();
        var quick = command.Has("--quick");
        var device = command.Device();
        var type = command.Precision(device);
        MLSeqRuntime.Operators = command.Form();
        var wanted = command.Get("--operators", "");
        var repeats = (int)command.Get("--repeats", quick ? 2 : 20);
        var comparable = !quick && device.type == DeviceType.CUDA; // the table's times are a GPU's at full size
        var (bytesPerMs, flopsPerMs) = quick ? (double.NaN, double.NaN) : DeviceLimits.Measure(device, type);
        var table = new StringBuilder("| operator | shape | forward ms | of floor | with backward ms | of floor | GB | GFLOP | beside | ratio forward | with backward | error of outputs | of gradients |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
        var results = new List<string>();
        foreach (var op in OperatorSuite.All().Where(op => wanted.Length == 0 || wanted.Split(',').Contains(op.Name)))
        {
            var (outputError, gradientError) = op.Errors(new OperatorShape("check", 1, quick ? 300 : 4200, 2, 64), device, type); // odd, and longer than a segment
            for (var i = 0; i < OperatorSuite.Shapes.Length; i++)
            {
                var shape = quick ? OperatorSuite.Shapes[i] with { Batch = 1, Time = 256, Heads = 2 } : OperatorSuite.Shapes[i];
                var (forward, both) = Measure(op, shape, device, type, repeats);
                var (referenceForward, referenceBoth) = op.Reference[i];
                var (costForward, costBoth) = op.Cost(shape, type == float32 ? 4 : 2);
                double Share(OperatorCost cost, double ms) => 100 * Math.Max(cost.Bytes / bytesPerMs, cost.Flops / flopsPerMs) / ms;
                foreach (var (pass, ms, reference, cost) in new[] { ("fwd", forward, referenceForward, costForward), ("fwdbwd", both, referenceBoth, costBoth) })
                    results.Add(FormattableString.Invariant($"RESULT op={op.Name} shape={shape.Name} pass={pass} ms={ms:F3} ratio_to_table={(comparable ? ms / reference : double.NaN):F2} floor_percent={Share(cost, ms):F0} ") +
                        FormattableString.Invariant($"gbytes={cost.Bytes / 1e9:F3} gflops={cost.Flops / 1e9:F1} output_error={outputError:E1} gradient_error={gradientError:E1}"));
                string Ratio(double ms, double reference) => comparable ? (ms / reference).ToString("F2", CultureInfo.InvariantCulture) : "–";
                table.AppendLine(CultureInfo.InvariantCulture, $"| {op.Name} | {shape.Name} | {forward:F3} | {Share(costForward, forward):F0} % | {both:F3} | {Share(costBoth, both):F0} % | {costBoth.Bytes / 1e9:F2} | {costBoth.Flops / 1e9:F0} | {referenceForward} / {referenceBoth} ({op.Against}) | {Ratio(forward, referenceForward)} | {Ratio(both, referenceBoth)} | {outputError:E0} | {gradientError:E0} |");
                results.TakeLast(2).ToList().ForEach(Console.WriteLine);
            }
        }
        Console.WriteLine(FormattableString.Invariant($"\n{device}, {type}, form {MLSeqRuntime.Operators}; median of {repeats}. The floor: {bytesPerMs / 1e6:F0} GB/s (copy) and {flopsPerMs / 1e9:F0} TFLOP/s (matrix product), measured here.\n\n{table}"));
        if (command.Get("--out", "") is { Length: > 0 } file) File.WriteAllText(file, table.ToString());
        results.ForEach(Console.WriteLine);
    }

    private static (double Forward, double Both) Measure(MeasuredOperator op, OperatorShape shape, Device device, ScalarType type, int repeats)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var inputs = op.Inputs(shape).Prepared(device, type);
        Tensor upstream;
        using (no_grad()) upstream = randn_like(op.Run(inputs));
        var asked = inputs.Values.Where(input => input.requires_grad).ToList();
        var forward = Timing.Median(device, repeats, () =>
        {
            using var _ = no_grad();
            op.Run(inputs);
        });
        var both = Timing.Median(device, repeats, () =>
        {
            autograd.grad([op.Run(inputs)], asked, [upstream]);
        });
        return (forward, both);
    }
}

/// <summary>How fast a device is at the two things that bound every operator.</summary>
internal static class DeviceLimits
{
    /// <summary>Bytes (read and written) and floating-point operations per millisecond.</summary>
    public static (double BytesPerMs, double FlopsPerMs) Measure(Device device, ScalarType type)
    {
        using var scope = NewDisposeScope();
        var large = device.type == DeviceType.CUDA;
        var from = rand(large ? 1L << 28 : 1L << 25, dtype: float32, device: device);
        var to = empty_like(from);
        var copy = Timing.Median(device, 10, () => to.copy_(from));
        var size = large ? 8192 : 1024;
        var (a, b) = (randn(size, size, device: device).to(type), randn(size, size, device: device).to(type));
        var product = Timing.Median(device, 10, () => a.mm(b));
        return (2.0 * from.numel() * 4 / copy, 2.0 * size * size * size / product);
    }
}

/// <summary>Clocks around work on a device.</summary>
internal static class Timing
{
    /// <summary>Median milliseconds of a step, the device's work included, after some that warm up.</summary>
    public static double Median(Device device, int repeats, Action step)
    {
        var times = new double[repeats];
        for (var i = -Math.Min(repeats, 10); i < repeats; i++)
        {
            if (device.type == DeviceType.CUDA) cuda.synchronize();
            var clock = Stopwatch.StartNew();
            using (NewDisposeScope()) step();
            if (device.type == DeviceType.CUDA) cuda.synchronize();
            if (i >= 0) times[i] = clock.Elapsed.TotalMilliseconds;
        }
        return times.Order().ElementAt(repeats / 2);
    }
}
