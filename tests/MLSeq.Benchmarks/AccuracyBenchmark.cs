namespace MLSeq.Benchmarks;

internal static class AccuracyBenchmark
{
    public static void Run(MLSeq.Examples.CommandLine command) => _ = command;
}
