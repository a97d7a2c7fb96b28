using MLSeq.Tests.Support;
using TorchSharp;
using TorchSharp.Modules;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Modules;

/// <summary>What every registered vision backbone must do. A new line in the registry is tested here without another.</summary>
public sealed class VisionBackboneConformanceTests
{
    private const int Channels = 3;
    private static readonly (int Height, int Width)[] Sizes = [(1, 1), (7, 5), (33, 47)];

    /// <summary>The ready-made backbones that still differ when they are made small.</summary>
    public static TheoryData<string> All() => [.. VisionBackbone.Variants.DistinctBy(Small)];

    /// <summary>Those, with one mixer of each family only.</summary>
    public static TheoryData<string> Kinds() => [.. VisionBackbone.Variants.DistinctBy(Small).Where(variant => VisionBackbone.Create(variant) is not (PatchBackbone or HierarchicalBackbone)
                                                                                                               || variant is "patch-transformer" or "patch-mamba2" or "hierarchical-gateddeltanet")];

    public static TheoryData<string, ResNetBlock, ResNetStem> ResNets() => new()
    {
        { "basic", ResNetBlock.Basic, ResNetStem.Pooled }, { "bottleneck", ResNetBlock.Bottleneck, ResNetStem.Plain },
    };

    /// <summary>The same architecture, small. Widths are multiples of 16: on some processors oneDNN (in libtorch 2.10) does not clear what it fills others up with when the features are not last.</summary>
    private static VisionBackbone Small(string variant) => VisionBackbone.Create(variant) switch
    {
        StagedVisionBackbone staged => staged with { Depths = [.. staged.Depths.Select(_ => 1)], Widths = [.. staged.Depths.Select((_, stage) => 16 + 16 * stage)] },
        PatchBackbone patch => patch with { PatchSize = 4, Backbone = patch.Backbone.WithWidth(16) with { Depth = 2, Dropout = 0.1 } },
        var other => other,
    };

    private static VisionStack Stack(VisionBackbone backbone, int seed = 1)
    {
        manual_seed(seed);
        var stack = backbone.CreateStack(Channels);
        stack.to(float64);
        Shake(stack);
        stack.eval();
        return stack;
    }

    private static VisionStack Stack(string variant, int seed = 1) => Stack(Small(variant), seed);

    // Away from the values that networks begin with, some of which are zero.
    private static void Shake(nn.Module network)
    {
        using var _ = no_grad();
        foreach (var (_, value) in network.State()) value.add_(rand_like(value), alpha: 0.1);
    }

    private static Tensor Images(int batch, (int Height, int Width) size, int seed = 2)
    {
        manual_seed(seed);
        return ChannelsLast(randn(batch, Channels, size.Height, size.Width, dtype: float64));
    }

    private static Tensor ChannelsLast(Tensor images) => images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2);

    // What training in bfloat16 does: all but IKeepsFloat32.
    private static void To(nn.Module network, ScalarType type)
    {
        var kept = network.modules().OfType<IKeepsFloat32>().Cast<nn.Module>().Select(module => (module, State: module.State().Select(entry => entry.Value.clone()).ToArray())).ToList();
        network.to(type);
        using var _ = no_grad();
        foreach (var (module, state) in kept)
        {
            module.to(float32);
            foreach (var (entry, value) in module.State().Zip(state)) entry.Value.copy_(value);
        }
    }

    private static double Difference(Tensor[] a, Tensor[] b) => a.Zip(b, (x, y) => (x - y).abs().max().item<double>()).Max();

    // Saved models are refused when their weights are fewer: a bound that is too high would refuse good ones.
    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void Has_at_least_as_many_numbers_as_its_lower_bound(string variant)
    {
        using var scope = NewDisposeScope();
        foreach (var channels in (int[])[1, 3, 20])
            foreach (var backbone in (VisionBackbone[])[Small(variant), Small(variant) is StagedVisionBackbone staged ? staged with { Widths = [.. staged.Widths.Select((_, i) => i == 0 ? 8 : 128)] } : Small(variant)])
            {
                using var stack = backbone.CreateStack(channels);
                var numbers = stack.parameters().Sum(parameter => parameter.numel());
                Assert.True(numbers >= backbone.LeastParameters(channels), $"{numbers} < {backbone.LeastParameters(channels)}: {backbone.ToJson()}, {channels} channels");
            }
    }

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void Gives_the_promised_levels_at_any_size_and_is_finite(string variant)
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(variant);
        foreach (var size in Sizes)
        {
            var maps = stack.call(Images(2, size));
            Assert.Equal(stack.Levels.Select(level => new long[] { 2, level.Width, Places(size.Height, level.Stride), Places(size.Width, level.Stride) }), maps.Select(map => map.shape));
            Assert.All(maps, map => Assert.True(map.isfinite().all().item<bool>()));
        }
        Assert.Equal(stack.Levels.OrderBy(level => level.Stride), stack.Levels);
    }

    private static long Places(int pixels, int stride) => (pixels + stride - 1) / stride;

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void Gradients_reach_every_parameter(string variant)
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(variant);
        stack.train();
        var maps = stack.call(Images(3, (33, 21)));
        manual_seed(3);
        OperatorFailure.Backward(maps.Select(map => (map * randn_like(map)).sum()).Aggregate((a, b) => a + b));
        foreach (var (parameter, value) in stack.named_parameters())
        {
            var grad = value.grad;
            Assert.True(grad is not null && grad.abs().sum().item<double>() > 0, $"no gradient reaches {parameter}");
            grad!.Dispose();
        }
    }

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void The_same_seed_gives_the_same_network_and_another_seed_another(string variant)
    {
        using var scope = NewDisposeScope();
        using var first = Stack(variant, seed: 5);
        using var second = Stack(variant, seed: 5);
        using var third = Stack(variant, seed: 6);
        var images = Images(2, (17, 9));
        Assert.Equal(0, Difference(first.call(images), second.call(images)));
        Assert.NotEqual(0, Difference(first.call(images), third.call(images)));
    }

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void Float32_and_bfloat16_agree_with_float64(string variant)
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(variant);
        var images = Images(2, (33, 47));
        var exact = stack.call(images).Select(map => map.detach()).ToArray();
        foreach (var (type, tolerance) in ((ScalarType, double)[])[(float32, 1e-4), (bfloat16, 1e-1)])
        {
            To(stack, type);
            foreach (var (map, expected) in stack.call(images.to(type)).Zip(exact))
            {
                Assert.Equal(type, map.dtype);
                var error = ((map.to(float64) - expected).norm() / expected.norm()).item<double>();
                Assert.True(error < tolerance, $"{type}: {error}");
            }
        }
    }

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void The_order_in_memory_does_not_matter(string variant)
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(variant);
        var images = Images(2, (33, 47));
        Assert.True(Difference(stack.call(images), stack.call(images.contiguous())) < 1e-10);
    }

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void An_image_does_not_depend_on_the_others_of_its_batch(string variant)
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(variant);
        var images = Images(3, (9, 14));
        var together = stack.call(images);
        for (var row = 0; row < 3; row++)
            Assert.True(Difference(stack.call(images.narrow(0, row, 1)), [.. together.Select(map => map.narrow(0, row, 1))]) < 1e-10);
    }

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void Weights_and_running_statistics_survive_safetensors_bit_for_bit(string variant)
    {
        using var scope = NewDisposeScope();
        var spec = new ImageClassifierSpec(Small(variant), Channels, 4);
        manual_seed(1);
        using var written = new ImageClassifier(spec);
        Shake(written);
        using var file = new MemoryStream();
        SafeTensors.Write(file, written.State());
        file.Position = 0;
        using var read = new ImageClassifier(spec);
        SafeTensors.Read(file, read.State());
        written.eval();
        read.eval();
        var images = Images(2, (9, 14)).to(float32);
        var logits = read.call(images);
        Assert.Equal([2, 4], logits.shape);
        Assert.True(written.call(images).Same(logits));
    }

    [Theory, MemberData(nameof(Kinds)), NoTensorLeaks]
    public void Segments_any_size(string variant)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using var network = new ImageSegmenter(new ImageSegmenterSpec(Small(variant), Channels, 5));
        Shake(network);
        var logits = network.call(Images(2, (33, 47)).to(float32));
        OperatorFailure.Backward((logits * randn_like(logits)).sum());
        foreach (var (parameter, value) in network.named_parameters())
        {
            var grad = value.grad;
            Assert.True(grad is not null && grad.abs().sum().item<float>() > 0, $"no gradient reaches {parameter}");
            grad!.Dispose();
        }
        network.eval();
        foreach (var size in Sizes)
        {
            var images = Images(2, size).to(float32);
            logits = network.call(images);
            Assert.Equal([2, 5, size.Height, size.Width], logits.shape);
            Assert.Equal(float32, logits.dtype);
            Assert.True((logits.narrow(0, 1, 1) - network.call(images.narrow(0, 1, 1))).abs().max().item<float>() < 1e-3 * logits.abs().max().item<float>());
        }
        To(network, bfloat16);
        Assert.True(network.call(Images(1, (9, 14))).isfinite().all().item<bool>());
    }

    [Theory, MemberData(nameof(All)), NoTensorLeaks]
    public void Stochastic_depth_and_layer_scale_are_there(string variant)
    {
        using var scope = NewDisposeScope();
        var backbone = Small(variant) with { DropPath = 0.5, LayerScale = 0.5 };
        if (backbone is PlainCnnBackbone)
        {
            Assert.Contains("DropPath", Assert.Throws<ArgumentException>(() => backbone.CreateStack(Channels)).Message);
            return;
        }
        if (backbone is PatchBackbone patch) backbone = patch with { Backbone = patch.Backbone with { Dropout = 0 } };
        using var stack = Stack(backbone);
        using var none = Stack(backbone with { LayerScale = 0 });
        if (backbone is not ResNetBackbone) Assert.True(stack.parameters().Count() > none.parameters().Count());
        var images = Images(4, (9, 14));
        Assert.Equal(0, Difference(stack.call(images), stack.call(images)));
        foreach (var norm in stack.modules().OfType<BatchNorm>()) Assert.False(norm.training);
        foreach (var update in stack.modules().OfType<ResidualUpdate>()) update.train();
        var (first, second) = (stack.call(images), stack.call(images));
        Assert.NotEqual(0, Difference(first, second));
    }

    [Theory, MemberData(nameof(All))]
    public void Json_round_trips(string variant)
    {
        var backbone = Small(variant) with { DropPath = 0.25 };
        if (backbone is PlainCnnBackbone) backbone = backbone with { DropPath = 0 };
        var json = backbone.ToJson();
        Assert.Equal(backbone, VisionBackbone.FromJson(json));
        Assert.Contains(backbone.Name, VisionBackbone.Names);
        Assert.Throws<FormatException>(() => VisionBackbone.FromJson(json.Replace("\"LayerScale\":0", "\"LayerScale\":-1", StringComparison.Ordinal)));
        Assert.Throws<FormatException>(() => VisionBackbone.FromJson(json.Replace("\"LayerScale\"", "\"Surprise\"", StringComparison.Ordinal)));
        Assert.Throws<FormatException>(() => VisionBackbone.FromJson(json.Replace($"\"{backbone.Name}\"", "\"no-such\"", StringComparison.Ordinal)));
        Assert.Throws<FormatException>(() => VisionBackbone.FromJson(json[..^1]));
    }

    [Fact]
    public void Bad_json_is_refused()
    {
        var json = VisionBackbone.ResNet(18).ToJson();
        foreach (var (good, bad) in ((string, string)[])
                 [("[2,2,2,2]", "null"), ("[2,2,2,2]", "[2,2,2]"), ("[2,2,2,2]", "[]"), ("[2,2,2,2]", "[2,2,2,2.5]"), ("[2,2,2,2]", "2"), ("\"Basic\"", "\"Odd\""), ("\"Basic\"", "7"), ("\"Pooled\"", "null")])
        {
            var changed = json.Replace(good, bad, StringComparison.Ordinal);
            Assert.NotEqual(json, changed);
            Assert.Throws<FormatException>(() => VisionBackbone.FromJson(changed));
        }
        Assert.Throws<FormatException>(() => VisionBackbone.FromJson("{}"));
        Assert.Throws<FormatException>(() => VisionBackbone.FromJson("[]"));
        Assert.Throws<FormatException>(() => VisionBackbone.FromJson(VisionBackbone.Patch(Backbone.Gru()).ToJson().Replace("\"Width\":128", "\"Width\":-2", StringComparison.Ordinal)));
    }

    [Fact]
    public void All_problems_are_reported_at_once()
    {
        void Reports(VisionBackbone backbone, params string[] parts)
        {
            var error = Assert.Throws<ArgumentException>(backbone.Validate);
            foreach (var part in parts) Assert.Contains(part, error.Message);
        }
        Reports(VisionBackbone.ResNet() with { Depths = [0, 1], Widths = [3], DropPath = 1, LayerScale = -1, Stem = (ResNetStem)5 }, "Depths", "Widths", "DropPath", "LayerScale", "Stem");
        Reports(VisionBackbone.MambaOut() with { StemStride = 3, Widths = [] }, "StemStride", "Widths");
        Reports(VisionBackbone.Patch(Backbone.Transformer(width: 30, bidirectional: true) with { Heads = 4 }, patchSize: 0), "PatchSize", "multiple of 4", "Heads");
        // The mixers must fit every stage's width: 200 features in heads of about 32 do not.
        Reports(VisionBackbone.Hierarchical(Backbone.Transformer(bidirectional: true)) with { Widths = [48, 96, 200, 288], MixerStages = [2, 4] }, "MixerStages", "stage 2", "Heads");
        (VisionBackbone.Hierarchical(Backbone.Transformer(bidirectional: true)) with { Widths = [48, 96, 200, 288], MixerStages = [3] }).Validate();
        Assert.Throws<ArgumentException>(() => VisionBackbone.ResNet(19));
    }

    [Fact]
    public void Every_ready_made_backbone_is_valid_and_found_by_its_name()
    {
        foreach (var name in VisionBackbone.Variants) VisionBackbone.Create(name).Validate();
        Assert.Equal(VisionBackbone.MambaOut(MambaOutSize.Kobe), VisionBackbone.Create("MambaOut_Kobe"));
        var error = Assert.Throws<ArgumentException>(() => VisionBackbone.Create("no-such"));
        Assert.Contains("mambaout-femto", error.Message);
        foreach (var name in Backbone.Names)
        {
            Assert.Contains($"patch-{name}", VisionBackbone.Variants);
            Assert.Contains($"hierarchical-{name}", VisionBackbone.Variants);
        }
    }

    [Theory, NoTensorLeaks]
    [InlineData("mambaout-femto", 7.30)] // Yu and Wang 2024, table 1
    [InlineData("mambaout-kobe", 9.14)]
    [InlineData("mambaout-tiny", 26.55)]
    [InlineData("mambaout-small", 48.49)]
    [InlineData("mambaout-base", 84.81)]
    [InlineData("resnet18", 11.69)]
    [InlineData("resnet34", 21.80)]
    [InlineData("resnet50", 25.56)]
    public void Has_as_many_parameters_as_published(string variant, double millions)
    {
        using var scope = NewDisposeScope();
        using var network = new ImageClassifier(new ImageClassifierSpec(VisionBackbone.Create(variant), Channels, 1000));
        Assert.Equal(millions, network.parameters().Sum(parameter => parameter.numel()) / 1e6, 0.006);
    }

    [Theory, InlineData(VisionScan.RowMajor), InlineData(VisionScan.FourWay), NoTensorLeaks]
    public void A_four_way_scan_of_a_causal_mixer_sees_all_neighbours(VisionScan scan)
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(VisionBackbone.Patch(Backbone.Gru(width: 16, depth: 4), patchSize: 2, scan));
        var images = Images(1, (10, 10));
        var changed = images.clone();
        changed[0, 1, 5, 5] = changed[0, 1, 5, 5] + 1; // of patch (2, 2)
        var difference = (stack.call(images)[0] - stack.call(changed)[0]).abs().sum([1L])[0]; // [5, 5]
        if (scan == VisionScan.FourWay) Assert.True(difference.min().item<double>() > 1e-12, difference.str());
        else Assert.Equal(0, difference.flatten().narrow(0, 0, 12).max().item<double>());
    }

    [Fact, NoTensorLeaks]
    public void Every_scan_goes_over_all_places_and_back()
    {
        using var scope = NewDisposeScope();
        var map = arange(6, dtype: float64).view(1, 2, 3, 1); // 0 1 2 / 3 4 5
        string Order(int direction) => string.Concat(ScanOrder.Sequence(map, direction).flatten().data<double>().Select(value => (int)value));
        Assert.Equal(["012345", "543210", "031425", "524130"], Enumerable.Range(0, 4).Select(Order));
        for (var direction = 0; direction < 4; direction++) Assert.True(ScanOrder.Map(ScanOrder.Sequence(map, direction), direction, 2, 3).Same(map));
        Assert.Equal([0, 1, 2, 3, 0], Enumerable.Range(0, 5).Select(layer => VisionScan.FourWay.Direction(layer)));
        Assert.Equal([0, 0, 0], Enumerable.Range(0, 3).Select(layer => VisionScan.RowMajor.Direction(layer)));
    }

    [Fact, NoTensorLeaks]
    public void Stochastic_depth_drops_whole_rows_and_keeps_the_expectation()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using var update = new ResidualUpdate(3, dropPath: 0.25);
        var x = rand(4000, 2, 3, dtype: float64) + 1;
        update.train();
        var factor = update.call(x) / x; // of each row, everywhere the same
        Assert.True(factor.amax([1, 2]).Same(factor.amin([1, 2])) || (factor.amax([1, 2]) - factor.amin([1, 2])).max().item<double>() < 1e-12);
        var rows = factor.select(1, 0).select(1, 0).data<double>().Select(value => Math.Round(value, 9)).ToArray();
        Assert.Equal([0, Math.Round(4 / 3.0, 9)], rows.Distinct().Order());
        Assert.Equal(1, rows.Average(), 0.05);
        update.eval();
        Assert.True(update.call(x).Same(x));
        Assert.Equal([0.1, 0.2, 0.3], Enumerable.Range(0, 3).Select(block => Math.Round(ResidualUpdate.DropPath(0.3, block, 3), 9)));
    }

    [Fact, NoTensorLeaks]
    public void Running_statistics_change_in_training_only_and_stay_float32()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using var network = new ImageClassifier(new ImageClassifierSpec(Small("cnn"), Channels, 4));
        To(network, bfloat16);
        var norms = network.modules().OfType<BatchNorm>().SelectMany(norm => norm.State()).Select(entry => entry.Value).ToList();
        Assert.All(norms, value => Assert.Equal(float32, value.dtype));
        Tensor[] Statistics() => [.. network.named_buffers().Select(entry => entry.buffer.clone())];
        var images = Images(4, (9, 14));
        var before = Statistics();
        network.eval();
        network.call(images);
        Assert.Equal(0, Difference(before.Select(Exact).ToArray(), Statistics().Select(Exact).ToArray()));
        network.train();
        var logits = network.call(images);
        Assert.Equal(float32, logits.dtype);
        Assert.NotEqual(0, Difference(before.Select(Exact).ToArray(), Statistics().Select(Exact).ToArray()));
        Assert.All(network.named_buffers(), entry => Assert.Equal(float32, entry.buffer.dtype));
        OperatorFailure.Backward(logits.sum());
        foreach (var (_, value) in network.named_parameters()) value.grad!.Dispose();
        static Tensor Exact(Tensor value) => value.to(float64);
    }

    [Fact, NoTensorLeaks]
    public void Batch_norm_is_its_equation_and_takes_a_single_value()
    {
        using var scope = NewDisposeScope();
        using var norm = new BatchNorm(4);
        norm.to(float64);
        Shake(norm);
        var state = norm.State().ToDictionary(entry => entry.Name, entry => entry.Value.clone().view(1, -1, 1, 1));
        manual_seed(1);
        var x = randn(3, 4, 5, 6, dtype: float64) * 2 + 1;
        Tensor Expected(Tensor mean, Tensor variance) => (x - mean) / (variance + 1e-5).sqrt() * state["weight"] + state["bias"];
        norm.train();
        var (mean, variance) = (x.mean([0L, 2, 3], keepdim: true), x.var([0L, 2, 3], unbiased: false, keepdim: true));
        Assert.True((norm.call(x) - Expected(mean, variance)).abs().max().item<double>() < 1e-12);
        var (running, runningVariance) = (state["mean"] * 0.9 + mean * 0.1, state["variance"] * 0.9 + variance * 90 / 89 * 0.1); // the running variance is unbiased
        norm.eval();
        Assert.True((norm.call(x) - Expected(running, runningVariance)).abs().max().item<double>() < 1e-12);
        norm.train();
        Assert.True(norm.call(ones(1, 4, 1, 1, float64)).isfinite().all().item<bool>());
    }

    [Fact, NoTensorLeaks]
    public void The_gated_block_is_its_equation()
    {
        using var scope = NewDisposeScope();
        const int Width = 6, Hidden = 16;
        manual_seed(1);
        using var block = new GatedCnnBlock(Width, layerScale: 0.5);
        block.to(float64);
        Shake(block);
        var p = block.named_parameters().ToDictionary(entry => entry.name, entry => (Tensor)entry.parameter);
        var x = randn(2, 5, 4, Width, dtype: float64).requires_grad_();

        // The specification: a place at a time, a feature at a time where it convolves.
        Tensor Norm(Tensor v)
        {
            var centred = v - v.mean([-1L], keepdim: true);
            return centred / (centred.square().mean([-1L], keepdim: true) + 1e-6).sqrt() * p["norm.weight"] + p["norm.bias"];
        }
        Tensor Affine(Tensor v, string layer) => (p[layer + ".weight"] * v.unsqueeze(-2)).sum(-1) + p[layer + ".bias"];
        Tensor Gelu(Tensor v) => v * 0.5 * (1 + (v / Math.Sqrt(2)).erf());
        Tensor Naive(Tensor map)
        {
            var projected = Affine(Norm(map), "project"); // [batch, h, w, g + i + c]
            var (g, i, c) = (projected[.., .., .., ..Hidden], projected[.., .., .., Hidden..(2 * Hidden - Width)], projected[.., .., .., (2 * Hidden - Width)..]);
            var rows = new List<Tensor>();
            for (var row = 0; row < 5; row++)
            {
                var places = new List<Tensor>();
                for (var column = 0; column < 4; column++)
                {
                    var sum = p["convolution.bias"];
                    for (var dy = -3; dy <= 3; dy++)
                        for (var dx = -3; dx <= 3; dx++)
                            if (row + dy is >= 0 and < 5 && column + dx is >= 0 and < 4)
                                sum = sum + p["convolution.weight"][.., 0, dy + 3, dx + 3] * c[.., row + dy, column + dx];
                    places.Add(sum.expand(2, Width));
                }
                rows.Add(stack(places, 1));
            }
            return map + p["update.scale"] * Affine(Gelu(g) * cat([i, stack(rows, 1)], -1), "output");
        }

        (Tensor Output, List<Tensor> Gradients) Run(Func<Tensor, Tensor> f)
        {
            var y = f(x);
            OperatorFailure.Backward((y * arange(y.numel(), dtype: float64).cos().view(y.shape)).sum());
            var gradients = p.Values.Append(x).Select(value => value.grad!.clone()).ToList();
            foreach (var value in p.Values.Append(x)) value.grad!.zero_();
            return (y, gradients);
        }
        var (expected, actual) = (Run(Naive), Run(block.call));
        Assert.True((expected.Output - actual.Output).abs().max().item<double>() < 1e-12);
        foreach (var (name, a, b) in p.Keys.Append("x").Zip(expected.Gradients, actual.Gradients))
            Assert.True((a - b).abs().max().item<double>() < 1e-10, $"gradient of {name}");
        foreach (var value in p.Values.Append(x)) value.grad!.Dispose();
    }

    [Theory, MemberData(nameof(ResNets)), NoTensorLeaks]
    public void A_residual_network_starts_as_its_shortcuts(string name, ResNetBlock block, ResNetStem stem)
    {
        Assert.NotEmpty(name);
        using var scope = NewDisposeScope();
        manual_seed(1);
        using var shallow = (VisionBackbone.ResNet() with { Block = block, Stem = stem, Depths = [1], Widths = [8] }).CreateStack(Channels);
        manual_seed(1);
        using var deep = (VisionBackbone.ResNet() with { Block = block, Stem = stem, Depths = [3], Widths = [8] }).CreateStack(Channels);
        var images = Images(2, (9, 14)).to(float32);
        Assert.True(shallow.call(images)[0].Same(deep.call(images)[0]));
    }

    [Fact, NoTensorLeaks]
    public void A_kernel_of_one_is_a_product_with_the_convolutions_result()
    {
        using var scope = NewDisposeScope();
        foreach (var stride in (int[])[1, 2])
        {
            manual_seed(1);
            using var layer = new NormedConvolution(5, 7, 1, stride);
            layer.to(float64);
            layer.eval();
            var weight = layer.named_parameters().Single(entry => entry.name == "convolution.weight").parameter;
            var images = randn(2, 5, 7, 4, dtype: float64);
            var expected = nn.functional.conv2d(images, weight, strides: [stride, stride]) / Math.Sqrt(1 + 1e-5);
            Assert.True((layer.call(images) - expected).abs().max().item<double>() < 1e-12);
        }
    }

    [Fact, NoTensorLeaks]
    public void Attention_without_rotary_positions_knows_no_order()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var x = randn(1, 6, 16);
        foreach (var rotary in (bool[])[true, false])
        {
            using var mixer = (Backbone.Transformer(width: 16, heads: 2, bidirectional: true) with { Rotary = rotary }).CreateMixer(0);
            var difference = (mixer.call(x.flip(1), null, null).flip(1) - mixer.call(x, null, null)).abs().max().item<float>();
            Assert.Equal(rotary, difference > 1e-4);
        }
        Assert.Equal(Backbone.Transformer(), Backbone.FromJson(Backbone.Transformer().ToJson().Replace("\"Rotary\":true,", "", StringComparison.Ordinal))); // written before there was the option
        Assert.False(((TransformerBackbone)VisionBackbone.Patch(Backbone.Transformer()).Backbone).Rotary);
    }

    [Fact, NoTensorLeaks]
    public void Patches_know_their_place()
    {
        using var scope = NewDisposeScope();
        using var stack = Stack(VisionBackbone.Patch(Backbone.Transformer(width: 16, depth: 1, bidirectional: true), patchSize: 2));
        var map = stack.call(zeros(1, Channels, 6, 6, float64))[0].flatten(2)[0].transpose(0, 1); // [9, 16]
        for (var a = 0; a < 9; a++)
            for (var b = 0; b < a; b++)
                Assert.True((map[a] - map[b]).abs().max().item<double>() > 1e-3);
    }

    [Fact, NoTensorLeaks]
    public void Enlarging_keeps_places_where_they_are()
    {
        using var scope = NewDisposeScope();
        var ramp = arange(4, dtype: float64).view(1, 1, 1, 4).expand(1, 1, 3, 4); // place i covers pixels 2i and 2i + 1, its centre is 2i + 0.5
        var pixels = FeaturePyramid.Enlarge(ramp, 2, 5, 7);
        Assert.Equal([1, 1, 5, 7], pixels.shape);
        for (var x = 1; x < 7; x++) Assert.Equal((x - 0.5) / 2, pixels[0, 0, 2, x].item<double>(), 1e-12);
    }

    [Fact]
    public void Lists_of_numbers_are_compared_by_value()
    {
        IntList list = [1, 2, 3];
        Assert.Equal([1, 2, 3], list);
        Assert.True(list.Equals(IntList.Create([1, 2, 3])));
        Assert.Equal(list.GetHashCode(), IntList.Create([1, 2, 3]).GetHashCode());
        Assert.False(list.Equals(IntList.Create([1, 2])));
        Assert.Equal("[1, 2, 3]", list.ToString());
        Assert.Equal(VisionBackbone.Cnn(), VisionBackbone.Cnn([32, 64, 128], [2, 2, 2]));
        Assert.NotEqual(VisionBackbone.Cnn(), VisionBackbone.Cnn([32, 64, 128], [2, 2, 3]));
    }
}
