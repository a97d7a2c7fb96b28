using System.IO.Compression;
using MLSeq.Tests.Support;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Modules;

/// <summary>Each rule recalls, replaces, fades and forgets as its equation says; what is saved comes back to the bit.</summary>
[NoTensorLeaks]
public sealed class AssociativeMemoryTests
{
    private const int K = 8, V = 5;

    private static MemoryRule Rule(string name) => name switch
    {
        "Linear" => MemoryRule.Linear,
        "Retention" => MemoryRule.Retention(0.9),
        "Gated" => MemoryRule.Gated,
        "Delta" => MemoryRule.Delta,
        "GatedDelta" => MemoryRule.GatedDelta,
        "Titans" => MemoryRule.Titans(),
        _ => MemoryRule.Titans(hidden: 32),
    };

    public static TheoryData<string> AllRules() => ["Linear", "Retention", "Gated", "Delta", "GatedDelta", "Titans", "Titans, two layers"];

    private static float[] Numbers(Random random, int count) => [.. Enumerable.Range(0, count).Select(_ => (float)(random.NextDouble() + random.NextDouble() + random.NextDouble() - 1.5) * 2)];

    /// <summary>Pairs with orthogonal keys (a rotated basis, by Gram-Schmidt) of various lengths.</summary>
    private static MemoryPair[] Orthogonal(int count, int seed = 1)
    {
        var random = new Random(seed);
        var basis = new List<float[]>();
        while (basis.Count < count)
        {
            var key = Numbers(random, K);
            foreach (var other in basis)
            {
                var along = Dot(key, other);
                key = [.. key.Zip(other, (a, b) => (float)(a - along * b))];
            }
            basis.Add(Times(key, 1 / Math.Sqrt(Dot(key, key))));
        }
        return [.. basis.Select((key, i) => new MemoryPair(Times(key, 0.1 * (i + 1)), Numbers(random, V)))];
    }

    private static MemoryPair[] Random(int count, int keySize = K, int seed = 1)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => new MemoryPair(Numbers(random, keySize), Numbers(random, V)))];
    }

    private static double Dot(float[] a, float[] b) => a.Zip(b, (x, y) => (double)x * y).Sum();

    private static float[] Times(float[] x, double factor) => [.. x.Select(number => (float)(number * factor))];

    private static void Near(float[] expected, float[] got, double tolerance = 1e-5)
    {
        Assert.Equal(expected.Length, got.Length);
        for (var i = 0; i < expected.Length; i++) Assert.True(Math.Abs(expected[i] - got[i]) <= tolerance, $"[{i}] is {got[i]}, expected {expected[i]}");
    }

    [Theory, MemberData(nameof(AllRules))]
    public void An_empty_memory_reads_zero(string rule)
    {
        using var memory = new AssociativeMemory(K, V, Rule(rule));
        Assert.All(memory.Read(Orthogonal(1)[0].Key), number => Assert.Equal(0, number));
        Assert.Equal((0, 0.0, 0.0), (memory.Inspect().Writes, memory.Inspect().Norm, memory.Inspect().EffectiveRank));
    }

    [Theory]
    [InlineData("Linear"), InlineData("Gated"), InlineData("Delta"), InlineData("GatedDelta")]
    public void Orthogonal_keys_recall_exactly(string rule)
    {
        var pairs = Orthogonal(K);
        using var memory = new AssociativeMemory(K, V, Rule(rule));
        foreach (var pair in pairs) memory.Write(pair.Key, pair.Value);
        foreach (var pair in pairs) Near(pair.Value, memory.Read(Times(pair.Key, 3))); // a query's length does not matter
        var report = memory.Interference(pairs);
        Assert.True(report.RelativeError < 1e-5 && report.MeanCosine > 1 - 1e-6 && report.LargestKeyCosine < 1e-6, report.ToString());
    }

    [Theory]
    [InlineData("Linear", 1, 1), InlineData("Retention", 0.9, 1), InlineData("Delta", 0, 1), InlineData("GatedDelta", 0, 1)]
    public void A_key_written_twice_sums_or_replaces(string rule, double ofOld, double ofNew)
    {
        var (first, second) = (Orthogonal(1)[0], Orthogonal(2)[1].Value);
        using var memory = new AssociativeMemory(K, V, Rule(rule));
        memory.Write(first.Key, first.Value);
        memory.Write(first.Key, second);
        Near([.. first.Value.Zip(second, (old, current) => (float)(ofOld * old + ofNew * current))], memory.Read(first.Key));
    }

    [Theory]
    [InlineData("Linear"), InlineData("Delta"), InlineData("Titans")]
    public void Strength_weighs_a_write(string rule)
    {
        var pair = Orthogonal(1)[0];
        using var memory = new AssociativeMemory(K, V, Rule(rule) is NeuralMemoryRule ? MemoryRule.Titans(rate: 1, momentum: 0) : Rule(rule));
        memory.Write(pair.Key, pair.Value, strength: 0.25);
        Near(Times(pair.Value, 0.25), memory.Read(pair.Key));
    }

    [Theory]
    [InlineData("Retention"), InlineData("Gated"), InlineData("GatedDelta")]
    public void Old_pairs_fade_by_the_closed_form(string rule)
    {
        const double keep = 0.9;
        var pairs = Orthogonal(K);
        using var memory = new AssociativeMemory(K, V, Rule(rule));
        memory.Write([.. pairs.Select(pair => rule == "Retention" ? pair : pair with { Keep = keep })]);
        for (var i = 0; i < K; i++) Near(Times(pairs[i].Value, Math.Pow(keep, K - 1 - i)), memory.Read(pairs[i].Key));
    }

    [Theory, MemberData(nameof(AllRules))]
    public void A_batch_is_the_same_as_one_by_one(string rule)
    {
        var pairs = Random(70); // more than one chunk, and similar keys
        if (Rule(rule).KeepPerWrite) pairs = [.. pairs.Select((pair, i) => pair with { Keep = i % 20 == 0 ? 0 : 1 - 0.1 * (i % 3), Strength = 1 - 0.1 * (i % 5) })];
        using var single = new AssociativeMemory(K, V, Rule(rule));
        using var batch = new AssociativeMemory(K, V, Rule(rule));
        foreach (var pair in pairs) single.Write(pair.Key, pair.Value, pair.Strength, pair.Keep);
        batch.Write(pairs);
        Assert.Equal(70, batch.Inspect().Writes);
        var read = batch.Read([.. pairs.Select(pair => pair.Key)]);
        var scale = read.Max(value => value.Max(Math.Abs));
        for (var i = 0; i < pairs.Length; i++) Near(single.Read(pairs[i].Key), read[i], 1e-5 * scale);
        batch.Write([]);
        Assert.Empty(batch.Read(Array.Empty<float[]>()));
    }

    [Fact]
    public void Titans_with_one_layer_rate_one_and_no_momentum_is_the_delta_rule()
    {
        var pairs = Random(20);
        using var delta = new AssociativeMemory(K, V, MemoryRule.Delta);
        using var titans = new AssociativeMemory(K, V, MemoryRule.Titans(rate: 1, momentum: 0));
        delta.Write(pairs);
        titans.Write(pairs);
        foreach (var pair in pairs) Near(delta.Read(pair.Key), titans.Read(pair.Key));
    }

    [Theory]
    [InlineData(0), InlineData(64)]
    public void Titans_learns_with_repeated_writes_and_forgets_with_decay(int hidden)
    {
        var pairs = Orthogonal(3);
        using var memory = new AssociativeMemory(K, V, MemoryRule.Titans(hidden));
        double last = 1;
        foreach (var atMost in (double[])[0.9, 0.5, 0.1, 0.02])
        {
            for (var repeat = 0; repeat < (atMost == 0.9 ? 1 : 8); repeat++) memory.Write(pairs);
            var error = memory.Interference(pairs).RelativeError;
            Assert.True(error < last && error < atMost, $"error {error}, before {last}");
            last = error;
        }
        for (var i = 0; i < 40; i++) memory.Write(pairs[0].Key, pairs[0].Value, strength: 0, keep: 0.8); // nothing new, only decay
        Assert.True(memory.Interference(pairs).RelativeError > 0.99);
    }

    [Fact]
    public void A_hidden_layer_holds_more_pairs_than_a_key_has_numbers()
    {
        var pairs = Random(3 * K);
        double ErrorOf(MemoryRule rule)
        {
            using var memory = new AssociativeMemory(K, V, rule);
            memory.Reflect(pairs, rounds: 30);
            return memory.Interference(pairs).RelativeError;
        }
        var (matrix, network) = (ErrorOf(MemoryRule.Delta), ErrorOf(MemoryRule.Titans(hidden: 128)));
        Assert.True(matrix > 0.5 && network < 0.2, $"matrix {matrix}, network {network}");
    }

    [Fact]
    public void Decay_at_every_write_wears_down_a_hidden_layer_and_reflection_does_not()
    {
        var pairs = Random(3);
        using var decaying = new AssociativeMemory(K, V, MemoryRule.Titans(hidden: 64, keep: 0.9));
        using var reflecting = new AssociativeMemory(K, V, MemoryRule.Titans(hidden: 64));
        for (var i = 0; i < 40; i++)
        {
            decaying.Write(pairs);
            reflecting.Reflect(keep: Math.Pow(0.9, pairs.Length));
            reflecting.Write(pairs);
        }
        var (worn, kept) = (decaying.Interference(pairs).RelativeError, reflecting.Interference(pairs).RelativeError);
        Assert.True(worn > 0.25 && kept < 0.15, $"decaying {worn}, reflecting {kept}");
    }

    [Fact]
    public void Beyond_its_capacity_the_delta_rule_keeps_recent_pairs_best()
    {
        const int size = 64;
        var pairs = Random(2 * size, size);
        using var delta = new AssociativeMemory(size, V, MemoryRule.Delta);
        using var linear = new AssociativeMemory(size, V, MemoryRule.Linear);
        delta.Write(pairs);
        linear.Write(pairs);
        double Error(AssociativeMemory memory, Range range) => memory.Interference(pairs[range]).RelativeError;
        Assert.True(Error(delta, ^16..) < 0.7 * Error(linear, ^16..));
        Assert.True(Error(delta, ^16..) < 0.7 * Error(delta, ..16));
    }

    [Fact]
    public void The_seed_decides_the_hidden_layer()
    {
        float[] ReadBack(int seed)
        {
            using var memory = new AssociativeMemory(K, V, MemoryRule.Titans(hidden: 16, seed: seed));
            memory.Write(Random(5));
            return memory.Read(Random(1)[0].Key);
        }
        manual_seed(1);
        var first = ReadBack(3);
        manual_seed(2); // the global generator has no part in it
        Assert.Equal(first, ReadBack(3));
        Assert.NotEqual(first, ReadBack(4));
    }

    [Fact]
    public void Interference_of_a_linear_memory_is_the_cross_talk_of_its_keys()
    {
        var pairs = Random(2 * K);
        using var memory = new AssociativeMemory(K, V, MemoryRule.Linear);
        memory.Write(pairs);
        var report = memory.Interference(pairs);
        double[][] cosines = [.. pairs.Select(a => pairs.Select(b => Dot(a.Key, b.Key) / Math.Sqrt(Dot(a.Key, a.Key) * Dot(b.Key, b.Key))).ToArray())];
        for (var i = 0; i < pairs.Length; i++)
        {
            // read(k_i) = Σ_j (k_i · k_j) v_j
            double[] read = [.. Enumerable.Range(0, V).Select(n => pairs.Select((pair, j) => cosines[i][j] * pair.Value[n]).Sum())];
            var value = pairs[i].Value;
            var error = Math.Sqrt(read.Zip(value, (o, v) => (o - v) * (o - v)).Sum() / Dot(value, value));
            var cosine = read.Zip(value, (o, v) => o * v).Sum() / Math.Sqrt(read.Sum(o => o * o) * Dot(value, value));
            Assert.Equal(error, report.Pairs[i].RelativeError, 1e-4);
            Assert.Equal(cosine, report.Pairs[i].Cosine, 1e-4);
        }
        Assert.Equal(cosines.SelectMany((row, i) => row.Where((_, j) => j != i)).Max(Math.Abs), report.LargestKeyCosine, 1e-6);
    }

    [Fact]
    public void Interference_of_nothing_is_a_number()
    {
        using var memory = new AssociativeMemory(2, 2, MemoryRule.Linear);
        Assert.Equal([new PairRecall(0, 0)], memory.Interference([new([1, 0], [0, 0])]).Pairs);
        Assert.Equal([new PairRecall(0, 1)], memory.Interference([new([1, 0], [1, 0])]).Pairs);
        memory.Write([1, 0], [3, 4]);
        Assert.Equal([new PairRecall(0, 5)], memory.Interference([new([1, 0], [0, 0])]).Pairs);
        Assert.Empty(memory.Interference([]).Pairs);
    }

    [Fact]
    public void Interference_grows_with_pairs_per_key_size()
    {
        const int size = 64;
        double last = 0;
        foreach (var count in (int[])[32, 64, 128, 512])
        {
            var pairs = Random(count, size, seed: count);
            using var memory = new AssociativeMemory(size, V, MemoryRule.Linear);
            memory.Write(pairs);
            var squares = pairs.Sum(pair => Dot(pair.Value, pair.Value));
            var report = memory.Interference(pairs);
            var error = Math.Sqrt(report.Pairs.Zip(pairs, (recall, pair) => recall.RelativeError * recall.RelativeError * Dot(pair.Value, pair.Value)).Sum() / squares);
            var expected = Math.Sqrt((count - 1.0) / size); // random keys: E (k_i · k_j)² = 1 / K
            Assert.InRange(error, 0.8 * expected, 1.2 * expected);
            Assert.True(report.RelativeError > last);
            last = report.RelativeError;
        }
    }

    [Fact]
    public void Inspect_tells_size_norm_and_rank()
    {
        float[] Unit(int size, int at) => [.. Enumerable.Range(0, size).Select(i => i == at ? 1f : 0)];
        using var memory = new AssociativeMemory(K, V, MemoryRule.Linear);
        for (var i = 0; i < 3; i++) memory.Write(Unit(K, i), Unit(V, i));
        var report = memory.Inspect();
        Assert.Equal(("Linear", 3, K, K * V, 4 * K * V), (report.Rule, report.Writes, report.Capacity, report.Numbers, report.Bytes));
        Assert.Equal(3, report.EffectiveRank, 1e-5);
        Assert.Equal(Math.Sqrt(3), report.Norm, 1e-5);
        using var network = new AssociativeMemory(K, V, MemoryRule.Titans(hidden: 20));
        Assert.Equal((20, 2 * 20 * (K + V)), (network.Inspect().Capacity, network.Inspect().Numbers));
    }

    [Theory]
    [InlineData("Linear"), InlineData("Retention"), InlineData("Delta"), InlineData("Titans")]
    public void Forgetting_a_key_leaves_orthogonal_ones(string rule)
    {
        var pairs = Orthogonal(4);
        using var memory = new AssociativeMemory(K, V, Rule(rule));
        memory.Write(pairs);
        var before = memory.Read([.. pairs.Select(pair => pair.Key)]);
        memory.Forget(Times(pairs[1].Key, 2));
        for (var i = 0; i < pairs.Length; i++) Near(i == 1 ? new float[V] : before[i], memory.Read(pairs[i].Key));
    }

    [Fact]
    public void Forgetting_a_key_of_a_network_makes_it_read_zero()
    {
        var pairs = Orthogonal(2);
        using var memory = new AssociativeMemory(K, V, MemoryRule.Titans(hidden: 32));
        memory.Write(pairs);
        memory.Forget(pairs[0].Key);
        Near(new float[V], memory.Read(pairs[0].Key));
        Assert.True(memory.Interference([pairs[1]]).Pairs[0].Cosine > 0.9);
    }

    [Theory, MemberData(nameof(AllRules))]
    public void Reflecting_fades_what_every_query_reads(string rule)
    {
        var pairs = Random(6);
        using var memory = new AssociativeMemory(K, V, Rule(rule));
        memory.Write(pairs);
        var before = memory.Read(pairs[0].Key);
        memory.Reflect(keep: 0.25);
        Near(Times(before, 0.25), memory.Read(pairs[0].Key));
        memory.Reflect(keep: 0);
        Near(new float[V], memory.Read(pairs[0].Key), 0);
        memory.Write(pairs); // and it can be used again
        Assert.True(memory.Interference([pairs[^1]]).Pairs[0].Cosine > 0.5);
    }

    [Theory, MemberData(nameof(AllRules))]
    public void Rehearsal_brings_recall_back(string rule)
    {
        var pairs = Random(K / 2);
        using var memory = new AssociativeMemory(K, V, Rule(rule));
        memory.Write(pairs);
        var before = memory.Interference(pairs).RelativeError;
        memory.Reflect(pairs, rounds: 80);
        var after = memory.Interference(pairs).RelativeError;
        Assert.True(after < 0.05 && after < before, $"{before} to {after}");
        Assert.Equal(K / 2, memory.Inspect().Writes);
    }

    [Theory, MemberData(nameof(AllRules))]
    public void Saved_and_loaded_or_cloned_it_goes_on_to_the_bit(string rule)
    {
        var pairs = Random(9);
        using var memory = new AssociativeMemory(K, V, Rule(rule));
        memory.Write(pairs[..5]);
        var bytes = Saved(memory);
        using var loaded = AssociativeMemory.Load(new MemoryStream(bytes));
        using var clone = memory.Clone();
        Assert.Equal((K, V, memory.Rule), (loaded.KeySize, loaded.ValueSize, loaded.Rule));
        Assert.Equal(bytes, Saved(loaded));
        Assert.Equal(bytes, Saved(clone));
        memory.Write(pairs[5..]);
        Assert.Equal(bytes, Saved(clone)); // its own
        foreach (var other in (AssociativeMemory[])[loaded, clone])
        {
            other.Write(pairs[5..]);
            Assert.Equal(Saved(memory), Saved(other));
        }
    }

    [Fact]
    public void It_loads_from_a_stream_that_cannot_seek()
    {
        using var memory = new AssociativeMemory(K, V, MemoryRule.Delta);
        memory.Write(Random(3));
        var packed = new MemoryStream();
        using (var zip = new GZipStream(packed, CompressionMode.Compress, leaveOpen: true)) memory.Save(zip);
        packed.Position = 0;
        using var loaded = AssociativeMemory.Load(new GZipStream(packed, CompressionMode.Decompress));
        Assert.Equal(Saved(memory), Saved(loaded));
    }

    [Fact]
    public void A_file_is_replaced_in_one_piece()
    {
        var folder = Directory.CreateTempSubdirectory("mlseq-memory-");
        try
        {
            var path = Path.Combine(folder.FullName, "agent.memory");
            using var memory = new AssociativeMemory(K, V, MemoryRule.Delta);
            memory.Save(path);
            memory.Write(Random(3));
            memory.Save(path);
            Assert.Equal([path], Directory.GetFiles(folder.FullName));
            using var loaded = AssociativeMemory.Load(path);
            Assert.Equal(memory.Inspect(), loaded.Inspect());
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    [Fact]
    public void A_flipped_cut_or_foreign_file_is_refused()
    {
        using var memory = new AssociativeMemory(2, 2, MemoryRule.Titans());
        memory.Write([1, 2], [3, 4]);
        var whole = Saved(memory);
        void Refused(byte[] bytes) => Assert.Throws<FormatException>(() => AssociativeMemory.Load(new MemoryStream(bytes)).Dispose());
        for (var length = 0; length < whole.Length; length++) Refused(whole[..length]);
        Refused([.. whole, 0]);
        for (var bit = 0; bit < 8 * whole.Length; bit += bit < 64 ? 1 : 3)
        {
            byte[] flipped = [.. whole];
            flipped[bit / 8] ^= (byte)(1 << bit % 8);
            Refused(flipped);
        }
        var foreign = new MemoryStream();
        using (var scope = NewDisposeScope()) SafeTensors.Write(foreign, [("memory0", zeros(1, 1, 2, 2))]);
        Assert.Contains("expected 'mlseq.associative-memory.1'", Assert.Throws<FormatException>(() => AssociativeMemory.Load(new MemoryStream(foreign.ToArray()))).Message);
    }

    [Fact]
    public void Bad_input_is_refused_and_changes_nothing()
    {
        using var memory = new AssociativeMemory(2, 2, MemoryRule.Delta);
        memory.Write([1, 0], [3, 4]);
        var before = Saved(memory);
        void Says(string text, Action act) => Assert.Contains(text, Assert.ThrowsAny<ArgumentException>(act).Message);
        Says("key has 3 numbers; expected 2", () => memory.Write([1, 2, 3], [1, 2]));
        Says("value has 1 numbers; expected 2", () => memory.Write([1, 2], [1]));
        Says("key[1] is NaN", () => memory.Write([1, float.NaN], [1, 2]));
        Says("value[0] is Infinity", () => memory.Write([1, 2], [float.PositiveInfinity, 2]));
        Says("key is zero", () => memory.Write([0, 0], [1, 2]));
        Says("strength is 1.5; expected 0 to 1", () => memory.Write([1, 2], [1, 2], strength: 1.5));
        Says("strength is NaN", () => memory.Write([1, 2], [1, 2], strength: double.NaN));
        Says("the rule Delta does not let a write say how much is kept", () => memory.Write([1, 2], [1, 2], keep: 0.5));
        Says("pairs[1].Key has 1 numbers", () => memory.Write([new([1, 2], [1, 2]), new([1], [1, 2])]));
        Says("pairs[0].Value is null", () => memory.Write([new([1, 2], null!)]));
        Says("query has 0 numbers", () => memory.Read(ReadOnlySpan<float>.Empty));
        Says("queries[1] is zero", () => memory.Read([[1, 2], [0, 0]]));
        Says("key is zero", () => memory.Forget([0, 0]));
        Says("keep is -1; expected 0 to 1", () => memory.Reflect(-1));
        Says("rounds", () => memory.Reflect([new([1, 2], [1, 2])], rounds: 0));
        Says("Keep is 1.1", () => new AssociativeMemory(2, 2, MemoryRule.Retention(1.1)));
        Says("Momentum is 1;", () => new AssociativeMemory(2, 2, MemoryRule.Titans(momentum: 1)));
        Says("keySize is 0", () => new AssociativeMemory(0, 2, MemoryRule.Delta));
        Says("expected at most", () => new AssociativeMemory(60_000, 60_000, MemoryRule.Delta));
        using var linear = new AssociativeMemory(2, 2, MemoryRule.Linear);
        linear.Write([1, 0], [3e38f, 4]);
        Assert.Contains("left as it was", Assert.Throws<OverflowException>(() => linear.Write([1, 0], [3e38f, 4])).Message);
        Assert.Equal([3e38f, 4], linear.Read([1, 0]));
        Assert.Equal(before, Saved(memory));
    }

    [Fact]
    public void Lengths_at_the_ends_of_float32_are_no_trouble()
    {
        using var memory = new AssociativeMemory(2, 1, MemoryRule.Delta);
        memory.Write([3e38f, 3e38f], [1]);
        Near([1], memory.Read([1e-45f, 1e-45f]));
    }

    [Fact]
    public void It_lives_outside_of_scopes_and_ends_with_dispose()
    {
        AssociativeMemory memory;
        using (NewDisposeScope())
        {
            memory = new AssociativeMemory(2, 2, MemoryRule.Delta);
            memory.Write([1, 0], [3, 4]);
        }
        Near([3, 4], memory.Read([1, 0]));
        memory.Dispose();
        memory.Dispose();
        Assert.Throws<ObjectDisposedException>(() => memory.Read([1, 0]));
    }

    /// <summary>The example of docs/agent-memory.md.</summary>
    [Fact]
    public void The_page_s_example_does_what_its_comments_say()
    {
        float[] tea = [1, 0, 0, 0], coffee = [0.6f, 0.8f, 0, 0]; // keys: embeddings, for instance
        using var memory = new AssociativeMemory(keySize: 4, valueSize: 2, MemoryRule.Delta);
        memory.Write(tea, [1, 0]);
        memory.Write(tea, [0, 1]); // a new fact about the same thing
        Near([0, 1], memory.Read(tea));
        memory.Write(coffee, [1, 1]); // a similar key: what tea holds changes a little
        var report = memory.Interference([new(tea, [0, 1]), new(coffee, [1, 1])]);
        Assert.Equal(0.6, report.LargestKeyCosine, 1e-6);
        Assert.Equal(0.646, report.Pairs[0].RelativeError, 1e-3);
        Assert.Equal(0, report.Pairs[1].RelativeError, 1e-3);
        memory.Reflect([new(tea, [0, 1]), new(coffee, [1, 1])], rounds: 20);
        Near([0, 1], memory.Read(tea), 1e-3);
        memory.Reflect(keep: 0.5);
        Near([0, 0.5f], memory.Read(tea), 1e-3);
        memory.Forget(tea);
        Near([0, 0], memory.Read(tea));
    }

    [Fact]
    public void Threads_take_turns()
    {
        using var memory = new AssociativeMemory(2, 1, MemoryRule.Linear);
        Parallel.For(0, 64, _ => memory.Write([1, 0], [1]));
        Near([64], memory.Read([1, 0]));
    }

    private static byte[] Saved(AssociativeMemory memory)
    {
        using var stream = new MemoryStream();
        memory.Save(stream);
        return stream.ToArray();
    }
}
