using System.Diagnostics;
using MLSeq.Examples;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Benchmarks;

/// <summary>The operators' fused form on a CPU beside the chunked and the naive one: the forms take turns, a ratio is the median of the rounds' ratios.</summary>
internal static class CpuBenchmark
{
    private static readonly string[] Names = ["linear", "scalar_gate", "vector_gate", "delta", "gated_delta", "scan"];

    public static void Run(CommandLine command)
    {
        MLSeqRuntime.EnsureLoaded();
        var quick = command.Has("--quick");
        var rounds = (int)command.Get("--repeats", quick ? 3 : 15);
        var shape = quick ? new OperatorShape("B2_T256_H2_D32", 2, 256, 2, 32) : new OperatorShape("B8_T1024_H4_D64", 8, 1024, 4, 64);
        var wanted = command.Get("--operators", string.Join(',', Names)).Split(',');
        if (command.Get("--threads", 0) is > 0 and var threads) set_num_threads((int)threads);
        Console.WriteLine($"{shape.Name}, float32, {get_num_threads()} threads, CPU kernels: {CpuKernels.Status}\n");
        if (!CpuKernels.IsAvailable) throw new InvalidOperationException("There is nothing to measure without the kernels.");
        var results = new List<Result>();
        foreach (var op in OperatorSuite.All().Where(op => wanted.Contains(op.Name)))
            foreach (var backward in (bool[])[true, false])
            {
                results.Add(Measure(op, shape, rounds, backward));
                Console.WriteLine(results[^1]);
            }
        Console.WriteLine();
        results.ForEach(Console.WriteLine);
        var both = results.Where(result => result.Pass == "fwdbwd").ToList();
        Console.WriteLine(FormattableString.Invariant($"RESULT smallest_of={both.Count} pass=fwdbwd ratio_chunked_over_fused={both.Min(result => result.ToChunked):F2} ratio_naive_over_fused={both.Min(result => result.ToNaive):F2}"));
    }

    private static Result Measure(MeasuredOperator op, OperatorShape shape, int rounds, bool backward)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var inputs = op.Inputs(shape).Prepared(CPU, float32);
        Tensor upstream;
        using (no_grad()) upstream = randn_like(op.Run(inputs));
        double Time(OperatorForm form)
        {
            using var step = NewDisposeScope();
            MLSeqRuntime.Operators = form;
            var clock = Stopwatch.StartNew();
            if (backward) op.Run(inputs).backward([upstream]);
            else
                using (no_grad()) op.Run(inputs);
            var time = clock.Elapsed.TotalMilliseconds;
            OperatorSuite.Clear(inputs);
            return time;
        }
        static double Median(IEnumerable<double> values) => values.Order().ElementAt(values.Count() / 2);
        (double Fused, double Other, double Ratio) Compare(OperatorForm other, int rounds)
        {
            var times = new List<(double Fused, double Other)>();
            for (var i = -1; i < rounds; i++) // the first warms up
            {
                var pair = (Time(OperatorForm.Fused), Time(other));
                if (i >= 0) times.Add(pair);
            }
            return (Median(times.Select(pair => pair.Fused)), Median(times.Select(pair => pair.Other)), Median(times.Select(pair => pair.Other / pair.Fused)));
        }
        var chunked = Compare(OperatorForm.Chunked, rounds);
        var naive = Compare(OperatorForm.Naive, Math.Min(rounds, 3)); // it takes seconds
        MLSeqRuntime.Operators = OperatorForm.Auto;
        return new Result(op.Name, backward ? "fwdbwd" : "fwd", chunked.Fused, chunked.Other, naive.Other, chunked.Ratio, naive.Ratio);
    }

    private sealed record Result(string Operator, string Pass, double Fused, double Chunked, double Naive, double ToChunked, double ToNaive)
    {
        public override string ToString() => FormattableString.Invariant(
            $"RESULT op={Operator} pass={Pass} ratio_chunked_over_fused={ToChunked:F2} ratio_naive_over_fused={ToNaive:F2} fused_ms={Fused:F2} chunked_ms={Chunked:F2} naive_ms={Naive:F2}");
    }
}
