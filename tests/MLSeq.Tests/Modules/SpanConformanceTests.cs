using System.Numerics;
using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Modules;

/// <summary>The forms over spans say what the modules say. Every registered backbone that has one is tested here.</summary>
public sealed class SpanConformanceTests
{
    private const double Tolerance = 1e-5; // of the largest number

    public static TheoryData<string> Names() => [.. Backbone.Names];

    public static TheoryData<string, int> NamesAndWidths()
    {
        var data = new TheoryData<string, int>();
        foreach (var name in Backbone.Names)
            foreach (var width in (int[])[16, 96])
                data.Add(name, width);
        return data;
    }

    private static SequenceStack Stack(Backbone backbone)
    {
        manual_seed(1);
        var stack = new SequenceStack(backbone);
        foreach (var parameter in stack.parameters())
            using (NewDisposeScope())
                if (parameter.dim() == 1) parameter.add_(randn_like(parameter) * 0.1); // norms and biases begin at 0 and 1, where mistakes do not show
        stack.eval();
        return stack;
    }

    private static Tensor Input(int time, int width, int seed = 2)
    {
        manual_seed(seed);
        return randn(1, time, width);
    }

    // [1, time, width] through the form over spans.
    private static Tensor Run(SpanStack overSpans, Tensor x, IReadOnlyList<MixerState>? states, Workspace work)
    {
        var numbers = x.Numbers();
        overSpans(new Rows(numbers, (int)x.shape[1], (int)x.shape[2]), states, work);
        return tensor(numbers, x.shape);
    }

    private static void AssertSame(Tensor expected, Tensor got, string what)
    {
        Assert.Equal(expected.shape, got.shape);
        if (expected.numel() == 0) return;
        var error = ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-3)).item<float>();
        Assert.True(error < Tolerance, $"{what}: {error}");
    }

    [Theory, MemberData(nameof(NamesAndWidths)), NoTensorLeaks]
    public void A_whole_sequence(string name, int width)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var work = new Workspace();
        foreach (var bidirectional in (bool[])[false, true])
        {
            using var stack = Stack(Backbone.Create(name, width, depth: 4, bidirectional));
            var overSpans = stack.OverSpans();
            Assert.NotNull(overSpans);
            foreach (var time in (int[])[1, 2, 5, 64, 133])
            {
                var x = Input(time, width);
                AssertSame(stack.call(x, null, null), Run(overSpans, x, null, work), $"{time} elements, bidirectional: {bidirectional}");
            }
        }
    }

    public static IEnumerable<Backbone> Variants()
    {
        foreach (var name in Backbone.Names) yield return Backbone.Create(name, 32, 2);
        yield return Backbone.Transformer(32, window: 1);
        yield return Backbone.Transformer(32, window: 2);
        yield return Backbone.Transformer(32, window: 21);
        yield return Backbone.Transformer(32) with { Rotary = false };
        yield return Backbone.LinearAttention(32) with { Rotary = false };
        yield return Backbone.Hybrid(width: 32, recurrentPerAttention: 1);
        yield return Backbone.Cnn(32, kernel: 1);
        yield return Backbone.Cnn(32, depth: 9, kernel: 3);
        yield return Backbone.Mamba(32, states: 13);
        yield return Backbone.Mamba2(32, states: 5) with { HeadSize = 1 };
        yield return Backbone.DeltaNet(32, heads: 1);
        yield return Backbone.Titans(32) with { MemoryDepth = 1, Chunk = 1, PersistentTokens = 0, Window = 0 };
        yield return Backbone.Titans(32) with { MemoryDepth = 3, MemoryExpansion = 1, Chunk = 5 };
        yield return Backbone.Gru(32) with { MlpRatio = 0 };
    }

    public static TheoryData<int> VariantNumbers() => [.. Enumerable.Range(0, Variants().Count())];

    // By element and by piece, with changes from one path to the other on the way; outputs and states.
    [Theory, MemberData(nameof(VariantNumbers)), NoTensorLeaks]
    public void Streams_and_their_states(int variant)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        const int time = 151;
        var backbone = Variants().ElementAt(variant);
        using var stack = Stack(backbone);
        var (overSpans, work, x) = (stack.OverSpans()!, new Workspace(), Input(time, backbone.Width));
        foreach (var pieces in (int[][])[[1], [64, 3, 1], [7, 40], [150]])
        {
            var expected = Enumerable.Range(0, backbone.Depth).Select(_ => new MixerState()).ToArray();
            var got = Enumerable.Range(0, backbone.Depth).Select(_ => new MixerState()).ToArray();
            for (int from = 0, i = 0; from < time; i++)
            {
                using var inner = NewDisposeScope();
                var piece = x.narrow(1, from, Math.Min(pieces[i % pieces.Length], time - from));
                var what = $"{backbone}: pieces of {string.Join(", ", pieces)} at {from}";
                var useModules = from is > 50 and < 60 or > 100 and < 140; // the states serve both
                AssertSame(stack.call(piece, null, expected), useModules ? stack.call(piece, null, got) : Run(overSpans, piece, got, work), what);
                from += (int)piece.shape[1];
                foreach (var (want, have) in expected.Zip(got))
                {
                    Assert.Equal(from, have.Position);
                    Assert.Equal(want.Bytes, have.Bytes);
                    Assert.Equal(want.Tensors.Keys, have.Tensors.Keys);
                    foreach (var (part, value) in want.Tensors) AssertSame(value, have[part]!, $"{what}: {part}");
                }
            }
            foreach (var state in (MixerState[])[.. expected, .. got]) state.Dispose();
        }
    }

    public static TheoryData<string, SequencePooling> InputsAndPoolings()
    {
        var data = new TheoryData<string, SequencePooling>();
        foreach (var input in (string[])["series", "tokens", "words"])
            foreach (var pooling in Enum.GetValues<SequencePooling>())
                data.Add(input, pooling);
        return data;
    }

    [Theory, MemberData(nameof(InputsAndPoolings)), NoTensorLeaks]
    public void Elements_and_poolings(string input, SequencePooling pooling)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        manual_seed(1);
        ElementKind kind = input switch { "series" => new ElementKind.Series(3), "tokens" => new ElementKind.Tokens(50), _ => new ElementKind.Words(200) };
        using var network = new SequenceClassifier(new SequenceClassifierSpec(Backbone.Gru(24, 1), kind, pooling, 5));
        network.eval();
        var (overSpans, work) = (network.OverSpans()!, new Workspace());
        var random = new Random(3);
        using SequenceState expected = new(1), got = new(1);
        for (var i = 0; i < 60; i++)
        {
            var buffer = new SequenceBuffer(input == "series" ? 3 : 0, 1000);
            for (var element = random.Next(1, 4); element > 0; element--)
            {
                if (input == "series") buffer.AddValues([random.NextSingle(), random.NextSingle(), random.NextSingle()]);
                else if (input == "tokens") buffer.AddToken(random.Next(50));
                else buffer.AddWord($"word{random.Next(20)}", (WordTextEncoding)TextEncoding.Words(buckets: 200));
            }
            buffer.EndRow();
            var (continued, alone) = (new float[5], new float[5]);
            overSpans(buffer.Row(0), got, work, continued);
            overSpans(buffer.Row(0), null, work, alone);
            AssertSame(network.call(buffer.Gather([0], CPU), expected).softmax(1)[0], tensor(continued), $"piece {i}");
            AssertSame(network.call(buffer.Gather([0], CPU), null).softmax(1)[0], tensor(alone), $"piece {i} alone");
            Assert.Equal(expected.Position, got.Position);
            Assert.Equal(expected.Bytes, got.Bytes);
        }
    }

    [Theory, MemberData(nameof(Names)), NoTensorLeaks]
    public void A_step_allocates_nothing_and_threads_do_not_meet(string name)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using var network = new SequenceClassifier(new SequenceClassifierSpec(Backbone.Create(name, 32, 2), new ElementKind.Tokens(50), SequencePooling.LearnedQuery, 5));
        network.eval();
        var overSpans = network.OverSpans()!;
        float[] Stream(int elements, out long allocated)
        {
            using var state = new SequenceState(2);
            var (work, probabilities) = (new Workspace(), new float[5]);
            var before = 0L;
            for (var i = 0; i < elements; i++)
            {
                if (i == 65) before = GC.GetAllocatedBytesForCurrentThread(); // attention's cache has just doubled
                overSpans(new SequenceRow { Count = 1, Tokens = [i % 50] }, state, work, probabilities);
            }
            allocated = GC.GetAllocatedBytesForCurrentThread() - before;
            return probabilities;
        }
        var alone = Stream(120, out var bytes);
        Assert.Equal(0, bytes);
        var all = new float[4][];
        Parallel.For(0, 4, new ParallelOptions { MaxDegreeOfParallelism = 4 }, i => all[i] = Stream(120, out _));
        Assert.All(all, probabilities => Assert.Equal(alone, probabilities)); // to the bit
    }

    [Fact, NoTensorLeaks]
    public void What_is_not_on_the_cpu_in_float32_has_no_form_over_spans()
    {
        using var scope = NewDisposeScope();
        using var network = new SequenceClassifier(new SequenceClassifierSpec(Backbone.Gru(16, 1), new ElementKind.Tokens(5), SequencePooling.Last, 3));
        Assert.NotNull(network.OverSpans());
        network.to(bfloat16);
        Assert.Null(network.OverSpans());
    }

    [Fact]
    public void A_disposed_network_is_not_read()
    {
        var network = new SequenceClassifier(new SequenceClassifierSpec(Backbone.Gru(16, 1), new ElementKind.Tokens(5), SequencePooling.Last, 3));
        var overSpans = network.OverSpans()!;
        overSpans(new SequenceRow { Count = 1, Tokens = [4] }, null, new Workspace(), new float[3]);
        network.Dispose();
        Assert.Throws<ObjectDisposedException>(() => overSpans(new SequenceRow { Count = 1, Tokens = [4] }, null, new Workspace(), new float[3]));
    }

    [Theory]
    [InlineData(1, 1), InlineData(3, 5), InlineData(16, 16), InlineData(17, 33), InlineData(64, 31), InlineData(130, 100)]
    public void Linear_maps_of_any_size(int inputs, int outputs)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        manual_seed(1);
        foreach (var bias in (bool[])[false, true])
        {
            var linear = nn.Linear(inputs, outputs, hasBias: bias);
            var packed = new PackedLinear(linear);
            foreach (var time in (int[])[1, 3, 4, 9])
            {
                var x = randn(time, inputs + 2);
                var y = new float[time * (outputs + 1) + 1];
                // Rows that lie apart, in and out.
                packed.Apply(new Rows(x.Numbers(), time, inputs + 2).Columns(1, inputs), new Rows(y.AsSpan(1), time, outputs, outputs + 1));
                AssertSame(linear.call(x.narrow(1, 1, inputs)), tensor(y).narrow(0, 1, time * (outputs + 1)).view(time, outputs + 1).narrow(1, 0, outputs), $"{time} rows");
                for (var t = 0; t <= time; t++) Assert.Equal(0, y[t * (outputs + 1)]); // nothing beside the rows is touched
            }
        }
    }

    [Fact]
    public void Functions_of_numbers()
    {
        float[] special = [0, -0f, float.Epsilon, 1e-20f, 30, -30, 88, 100, -100, 1e30f, -1e30f, float.PositiveInfinity, float.NegativeInfinity, float.NaN];
        float[] x = [.. special, .. Enumerable.Range(-4000, 8001).Select(i => i / 200f)];
        void Check<TFunction>(Func<double, double> expected, double tolerance) where TFunction : IFunction
        {
            var y = (float[])x.Clone();
            y.AsSpan().Apply<TFunction>();
            for (var i = 0; i < x.Length; i++)
            {
                var want = (float)expected(x[i]);
                var error = Math.Abs((double)y[i] - want) / Math.Max(Math.Abs((double)want), 1e-6);
                Assert.True(y[i].Equals(want) || error < tolerance, $"{typeof(TFunction).Name}({x[i]}) is {y[i]}; expected {want}");
            }
        }
        Check<Functions.Exp>(Math.Exp, 5e-7);
        Check<Functions.Sigmoid>(v => 1 / (1 + Math.Exp(-v)), 5e-7);
        Check<Functions.Silu>(v => v < -100 ? 0 * v : v / (1 + Math.Exp(-v)), 5e-7);
        Check<Functions.LogOnePlusExp>(v => v > 30 ? v : Math.Log(1 + Math.Exp(v)), 1e-6);
        Check<Functions.EluPlusOne>(v => v > 0 ? v + 1 : Math.Exp(v), 5e-7);
    }
}
