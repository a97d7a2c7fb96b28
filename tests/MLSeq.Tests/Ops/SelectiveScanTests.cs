using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Ops;

/// <summary>All forms are the naive one: outputs, final state and all gradients.</summary>
public sealed class SelectiveScanTests
{
    private const int B = 2, C = 5, N = 4;

    private static Dictionary<string, Tensor> Inputs(int time, double strength = 1, int seed = 1, int channels = C, int states = N)
    {
        manual_seed(seed);
        return new Dictionary<string, Tensor>
        {
            ["x"] = randn(B, time, channels, dtype: float64), ["delta"] = nn.functional.softplus(randn(B, time, channels, dtype: float64) - 1) * strength,
            ["A"] = -(randn(channels, states, dtype: float64).exp()), ["B"] = randn(B, time, states, dtype: float64), ["C"] = randn(B, time, states, dtype: float64), ["h0"] = randn(B, channels, states, dtype: float64),
        };
    }

    private static OperatorCheck.Form Naive => x => SelectiveScan.Naive(x["x"], x["delta"], x["A"], x["B"], x["C"], x.GetValueOrDefault("h0"));

    private static OperatorCheck.Form Chunked(int chunk) => x => SelectiveScan.Chunked(x["x"], x["delta"], x["A"], x["B"], x["C"], x.GetValueOrDefault("h0"), chunk);

    private static OperatorCheck.Form FusedCuda(int segment = 0) => x => FusedCudaSelectiveScan.Run(x["x"], x["delta"], x["A"], x["B"], x["C"], x.GetValueOrDefault("h0"), segment);

    private static Dictionary<string, Tensor> Single(Dictionary<string, Tensor> inputs) => inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float32));

    private static Dictionary<string, Tensor> Doubled(Dictionary<string, Tensor> inputs) => inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float64));

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

    // Chunks of 32 positions, in segments of one chunk, of two, or of all.
    [EmulatedCudaTheory]
    [InlineData(1, 1), InlineData(31, 0), InlineData(33, 1), InlineData(64, 1), InlineData(65, 2), InlineData(150, 2), InlineData(150, 0)]
    [NoTensorLeaks]
    public void The_CUDA_kernels_equal_naive(int time, int segment)
    {
        using var scope = NewDisposeScope();
        var inputs = Single(Inputs(time, seed: time));
        var expected = OperatorCheck.Evaluate(Naive, Doubled(inputs));
        for (var seed = 1; seed <= 2; seed++)
        {
            using var emulated = EmulatedCuda.Begin(seed);
            OperatorCheck.Same(expected, OperatorCheck.Evaluate(FusedCuda(segment), inputs), 1e-5);
        }
        inputs.Remove("h0");
        using (EmulatedCuda.Begin()) OperatorCheck.Same(OperatorCheck.Evaluate(Naive, Doubled(inputs)), OperatorCheck.Evaluate(FusedCuda(segment), inputs), 1e-5);
    }

    // Several blocks of channels, aligned and not; as mixed precision has it, and all in 16 bits; states that fill a part of the lanes, and a warp's better part.
    [EmulatedCudaTheory]
    [InlineData(ScalarType.BFloat16, ScalarType.Float32, 72, 16, 70), InlineData(ScalarType.BFloat16, ScalarType.Float32, 67, 16, 33), InlineData(ScalarType.Float16, ScalarType.Float16, 40, 3, 70), InlineData(ScalarType.BFloat16, ScalarType.Float32, 24, 100, 20)]
    [NoTensorLeaks]
    public void The_CUDA_kernels_equal_naive_in_16_bits(ScalarType type, ScalarType delta, int channels, int states, int time)
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin(time);
        var inputs = Inputs(time, 1, 1, channels, states).ToDictionary(pair => pair.Key, pair => pair.Value.to(pair.Key is "A" or "h0" ? float32 : pair.Key == "delta" ? delta : type));
        OperatorCheck.Same(OperatorCheck.Evaluate(Naive, Doubled(inputs)), OperatorCheck.Evaluate(FusedCuda(1), inputs), 1e-2);
    }

    [EmulatedCudaTheory]
    [InlineData(0), InlineData(1e-3), InlineData(50), NoTensorLeaks]
    public void The_CUDA_kernels_bear_steps_from_none_to_huge(double strength)
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        var inputs = Single(Inputs(100, strength));
        OperatorCheck.Same(OperatorCheck.Evaluate(Naive, Doubled(inputs)), OperatorCheck.Evaluate(FusedCuda(1), inputs), 1e-5);
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void The_CUDA_kernels_read_views_where_they_lie()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        manual_seed(1);
        OperatorCheck.Form Of(OperatorCheck.Form form) => x =>
        {
            var parts = x["projection"].split([3, 8, 8, N, N], -1);
            return form(new Dictionary<string, Tensor> { ["x"] = parts[1], ["delta"] = parts[2].square(), ["A"] = x["A"].t(), ["B"] = parts[3], ["C"] = parts[4] });
        };
        var inputs = new Dictionary<string, Tensor> { ["projection"] = randn(B, 40, 3 + 8 + 8 + 2 * N), ["A"] = -rand(N, 8) };
        OperatorCheck.Same(OperatorCheck.Evaluate(Of(Naive), inputs), OperatorCheck.Evaluate(Of(FusedCuda()), inputs), 1e-5);
    }

    [Fact, NoTensorLeaks]
    public void Gradients_match_finite_differences()
    {
        using var scope = NewDisposeScope();
        OperatorCheck.MatchesFiniteDifferences(Chunked(8), Inputs(19));
    }

    [Fact, NoTensorLeaks]
    public void Padding_neither_writes_nor_fades() => PaddingChangesNothing(float64, 1e-12);

    [EmulatedCudaFact, NoTensorLeaks]
    public void Padding_neither_writes_nor_fades_in_the_CUDA_kernels()
    {
        using var emulated = EmulatedCuda.Begin();
        PaddingChangesNothing(float32, 1e-6);
    }

    private static void PaddingChangesNothing(ScalarType type, double tolerance)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var x = Inputs(40).ToDictionary(pair => pair.Key, pair => pair.Value.to(type));
        long[] lengths = [40, 13];
        var (output, state) = SelectiveScan.Run(x["x"], x["delta"], x["A"], x["B"], x["C"], x["h0"], new SequencePadding(tensor(lengths), 40));
        for (var row = 0; row < B; row++)
        {
            Tensor Row(string name) => x[name].narrow(0, row, 1).narrow(1, 0, lengths[row]);
            var (alone, last) = SelectiveScan.Naive(Row("x"), Row("delta"), x["A"], Row("B"), Row("C"), x["h0"].narrow(0, row, 1));
            Assert.True(OperatorCheck.RelativeError(alone, output.narrow(0, row, 1).narrow(1, 0, lengths[row])) < tolerance);
            Assert.True(OperatorCheck.RelativeError(last, state.narrow(0, row, 1)) < tolerance);
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
