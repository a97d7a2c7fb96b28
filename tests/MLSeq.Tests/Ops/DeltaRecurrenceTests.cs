using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Ops;

/// <summary>The chunked form is the naive one: outputs, final state and all gradients.</summary>
public sealed class DeltaRecurrenceTests
{
    private const int B = 2, H = 3, K = 8, V = 12;

    public static TheoryData<bool, int, int> Grid()
    {
        var data = new TheoryData<bool, int, int>();
        foreach (var gated in (bool[])[false, true])
            foreach (var (time, chunk) in ((int, int)[])[(1, 64), (2, 1), (37, 16), (63, 64), (64, 64), (65, 64), (500, 64), (500, 5)])
                data.Add(gated, time, chunk);
        return data;
    }

    private static Dictionary<string, Tensor> Inputs(bool gated, int time, int seed = 1)
    {
        manual_seed(seed);
        var inputs = new Dictionary<string, Tensor>
        {
            ["q"] = randn(B, time, H, K, dtype: float64), ["k"] = nn.functional.normalize(randn(B, time, H, K, dtype: float64), dim: -1),
            ["v"] = randn(B, time, H, V, dtype: float64), ["beta"] = rand(B, time, H, dtype: float64), ["h0"] = randn(B, H, K, V, dtype: float64),
        };
        if (gated) inputs["g"] = nn.functional.logsigmoid(randn(B, time, H, dtype: float64) * 2 + 2);
        return inputs;
    }

    private static OperatorCheck.Form Naive => x => DeltaRecurrence.Naive(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g"), x["h0"]);

    private static OperatorCheck.Form Chunked(int chunk) => x => DeltaRecurrence.Chunked(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g"), x["h0"], chunk);

    private static Dictionary<string, Tensor> Single(Dictionary<string, Tensor> inputs) => inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float32));

    [Theory, MemberData(nameof(Grid)), NoTensorLeaks]
    public void Chunked_equals_naive(bool gated, int time, int chunk)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(gated, time);
        var expected = OperatorCheck.Evaluate(Naive, inputs);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Chunked(chunk), inputs), 1e-9);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Chunked(chunk), Single(inputs)), 1e-4);
        if (time > 100) return;
        var half = inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(pair.Key is "g" or "h0" ? float32 : bfloat16));
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Chunked(chunk), half), 4e-2);
    }

    [Fact, NoTensorLeaks]
    public void Extreme_gates_and_strengths_are_safe()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(gated: true, 150);
        manual_seed(3);
        var draw = rand(inputs["g"].shape, float64);
        inputs["g"] = where(draw < 0.2, double.NegativeInfinity, where(draw < 0.5, zeros_like(draw), inputs["g"]));
        inputs["g"][0] = double.NegativeInfinity;
        inputs["beta"] = where(draw > 0.7, ones_like(draw), where(draw > 0.4, zeros_like(draw), inputs["beta"]));
        var expected = OperatorCheck.Evaluate(Naive, inputs);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Chunked(64), inputs), 1e-9);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Chunked(64), Single(inputs)), 1e-4);
    }

    [Fact, NoTensorLeaks]
    public void Equal_keys_at_full_strength_are_exact_in_float32()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(gated: false, 200); // the triangular system at its worst: every product of keys is 1
        inputs["k"] = inputs["k"].narrow(1, 0, 1).expand(B, 200, H, K).clone();
        inputs["beta"] = ones_like(inputs["beta"]);
        OperatorCheck.Same(OperatorCheck.Evaluate(Naive, inputs), OperatorCheck.Evaluate(Chunked(64), Single(inputs)), 1e-4);
    }

    [Theory]
    [InlineData(false, false), InlineData(false, true), InlineData(true, false), InlineData(true, true), NoTensorLeaks]
    public void Groups_of_chunks_side_by_side_give_the_same_states(bool gated, bool reverse)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        const int chunks = 23; // not a square
        var removal = randn([B, H, chunks, K, K], float64) / 8;
        var logDecay = gated ? -rand(1, H, chunks, 1, dtype: float64) : null;
        var (updates, initial) = (randn([B, H, chunks, K, V], float64), randn(B, H, K, V, dtype: float64));
        var one = ChunkedDeltaRecurrence.StateScan(removal, logDecay, updates, initial, reverse, grouped: false);
        var side = ChunkedDeltaRecurrence.StateScan(removal, logDecay, updates, initial, reverse, grouped: true);
        Assert.True(OperatorCheck.RelativeError(one.Edges, side.Edges) < 1e-12);
        Assert.True(OperatorCheck.RelativeError(one.Last, side.Last) < 1e-12);
    }

    [Theory]
    [InlineData(false), InlineData(true), NoTensorLeaks]
    public void Gradients_match_finite_differences(bool gated)
    {
        using var scope = NewDisposeScope();
        OperatorCheck.MatchesFiniteDifferences(Chunked(8), Inputs(gated, 19));
    }

    [Theory]
    [InlineData(false), InlineData(true), NoTensorLeaks]
    public void Padding_neither_writes_nor_fades(bool gated)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var x = Inputs(gated, 40);
        long[] lengths = [40, 13];
        var (output, state) = DeltaRecurrence.Run(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g"), x["h0"], new SequencePadding(tensor(lengths), 40));
        for (var row = 0; row < B; row++)
        {
            Tensor Row(string name) => x[name].narrow(0, row, 1).narrow(1, 0, lengths[row]);
            var (alone, last) = DeltaRecurrence.Naive(Row("q"), Row("k"), Row("v"), Row("beta"), gated ? Row("g") : null, x["h0"].narrow(0, row, 1));
            Assert.True(OperatorCheck.RelativeError(alone, output.narrow(0, row, 1).narrow(1, 0, lengths[row])) < 1e-12);
            Assert.True(OperatorCheck.RelativeError(last, state.narrow(0, row, 1)) < 1e-12);
        }
    }

    [Theory]
    [InlineData("delta_rule"), InlineData("gated_delta_rule"), NoTensorLeaks]
    public void Both_forms_match_the_recorded_numbers(string file)
    {
        using var scope = NewDisposeScope();
        string[] names = file == "delta_rule" ? ["q", "k", "v", "beta", "h0"] : ["q", "k", "v", "beta", "g", "h0"];
        OperatorCheck.Form Scaled(OperatorCheck.Form form) => x => form(x.ToDictionary(pair => pair.Key, pair => pair.Key == "q" ? pair.Value / Math.Sqrt(pair.Value.shape[3]) : pair.Value));
        OperatorCheck.MatchesGolden(file, Scaled(Naive), names);
        OperatorCheck.MatchesGolden(file, Scaled(Chunked(16)), names);
    }
}
