using System.Diagnostics;
using System.Globalization;
using System.Text;
using MLSeq.Examples;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Benchmarks;

/// <summary>
/// One training step: bytes → embedding → 4 pre-norm blocks (mixer and SwiGLU 1408) → mean pool → 4 classes; width 512, 8 heads, AdamW, clipping.
/// </summary>
internal static class StepBenchmark
{
    // Milliseconds in PyTorch 2.11 on one H200, eager, bf16 autocast, fused AdamW; flash-linear-attention and mamba-ssm for the mixers, SDPA for attention.
    private static readonly Dictionary<string, double> Reference = new()
    {
        ["transformer"] = 25.8, ["linearattention"] = 31.0, ["retnet"] = 32.6, ["gatedretention"] = 32.6, ["deltanet"] = 42.9, ["gateddeltanet"] = 42.9, ["mamba2"] = 39.1, ["lstm"] = 92, ["gru"] = 116,
    };

    public static void Run(CommandLine command)
    {
        MLSeqRuntime.EnsureLoaded();
        MLSeqRuntime.Operators = command.Form();
        var table = new StringBuilder("| backbone | ms per step | fastest | PyTorch | ratio | error of the logits |\n|---|---|---|---|---|---|\n");
        var quick = command.Has("--quick");
        var device = command.Device();
        var precision = command.Precision(device);
        int batch = (int)command.Get("--batch", quick ? 2 : 64), time = (int)command.Get("--time", quick ? 64 : 1024), width = quick ? 64 : 512;
        foreach (var name in command.Get("--backbones", string.Join(',', Backbone.Names)).Split(','))
        {
            // The reference's model: a mixer of 8 heads and an MLP in every block.
            var backbone = Backbone.Create(name, width, 4) with { Dropout = 0, MlpRatio = 8.0 / 3 } switch
            {
                TransformerBackbone transformer => transformer with { Heads = 8, Bidirectional = true },
                MultiHeadBackbone heads => heads with { Heads = 8 },
                MambaBackbone mamba => mamba with { Expansion = 1 },
                Mamba2Backbone mamba2 => mamba2 with { Expansion = 1, HeadSize = width / 8, States = 128 },
                HybridBackbone hybrid => hybrid with { Recurrent = ((MultiHeadBackbone)hybrid.Recurrent) with { Heads = 8 }, Attention = ((MultiHeadBackbone)hybrid.Attention) with { Heads = 8 } },
                var other => other,
            };
            var (median, fastest, error) = Measure(backbone, batch, time, precision, device, repeats: quick ? 2 : 20);
            var reference = !quick && device.type == DeviceType.CUDA ? Reference.GetValueOrDefault(name) : 0;
            table.AppendLine(CultureInfo.InvariantCulture, $"| {name} | {median:F1} | {fastest:F1} | {(reference > 0 ? $"{reference:F1}" : "–")} | {(reference > 0 ? $"{median / reference:F2}" : "–")} | {error:E0} |");
        }
        Console.WriteLine($"\n{table}");
        if (command.Get("--out", "") is { Length: > 0 } file) File.WriteAllText(file, table.ToString());
    }

    private static (double Median, double Fastest, double Error) Measure(Backbone backbone, int batch, int time, ScalarType precision, Device device, int repeats)
    {
        using var outer = NewDisposeScope();
        manual_seed(1);
        var spec = new SequenceClassifierSpec(backbone, new ElementKind.Tokens(257), SequencePooling.Mean, Classes: 4);
        var bytes = randint(1, 257, [batch, time], device: device, dtype: int64);
        var labels = randint(0, 4, [batch], device: device, dtype: int64);
        using var network = new SequenceClassifier(spec);
        var error = RelativeError(network, spec, bytes.narrow(0, 0, Math.Min(2, batch)).narrow(1, 0, Math.Min(256, time)), precision, device);
        using var parameters = new FlatParameters(network, precision, device);
        using var optimizer = new AdamW(parameters, weightDecay: 0.01, clipping: 1);
        network.train();
        long step = 0;
        double Step()
        {
            var clock = Stopwatch.StartNew();
            using (NewDisposeScope())
            {
                var loss = nn.functional.cross_entropy(network.call(new SequenceBatch(bytes, null), null), labels);
                OperatorFailure.Backward(loss);
                optimizer.Step(++step, 1e-4, 1);
            }
            if (device.type == DeviceType.CUDA) cuda.synchronize();
            return clock.Elapsed.TotalMilliseconds;
        }
        for (var i = 0; i < 5; i++) Step();
        var times = Enumerable.Range(0, repeats).Select(_ => Step()).Order().ToArray();
        Console.WriteLine($"RESULT benchmark=step backbone={backbone.Name} device={device} precision={precision} batch={batch} time={time} width={backbone.Width} " +
            $"parameters={network.parameters().Sum(parameter => parameter.numel())} ms_per_step={times[repeats / 2]:F2} fastest_ms={times[0]:F2} forward_error={error:E1}");
        return (times[repeats / 2], times[0], error);
    }

    /// <summary>Largest difference to the float64 logits of the same weights on the CPU, relative to the largest logit.</summary>
    private static double RelativeError(SequenceClassifier network, SequenceClassifierSpec spec, Tensor bytes, ScalarType precision, Device device)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        SequenceClassifier Copy(ScalarType type, Device where)
        {
            var copy = new SequenceClassifier(spec);
            foreach (var ((_, to), (_, from)) in copy.named_parameters().Zip(network.named_parameters())) to.copy_(from);
            copy.to(type);
            copy.MoveTo(where);
            return copy;
        }
        using var reference = Copy(float64, CPU);
        using var measured = Copy(precision, device);
        var expected = reference.call(new SequenceBatch(bytes.cpu(), null), null).to(float64);
        var got = measured.call(new SequenceBatch(bytes, null), null).cpu().to(float64);
        return ((got - expected).abs().max() / expected.abs().max()).item<double>();
    }
}
