using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Ops;

/// <summary>Titans' memory: the chunked form is the naive one, and the naive one is gradient descent.</summary>
public sealed class NeuralMemoryTests
{
    private const int B = 2, H = 3, K = 6, Inner = 10, V = 5;

    private static Dictionary<string, Tensor> Inputs(int time, int layers, int seed = 1)
    {
        manual_seed(seed);
        var inputs = new Dictionary<string, Tensor>
        {
            ["q"] = nn.functional.normalize(randn(B, time, H, K, dtype: float64), dim: -1), ["k"] = nn.functional.normalize(randn(B, time, H, K, dtype: float64), dim: -1),
            ["v"] = randn(B, time, H, V, dtype: float64), ["rate"] = rand(B, time, H, dtype: float64) * 0.2,
            ["momentum"] = nn.functional.logsigmoid(randn(B, time, H, dtype: float64)), ["keep"] = nn.functional.logsigmoid(randn(B, time, H, dtype: float64) + 3),
        };
        for (var layer = 0; layer < layers; layer++)
            inputs[$"w{layer}"] = randn(H, layer == 0 ? K : Inner, layer == layers - 1 ? V : Inner, dtype: float64) / 2;
        return inputs;
    }

    private static OperatorCheck.Form Form(bool naive, int chunk, int split = 0) => x =>
    {
        var state = NeuralMemoryState.Start(x.Where(pair => pair.Key[0] == 'w').OrderBy(pair => pair.Key).Select(pair => pair.Value), B);
        var outputs = new List<Tensor>();
        var time = x["q"].shape[1];
        for (long from = 0, count; from < time; from += count)
        {
            count = split == 0 ? time : Math.Min(split, time - from);
            Tensor Part(string name) => x[name].narrow(1, from, count);
            var gates = new NeuralMemoryGates(Part("rate"), Part("momentum"), Part("keep"));
            (var o, state) = naive ? NeuralMemory.Naive(Part("q"), Part("k"), Part("v"), gates, state, chunk) : NeuralMemory.Chunked(Part("q"), Part("k"), Part("v"), gates, state, chunk);
            outputs.Add(o);
        }
        return (cat(outputs, 1), cat([.. state.Memory.Concat(state.Momentum).Select(layer => layer.flatten(2))], 2));
    };

    [Theory]
    [InlineData(1, 1, 1), InlineData(1, 37, 8), InlineData(2, 1, 8), InlineData(2, 37, 1), InlineData(2, 37, 8), InlineData(2, 65, 16), InlineData(1, 63, 64), InlineData(3, 20, 4), InlineData(2, 200, 32), InlineData(2, 150, 4)]
    [NoTensorLeaks]
    public void Chunked_equals_naive(int layers, int time, int chunk)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(time, layers);
        var expected = OperatorCheck.Evaluate(Form(naive: true, chunk), inputs);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Form(naive: false, chunk), inputs), 1e-9);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Form(naive: false, chunk), inputs.ToDictionary(pair => pair.Key, pair => pair.Value.to(float32))), 1e-4);
        foreach (var split in (int[])[1, 5, 75]) // in pieces that do not end where chunks do
            OperatorCheck.Same(expected, OperatorCheck.Evaluate(Form(naive: false, chunk, split), inputs), 1e-9);
    }

    [Fact, NoTensorLeaks]
    public void Extreme_gates_are_safe()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(60, 2);
        manual_seed(3);
        var draw = rand(inputs["keep"].shape, float64);
        inputs["keep"] = where(draw < 0.2, double.NegativeInfinity, where(draw < 0.5, zeros_like(draw), inputs["keep"]));
        inputs["momentum"] = where(draw > 0.8, double.NegativeInfinity, inputs["momentum"]);
        inputs["rate"] = where(draw > 0.6, zeros_like(draw), inputs["rate"]);
        var expected = OperatorCheck.Evaluate(Form(naive: true, 8), inputs);
        OperatorCheck.Same(expected, OperatorCheck.Evaluate(Form(naive: false, 8), inputs), 1e-9);
    }

    [Fact, NoTensorLeaks]
    public void Any_sequence_leaves_the_memory_finite()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(2000, 2); // full rate, much momentum, nothing forgotten, equal keys, large values, large weights
        inputs["k"] = inputs["k"].narrow(1, 0, 1).expand(B, 2000, H, K);
        inputs["v"] = inputs["v"] * 1e3;
        inputs["w1"] = inputs["w1"] * 30;
        inputs["rate"] = full_like(inputs["rate"], (1 - 0.9) / 8);
        inputs["momentum"] = full_like(inputs["momentum"], Math.Log(0.9));
        inputs["keep"] = zeros_like(inputs["keep"]);
        var (output, state) = Form(naive: false, 8)(inputs);
        Assert.True(output.isfinite().all().item<bool>() && state.isfinite().all().item<bool>());
        Assert.True(output.abs().max().item<double>() < 1e6, output.abs().max().item<double>().ToString("E1"));
    }

    [Theory]
    [InlineData(1), InlineData(2), NoTensorLeaks]
    public void Gradients_match_finite_differences(int layers)
    {
        using var scope = NewDisposeScope();
        OperatorCheck.MatchesFiniteDifferences(Form(naive: false, 4), Inputs(11, layers));
    }

    [Fact, NoTensorLeaks]
    public void The_naive_form_descends_the_gradient_of_the_squared_error()
    {
        using var scope = NewDisposeScope();
        var x = Inputs(6, 2);
        var (output, _) = Form(naive: true, chunk: 1)(x);
        // Independently: autograd's gradient of ½‖f(k) − v‖², for one row and head, one element at a time.
        var (w1, w2) = (x["w0"][1].clone(), x["w1"][1].clone());
        var (s1, s2) = (zeros_like(w1), zeros_like(w2));
        static Tensor Hidden(Tensor z) => nn.functional.silu(z) / (1 + nn.functional.silu(z).square().sum()).sqrt();
        for (var t = 0; t < 6; t++)
        {
            Tensor At(string name) => x[name][1, t, 1];
            var (a, b) = (w1.detach().requires_grad_(), w2.detach().requires_grad_());
            var loss = (Hidden(At("k").unsqueeze(0).matmul(a)).matmul(b) - At("v")).square().sum() / 2;
            var gradients = autograd.grad([loss], [a, b]);
            s1 = At("momentum").exp() * s1 - At("rate") * gradients[0];
            s2 = At("momentum").exp() * s2 - At("rate") * gradients[1];
            w1 = At("keep").exp() * w1 + s1;
            w2 = At("keep").exp() * w2 + s2;
            var read = Hidden(At("q").unsqueeze(0).matmul(w1)).matmul(w2)[0];
            Assert.True(OperatorCheck.RelativeError(read, output[1, t, 1]) < 1e-12);
        }
    }
}
