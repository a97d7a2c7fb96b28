using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Modules;

/// <summary>What every registered backbone must do. A new line in the registry is tested here without another.</summary>
public sealed class BackboneConformanceTests
{
    private const int Width = 16;

    public static TheoryData<string, bool> All()
    {
        var data = new TheoryData<string, bool>();
        foreach (var name in Backbone.Names)
        {
            data.Add(name, false);
            data.Add(name, true);
        }
        return data;
    }

    public static TheoryData<string, bool, int> AllWithLengths()
    {
        var data = new TheoryData<string, bool, int>();
        foreach (var row in All())
            foreach (var time in (int[])[1, 7, 63])
                data.Add((string)row[0], (bool)row[1], time);
        return data;
    }

    private static Backbone Small(string name, bool bidirectional) => Backbone.Create(name, Width, depth: 2, bidirectional) with { Dropout = 0.1 };

    private static SequenceStack Stack(string name, bool bidirectional, int seed = 1)
    {
        manual_seed(seed);
        var stack = new SequenceStack(Small(name, bidirectional));
        stack.to(float64);
        stack.eval();
        return stack;
    }

    private static Tensor Input(int batch, int time, int seed = 2)
    {
        manual_seed(seed);
        return randn(batch, time, Width, dtype: float64);
    }

    [Theory, MemberData(nameof(AllWithLengths)), NoTensorLeaks]
    public void Keeps_the_shape_and_is_finite(string name, bool bidirectional, int time)
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(name, bidirectional);
        var y = stack.call(Input(3, time), null, null);
        Assert.Equal([3, time, Width], y.shape);
        Assert.True(y.isfinite().all().item<bool>());
    }

    [Theory, MemberData(nameof(AllWithLengths)), NoTensorLeaks]
    public void Padding_is_ignored(string name, bool bidirectional, int time)
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(name, bidirectional);
        var x = Input(3, time);
        long[] lengths = [time, Math.Max(1, time / 2), 1];
        var padding = new SequencePadding(tensor(lengths), time);
        var y = stack.call(x, padding, null);
        // What stands in padded positions changes nothing, to the bit.
        var other = stack.call(where(padding.Valid.unsqueeze(-1), x, Input(3, time, seed: 9) * 100), padding, null);
        // A row alone, without any padding, gives the same but for the order of sums.
        for (var row = 0; row < 3; row++)
        {
            var real = y[row].narrow(0, 0, lengths[row]);
            Assert.True(real.Same(other[row].narrow(0, 0, lengths[row])), $"row {row} depends on its padding");
            var alone = stack.call(x[row].narrow(0, 0, lengths[row]).unsqueeze(0), null, null).squeeze(0);
            Assert.True((real - alone).abs().max().item<double>() < 1e-10, $"row {row} differs from the row alone");
        }
    }

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void Direction_is_as_promised(string name, bool bidirectional)
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(name, bidirectional);
        var x = Input(1, 20);
        var changed = x.clone();
        changed[0, 12, 3] = changed[0, 12, 3] + 1; // one feature: norms would remove what all have in common
        var difference = (stack.call(x, null, null) - stack.call(changed, null, null)).abs().sum(-1)[0];
        Assert.True(difference[12].item<double>() > 1e-6);
        Assert.True(difference[13].item<double>() > 1e-9, "the next position does not see the change");
        var before = difference.narrow(0, 0, 12).max().item<double>();
        if (bidirectional) Assert.True(difference[11].item<double>() > 1e-9, "a bidirectional backbone must look ahead");
        else Assert.Equal(0, before); // a causal one must not, to the bit
    }

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void Gradients_reach_every_parameter_and_match_finite_differences(string name, bool bidirectional)
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(name, bidirectional);
        var x = Input(2, 7).requires_grad_();
        var padding = new SequencePadding(tensor(new long[] { 7, 4 }), 7);
        manual_seed(3);
        var weights = randn(2, 7, Width, dtype: float64) * padding.Valid.unsqueeze(-1).to(float64);
        Tensor Loss(Tensor input) => (stack.call(input, padding, null) * weights).sum();
        OperatorFailure.Backward(Loss(x));
        foreach (var (parameter, value) in stack.named_parameters())
        {
            var grad = value.grad;
            Assert.True(grad is not null && grad.abs().sum().item<double>() > 0, $"no gradient reaches {parameter}");
            grad!.Dispose();
        }
        using var gradient = x.grad!;
        Assert.Equal(0, gradient[1].narrow(0, 4, 3).abs().max().item<double>()); // padding
        using var _ = no_grad();
        foreach (var (row, time, feature) in ((int, int, int)[])[(0, 0, 0), (0, 6, 3), (1, 3, 5), (1, 0, 15)])
        {
            var step = zeros_like(x);
            step[row, time, feature] = 1e-5;
            var numeric = ((Loss(x + step) - Loss(x - step)) / 2e-5).item<double>();
            Assert.Equal(numeric, gradient[row, time, feature].item<double>(), 1e-5 * Math.Max(1, Math.Abs(numeric)));
        }
    }

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void The_same_seed_gives_the_same_network_and_another_seed_another(string name, bool bidirectional)
    {
        using var scope = NewDisposeScope();
        using var first = Stack(name, bidirectional, seed: 5);
        using var second = Stack(name, bidirectional, seed: 5);
        using var third = Stack(name, bidirectional, seed: 6);
        var x = Input(2, 9);
        Assert.True(first.call(x, null, null).Same(second.call(x, null, null)));
        Assert.False(first.call(x, null, null).Same(third.call(x, null, null)));
    }

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void Float32_and_bfloat16_agree_with_float64(string name, bool bidirectional)
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(name, bidirectional);
        var x = Input(2, 33);
        var exact = stack.call(x, null, null).detach();
        foreach (var (type, tolerance) in ((ScalarType, double)[])[(float32, 1e-4), (bfloat16, 1e-1)])
        {
            stack.to(type);
            var error = (stack.call(x.to(type), null, null).to(float64) - exact).norm() / exact.norm();
            Assert.True(error.item<double>() < tolerance, $"{type}: {error.item<double>()}");
        }
    }

    // Scoring takes other paths through libtorch than training: fused ones, for whole layers.
    [Theory, MemberData(nameof(Names)), NoTensorLeaks]
    public void Scores_in_float32_as_in_float64(string name)
    {
        using var scope = NewDisposeScope();
        using var _ = inference_mode();
        foreach (var width in (int[])[16, 48])
        {
            manual_seed(1);
            using var stack = new SequenceStack(Backbone.Create(name, width, depth: 1));
            stack.eval();
            var x = randn(3, 21, width);
            foreach (var parameter in stack.parameters()) parameter.requires_grad = false;
            var single = stack.call(x, null, null).to(float64);
            stack.to(float64);
            var exact = stack.call(x.to(float64), null, null);
            var error = ((single - exact).norm() / exact.norm()).item<double>();
            Assert.True(error < 1e-4, $"width {width}: {error}");
        }
    }

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void Weights_survive_safetensors_bit_for_bit(string name, bool bidirectional)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var spec = new SequenceClassifierSpec(Small(name, bidirectional), new ElementKind.Tokens(9), SequencePooling.LearnedQuery, 4);
        using var written = new SequenceClassifier(spec);
        using var file = new MemoryStream();
        SafeTensors.Write(file, written.State());
        file.Position = 0;
        manual_seed(2);
        using var read = new SequenceClassifier(spec);
        SafeTensors.Read(file, read.State());
        written.eval();
        read.eval();
        var batch = new SequenceBatch(randint(0, 9, [3, 17], dtype: int64), new SequencePadding(tensor(new long[] { 17, 5, 1 }), 17));
        Assert.True(written.call(batch, null).Same(read.call(batch, null)));
    }

    public static TheoryData<string> Names() => [.. Backbone.Names];

    [Theory, MemberData(nameof(Names)), NoTensorLeaks]
    public void A_sequence_in_pieces_equals_the_whole(string name)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        using var stack = Stack(name, bidirectional: false);
        const int Time = 151;
        var x = Input(3, Time);
        var whole = stack.call(x, null, null);
        foreach (var pieces in (int[][])[[1], [64, 3, 1], [7, 40], [150]])
        {
            MixerState[] states = [new(), new()];
            for (int from = 0, i = 0; from < Time; i++)
            {
                var count = Math.Min(pieces[i % pieces.Length], Time - from);
                var y = stack.call(x.narrow(1, from, count), null, states);
                var error = (y - whole.narrow(1, from, count)).abs().max().item<double>();
                Assert.True(error < 1e-9, $"pieces of {string.Join(", ", pieces)}: {error} at {from}");
                from += count;
                Assert.All(states, state => Assert.Equal(from, state.Position));
            }
            foreach (var state in states) state.Dispose();
        }
    }

    [Theory, MemberData(nameof(Names)), NoTensorLeaks]
    public void Streaming_takes_constant_memory_unless_it_is_attention(string name)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        using var stack = Stack(name, bidirectional: false);
        MixerState[] states = [new(), new()];
        long Bytes(int steps)
        {
            for (var i = 0; i < steps; i++)
                using (NewDisposeScope()) stack.call(Input(1, 1, seed: i), null, states);
            return states.Sum(state => state.Bytes);
        }
        var (early, late) = (Bytes(40), Bytes(100));
        if (name == "transformer") Assert.True(late > 2 * early);
        else Assert.Equal(early, late);
        foreach (var state in states) state.Dispose();
    }

    [Theory, MemberData(nameof(Names)), NoTensorLeaks]
    public void A_bidirectional_one_refuses_a_state(string name)
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(name, bidirectional: true);
        using var state = new MixerState();
        var error = Assert.Throws<NotSupportedException>(() => stack.call(Input(1, 3), null, [state, state]));
        Assert.Contains("Bidirectional = false", error.Message);
    }

    [Theory, MemberData(nameof(All))]
    public void Json_round_trips(string name, bool bidirectional)
    {
        var backbone = Small(name, bidirectional) with { Dropout = 0.25, MlpRatio = 1.5 };
        Assert.Equal(backbone, Backbone.FromJson(backbone.ToJson()));
        Assert.Equal(name, backbone.Name);
        Assert.Throws<FormatException>(() => Backbone.FromJson(backbone.ToJson().Replace("\"Width\":16", "\"Width\":15", StringComparison.Ordinal)));
        Assert.Throws<FormatException>(() => Backbone.FromJson(backbone.ToJson().Replace("\"Width\"", "\"Surprise\"", StringComparison.Ordinal)));
    }

    [Fact]
    public void All_problems_are_reported_at_once()
    {
        var error = Assert.Throws<ArgumentException>(() => (Backbone.Transformer(width: 32) with { Width = -1, Depth = 0, Heads = 0, Dropout = 1 }).Validate());
        foreach (var part in (string[])["Width", "Depth", "Heads", "Dropout"]) Assert.Contains(part, error.Message);
        Assert.Throws<ArgumentException>(() => Backbone.Create("no-such"));
    }
}
