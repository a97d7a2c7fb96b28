using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Trainers;

public sealed class FlatParametersTests
{
    private static readonly ImageClassifierSpec Spec = new(VisionBackbone.Cnn([8, 16], [1, 1]), Channels: 2, Classes: 3);

    private static Dictionary<string, float[]> Values(nn.Module network)
    {
        using var scope = NewDisposeScope();
        return network.State().ToDictionary(entry => entry.Name, entry => entry.Value.detach().to(float32).contiguous().data<float>().ToArray());
    }

    private static ImageClassifier Network(int seed = 1)
    {
        manual_seed(seed);
        var network = new ImageClassifier(Spec);
        // Numbers that bfloat16 cannot hold, also where networks begin with zeros and ones.
        using var _ = no_grad();
        foreach (var (_, value) in network.State()) value.add_(rand_like(value), 0.1);
        return network;
    }

    private static bool IsNorm(string name) => name.Contains(".norm.", StringComparison.Ordinal);

    private static bool IsBuffer(string name) => name.EndsWith(".mean", StringComparison.Ordinal) || name.EndsWith(".variance", StringComparison.Ordinal);

    [Theory, NoTensorLeaks]
    [InlineData(ScalarType.Float32)]
    [InlineData(ScalarType.BFloat16)]
    public void The_master_holds_everything_unrounded_and_gives_it_back(ScalarType precision)
    {
        using var scope = NewDisposeScope();
        using var network = Network();
        var before = Values(network);
        Assert.Equal(4, before.Keys.Count(IsBuffer));
        Assert.Equal(8, before.Keys.Count(IsNorm));
        using var parameters = new FlatParameters(network, precision, CPU);
        using var copy = Network(seed: 2);
        parameters.CopyTo(parameters.Master, copy);
        foreach (var (name, values) in Values(copy)) Assert.Equal(before[name], values);
        // The network itself: batch norm as it was, the rest rounded.
        foreach (var (name, value) in network.State()) Assert.Equal(precision == float32 || IsNorm(name) ? float32 : bfloat16, value.dtype);
        foreach (var (name, values) in Values(network))
        {
            if (precision == float32 || IsNorm(name)) Assert.Equal(before[name], values);
            else Assert.NotEqual(before[name], values);
            Assert.All(values.Zip(before[name]), pair => Assert.Equal(pair.Second, pair.First, Math.Abs(pair.Second) / 128));
        }
        // Copies go both ways, buffers included.
        using (no_grad()) parameters.Master.fill_(0.5);
        parameters.Publish();
        foreach (var values in Values(network).Values) Assert.All(values, value => Assert.Equal(0.5f, value));
    }

    [Theory, NoTensorLeaks]
    [InlineData(ScalarType.Float32)]
    [InlineData(ScalarType.BFloat16)]
    public void The_optimizer_never_changes_buffers_and_only_matrices_decay(ScalarType precision)
    {
        using var scope = NewDisposeScope();
        using var network = Network();
        using var parameters = new FlatParameters(network, precision, CPU);
        using var optimizer = new AdamW(parameters, weightDecay: 0.5, clipping: 1);
        var before = Values(network);
        network.eval(); // batch norm reads its statistics and does not write them
        for (var step = 1; step <= 5; step++)
        {
            network.call(randn(4, 2, 6, 6)).pow(2).sum().backward();
            optimizer.Step(step, 0.01, 1);
        }
        foreach (var (name, values) in Values(network))
        {
            if (IsBuffer(name)) Assert.Equal(before[name], values);
            else Assert.NotEqual(before[name], values);
        }
        // Without gradients: weight decay alone, by the definition.
        using var still = new FlatParameters(network, precision, CPU);
        using var decay = new AdamW(still, weightDecay: 0.5, clipping: 0);
        using var copy = Network();
        still.CopyTo(still.Master, copy);
        var master = Values(copy);
        decay.Step(1, 0.01, 1);
        still.CopyTo(still.Master, copy);
        foreach (var (name, values) in Values(copy))
        {
            var factor = !IsNorm(name) && name.EndsWith("weight", StringComparison.Ordinal) ? 1 - 0.01f * 0.5f : 1;
            Assert.All(values.Zip(master[name]), pair => Assert.Equal(pair.Second * factor, pair.First, 1e-7f));
        }
    }

    [Theory, NoTensorLeaks]
    [InlineData(ScalarType.Float32)]
    [InlineData(ScalarType.BFloat16)]
    public void A_network_with_batch_norm_trains_and_its_statistics_are_the_master_s(ScalarType precision)
    {
        using var scope = NewDisposeScope();
        using var network = Network();
        using var parameters = new FlatParameters(network, precision, CPU);
        using var optimizer = new AdamW(parameters, weightDecay: 0, clipping: 1);
        network.train();
        var (first, last) = (0.0, 0.0);
        for (var step = 1; step <= 60; step++)
        {
            using var each = NewDisposeScope();
            var labels = randint(0, 3, [32], dtype: int64);
            // Channels last, as images are. (See NormedConvolution for what libtorch makes of the other order in bfloat16.)
            var images = (randn(32, 6, 6, 2) * 0.3 + labels.to(float32).view(-1, 1, 1, 1)).to(precision).permute(0, 3, 1, 2);
            var loss = nn.functional.cross_entropy(network.call(images), labels);
            loss.backward();
            optimizer.Step(step, 0.01, 1);
            last = loss.item<float>();
            if (step == 1) first = last;
        }
        Assert.True(last < first / 4, $"{first} to {last}");
        foreach (var (name, value) in network.State()) Assert.Equal(precision == float32 || IsNorm(name) ? float32 : bfloat16, value.dtype);
        using var copy = Network(seed: 2);
        parameters.CopyTo(parameters.Master, copy);
        using var untrained = Network();
        var (mine, copied, fresh) = (Values(network), Values(copy), Values(untrained));
        foreach (var name in mine.Keys.Where(IsNorm))
        {
            Assert.Equal(mine[name], copied[name]); // no step behind, no rounding
            Assert.NotEqual(fresh[name], copied[name]);
        }
        // In eval mode, where the statistics count, it has learned too.
        copy.eval();
        var test = randint(0, 3, [64], dtype: int64);
        var right = copy.call(randn(64, 2, 6, 6) * 0.3 + test.to(float32).view(-1, 1, 1, 1)).argmax(1).eq(test).sum().item<long>();
        Assert.True(right > 54, $"{right} of 64");
    }
}
