using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Ops;

/// <summary>All forms are the naive one: outputs, what is kept for the next element, and all gradients.</summary>
public sealed class CausalConvolutionTests
{
    private const int B = 2;

    private static readonly OperatorCheck.Form Naive = x => CausalConvolution.Naive(x["x"], x["w"], x.GetValueOrDefault("past"));
    private static readonly OperatorCheck.Form Shifted = x => CausalConvolution.Shifted(x["x"], x["w"], x.GetValueOrDefault("past"));
    private static readonly OperatorCheck.Form Run = x => CausalConvolution.Run(x["x"], x["w"], x.GetValueOrDefault("past"));

    private static Dictionary<string, Tensor> Inputs(int time, int channels, int taps, bool past, ScalarType type = ScalarType.Float64)
    {
        manual_seed(time);
        var inputs = new Dictionary<string, Tensor> { ["x"] = randn(B, time, channels, type), ["w"] = randn(taps, channels, type) };
        if (past) inputs["past"] = randn(B, taps - 1, channels, type);
        return inputs;
    }

    [Theory]
    [InlineData(1, 4, true), InlineData(1, 4, false), InlineData(2, 4, true), InlineData(3, 4, false), InlineData(37, 4, true), InlineData(63, 2, true)]
    [NoTensorLeaks]
    public void Shifted_products_equal_naive(int time, int taps, bool past)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(time, 5, taps, past);
        OperatorCheck.Same(OperatorCheck.Evaluate(Naive, inputs), OperatorCheck.Evaluate(Shifted, inputs), 1e-12);
    }

    [Fact, NoTensorLeaks]
    public void Gradients_match_finite_differences()
    {
        using var scope = NewDisposeScope();
        OperatorCheck.MatchesFiniteDifferences(Shifted, Inputs(9, 5, 4, past: true));
    }

    [Theory]
    [InlineData(1), InlineData(2), InlineData(5), NoTensorLeaks]
    public void Parts_one_after_the_other_equal_the_whole(int part)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var x = Inputs(20, 5, 4, past: true);
        var expected = CausalConvolution.Shifted(x["x"], x["w"], x["past"]);
        var (outputs, past) = (new List<Tensor>(), x["past"]);
        foreach (var span in x["x"].split(part, 1))
        {
            (var y, past) = CausalConvolution.Run(span, x["w"], past);
            outputs.Add(y);
        }
        Assert.True(OperatorCheck.RelativeError(expected.Output, cat(outputs, 1)) < 1e-12);
        Assert.True(OperatorCheck.RelativeError(expected.Past, past) < 1e-12);
    }

    // Channels of all alignments; times shorter than the past, around a strip (32 forward, 61 for the gradient) and over several.
    [EmulatedCudaTheory]
    [InlineData(ScalarType.Float32, 1, 24, 4, 1), InlineData(ScalarType.Float32, 2, 24, 4, 2), InlineData(ScalarType.Float32, 61, 24, 4, 3), InlineData(ScalarType.Float32, 62, 24, 4, 1), InlineData(ScalarType.Float32, 150, 24, 4, 2)]
    [InlineData(ScalarType.Float32, 70, 5, 2, 1)]
    [InlineData(ScalarType.BFloat16, 33, 40, 4, 1), InlineData(ScalarType.BFloat16, 150, 40, 4, 2)]
    [NoTensorLeaks]
    public void The_CUDA_kernels_equal_naive(ScalarType type, int time, int channels, int taps, int seed)
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin(seed);
        foreach (var past in (bool[])[false, true])
        {
            var inputs = Inputs(time, channels, taps, past, type);
            var exact = inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float64));
            OperatorCheck.Same(OperatorCheck.Evaluate(Naive, exact), OperatorCheck.Evaluate(Run, inputs), type == float32 ? 1e-5 : 1e-2);
        }
    }

    [EmulatedCudaFact, NoTensorLeaks]
    public void The_CUDA_kernels_read_views_where_they_lie()
    {
        using var scope = NewDisposeScope();
        using var emulated = EmulatedCuda.Begin();
        manual_seed(1);
        OperatorCheck.Form Of(OperatorCheck.Form form) => x => form(new Dictionary<string, Tensor> { ["x"] = x["projection"].narrow(-1, 8, 24), ["w"] = x["w"].narrow(1, 8, 24), ["past"] = x["projection"].narrow(1, 0, 3).narrow(-1, 40, 24) });
        var inputs = new Dictionary<string, Tensor> { ["projection"] = randn(B, 62, 68), ["w"] = randn(4, 40) };
        OperatorCheck.Same(OperatorCheck.Evaluate(Of(Naive), inputs), OperatorCheck.Evaluate(Of(Run), inputs), 1e-5);
    }
}
