using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Ops;

/// <summary>The CUDA kernels of the delta recurrence, emulated, against the naive form in float64: outputs, final state and all gradients.</summary>
public sealed class FusedCudaDeltaRecurrenceTests
{
    private const double BFloat16Error = 1e-2, Float16Error = 2e-3; // relative, by norm
    private const int B = 1, H = 2, K = 32, V = 16;

    private static Dictionary<string, Tensor> Inputs(int time, ScalarType type = ScalarType.BFloat16, int keys = K, int values = V, bool gated = true, bool initial = true)
    {
        manual_seed(time);
        var inputs = new Dictionary<string, Tensor>
        {
            ["q"] = randn(B, time, H, keys).to(type), ["k"] = nn.functional.normalize(randn(B, time, H, keys), dim: -1).to(type), ["v"] = randn(B, time, H, values).to(type), ["beta"] = rand(B, time, H).to(type),
        };
        if (gated) inputs["g"] = nn.functional.logsigmoid(randn(B, time, H) * 2 + 2);
        if (initial) inputs["h0"] = randn(B, H, keys, values);
        return inputs;
    }

    private static OperatorCheck.Form Run => x => DeltaRecurrence.Run(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g"), x.GetValueOrDefault("h0"));

    private static OperatorCheck.Form Naive => x => DeltaRecurrence.Naive(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g"), x.GetValueOrDefault("h0"));

    private static OperatorCheck.Form Fused(DeltaPlan? plan = null, int segment = 0)
        => x => FusedCudaDeltaRecurrence.Run(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g"), x.GetValueOrDefault("h0"), plan ?? PlanFor(x)!, segment);

    private static DeltaPlan? PlanFor(IReadOnlyDictionary<string, Tensor> x) => DeltaPlan.For(x["q"], x["k"], x["v"], x["beta"], x.GetValueOrDefault("g"));

    private static void Agrees(OperatorCheck.Form fused, Dictionary<string, Tensor> inputs, OperatorCheck.Form? naive = null, double tolerance = BFloat16Error, int seed = 1, bool throughState = true)
    {
        var heads = inputs.Values.First();
        var dOutput = randn(heads.shape[0], heads.shape[1], H, inputs.TryGetValue("v", out var v) ? v.shape[3] : V).to(heads.dtype);
        var expected = OperatorCheck.Evaluate(naive ?? Naive, inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float64)), dOutput.to(float64), throughState);
        using var emulated = EmulatedCuda.Begin(seed);
        var got = OperatorCheck.Evaluate(fused, inputs, dOutput, throughState);
        foreach (var (name, value) in expected)
        {
            Assert.Equal(value.shape, got[name].shape);
            var error = ((got[name].to(float64) - value).norm() / value.norm().clamp_min(1e-30)).item<double>();
            Assert.True(error <= tolerance, $"{name} differs by {error:E2}, more than {tolerance:E0}");
        }
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(1, 1), InlineData(63, 1), InlineData(64, 2), InlineData(130, 1), InlineData(130, 2)]
    public void Gated_equals_naive(int time, int seed)
    {
        using var scope = NewDisposeScope();
        Agrees(Run, Inputs(time), seed: seed);
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(1, 1), InlineData(65, 1), InlineData(150, 2)]
    public void Plain_equals_naive(int time, int seed)
    {
        using var scope = NewDisposeScope();
        Agrees(Run, Inputs(time, keys: 64, values: 128, gated: false, initial: time > 100), seed: seed);
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(1), InlineData(2)]
    public void The_plan_for_little_shared_memory_equals_naive_in_float16(int seed)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(100, float16, 64, 32);
        inputs["beta"] = inputs["beta"].to(float32);
        inputs["g"] = inputs["g"].to(float16);
        Agrees(Fused(new DeltaPlan("fp16", "fp32", "fp16", 64, 32, lean: true)), inputs, tolerance: Float16Error, seed: seed);
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(true, 1, 1), InlineData(true, 2, 2), InlineData(true, 4, 1), InlineData(false, 2, 2)]
    public void Segments_side_by_side_equal_naive(bool gated, int segment, int seed)
    {
        using var scope = NewDisposeScope();
        var inputs = gated ? Inputs(333) : Inputs(150, keys: 64, values: 128, gated: false);
        if (gated) inputs["g"] *= 0.05; // so that a segment remembers the one before
        Agrees(Fused(segment: segment), inputs, seed: seed);
    }

    [Fact]
    public void Few_heads_over_a_long_time_are_cut_into_segments()
    {
        var plan = new DeltaPlan("bf16", "bf16", null, 64, 64);
        Assert.Equal(16, plan.Segment(chunks: 512, heads: 16));
        Assert.Equal(16, plan.Segment(chunks: 16, heads: 512));
        Assert.Equal(8, plan.Segment(chunks: 8, heads: 1));
        Assert.Equal(512, new DeltaPlan("bf16", "bf16", null, 64, 64, lean: true).Segment(chunks: 512, heads: 16));
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(0), InlineData(1)]
    public void Extreme_gates_and_strengths_are_safe(int segment)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(200);
        var draw = rand(inputs["g"].shape);
        inputs["g"] = where(draw < 0.1, float.NegativeInfinity, where(draw < 0.5, zeros_like(draw), inputs["g"]));
        inputs["g"].select(2, 1).narrow(1, 0, 70).fill_(float.NegativeInfinity);
        draw = rand(inputs["g"].shape);
        inputs["beta"] = where(draw > 0.8, 2, where(draw > 0.6, 1, where(draw > 0.4, 0, inputs["beta"].to(float32)))).to(bfloat16);
        Agrees(Fused(segment: segment), inputs);
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void Equal_keys_at_full_strength_stay_close()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(150, keys: 64, values: 128, gated: false);
        inputs["k"] = inputs["k"].narrow(1, 0, 1).expand(B, 150, H, 64).clone();
        inputs["beta"] = ones_like(inputs["beta"]); // the triangular system at its worst: the gradients of v and β are differences of neighbours in which nearly all cancels
        Agrees(Run, inputs, tolerance: 5e-2);
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void Gradients_of_the_output_alone_and_of_the_state_alone()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(70);
        Agrees(Run, inputs, throughState: false);
        OperatorCheck.Form OfState(OperatorCheck.Form form) => x => (form(x).Output.detach(), form(x).FinalState);
        Agrees(OfState(Run), inputs, OfState(Naive));
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void Views_of_one_projection_and_a_key_that_all_heads_share()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        const int time = 70;
        OperatorCheck.Form Projected(OperatorCheck.Form form) => x =>
        {
            var parts = x["projection"].Parts(H * K, K, H * V);
            Tensor Heads(Tensor part, long size) => part.unflatten(2, [part.shape[2] / size, size]);
            return form(new Dictionary<string, Tensor>
            {
                ["q"] = Heads(parts[0], K), ["k"] = Heads(parts[1], K).expand(B, time, H, K), ["v"] = Heads(parts[2], V), ["beta"] = x["strengths"].narrow(2, H, H), ["g"] = x["fades"].narrow(2, 0, H),
            });
        };
        var inputs = new Dictionary<string, Tensor>
        {
            ["projection"] = (randn(B, time, H * (K + V) + K) * 0.2).to(bfloat16), ["strengths"] = rand(B, time, 2 * H).to(bfloat16), ["fades"] = -rand(B, time, 2 * H),
        };
        Agrees(Projected(Run), inputs, Projected(Naive));
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(24, 10)] // no multiples of 16
    [InlineData(K, V)]
    public void Padding_neither_writes_nor_fades(int keys, int values)
    {
        using var scope = NewDisposeScope();
        long[] lengths = [80, 13];
        var inputs = Inputs(80, keys: keys, values: values).ToDictionary(pair => pair.Key, pair => cat([pair.Value, pair.Value.flip(pair.Key == "h0" ? 2 : 1)]));
        var padding = new SequencePadding(tensor(lengths), 80);
        (Tensor, Tensor) Padded(IReadOnlyDictionary<string, Tensor> x)
        {
            var (output, state) = DeltaRecurrence.Run(x["q"], x["k"], x["v"], x["beta"], x["g"], x["h0"], padding);
            return (output * padding.Valid.unsqueeze(-1).unsqueeze(-1), state);
        }
        (Tensor, Tensor) OneByOne(IReadOnlyDictionary<string, Tensor> x)
        {
            var (outputs, states) = (new List<Tensor>(), new List<Tensor>());
            for (var row = 0; row < lengths.Length; row++)
            {
                Tensor Row(string name) => x[name].narrow(0, row, 1).narrow(1, 0, lengths[row]);
                var (output, state) = DeltaRecurrence.Naive(Row("q"), Row("k"), Row("v"), Row("beta"), Row("g"), x["h0"].narrow(0, row, 1));
                outputs.Add(nn.functional.pad(output, [0, 0, 0, 0, 0, 80 - lengths[row]]));
                states.Add(state);
            }
            return (cat(outputs), cat(states));
        }
        Agrees(Padded, inputs, OneByOne);
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void Without_a_gradient_the_results_are_the_same()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        var inputs = Inputs(70);
        var kept = Run(inputs.ToDictionary(pair => pair.Key, pair => pair.Value.clone().requires_grad_()));
        var alone = Run(inputs);
        Assert.True(kept.Output.eq(alone.Output).all().item<bool>() && kept.FinalState.eq(alone.FinalState).all().item<bool>());
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(ScalarType.BFloat16, 128, 128, true)]
    [InlineData(ScalarType.Float16, 20, 112, true)]
    [InlineData(ScalarType.BFloat16, 144, 64, false)]
    [InlineData(ScalarType.Float32, 64, 64, false)]
    public void What_the_kernels_serve(ScalarType type, int keys, int values, bool expected)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(2, type, keys, values);
        Assert.Null(PlanFor(inputs)); // the CPU
        using var emulated = EmulatedCuda.Begin();
        Assert.Equal(expected, PlanFor(inputs) is not null);
    }
}
