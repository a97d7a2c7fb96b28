using MLSeq.Native;
using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Ops;

/// <summary>The fused forms of the gated linear recurrence, their CUDA kernels emulated, are the naive one: outputs, final state and all gradients.</summary>
public sealed class FusedLinearRecurrenceTests
{
    private const int B = 2, H = 2;

    private static Dictionary<string, Tensor> Inputs(string gate, int time, int keys, int values, ScalarType type = ScalarType.BFloat16)
    {
        manual_seed(time);
        Tensor Draw(params long[] shape) => randn(shape, float64);
        var inputs = new Dictionary<string, Tensor>
        {
            ["q"] = Draw(B, time, H, keys).to(type), ["k"] = (Draw(B, time, H, keys) / Math.Sqrt(keys)).to(type), ["v"] = Draw(B, time, H, values).to(type), ["h0"] = Draw(B, H, keys, values).to(float32),
        };
        if (gate == "scalar") inputs["g"] = nn.functional.logsigmoid(Draw(B, time, H) * 2 + 2).to(float32);
        return inputs;
    }

    // A constant decay has no gradient: it is passed around the differentiation.
    private static Tensor? Decay(string gate, IReadOnlyDictionary<string, Tensor> x)
        => gate == "constant" ? tensor(new[] { -0.5, -0.01 }).to(x["q"].dtype == float64 ? float64 : float32) : x.GetValueOrDefault("g");

    private static OperatorCheck.Form Naive(string gate) => x => GatedLinearRecurrence.Naive(x["q"], x["k"], x["v"], Decay(gate, x), x.GetValueOrDefault("h0"));

    private static OperatorCheck.Form Run(string gate) => x => GatedLinearRecurrence.Run(x["q"], x["k"], x["v"], Decay(gate, x), x.GetValueOrDefault("h0"));

    // Everything of the naive form, in float64, and of the other one on the same numbers.
    private static void Compare(OperatorCheck.Form naive, OperatorCheck.Form fused, Dictionary<string, Tensor> inputs, double tolerance = 1e-2)
    {
        var (q, v) = (inputs["q"], inputs["v"]);
        Assert.True(FusedCudaLinearRecurrence.Serves(q, inputs["k"], v, inputs.GetValueOrDefault("g")));
        manual_seed(9);
        var dOutput = randn([B, q.shape[1], H, v.shape[3]], float64).to(v.dtype);
        var expected = OperatorCheck.Evaluate(naive, inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float64)), dOutput.to(float64));
        OperatorCheck.Close(expected, OperatorCheck.Evaluate(fused, inputs, dOutput), tolerance);
    }

    [EmulatedCudaTheory]
    [InlineData("none", 1, 1), InlineData("none", 65, 2)]
    [InlineData("constant", 37, 1), InlineData("constant", 520, 2)]
    [InlineData("scalar", 1, 2), InlineData("scalar", 37, 1), InlineData("scalar", 64, 2), InlineData("scalar", 520, 1), InlineData("scalar", 520, 2)] // 520: two segments, three edges
    [NoTensorLeaks]
    public void Fused_equals_naive(string gate, int time, int seed)
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin(seed);
        Compare(Naive(gate), Run(gate), Inputs(gate, time, 16, 16));
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void Keys_and_values_of_unequal_size_in_float16()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        Compare(Naive("scalar"), Run("scalar"), Inputs("scalar", 100, 24, 40, float16), 2e-3);
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void Gates_of_zero_and_one_are_safe()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        var inputs = Inputs("scalar", 150, 16, 16);
        var draw = rand(inputs["g"].shape);
        inputs["g"] = where(draw < 0.2, double.NegativeInfinity, where(draw < 0.5, zeros_like(draw), inputs["g"]));
        inputs["g"][0, .., 0] = double.NegativeInfinity; // a head that forgets everything at every step
        inputs["g"][1, TensorIndex.Slice(20, 60)] = 0;
        Compare(Naive("scalar"), Run("scalar"), inputs);
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void Views_and_shared_heads_are_read_where_they_lie()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        var all = Inputs("scalar", 70, 16, 16);
        // One projection gives queries and keys for all heads (as in Mamba-2) and the values, whose rows do not begin at multiples of 16 bytes; the gate's time comes last.
        var inputs = new Dictionary<string, Tensor>
        {
            ["projected"] = cat([all["q"].select(2, 0), all["k"].select(2, 0), zeros(B, 70, 1, dtype: bfloat16), all["v"].flatten(2), zeros(B, 70, 7, dtype: bfloat16)], -1), ["g"] = all["g"].transpose(1, 2).contiguous(),
        };
        OperatorCheck.Form Parts(Func<Tensor, Tensor, Tensor, Tensor, (Tensor, Tensor)> form) => x =>
        {
            Tensor Shared(int from) => x["projected"].narrow(-1, from, 16).unsqueeze(2).expand(-1, -1, H, -1);
            return form(Shared(0), Shared(16), x["projected"].narrow(-1, 33, 32).Unflatten(-1, H, 16), x["g"].transpose(1, 2));
        };
        var dOutput = randn([B, 70, H, 16], bfloat16);
        var expected = OperatorCheck.Evaluate(Parts((q, k, v, g) => GatedLinearRecurrence.Naive(q, k, v, g)), inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float64)), dOutput.to(float64));
        OperatorCheck.Close(expected, OperatorCheck.Evaluate(Parts((q, k, v, g) => GatedLinearRecurrence.Run(q, k, v, g)), inputs, dOutput), 1e-2);
        var shared = inputs["projected"].narrow(-1, 0, 16).unsqueeze(2).expand(-1, -1, H, -1);
        Assert.Same(shared, CudaElements.Rows(shared, aligned: true));
    }

    [EmulatedCudaTheory]
    [InlineData("none"), InlineData("constant"), InlineData("scalar"), NoTensorLeaks]
    public void Padding_neither_writes_nor_fades(string gate)
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        using var _ = no_grad();
        var x = Inputs(gate, 40, 16, 16);
        long[] lengths = [40, 13];
        var (output, state) = GatedLinearRecurrence.Run(x["q"], x["k"], x["v"], Decay(gate, x), x["h0"], new SequencePadding(tensor(lengths), 40));
        for (var row = 0; row < B; row++)
        {
            var alone = x.ToDictionary(pair => pair.Key, pair => pair.Key == "h0" ? pair.Value.narrow(0, row, 1) : pair.Value.narrow(0, row, 1).narrow(1, 0, lengths[row]));
            var (expected, last) = Naive(gate)(alone.ToDictionary(pair => pair.Key, pair => pair.Value.to(float64)));
            OperatorCheck.Close(new Dictionary<string, Tensor> { ["o"] = expected, ["ht"] = last }, new Dictionary<string, Tensor> { ["o"] = output.narrow(0, row, 1).narrow(1, 0, lengths[row]), ["ht"] = state.narrow(0, row, 1) }, 1e-2);
        }
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void A_gradient_through_the_final_state_alone_is_enough()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        var x = Inputs("none", 37, 16, 16);
        var (v, exact) = (x["v"].clone().requires_grad_(), x["v"].to(float64).requires_grad_());
        OperatorFailure.Backward(GatedLinearRecurrence.Run(x["q"], x["k"], v).FinalState.sum());
        GatedLinearRecurrence.Naive(x["q"].to(float64), x["k"].to(float64), exact).FinalState.sum().backward();
        using Tensor got = v.grad!, expected = exact.grad!;
        Assert.InRange(OperatorCheck.RelativeError(expected, got), 0, 1e-2);
    }

    [EmulatedCudaFact]
    public void What_the_kernels_do_not_serve_is_left_to_the_chunked_form()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        static Tensor Zeros(long size, ScalarType type = ScalarType.BFloat16) => zeros(1, 5, 1, size, dtype: type);
        Assert.True(FusedCudaLinearRecurrence.Serves(Zeros(256), Zeros(256), Zeros(256), null));
        Assert.False(FusedCudaLinearRecurrence.Serves(Zeros(12), Zeros(12), Zeros(16), null)); // a row is not whole reads of 16 bytes
        Assert.False(FusedCudaLinearRecurrence.Serves(Zeros(264), Zeros(264), Zeros(16), null));
        Assert.False(FusedCudaLinearRecurrence.Serves(Zeros(16, float64), Zeros(16, float64), Zeros(16, float64), null));
        Assert.False(FusedCudaLinearRecurrence.Serves(Zeros(16), Zeros(16), Zeros(16), Zeros(16))); // a decay per key
        emulated.Dispose();
        Assert.False(FusedCudaLinearRecurrence.Serves(Zeros(16), Zeros(16), Zeros(16), null));
    }

    [EmulatedCudaTheory]
    [InlineData(128, 128, 128, 8), InlineData(128, 64, 64, 4), InlineData(64, 128, 128, 4), InlineData(64, 64, 64, 4), InlineData(256, 256, 64, 4), InlineData(24, 40, 64, 4), InlineData(8, 8, 16, 1)]
    public void A_block_serves_as_many_columns_as_are_best(int keys, int values, int tile, int warps)
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        var plan = LinearPlan.For(zeros(1), keys, values)!;
        Assert.Equal((tile, warps), (plan.Tile, plan.Warps));
        Assert.True(plan.SharedBytes(true, true) <= 227 << 10);
    }
}
