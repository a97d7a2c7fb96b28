using MLSeq.Native;
using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Ops;

/// <summary>The CPU kernels give what the naive forms give, on every instruction set of this processor: outputs, final state and all gradients.</summary>
public sealed class FusedCpuTests
{
    private const double Tolerance = 2e-5;

    private static readonly (int Time, int Heads, int Keys, int Values)[] Sizes = [(1, 1, 1, 1), (2, 3, 8, 12), (37, 2, 16, 16), (63, 1, 64, 64), (100, 3, 33, 70), (129, 1, 96, 20), (500, 2, 8, 12)];

    public static TheoryData<string> Recurrences() => ["none", "constant", "scalar", "vector", "delta", "gated delta", "scan", "convolution"];

    public static TheoryData<string> Sets() => [.. CpuKernels.Supported];

    // The operator's fused and naive forms.
    private static (OperatorCheck.Form Fused, OperatorCheck.Form Naive) Forms(string op, Tensor? constant = null)
    {
        static (Tensor, Tensor) Both(Tensor[] outputs) => (outputs[0], outputs[1]);
        return op switch
        {
            "convolution" => (x => (FusedCpuConvolution.Run(x["x"], x["w"], x.GetValueOrDefault("h0")), x["w"]), x => (CausalConvolution.Naive(x["x"], x["w"], x.GetValueOrDefault("h0")).Output, x["w"])),
            "scan" => (x => Both(FusedCpuSelectiveScan.Run(x["x"], x["delta"], x["A"], x["B"], x["C"], x.GetValueOrDefault("h0"), true)),
                x => SelectiveScan.Naive(x["x"], x["delta"], x["A"], x["B"], x["C"], x.GetValueOrDefault("h0"))),
            "delta" or "gated delta" => (x => Both(FusedCpuDeltaRecurrence.Run(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g"), x.GetValueOrDefault("h0"), true)),
                x => DeltaRecurrence.Naive(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g"), x.GetValueOrDefault("h0"))),
            _ => (x => Both(FusedCpuLinearRecurrence.Run(x["q"], x["k"], x["v"], constant ?? x.GetValueOrDefault("g"), x.GetValueOrDefault("h0"))),
                x => GatedLinearRecurrence.Naive(x["q"], x["k"], x["v"], constant?.to(x["q"].dtype) ?? x.GetValueOrDefault("g"), x.GetValueOrDefault("h0"))),
        };
    }

    private static Dictionary<string, Tensor> Inputs(string op, int time, int heads, int keys, int values, bool initial = true)
    {
        manual_seed(time + keys);
        const int batch = 2;
        var inputs = new Dictionary<string, Tensor>();
        if (op == "convolution")
        {
            inputs["x"] = randn(batch, time, values);
            inputs["w"] = randn(Math.Clamp(keys, 2, 5), values);
            if (initial) inputs["h0"] = randn(batch, inputs["w"].shape[0] - 1, values);
            return inputs;
        }
        if (op == "scan")
        {
            inputs["x"] = randn(batch, time, values);
            inputs["delta"] = nn.functional.softplus(randn(batch, time, values) - 1);
            inputs["A"] = -randn(values, keys).exp();
            inputs["B"] = randn(batch, time, keys);
            inputs["C"] = randn(batch, time, keys);
            if (initial) inputs["h0"] = randn(batch, values, keys);
            return inputs;
        }
        inputs["q"] = randn(batch, time, heads, keys) / Math.Sqrt(keys);
        inputs["k"] = nn.functional.normalize(randn(batch, time, heads, keys), dim: -1);
        inputs["v"] = randn(batch, time, heads, values);
        if (initial) inputs["h0"] = randn(batch, heads, keys, values);
        if (op.EndsWith("delta", StringComparison.Ordinal)) inputs["beta"] = rand(batch, time, heads);
        if (op is "scalar" or "gated delta") inputs["g"] = nn.functional.logsigmoid(randn(batch, time, heads) * 2 + 2);
        if (op == "vector") inputs["g"] = nn.functional.logsigmoid(randn(batch, time, heads, keys) * 2 + 2);
        return inputs;
    }

    // On every instruction set, with one thread and with two.
    private static void Check((OperatorCheck.Form Fused, OperatorCheck.Form Naive) forms, Dictionary<string, Tensor> inputs, bool throughState = true)
    {
        var expected = OperatorCheck.Evaluate(forms.Naive, inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float64)), throughState: throughState);
        foreach (var set in CpuKernels.Supported)
            foreach (var threads in (int[])[1, 2])
                OperatorCheck.Same(expected, With(set, threads, () => OperatorCheck.Evaluate(forms.Fused, inputs, throughState: throughState)), Tolerance);
    }

    // Runs with an instruction set and a number of threads.
    private static void With(string set, int threads, Action work) => With(set, threads, () =>
    {
        work();
        return true;
    });

    private static T With<T>(string set, int threads, Func<T> work)
    {
        var (choice, before) = (CpuKernels.Choice, get_num_threads());
        try
        {
            CpuKernels.Choice = set;
            set_num_threads(threads);
            return work();
        }
        finally
        {
            CpuKernels.Choice = choice;
            set_num_threads(before);
        }
    }

    [CpuKernelsTheory, MemberData(nameof(Recurrences)), NoTensorLeaks]
    public void Fused_equals_naive(string op)
    {
        foreach (var (time, heads, keys, values) in Sizes)
        {
            using var scope = NewDisposeScope();
            var constant = op == "constant" ? log1p(-pow(2.0, -2 - arange(heads, dtype: float32))) : null;
            Check(Forms(op, constant), Inputs(op, time, heads, keys, values));
            if (time < 100) Check(Forms(op, constant), Inputs(op, time, heads, keys, values, initial: false), throughState: false);
        }
    }

    [CpuKernelsFact, NoTensorLeaks]
    public void Gates_of_zero_and_one_are_safe()
    {
        using var scope = NewDisposeScope();
        foreach (var op in (string[])["scalar", "vector", "gated delta"])
        {
            var inputs = Inputs(op, 90, 2, 16, 24);
            var draw = rand(inputs["g"].shape);
            inputs["g"] = where(draw < 0.2, double.NegativeInfinity, where(draw < 0.5, zeros_like(draw), inputs["g"])).to(float32);
            inputs["g"][0] = double.NegativeInfinity; // a row that forgets everything at every step
            Check(Forms(op), inputs);
        }
        foreach (var strength in (double[])[0, 1e-3, 50])
        {
            var inputs = Inputs("scan", 90, 1, 16, 24);
            inputs["delta"] = inputs["delta"] * strength;
            Check(Forms("scan"), inputs);
        }
    }

    [CpuKernelsFact, NoTensorLeaks]
    public void Tensors_may_be_views()
    {
        using var scope = NewDisposeScope();
        foreach (var op in (string[])["scalar", "vector", "gated delta"])
        {
            var inputs = Inputs(op, 45, 3, 16, 24);
            // q, k, v out of one projection, one key for all heads, time before batch
            Dictionary<string, Tensor> Views(IReadOnlyDictionary<string, Tensor> x)
            {
                var (q, k, v) = (x["q"], x["k"], x["v"]);
                var all = cat([q.flatten(2), k.flatten(2), v.flatten(2)], -1).transpose(0, 1).contiguous().transpose(0, 1);
                var views = new Dictionary<string, Tensor>(x)
                {
                    ["q"] = all.narrow(2, 0, 48).unflatten(2, 3, 16), ["k"] = all.narrow(2, 48, 16).unsqueeze(2).expand(-1, -1, 3, -1), ["v"] = all.narrow(2, 96, 72).unflatten(2, 3, 24),
                };
                if (x.TryGetValue("beta", out var beta)) views["beta"] = beta.transpose(0, 2).contiguous().transpose(0, 2);
                return views;
            }
            var (fused, naive) = Forms(op);
            Check((x => fused(Views(x)), x => naive(Views(x))), inputs);
        }
        var scan = Forms("scan");
        static Dictionary<string, Tensor> Parts(IReadOnlyDictionary<string, Tensor> x)
        {
            var maps = cat([x["B"], x["C"]], -1);
            return new(x) { ["B"] = maps.narrow(2, 0, 8), ["C"] = maps.narrow(2, 8, 8), ["x"] = x["x"].transpose(1, 2).contiguous().transpose(1, 2) };
        }
        Check((x => scan.Fused(Parts(x)), x => scan.Naive(Parts(x))), Inputs("scan", 45, 1, 8, 24));
    }

    [CpuKernelsTheory, MemberData(nameof(Sets)), NoTensorLeaks]
    public void Pieces_batches_and_threads_change_no_bit(string set)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        foreach (var op in (string[])["none", "scalar", "vector", "gated delta", "scan"])
        {
            var inputs = Inputs(op, 61, 2, 16, 40);
            var fused = Forms(op).Fused;
            var whole = With(set, 2, () => fused(inputs));
            var row = With(set, 1, () => fused(inputs.ToDictionary(pair => pair.Key, pair => pair.Key is "A" ? pair.Value : pair.Value.narrow(0, 1, 1))));
            var pieces = With(set, 1, () =>
            {
                var (outputs, state) = (new List<Tensor>(), inputs["h0"]);
                foreach (var (from, count) in ((int, int)[])[(0, 1), (1, 1), (2, 30), (32, 7), (39, 22)])
                {
                    var (output, next) = fused(inputs.ToDictionary(pair => pair.Key, pair => pair.Key is "A" ? pair.Value : pair.Key is "h0" ? state : pair.Value.narrow(1, from, count)));
                    outputs.Add(output);
                    state = next;
                }
                return (Output: cat(outputs, 1), State: state);
            });
            Assert.True(SameBits(whole.Output, pieces.Output) && SameBits(whole.FinalState, pieces.State), $"{op}: pieces");
            Assert.True(SameBits(whole.Output.narrow(0, 1, 1), row.Output) && SameBits(whole.FinalState.narrow(0, 1, 1), row.FinalState), $"{op}: a row alone");
        }
    }

    private static bool SameBits(Tensor a, Tensor b) => a.contiguous().bytes.SequenceEqual(b.contiguous().bytes);

    [CpuKernelsFact]
    public void They_are_chosen_where_they_serve()
    {
        using var scope = NewDisposeScope();
        Assert.True(CpuKernels.CanRunOn(zeros(1), null));
        Assert.False(CpuKernels.CanRunOn(zeros(1), zeros(1, dtype: float64)));
        Assert.False(CpuKernels.CanRunOn(zeros(1, dtype: bfloat16)));
        Assert.Contains($"CPU: {CpuKernels.InstructionSet}", MLSeqRuntime.Diagnose().Kernels);
    }

    [Fact, NoTensorLeaks]
    public void Without_the_library_the_chunked_form_computes()
    {
        using var scope = NewDisposeScope();
        var x = Inputs("scalar", 70, 2, 8, 8);
        With("off", 1, () =>
        {
            Assert.False(CpuKernels.IsAvailable);
            Assert.Contains("MLSEQ_CPU_KERNELS is off", MLSeqRuntime.Diagnose().ToString());
            var (output, _) = GatedLinearRecurrence.Run(x["q"], x["k"], x["v"], x["g"]);
            Assert.True(SameBits(output, GatedLinearRecurrence.Chunked(x["q"], x["k"], x["v"], x["g"]).Output));
        });
        With("sse9", 1, () => Assert.Contains("'sse9'", CpuKernels.Reason));

        using var folder = new TemporaryFolder();
        Assert.Contains("is not beside the application", CpuKernels.Load([folder.Path]).Reason);
        File.WriteAllText(folder.File(LibTorchLoader.FileName("mlseq_cpu")), "not a library");
        Assert.Contains("cannot be loaded", CpuKernels.Load([folder.Path]).Reason);
    }
}

/// <summary>A test that needs the CPU kernels; skipped, and said why, where the build has none.</summary>
public sealed class CpuKernelsFactAttribute : FactAttribute
{
    public CpuKernelsFactAttribute() => Skip = CpuKernels.Reason;
}

/// <summary>Likewise, with data.</summary>
public sealed class CpuKernelsTheoryAttribute : TheoryAttribute
{
    public CpuKernelsTheoryAttribute() => Skip = CpuKernels.Reason;
}
