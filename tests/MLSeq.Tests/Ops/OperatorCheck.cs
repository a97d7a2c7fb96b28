using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Ops;

/// <summary>Compares two forms of an operator: outputs, final state and the gradient of every input.</summary>
internal static class OperatorCheck
{
    /// <summary>An operator's form: named inputs to output and final state.</summary>
    public delegate (Tensor Output, Tensor FinalState) Form(IReadOnlyDictionary<string, Tensor> inputs);

    /// <summary>Everything an operator says: o, ht and d(input) for upstream gradients drawn from a seed.</summary>
    public static Dictionary<string, Tensor> Evaluate(Form form, IReadOnlyDictionary<string, Tensor> inputs, Tensor? dOutput = null, bool throughState = true)
    {
        var leaves = inputs.ToDictionary(pair => pair.Key, pair => pair.Value.detach().clone().requires_grad_());
        var (output, state) = form(leaves);
        manual_seed(77);
        var loss = (output * (dOutput ?? randn(output.shape, float64).to(output.dtype))).to(state.dtype).sum();
        if (throughState) loss = loss + (state * randn(state.shape, float64).to(state.dtype)).sum();
        OperatorFailure.Backward(loss);
        var all = new Dictionary<string, Tensor> { ["o"] = output.detach(), ["ht"] = state.detach() };
        foreach (var (name, leaf) in leaves)
        {
            var gradient = leaf.grad;
            all["d" + name] = (gradient ?? zeros_like(leaf)).clone();
            gradient?.Dispose();
        }
        return all;
    }

    /// <summary>Largest difference relative to the largest number, of everything; fails above the tolerance, naming what differs.</summary>
    public static void Same(IReadOnlyDictionary<string, Tensor> expected, IReadOnlyDictionary<string, Tensor> got, double tolerance, params string[] except)
    {
        foreach (var (name, value) in expected.Where(pair => !except.Contains(pair.Key)))
        {
            Assert.True(value.shape.SequenceEqual(got[name].shape), $"{name}: [{string.Join(", ", got[name].shape)}], expected [{string.Join(", ", value.shape)}]");
            Assert.True(got[name].isfinite().all().item<bool>(), $"{name} is not finite");
            var error = RelativeError(value, got[name]);
            Assert.True(error <= tolerance, $"{name} differs by {error:E2}, more than {tolerance:E0}");
        }
    }

    /// <summary>The same by norms, ‖difference‖ / ‖expected‖, of everything: what rounding of many numbers to 16 bits leaves alike in all of them.</summary>
    public static void Close(IReadOnlyDictionary<string, Tensor> expected, IReadOnlyDictionary<string, Tensor> got, double tolerance)
    {
        foreach (var (name, value) in expected)
        {
            Assert.True(value.shape.SequenceEqual(got[name].shape), $"{name}: [{string.Join(", ", got[name].shape)}], expected [{string.Join(", ", value.shape)}]");
            var error = (got[name].to(float64) - value).norm().item<double>() / Math.Max(value.norm().item<double>(), 1e-3);
            Assert.True(error <= tolerance, $"{name} differs by {error:E2}, more than {tolerance:E0}"); // NaN differs too
        }
    }

    public static double RelativeError(Tensor expected, Tensor got)
    {
        var scale = Math.Max(expected.to(float64).abs().max().item<double>(), 1e-3);
        return (got.to(float64) - expected.to(float64)).abs().max().item<double>() / scale;
    }

    /// <summary>Checks gradients by central differences in random directions, float64.</summary>
    public static void MatchesFiniteDifferences(Form form, IReadOnlyDictionary<string, Tensor> inputs, params string[] names)
    {
        var analytic = Evaluate(form, inputs);
        foreach (var name in names.Length > 0 ? names : [.. inputs.Keys])
        {
            manual_seed(5);
            var direction = randn(inputs[name].shape, float64);
            double Loss(double step)
            {
                using var _ = no_grad();
                var moved = inputs.ToDictionary(pair => pair.Key, pair => pair.Key == name ? pair.Value + direction * step : pair.Value);
                var (output, state) = form(moved);
                manual_seed(77);
                return ((output * randn(output.shape, float64)).sum() + (state * randn(state.shape, float64)).sum()).item<double>();
            }
            var numeric = (Loss(1e-5) - Loss(-1e-5)) / 2e-5;
            var exact = (analytic["d" + name] * direction).sum().item<double>();
            Assert.True(Math.Abs(numeric - exact) <= 1e-6 * Math.Max(1, Math.Abs(numeric)), $"d{name}: {exact}, finite differences {numeric}");
        }
    }

    /// <summary>The tensors of a recorded file.</summary>
    public static IReadOnlyDictionary<string, Tensor> Golden(string name)
    {
        using var file = File.OpenRead(Path.Combine(AppContext.BaseDirectory, "data", "golden", name + ".safetensors"));
        return SafeTensors.ReadAll(file, 1 << 24).Tensors;
    }

    /// <summary>Compares a form with a recorded file: o, ht where there is one, and every gradient.</summary>
    public static void MatchesGolden(string file, Form form, string[] inputs)
    {
        var golden = Golden(file);
        var got = Evaluate(form, inputs.ToDictionary(name => name, name => golden[name]), golden["do"], throughState: false);
        var expected = golden.Where(pair => got.ContainsKey(pair.Key)).ToDictionary(pair => pair.Key, pair => pair.Value);
        Assert.Equal(inputs.Length + (golden.ContainsKey("ht") ? 2 : 1), expected.Count);
        Same(expected, got, 1e-9);
    }
}
