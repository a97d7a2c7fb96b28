using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Ops;

/// <summary>The CUDA kernels of everything around the recurrences, emulated, against libtorch's operators in float64: outputs and gradients.</summary>
public sealed class FusedAroundTests
{
    private static Tensor[] Evaluate(Func<Tensor[], Tensor[]> function, Tensor[] inputs)
    {
        var leaves = inputs.Select(input => input.detach().clone().requires_grad_()).ToArray();
        var outputs = function(leaves);
        manual_seed(77);
        var loss = zeros(1, dtype: float64);
        foreach (var output in outputs) loss = loss + (output.to(float64) * randn(output.shape, float64)).sum();
        OperatorFailure.Backward(loss);
        return [.. outputs.Select(output => output.detach()), .. leaves.Select(leaf => leaf.grad!)];
    }

    // In float64 there is no kernel: the same call is the definition.
    private static void Same(ScalarType type, Func<Tensor[], Tensor[]> function, params Tensor[] inputs)
    {
        var rounded = inputs.Select(input => input.to(type)).ToArray();
        var expected = Evaluate(function, [.. rounded.Select(input => input.to(float64))]);
        using var emulated = EmulatedCuda.Begin();
        var got = Evaluate(function, rounded);
        for (var i = 0; i < expected.Length; i++)
        {
            Assert.Equal(expected[i].shape, got[i].shape);
            var error = ((got[i].to(float64) - expected[i]).norm() / expected[i].norm().clamp_min(1e-30)).item<double>();
            Assert.True(error <= (type == bfloat16 ? 1e-2 : 1e-5), $"{(i < expected.Length - inputs.Length ? "output" : "gradient")} {i}: {error:E2}");
        }
        foreach (var gradient in expected.Concat(got)) gradient.Dispose();
    }

    private static Tensor Random(params long[] shape) => randn(shape, float64);

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(ScalarType.BFloat16, 48)]
    [InlineData(ScalarType.Float32, 13)]
    public void SwiGLU_s_gate(ScalarType type, long hidden)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        Same(type, x => [GatedProduct.Run(x[0])], Random(2, 3, 2 * hidden));
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(ScalarType.BFloat16, 64, true)]
    [InlineData(ScalarType.BFloat16, 64, false)]
    [InlineData(ScalarType.Float32, 50, true)]
    public void The_norm_of_a_sum(ScalarType type, long width, bool residual)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        Tensor[] Run(Tensor[] x)
        {
            var (sum, y) = AddNorm.Run(x[2], residual ? x[3] : null, x[0], x[1]);
            return residual ? [sum, y] : [y, x[3]];
        }
        Same(type, Run, 1 + 0.3 * Random(width), Random(width), Random(3, 5, width), Random(3, 5, width));
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(ScalarType.BFloat16, 32, true)]
    [InlineData(ScalarType.BFloat16, 32, false)]
    [InlineData(ScalarType.Float32, 10, true)]
    public void The_norm_of_heads_and_its_gate(ScalarType type, long size, bool gated)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var packed = Random(2, 5, 2 * 3 * size); // the gate is a part of a projection
        Same(type, x => gated ? [HeadNorm.Run(x[0], x[1], x[2].narrow(2, 3 * size, 3 * size))] : [HeadNorm.Run(x[0], x[1], null), x[2]], Random(2, 5, 3, size), 1 + 0.3 * Random(size), packed);
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(ScalarType.BFloat16, 16)]
    [InlineData(ScalarType.Float32, 10)]
    public void Mamba_2_s_end(ScalarType type, long size)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        // u and the gate are parts of projections.
        Same(type, x => [SkipNorm.Run(x[0], x[1].narrow(2, 0, 3 * size).unflatten(2, 3, size), x[2], x[1].narrow(2, 3 * size, 3 * size), x[3])],
            Random(2, 5, 3, size), Random(2, 5, 7 * size), Random(3), 1 + 0.3 * Random(3 * size));
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(ScalarType.BFloat16, 32)]
    [InlineData(ScalarType.Float32, 10)]
    public void Heads_of_length_1(ScalarType type, long size)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        Same(type, x => { var (q, k, v) = UnitHeads.Run(x[0], 3, 2.5); return [q, k, v]; }, Random(2, 5, 3 * 3 * size));
        Same(type, x => { var (q, _, v) = UnitHeads.Run(x[0], 3, 2.5); return [q.transpose(1, 2), v]; }, Random(2, 5, 3 * 3 * size)); // no gradient of k
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(ScalarType.BFloat16, 32, 3)]
    [InlineData(ScalarType.BFloat16, 32, 4)]
    [InlineData(ScalarType.Float32, 10, 4)]
    public void Heads_turned_by_their_position(ScalarType type, long size, int parts)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        // The definition's angles are float32 whatever its type.
        if (type == bfloat16) Same(type, x => [.. TurnedHeads.Run(x[0], parts, 2, 7, 3).Select(part => part.transpose(1, 2).contiguous())], Random(2, 5, parts * 2 * size));
        else Same(type, x => TurnedHeads.Run(x[0], parts, 2, 7), Random(2, 5, parts * 2 * size));
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(ScalarType.BFloat16, 32, true)]
    [InlineData(ScalarType.Float32, 10, false)]
    public void Linear_attention_divides_beforehand(ScalarType type, int size, bool rotary)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using var mixer = new LinearAttention(2 * size, 2, rotary);
        var names = mixer.named_parameters().Select(entry => entry.name).ToArray();
        Tensor[] Run(Tensor[] x)
        {
            mixer.to(x[0].dtype);
            using (no_grad()) foreach (var ((_, parameter), value) in mixer.named_parameters().Zip(x.Skip(1))) parameter.copy_(value);
            return [mixer.call(x[0], null, null), .. x.Skip(1)];
        }
        Same(type, Run, [Random(2, 37, 2 * size), .. mixer.parameters().Select(parameter => parameter.detach().to(float64) * 3)]);
    }

    [EmulatedCudaTheory, NoTensorLeaks]
    [InlineData(ScalarType.BFloat16)]
    [InlineData(ScalarType.Float32)]
    public void AdamW_in_two_launches(ScalarType precision)
    {
        using var scope = NewDisposeScope();
        Tensor Trained(bool fused)
        {
            using var emulated = fused ? EmulatedCuda.Begin() : null;
            manual_seed(3);
            using var network = nn.Sequential(nn.Linear(30, 50), nn.Linear(50, 3));
            using var parameters = new FlatParameters(network, precision, CPU);
            using var optimizer = new AdamW(parameters, weightDecay: 0.1, clipping: 0.5);
            for (var step = 1; step <= 4; step++)
            {
                using var each = NewDisposeScope();
                var loss = network.call(randn(20, 30).to(precision)).to(float32).square().sum();
                loss.backward();
                optimizer.Step(step, 0.01, 0.5);
                foreach (var parameter in network.parameters()) Assert.Equal(0, parameter.grad!.abs().sum().to(float32).item<float>());
            }
            return parameters.Master.clone();
        }
        var (expected, got) = (Trained(false), Trained(true));
        Assert.InRange((got - expected).abs().max().item<float>(), 0, precision == bfloat16 ? 3e-4f : 2e-6f);
    }
}
