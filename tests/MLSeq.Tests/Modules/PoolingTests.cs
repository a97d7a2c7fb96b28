using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Modules;

public sealed class PoolingTests
{
    private static readonly long[] Lengths = [5, 3, 1];

    private static (Tensor X, SequencePadding Padding) Example()
    {
        manual_seed(4);
        return (randn(3, 5, 8, dtype: float64), new SequencePadding(tensor(Lengths), 5));
    }

    [Theory, NoTensorLeaks]
    [InlineData(SequencePooling.Mean)]
    [InlineData(SequencePooling.Max)]
    [InlineData(SequencePooling.Last)]
    public void Pools_real_positions(SequencePooling kind)
    {
        using var scope = NewDisposeScope();
        var (x, padding) = Example();
        using var pooling = Pooling.Create(kind, 8);
        var y = pooling.call(x, padding, null);
        for (var row = 0; row < 3; row++)
        {
            var real = x[row].narrow(0, 0, Lengths[row]);
            var expected = kind switch { SequencePooling.Mean => real.mean([0]), SequencePooling.Max => real.amax([0]), _ => real[Lengths[row] - 1] };
            Assert.True((y[row] - expected).abs().max().item<double>() < 1e-12);
        }
    }

    [Theory, NoTensorLeaks]
    [InlineData(SequencePooling.LearnedQuery)]
    [InlineData(SequencePooling.Mean)]
    [InlineData(SequencePooling.Max)]
    [InlineData(SequencePooling.Last)]
    public void Ignores_padding_and_equals_the_row_alone(SequencePooling kind)
    {
        using var scope = NewDisposeScope();
        var (x, padding) = Example();
        using var pooling = Pooling.Create(kind, 8);
        pooling.to(float64);
        var y = pooling.call(x, padding, null);
        Assert.True(y.Same(pooling.call(padding.Fill(x, 77), padding, null)));
        for (var row = 0; row < 3; row++)
        {
            var alone = pooling.call(x[row].narrow(0, 0, Lengths[row]).unsqueeze(0), null, null)[0];
            Assert.True((y[row] - alone).abs().max().item<double>() < 1e-12, $"{kind}, row {row}");
        }
    }

    [Fact, NoTensorLeaks]
    public void Reverse_turns_each_row_within_its_length_and_is_its_own_inverse()
    {
        using var scope = NewDisposeScope();
        var (x, padding) = Example();
        var reversed = padding.Reverse(x);
        Assert.True(reversed[1].narrow(0, 0, 3).Same(x[1].narrow(0, 0, 3).flip(0)));
        Assert.True(reversed[1].narrow(0, 3, 2).Same(x[1].narrow(0, 3, 2)));
        Assert.True(padding.Reverse(reversed).Same(x));
    }

    [Fact, NoTensorLeaks]
    public void Rotary_makes_products_depend_on_distance_alone()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var q = randn(1, 1, 1, 8, dtype: float64).expand(1, 20, 1, 8);
        var k = randn(1, 1, 1, 8, dtype: float64).expand(1, 20, 1, 8);
        var rotary = new Rotary(20, 8, q);
        var products = rotary.Apply(q)[0, TensorIndex.Colon, 0].matmul(rotary.Apply(k)[0, TensorIndex.Colon, 0].t()); // [20, 20]
        Assert.True((products[3, 1] - products[17, 15]).abs().item<double>() < 1e-6);
        Assert.True((products[3, 1] - products[3, 2]).abs().item<double>() > 1e-4);
    }
}
