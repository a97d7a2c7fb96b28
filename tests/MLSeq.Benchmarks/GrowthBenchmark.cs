using System.Diagnostics;
using System.Globalization;
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
        var device = command.Device();
        var type = command.Precision(device);
        MLSeqRuntime.Operators = command.Form();
        var (heads, size) = device.type == DeviceType.CUDA ? (16, 64) : (2, 32);
        int[] lengths = quick ? [256, 512, 1024] : [1024, 4096, 16384, 32768, 65536, 131072];
        var wanted = command.Get("--operators", "");
        if (command.Get("--only", 0) is > 0 and var only)
        {
            var meter = new MemoryMeter(device);
            var (ms, bytes) = Measure(OperatorSuite.All().Single(op => op.Name == wanted), new OperatorShape($"T{only}", 1, (int)only, heads, size), device, type, quick ? 2 : 5, meter);
            Console.WriteLine(FormattableString.Invariant($"{ms} {bytes}"));
            return;
        }
        foreach (var op in OperatorSuite.All().Where(op => wanted.Length == 0 ? op.Name != "attention" : wanted.Split(',').Contains(op.Name)))
        {
            var points = lengths.Select(length => InProcess(command, op.Name, length)).ToList();
            var half = lengths.Length / 2;
            var (timeExponent, memoryExponent) = (Exponent(lengths[half..], [.. points.Skip(half).Select(point => point.Ms)]), Exponent(lengths[half..], [.. points.Skip(half).Select(point => point.Bytes)]));
            Console.WriteLine(FormattableString.Invariant($"RESULT op={op.Name} heads={heads} size={size} lengths={string.Join(',', lengths)} ms={string.Join(',', points.Select(point => FormattableString.Invariant($"{point.Ms:F2}")))} ") +
                FormattableString.Invariant($"mib={string.Join(',', points.Select(point => FormattableString.Invariant($"{point.Bytes / 1048576:F0}")))} time_exponent={timeExponent:F3} memory_exponent={memoryExponent:F3}"));
        }
    }

    // A process for each length: libtorch keeps the memory that it once had. Of an option given twice, the first counts.
    private static (double Ms, double Bytes) InProcess(CommandLine command, string op, int length)
    {
        string[] program = Path.GetFileNameWithoutExtension(Environment.ProcessPath) == "dotnet" ? [Environment.GetCommandLineArgs()[0]] : [];
        using var child = Process.Start(new ProcessStartInfo(Environment.ProcessPath!, [.. program, "growth", "--only", $"{length}", "--operators", op, .. command.Arguments.Skip(1)]) { RedirectStandardOutput = true })!;
        var answer = child.StandardOutput.ReadToEnd().Trim().Split('\n')[^1].Split(' ');
        child.WaitForExit();
        if (child.ExitCode != 0 || answer.Length != 2) throw new InvalidOperationException($"The measurement of {op} at length {length} ended with code {child.ExitCode}.");
        return (double.Parse(answer[0], CultureInfo.InvariantCulture), double.Parse(answer[1], CultureInfo.InvariantCulture));
    }

    private static (double Ms, double Bytes) Measure(MeasuredOperator op, OperatorShape shape, Device device, ScalarType type, int repeats, MemoryMeter meter)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var inputs = op.Inputs(shape).Prepared(device, type);
        Tensor upstream;
        using (no_grad()) upstream = randn_like(op.Run(inputs));
        var asked = inputs.Values.Where(input => input.requires_grad).ToList();
        void Step() => autograd.grad([op.Run(inputs)], asked, [upstream]);
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
        return 1024 * double.Parse(line.AsSpan(6, line.Length - 9), CultureInfo.InvariantCulture);
    }

    [DllImport("libcuda.so.1")]
    private static extern int cuMemGetInfo_v2(out nuint free, out nuint total);
}
