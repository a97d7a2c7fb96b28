// The project's measurements, one command each; every one ends with RESULT lines.
using MLSeq.Benchmarks;
using MLSeq.Examples;

const string Usage = """
    usage: MLSeq.Benchmarks steps     [--device cpu|cuda] [--precision float32|bfloat16] [--backbones a,b] [--batch N] [--time N] [--form auto|chunked|fused|naive] [--out FILE] [--quick]
                                      ms per training step of a 4-block byte classifier (width 512), as in docs/performance.md
           MLSeq.Benchmarks operators [--device cpu|cuda] [--precision float32|bfloat16] [--operators a,b] [--form auto|chunked|fused|naive] [--repeats N] [--out FILE] [--quick]
                                      the recurrences beside the best alternatives' times on one H200
           MLSeq.Benchmarks grid      [--device cpu|cuda] [--operators a,b] [--form ...] [--repeats N] [--quick]
                                      the recurrences against the naive form in float64 over odd sizes; repeated runs must be the same to the bit
           MLSeq.Benchmarks cpu       [--operators a,b] [--threads N] [--repeats N] [--quick]
                                      the fused forms beside the chunked and the naive ones on this CPU, float32
           MLSeq.Benchmarks growth    [--device cpu|cuda] [--precision float32|bfloat16] [--operators a,b] [--only LENGTH] [--form ...] [--quick]
                                      how their time and memory grow with the length
           MLSeq.Benchmarks vision    [--device cpu|cuda] [--fed resident|memory|files] [--models a,b] [--batch N] [--image-size N] [--steps N] [--epochs N] [--quick]
                                      training throughput through Fit at 224 x 224, batch 128
           MLSeq.Benchmarks kernels   whether CUDA kernels work here, and what compiling, loading and launching one costs
           MLSeq.Benchmarks overhead  [--quick]   training through ML.NET against the same loop on ready tensors
           MLSeq.Benchmarks latency   [--backbones a,b] [--quick]
                                      one element of a stream and one row of a PredictionEngine, on the CPU
           MLSeq.Benchmarks soak      [--quick]   a million predictions: memory and live tensors
           MLSeq.Benchmarks accuracy  [--only dna|vowels|sms|ag-news-10k] [--ag-news FOLDER] [--backbones a,b] [--out FILE] [--quick]
                                      the examples beside ML.NET's own trainers; FOLDER holds train.csv and test.csv with label,text
    """;
var command = new CommandLine(args, Usage);

switch (args.FirstOrDefault())
{
    case "steps" or "step": StepBenchmark.Run(command); break;
    case "operators": OperatorBenchmark.Run(command); break;
    case "grid": GridBenchmark.Run(command); break;
    case "cpu": CpuBenchmark.Run(command); break;
    case "growth": GrowthBenchmark.Run(command); break;
    case "vision": VisionBenchmark.Run(command); break;
    case "kernels": KernelBenchmark.Run(); break;
    case "overhead": OverheadBenchmark.Run(command); break;
    case "latency": LatencyBenchmark.Run(command); break;
    case "soak": SoakBenchmark.Run(command); break;
    case "accuracy": AccuracyBenchmark.Run(command); break;
    default:
        _ = new CommandLine(["--help"], Usage);
        break;
}
