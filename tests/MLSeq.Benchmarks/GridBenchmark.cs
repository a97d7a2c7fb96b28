using MLSeq.Examples;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Benchmarks;

/// <summary>
/// Whether the form that runs on a device is the specification: outputs, final states and all gradients (through both) against the naive form in float64 on the CPU, over odd lengths and sizes, and whether
/// many runs of the same inputs are the same to the bit, as they are without races.
/// </summary>
internal static class GridBenchmark
{
    private delegate (Tensor Output, Tensor State) Form(IReadOnlyDictionary<string, Tensor> inputs, bool naive);

    private sealed record Case(string Name, Func<long, long, long, Dictionary<string, Tensor>> Inputs, Form Form, string[] Constants);

    private const int B = 2, H = 3;

    private static readonly (long Time, long Keys, long Values)[] Sizes = [(1, 16, 16), (17, 32, 48), (63, 64, 64), (65, 64, 32), (130, 128, 128), (300, 64, 64), (301, 16, 128), (521, 32, 32), (400, 128, 64), (200, 256, 64), (100, 40, 24), (50, 20, 12)];

    private static IEnumerable<Case> Cases()
    {
        static Tensor Gate(params long[] shape)
        {
            var draw = rand(shape);
            return where(draw < 0.05, double.NegativeInfinity, where(draw < 0.1, zeros(shape), nn.functional.logsigmoid(randn(shape) * 2 + 2))); // some forget all, some nothing
        }
        static Dictionary<string, Tensor> Heads(long time, long keys, long values) => new()
        {
            ["q"] = randn(B, time, H, keys) / Math.Sqrt(keys), ["k"] = randn(B, time, H, keys) / Math.Sqrt(keys), ["v"] = randn(B, time, H, values), ["h0"] = randn(B, H, keys, values) / Math.Sqrt(keys),
        };
        Case Linear(string name, Func<long, long, Tensor?> gate) => new(name, (time, keys, values) =>
        {
            var inputs = Heads(time, keys, values);
            if (gate(time, keys) is { } g) inputs["g"] = g;
            return inputs;
        }, (x, naive) => naive
            ? GatedLinearRecurrence.Naive(x["q"], x["k"], x["v"], x.GetValueOrDefault("g"), x["h0"])
            : GatedLinearRecurrence.Run(x["q"], x["k"], x["v"], x.GetValueOrDefault("g"), x["h0"]), name == "retention" ? ["g"] : []);
        yield return Linear("linear", (_, _) => null);
        yield return Linear("retention", (_, _) => log1p(-pow(2.0, -5 - arange(H, dtype: float32))));
        yield return Linear("scalar_gate", (time, _) => Gate(B, time, H));
        yield return Linear("vector_gate", (time, keys) => Gate(B, time, H, keys));
        foreach (var gated in (bool[])[false, true])
            yield return new(gated ? "gated_delta" : "delta", (time, keys, values) =>
            {
                var inputs = Heads(time, keys, values);
                inputs["k"] = nn.functional.normalize(inputs["k"], dim: -1);
                inputs["beta"] = rand(B, time, H);
                if (gated) inputs["g"] = Gate(B, time, H);
                return inputs;
            }, (x, naive) => naive
                ? DeltaRecurrence.Naive(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g"), x["h0"])
                : DeltaRecurrence.Run(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g"), x["h0"]), []);
        yield return new("ssd", (time, keys, values) => new()
        {
            ["B"] = randn(B, time, keys) / Math.Sqrt(keys), ["C"] = randn(B, time, keys) / Math.Sqrt(keys), ["x"] = randn(B, time, H, values), ["g"] = Gate(B, time, H), ["h0"] = randn(B, H, keys, values) / Math.Sqrt(keys),
        }, (x, naive) =>
        {
            Tensor Shared(string name) => x[name].unsqueeze(2).expand(-1, -1, H, -1);
            return naive ? GatedLinearRecurrence.Naive(Shared("C"), Shared("B"), x["x"], x["g"], x["h0"]) : GatedLinearRecurrence.Run(Shared("C"), Shared("B"), x["x"], x["g"], x["h0"]);
        }, []);
        yield return new("scan", (time, states, channels) => new()
        {
            ["x"] = randn(B, time, channels), ["delta"] = nn.functional.softplus(randn(B, time, channels) - 2), ["A"] = -randn(channels, states / 4).exp(), ["B"] = randn(B, time, states / 4), ["C"] = randn(B, time, states / 4),
            ["h0"] = randn(B, channels, states / 4),
        }, (x, naive) => naive ? SelectiveScan.Naive(x["x"], x["delta"], x["A"], x["B"], x["C"], x["h0"]) : SelectiveScan.Run(x["x"], x["delta"], x["A"], x["B"], x["C"], x["h0"]), []);
        yield return new("conv", (time, _, channels) => new()
        {
            ["x"] = randn(B, time, channels), ["w"] = randn(4, channels) / 2, ["past"] = randn(B, 3, channels),
        }, (x, naive) => naive ? CausalConvolution.Naive(x["x"], x["w"], x["past"]) : CausalConvolution.Run(x["x"], x["w"], x["past"]), []);
    }

    public static void Run(CommandLine command)
    {
        MLSeqRuntime.EnsureLoaded();
        MLSeqRuntime.Operators = command.Form();
        var quick = command.Has("--quick");
        var device = command.Device();
        var repeats = (int)command.Get("--repeats", quick ? 3 : 1000);
        var wanted = command.Get("--operators", "");
        var types = device.type == DeviceType.CUDA ? new[] { bfloat16, float16, float32 } : [float32];
        set_num_threads(1); // the specification works on small tensors
        var sizes = quick ? Sizes[..4] : Sizes;
        foreach (var test in Cases().Where(test => wanted.Length == 0 || wanted.Split(',').Contains(test.Name)))
        {
            var worst = types.ToDictionary(type => type, _ => (Error: 0.0, Where: ""));
            var differing = types.ToDictionary(type => type, _ => 0);
            foreach (var (time, keys, values) in sizes)
            {
                using var scope = NewDisposeScope();
                manual_seed(time);
                var inputs = test.Inputs(time, keys, values).ToDictionary(pair => pair.Key, pair => IsFloat32(pair.Key) ? pair.Value : pair.Value.to(bfloat16));
                var expected = Evaluate(test, inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float64)), naive: true);
                foreach (var type in types)
                {
                    var onDevice = inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(IsFloat32(pair.Key) ? float32 : type).to(device));
                    var got = Evaluate(test, onDevice, naive: false);
                    foreach (var (name, value) in expected)
                    {
                        var error = ((got[name].cpu().to(float64) - value).norm() / value.norm().clamp_min(1e-6)).item<double>();
                        if (!(error <= worst[type].Error)) worst[type] = (error, $"{name}@T{time}K{keys}V{values}");
                    }
                    if (time != (quick ? sizes[^1].Time : Repeated)) continue;
                    for (var run = 0; run < repeats; run++)
                    {
                        using var runScope = NewDisposeScope();
                        var again = Evaluate(test, onDevice, naive: false);
                        if (!got.All(pair => pair.Value.equal(again[pair.Key]).all().item<bool>())) differing[type]++;
                    }
                }
            }
            foreach (var type in types)
            {
                var bound = type == float32 ? 1e-4 : 1e-2;
                Console.WriteLine(FormattableString.Invariant($"RESULT op={test.Name} type={type} device={device.type} cases={sizes.Length} worst_error={worst[type].Error:E1} at={worst[type].Where} within={(worst[type].Error <= bound ? "true" : "false")} bound={bound:E0} repeats={repeats} differing={differing[type]}"));
            }
        }
    }

    private const int Repeated = 301;

    private static bool IsFloat32(string input) => input is "g" or "A" or "h0"; // others are numbers that every type has

    // Output, final state, and the gradient of every input for upstream gradients of both.
    private static Dictionary<string, Tensor> Evaluate(Case test, Dictionary<string, Tensor> inputs, bool naive)
    {
        var leaves = inputs.ToDictionary(pair => pair.Key, pair => pair.Value.detach().requires_grad_(!test.Constants.Contains(pair.Key)));
        var (output, state) = test.Form(leaves, naive);
        var device = output.device;
        // Upstream gradients that every type holds exactly.
        Tensor Upstream(Tensor x) => ((arange(x.numel(), device: device) * 7 % 13 - 6) / 4).view(x.shape).to(x.dtype);
        var asked = leaves.Where(pair => pair.Value.requires_grad).ToList();
        var gradients = autograd.grad([output, state], [.. asked.Select(pair => pair.Value)], [Upstream(output), Upstream(state)]);
        var all = new Dictionary<string, Tensor> { ["o"] = output.detach(), ["state"] = state.detach() };
        foreach (var ((name, _), gradient) in asked.Zip(gradients)) all["d" + name] = gradient;
        return all;
    }
}
