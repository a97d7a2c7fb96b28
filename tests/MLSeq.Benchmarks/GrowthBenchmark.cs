using System.Diagnostics;
using System.Runtime.InteropServices;
using MLSeq.Examples;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Benchmarks;

/// <summary>
/// How time and memory of each operator, forward with backward, grow with the length: the exponent e of cost ~ Tᵉ, fitted by least squares to the logarithms over the longer half of the lengths (short ones
/// cost what their launches cost). 1 is linear; causal softmax attention tends to 2 in time.
/// </summary>
internal static class GrowthBenchmark
{
    public static void Run(CommandLine command)
    {
        MLSeqRuntime.EnsureLoaded();
        var quick = command.Has("--quick");
        var device = command.Get("--device", cuda.is_available() ? "cuda" : "cpu") == "cuda" ? CUDA : CPU;
        var type = command.Get("--precision", device.type == DeviceType.CUDA ? "bfloat16" : "float32") == "bfloat16" ? bfloat16 : float32;
        MLSeqRuntime.Operators = Enum.Parse<OperatorForm>(command.Get("--form", "auto"), ignoreCase: true);
        var (heads, size) = device.type == DeviceType.CUDA ? (16, 64) : (2, 32);
        int[] lengths = quick ? [256, 512, 1024] : [1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072];
        var wanted = command.Get("--operators", "");
        var chosen = OperatorSuite.All().Where(op => wanted.Length == 0 ? op.Name != "attention" : wanted.Split(',').Contains(op.Name)).ToList();
        if (chosen.Count > 1)
        {
            // A process for each: libtorch keeps the memory that it once had. Of an option given twice, the first counts.
            foreach (var op in chosen)
            {
                using var child = Process.Start(new ProcessStartInfo(Environment.ProcessPath!, [.. Path.GetFileNameWithoutExtension(Environment.ProcessPath) == "dotnet" ? (string[])[Environment.GetCommandLineArgs()[0]] : [], "growth", "--operators", op.Name, .. command.Arguments.Skip(1)]))!;
                child.WaitForExit();
                if (child.ExitCode != 0) throw new InvalidOperationException($"The measurement of {op.Name} ended with code {child.ExitCode}.");
            }
            return;
        }
        foreach (var op in chosen)
        {
            var meter = new MemoryMeter(device);
            var points = lengths.Select(time => Measure(op, new OperatorShape($"T{time}", 1, time, heads, size), device, type, quick ? 2 : 5, meter)).ToList();
            var half = lengths.Length / 2;
            var (timeExponent, memoryExponent) = (Exponent(lengths[half..], [.. points.Skip(half).Select(point => point.Ms)]), Exponent(lengths[half..], [.. points.Skip(half).Select(point => point.Bytes)]));
            Console.WriteLine(FormattableString.Invariant($"RESULT op={op.Name} heads={heads} size={size} lengths={lengths[0]}..{lengths[^1]} ms={string.Join(',', points.Select(point => FormattableString.Invariant($"{point.Ms:F2}")))} ") +
                FormattableString.Invariant($"mib={string.Join(',', points.Select(point => FormattableString.Invariant($"{point.Bytes / 1048576:F0}")))} time_exponent={timeExponent:F3} memory_exponent={memoryExponent:F3}"));
        }
    }

    private static (double Ms, double Bytes) Measure(MeasuredOperator op, OperatorShape shape, Device device, ScalarType type, int repeats, MemoryMeter meter)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var inputs = op.Inputs(shape).Prepared(device, type);
        Tensor upstream;
        using (no_grad()) upstream = randn_like(op.Run(inputs));
        void Step()
        {
            op.Run(inputs).backward([upstream]);
            OperatorSuite.Clear(inputs);
        }
        return (Timing.Median(device, repeats, Step), meter.Peak());
    }

    private static double Exponent(int[] lengths, double[] costs)
    {
        var (xs, ys) = (lengths.Select(length => Math.Log(length)).ToArray(), costs.Select(cost => Math.Log(cost)).ToArray());
        var (meanX, meanY) = (xs.Average(), ys.Average());
        return xs.Zip(ys, (x, y) => (x - meanX) * (y - meanY)).Sum() / xs.Sum(x => (x - meanX) * (x - meanX));
    }
}

/// <summary>The most memory that was in use since it was made: of the whole device on CUDA, of the process on a CPU (Linux). Inputs included.</summary>
internal sealed class MemoryMeter
{
    private readonly Device _device;
    private readonly double _before;

    public MemoryMeter(Device device)
    {
        _device = device;
        if (device.type == DeviceType.CUDA)
        {
            using var warm = ones(16, 16, device: device).mm(ones(16, 16, device: device)); // the context and cuBLAS are not the operator's
            cuda.synchronize();
        }
        _before = Used();
    }

    public double Peak() => Used() - _before;

    private double Used()
    {
        if (_device.type == DeviceType.CUDA)
        {
            // libtorch keeps what it once had, so what is taken now is the peak.
            if (cuMemGetInfo_v2(out var free, out var total) != 0) throw new InvalidOperationException("The CUDA driver does not tell its free memory.");
            return (double)total - free;
        }
        var line = File.ReadLines("/proc/self/status").First(line => line.StartsWith("VmHWM:", StringComparison.Ordinal));
        return 1024 * double.Parse(line.AsSpan(6, line.Length - 9), System.Globalization.CultureInfo.InvariantCulture);
    }

    [DllImport("libcuda.so.1")]
    private static extern int cuMemGetInfo_v2(out nuint free, out nuint total);
}
