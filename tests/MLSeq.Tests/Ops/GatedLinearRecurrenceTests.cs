using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Ops;

/// <summary>The chunked form is the naive one: outputs, final state and all gradients.</summary>
public sealed class GatedLinearRecurrenceTests
{
    private const int B = 2, H = 3, K = 8, V = 12;

    public static TheoryData<string, int, int> Grid()
    {
        var data = new TheoryData<string, int, int>();
        foreach (var gate in (string[])["none", "constant", "scalar", "vector"])
            foreach (var (time, chunk) in ((int, int)[])[(1, 64), (2, 1), (37, 16), (63, 64), (64, 64), (65, 64), (500, 64), (500, 5), (300, 1)])
                data.Add(gate, time, chunk);
        return data;
    }

    private static Dictionary<string, Tensor> Inputs(string gate, int time, double strength = 1, bool initial = true, int seed = 1)
    {
        manual_seed(seed);
        var inputs = new Dictionary<string, Tensor>
        {
            ["q"] = randn(B, time, H, K, dtype: float64), ["k"] = randn(B, time, H, K, dtype: float64) / Math.Sqrt(K), ["v"] = randn(B, time, H, V, dtype: float64),
        };
        if (initial) inputs["h0"] = randn(B, H, K, V, dtype: float64);
        var shape = gate switch { "constant" => [H], "scalar" => [B, time, H], "vector" => [B, time, H, K], _ => Array.Empty<long>() };
        if (gate != "none") inputs["g"] = nn.functional.logsigmoid(randn(shape, float64) * 2 + 2) * strength;
        return inputs;
    }

    private static Dictionary<string, Tensor> Without(Dictionary<string, Tensor> inputs, string name) => inputs.Where(pair => pair.Key != name).ToDictionary();

    // A constant decay has no gradient: it is passed around the differentiation.
    private static (OperatorCheck.Form Naive, OperatorCheck.Form Chunked, Dictionary<string, Tensor> Inputs) Forms(string gate, Dictionary<string, Tensor> inputs, int chunk)
    {
        var constant = gate == "constant" ? inputs["g"] : null;
        Tensor? G(IReadOnlyDictionary<string, Tensor> x) => constant?.to(x["q"].dtype) ?? x.GetValueOrDefault("g");
        return (x => GatedLinearRecurrence.Naive(x["q"], x["k"], x["v"], G(x), x.GetValueOrDefault("h0")),
            x => GatedLinearRecurrence.Chunked(x["q"], x["k"], x["v"], G(x), x.GetValueOrDefault("h0"), chunk),
            constant is null ? inputs : Without(inputs, "g"));
    }

    [Theory, MemberData(nameof(Grid)), NoTensorLeaks]
    public void Chunked_equals_naive(string gate, int time, int chunk)
    {
        using var scope = NewDisposeScope();
        var (naive, chunked, inputs) = Forms(gate, Inputs(gate, time), chunk);
        var expected = OperatorCheck.Evaluate(naive, inputs);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(chunked, inputs), 1e-9);
        var single = inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float32));
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(chunked, single), 1e-4);
        if (time > 100) return;
        var half = inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(pair.Key is "g" or "h0" ? float32 : bfloat16));
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(chunked, half), 4e-2);
    }

    [Theory]
    [InlineData("scalar"), InlineData("vector"), NoTensorLeaks]
    public void Gates_of_zero_and_one_are_safe(string gate)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(gate, 150);
        manual_seed(3);
        var draw = rand(inputs["g"].shape, float64);
        inputs["g"] = where(draw < 0.2, double.NegativeInfinity, where(draw < 0.5, zeros_like(draw), inputs["g"]));
        inputs["g"][0] = double.NegativeInfinity; // a row that forgets everything at every step
        inputs["g"][1, TensorIndex.Slice(20, 60)] = 0;
        var (naive, chunked, _) = Forms(gate, inputs, 64);
        var expected = OperatorCheck.Evaluate(naive, inputs);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(chunked, inputs), 1e-9);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(chunked, inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float32))), 1e-4);
    }

    [Theory]
    [InlineData("scalar"), InlineData("vector"), NoTensorLeaks]
    public void Strong_decay_stays_exact_in_float32(string gate)
    {
        using var scope = NewDisposeScope();
        var (naive, chunked, inputs) = Forms(gate, Inputs(gate, 500, strength: 8), 64);
        OperatorCheck.Same(OperatorCheck.Evaluate(naive, inputs), OperatorCheck.Evaluate(chunked, inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float32))), 1e-4);
    }

    [Theory]
    [InlineData("none"), InlineData("constant"), InlineData("scalar"), InlineData("vector"), NoTensorLeaks]
    public void Gradients_match_finite_differences(string gate)
    {
        using var scope = NewDisposeScope();
        var (_, chunked, inputs) = Forms(gate, Inputs(gate, 19), 8);
        OperatorCheck.MatchesFiniteDifferences(chunked, inputs);
    }

    [Theory]
    [InlineData("none"), InlineData("constant"), InlineData("scalar"), InlineData("vector"), NoTensorLeaks]
    public void Padding_neither_writes_nor_fades(string gate)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var x = Inputs(gate, 40);
        long[] lengths = [40, 13];
        var padding = new SequencePadding(tensor(lengths), 40);
        var (output, state) = GatedLinearRecurrence.Run(x["q"], x["k"], x["v"], x.GetValueOrDefault("g"), x["h0"], padding);
        for (var row = 0; row < B; row++)
        {
            Tensor Row(string name) => x[name].narrow(0, row, 1).narrow(1, 0, lengths[row]);
            var g = gate is "none" ? null : gate is "constant" ? x["g"] : Row("g");
            var (alone, last) = GatedLinearRecurrence.Naive(Row("q"), Row("k"), Row("v"), g, x["h0"].narrow(0, row, 1));
            Assert.True(OperatorCheck.RelativeError(alone, output.narrow(0, row, 1).narrow(1, 0, lengths[row])) < 1e-12);
            Assert.True(OperatorCheck.RelativeError(last, state.narrow(0, row, 1)) < 1e-12);
        }
    }

    [Theory]
    [InlineData("linear_attention"), InlineData("retention"), InlineData("scalar_gate"), InlineData("vector_gate"), NoTensorLeaks]
    public void Both_forms_match_the_recorded_numbers(string file)
    {
        using var scope = NewDisposeScope();
        string[] names = file switch { "retention" => ["q", "k", "v"], "linear_attention" => ["q", "k", "v", "h0"], _ => ["q", "k", "v", "g", "h0"] };
        var gamma = file == "retention" ? tensor(Enumerable.Range(0, H).Select(h => Math.Log(1 - Math.Pow(2, -5 - h))).ToArray()) : null;
        OperatorCheck.Form Scaled(Func<Tensor, Tensor, Tensor, Tensor?, Tensor?, (Tensor, Tensor)> form)
            => x => form(x["q"] / Math.Sqrt(x["q"].shape[3]), x["k"], x["v"], gamma ?? x.GetValueOrDefault("g"), x.GetValueOrDefault("h0"));
        OperatorCheck.MatchesGolden(file, Scaled(GatedLinearRecurrence.Naive), names);
        OperatorCheck.MatchesGolden(file, Scaled((q, k, v, g, h0) => GatedLinearRecurrence.Chunked(q, k, v, g, h0, 16)), names);
    }

    [Fact, NoTensorLeaks]
    public void Mamba2_is_this_recurrence()
    {
        using var scope = NewDisposeScope();
        OperatorCheck.Form Ssd(int chunk) => x =>
        {
            var (heads, dt) = (x["A"].shape[0], x["dt"]);
            Tensor Shared(Tensor map) => map.unsqueeze(2).expand(map.shape[0], map.shape[1], heads, map.shape[2]);
            var (output, state) = chunk == 0
                ? GatedLinearRecurrence.Naive(Shared(x["C"]), Shared(x["B"]), x["x"] * dt.unsqueeze(-1), dt * x["A"])
                : GatedLinearRecurrence.Chunked(Shared(x["C"]), Shared(x["B"]), x["x"] * dt.unsqueeze(-1), dt * x["A"], null, chunk);
            return (output, state.transpose(-1, -2));
        };
        foreach (var chunk in (int[])[0, 16, 64]) OperatorCheck.MatchesGolden("ssd", Ssd(chunk), ["x", "dt", "A", "B", "C"]);
    }

    [Fact]
    public void Wrong_shapes_are_named()
    {
        using var scope = NewDisposeScope();
        var x = Inputs("scalar", 5);
        var error = Assert.Throws<ArgumentException>(() => GatedLinearRecurrence.Run(x["q"], x["k"], x["v"], x["g"].narrow(1, 0, 4)));
        Assert.Contains("logDecay is [2, 4, 3]; expected [3] or [2, 5, 3] or [2, 5, 3, 8]", error.Message);
        Assert.Throws<ArgumentException>(() => GatedLinearRecurrence.Run(x["q"], x["k"].narrow(3, 0, 4), x["v"]));
        Assert.Throws<ArgumentException>(() => GatedLinearRecurrence.Run(x["q"], x["k"], x["v"], null, x["h0"].narrow(0, 0, 1)));
    }
}
