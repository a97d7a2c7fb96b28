using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Ops;

/// <summary>The chunked form is the naive one: outputs, final state and all gradients.</summary>
public sealed class SelectiveScanTests
{
    private const int B = 2, C = 5, N = 4;

    private static Dictionary<string, Tensor> Inputs(int time, double strength = 1, int seed = 1)
    {
        manual_seed(seed);
        return new Dictionary<string, Tensor>
        {
            ["x"] = randn(B, time, C, dtype: float64), ["delta"] = nn.functional.softplus(randn(B, time, C, dtype: float64) - 1) * strength,
            ["A"] = -(randn(C, N, dtype: float64).exp()), ["B"] = randn(B, time, N, dtype: float64), ["C"] = randn(B, time, N, dtype: float64), ["h0"] = randn(B, C, N, dtype: float64),
        };
    }

    private static OperatorCheck.Form Naive => x => SelectiveScan.Naive(x["x"], x["delta"], x["A"], x["B"], x["C"], x.GetValueOrDefault("h0"));

    private static OperatorCheck.Form Chunked(int chunk) => x => SelectiveScan.Chunked(x["x"], x["delta"], x["A"], x["B"], x["C"], x.GetValueOrDefault("h0"), chunk);

    private static Dictionary<string, Tensor> Single(Dictionary<string, Tensor> inputs) => inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float32));

    [Theory]
    [InlineData(1, 64), InlineData(2, 1), InlineData(37, 16), InlineData(63, 64), InlineData(64, 64), InlineData(65, 64), InlineData(500, 64), InlineData(500, 5), InlineData(500, 0), InlineData(5000, 0)]
    [NoTensorLeaks]
    public void Chunked_equals_naive(int time, int chunk)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(time);
        var expected = OperatorCheck.Evaluate(Naive, inputs);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Chunked(chunk), inputs), 1e-9);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Chunked(chunk), Single(inputs)), 1e-4);
        if (time > 100) return;
        var half = inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(pair.Key is "A" or "h0" ? float32 : bfloat16));
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Chunked(chunk), half), 4e-2);
    }

    [Theory]
    [InlineData(0), InlineData(1e-3), InlineData(50), NoTensorLeaks]
    public void Steps_from_none_to_huge_are_safe(double strength)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(150, strength);
        var expected = OperatorCheck.Evaluate(Naive, inputs);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Chunked(32), inputs), 1e-9);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Chunked(32), Single(inputs)), 1e-4);
    }

    [Fact, NoTensorLeaks]
    public void Gradients_match_finite_differences()
    {
        using var scope = NewDisposeScope();
        OperatorCheck.MatchesFiniteDifferences(Chunked(8), Inputs(19));
    }

    [Fact, NoTensorLeaks]
    public void Padding_neither_writes_nor_fades()
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var x = Inputs(40);
        long[] lengths = [40, 13];
        var (output, state) = SelectiveScan.Run(x["x"], x["delta"], x["A"], x["B"], x["C"], x["h0"], new SequencePadding(tensor(lengths), 40));
        for (var row = 0; row < B; row++)
        {
            Tensor Row(string name) => x[name].narrow(0, row, 1).narrow(1, 0, lengths[row]);
            var (alone, last) = SelectiveScan.Naive(Row("x"), Row("delta"), x["A"], Row("B"), Row("C"), x["h0"].narrow(0, row, 1));
            Assert.True(OperatorCheck.RelativeError(alone, output.narrow(0, row, 1).narrow(1, 0, lengths[row])) < 1e-12);
            Assert.True(OperatorCheck.RelativeError(last, state.narrow(0, row, 1)) < 1e-12);
        }
    }

    [Theory]
    [InlineData(-1), InlineData(16), InlineData(0), NoTensorLeaks] // −1: the naive form
    public void Both_forms_match_the_recorded_numbers(int chunk)
    {
        using var scope = NewDisposeScope();
        OperatorCheck.MatchesGolden("selective_scan", x =>
        {
            Tensor Last(string name) => x[name].transpose(1, 2);
            var delta = nn.functional.softplus(Last("delta") + x["bias"]);
            var (y, state) = chunk < 0
                ? SelectiveScan.Naive(Last("u"), delta, x["A"], Last("B"), Last("C"))
                : SelectiveScan.Chunked(Last("u"), delta, x["A"], Last("B"), Last("C"), null, chunk);
            return (((y + Last("u") * x["D"]) * nn.functional.silu(Last("z"))).transpose(1, 2), state);
        }, ["u", "delta", "A", "B", "C", "D", "z", "bias"]);
    }
}
