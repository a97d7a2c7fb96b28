using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Ops;

/// <summary>The CUDA kernels for a decay per key dimension, emulated, give what the naive form gives in float64: outputs, final state and all gradients.</summary>
/// <remarks>Most tests keep to bfloat16 and heads of up to 32, for which the kernels are compiled once: that takes longer than to run them.</remarks>
public sealed class FusedCudaVectorTests
{
    private const double Tolerance = 1e-2;

    // q, k, v of a type, g and h0 in float32.
    private static Dictionary<string, Tensor> Inputs(long time, long keys, long values, ScalarType type, long batch = 2, long heads = 2, bool initial = true, double strength = 1)
    {
        manual_seed(time + keys);
        var inputs = new Dictionary<string, Tensor>
        {
            ["q"] = randn(batch, time, heads, keys).to(type), ["k"] = (randn(batch, time, heads, keys) / Math.Sqrt(keys)).to(type), ["v"] = randn(batch, time, heads, values).to(type),
            ["g"] = nn.functional.logsigmoid(randn(batch, time, heads, keys) * 2 + 2) * strength,
        };
        if (initial) inputs["h0"] = randn(batch, heads, keys, values);
        return inputs;
    }

    private static OperatorCheck.Form Naive => x => GatedLinearRecurrence.Naive(x["q"], x["k"], x["v"], x["g"], x.GetValueOrDefault("h0"));

    private static OperatorCheck.Form Run => x =>
    {
        Assert.True(FusedCudaVectorRecurrence.Serves(x["q"], x["k"], x["v"], x["g"]));
        return GatedLinearRecurrence.Run(x["q"], x["k"], x["v"], x["g"], x.GetValueOrDefault("h0"));
    };

    private static void Check(Dictionary<string, Tensor> inputs, OperatorCheck.Form? naive = null, OperatorCheck.Form? run = null, bool throughState = true)
    {
        var v = inputs["v"];
        manual_seed(7);
        var dOutput = randn(v.shape).to(v.dtype);
        var exact = inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float64));
        OperatorCheck.Close(OperatorCheck.Evaluate(naive ?? Naive, exact, dOutput.to(float64), throughState), OperatorCheck.Evaluate(run ?? Run, inputs, dOutput, throughState), Tolerance);
    }

    [EmulatedCudaTheory]
    [InlineData(1, 8, 16, 1)]
    [InlineData(2, 32, 16, 2)]
    [InlineData(37, 24, 8, 2)]
    [InlineData(63, 8, 32, 1)]
    [InlineData(64, 32, 32, 2)]
    [InlineData(65, 16, 24, 1)]
    [InlineData(150, 32, 32, 1)]
    [InlineData(200, 32, 16, 2)]
    [NoTensorLeaks]
    public void Kernels_equal_the_naive_form(long time, long keys, long values, int seed)
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin(seed);
        Check(Inputs(time, keys, values, bfloat16));
        Check(Inputs(time, keys, values, bfloat16, heads: 1, initial: false), throughState: false);
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void Large_heads_are_served()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        Check(Inputs(100, 128, 64, bfloat16, batch: 1, heads: 1));
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void Float16_is_served()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        Check(Inputs(100, 40, 64, float16));
    }

    [EmulatedCudaTheory]
    [InlineData(1), InlineData(2), NoTensorLeaks]
    public void Few_sequences_are_cut_into_segments_of_time(int seed)
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin(seed);
        Check(Inputs(840, 32, 16, bfloat16, batch: 1, strength: 0.02)); // three segments, the last one shorter; what one leaves reaches the next but one
    }

    [EmulatedCudaTheory]
    [InlineData(1), InlineData(2), NoTensorLeaks]
    public void Decays_of_zero_and_one_are_safe(int seed)
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin(seed);
        var inputs = Inputs(150, 32, 32, bfloat16);
        var draw = rand(inputs["g"].shape);
        inputs["g"] = where(draw < 0.2, double.NegativeInfinity, where(draw < 0.5, zeros_like(draw), inputs["g"])).to(float32);
        inputs["g"][0, .., 0] = double.NegativeInfinity; // a head that forgets everything at every step
        inputs["g"][1, 20..90] = 0;
        Check(inputs);
        Check(Inputs(150, 32, 32, bfloat16, strength: 8));
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void Tensors_may_be_views()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        const int heads = 2, keys = 24, values = 16;
        foreach (var offset in (int[])[0, 1]) // 1: rows that do not begin at multiples of 16 bytes
        {
            var inputs = Inputs(70, keys, values, bfloat16);
            // One projection with time before batch, one key for both heads, decays with heads before time.
            Dictionary<string, Tensor> Views(IReadOnlyDictionary<string, Tensor> x)
            {
                var (q, k, v) = (x["q"].flatten(2), x["k"].flatten(2), x["v"].flatten(2));
                var all = cat([q, k, v, v], -1).transpose(0, 1).contiguous();
                all = cat([all.narrow(2, 0, offset), all], -1).transpose(0, 1);
                return new(x)
                {
                    ["q"] = all.narrow(2, offset, heads * keys).unflatten(2, heads, keys), ["k"] = all.narrow(2, offset + heads * keys, keys).unsqueeze(2).expand(-1, -1, heads, -1),
                    ["v"] = offset == 0 ? all.narrow(2, 2 * heads * keys, heads * values).unflatten(2, heads, values) : cat([v.flatten(), v.flatten()]).narrow(0, offset, v.numel()).view(x["v"].shape), ["g"] = x["g"].transpose(1, 2).contiguous().transpose(1, 2),
                };
            }
            Check(inputs, x => Naive(Views(x)), x => Run(Views(x)));
        }
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void The_state_alone_has_gradients_and_types_are_kept()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        var inputs = Inputs(70, 8, 8, bfloat16);
        (inputs["g"], inputs["h0"]) = (inputs["g"].to(bfloat16), inputs["h0"].to(bfloat16));
        static OperatorCheck.Form OfState(OperatorCheck.Form form) => x => form(x) is var (output, state) ? (output.detach(), state) : default;
        Check(inputs, OfState(Naive), OfState(Run));
        var got = OperatorCheck.Evaluate(Run, inputs);
        Assert.All(inputs.Keys, name => Assert.Equal(bfloat16, got[$"d{name}"].dtype));
        Assert.Equal((bfloat16, float32), (got["o"].dtype, got["ht"].dtype));
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void Padding_neither_writes_nor_fades()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        using var _ = no_grad();
        var x = Inputs(80, 16, 16, bfloat16);
        var padding = new SequencePadding(tensor((long[])[80, 13]), 80);
        var state = GatedLinearRecurrence.Run(x["q"], x["k"], x["v"], x["g"], x["h0"], padding).FinalState;
        Tensor Row(string name) => x[name].narrow(0, 1, 1).narrow(1, 0, 13);
        var alone = GatedLinearRecurrence.Naive(Row("q"), Row("k"), Row("v"), Row("g"), x["h0"].narrow(0, 1, 1)).FinalState;
        Assert.InRange(((state.narrow(0, 1, 1) - alone).norm() / alone.norm()).item<float>(), 0, Tolerance);
    }

    [EmulatedCudaFact]
    public void Other_shapes_and_types_are_left_to_the_chunked_form()
    {
        using var scope = NewDisposeScope();
        bool Serves(ScalarType type, long keys, long values, bool perKey = true)
        {
            var x = Inputs(3, keys, values, type);
            return FusedCudaVectorRecurrence.Serves(x["q"], x["k"], x["v"], perKey ? x["g"] : x["g"].select(-1, 0));
        }
        Assert.False(Serves(bfloat16, 16, 16)); // no CUDA
        using var emulated = EmulatedCuda.Begin();
        Assert.True(Serves(bfloat16, 16, 16));
        Assert.False(Serves(bfloat16, 16, 16, perKey: false));
        Assert.False(Serves(float32, 16, 16));
        Assert.False(Serves(bfloat16, 12, 16));
        Assert.False(Serves(bfloat16, 16, 136));
    }
}
