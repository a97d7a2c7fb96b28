using System.Globalization;
using System.Runtime.CompilerServices;
using System.Security.Cryptography;
using System.Text;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// An agent's memory of constant size, <c>H_t = fA(H_{t−1}) + fB(x_t)</c>, <c>y_t = fC(H_t)</c>: <see cref="Write(ReadOnlySpan{float}, ReadOnlySpan{float}, double, double?)">write</see> (fB) a value at
/// a key, <see cref="Read(ReadOnlySpan{float})">read</see> (fC) what a key recalls, <see cref="Reflect(double)">reflect</see> (fA) to fade, forget and put right.
/// </summary>
/// <remarks>
/// <para>Keys and queries are divided by their length: only their direction counts. Similar keys recall similar values; that is also how pairs interfere (<see cref="Interference"/>).</para>
/// <para>Computes in float32 on the CPU. Members may be called from several threads; they take turns. What fails changes nothing.</para>
/// </remarks>
/// <example>
/// <code>
/// using var memory = new AssociativeMemory(keySize: 64, valueSize: 16, MemoryRule.Delta);
/// memory.Write(key, value);
/// float[] recalled = memory.Read(key);
/// memory.Forget(key);
/// </code>
/// </example>
public sealed class AssociativeMemory : IDisposable
{
    private const string Format = "mlseq.associative-memory.1";
    private const string FormatKey = "format", RuleKey = "rule", KeySizeKey = "key_size", ValueSizeKey = "value_size", WritesKey = "writes", ChecksumKey = "sha256";
    private const int MaxSize = 1 << 16;
    private const long MaxNumbers = 1L << 28;

    private readonly Lock _turn = new();
    private Tensor[] _state; // detached from every scope
    private long _writes;
    private bool _disposed;

    /// <summary>An empty memory, of which every query reads zero.</summary>
    /// <param name="keySize">K, numbers per key, 1 to 65536.</param>
    /// <param name="valueSize">V, numbers per value, 1 to 65536.</param>
    /// <param name="rule">How it changes with each write.</param>
    /// <exception cref="ArgumentException">A size or a value of the rule is out of range, or the state would have more than 2²⁸ numbers.</exception>
    public AssociativeMemory(int keySize, int valueSize, MemoryRule rule) : this(keySize, valueSize, rule, 0, () => rule.Start(keySize, valueSize))
    {
    }

    // The state is copied: what the function returns stays with the scope.
    private AssociativeMemory(int keySize, int valueSize, MemoryRule rule, long writes, Func<Tensor[]> state)
    {
        ArgumentNullException.ThrowIfNull(rule);
        rule.Validate();
        CheckSize(keySize);
        CheckSize(valueSize);
        var numbers = rule.Parts(keySize, valueSize).Sum(part => part.Shape.Aggregate((product, length) => product * length));
        if (numbers > MaxNumbers) throw new ArgumentException($"The memory would have {numbers} numbers; expected at most {MaxNumbers}. Make keys, values or the hidden layer smaller.");
        MLSeqRuntime.EnsureLoaded();
        (KeySize, ValueSize, Rule, _writes) = (keySize, valueSize, rule, writes);
        using var scope = NewDisposeScope();
        _state = Owned(state());
    }

    /// <summary>K, numbers per key and query.</summary>
    public int KeySize { get; }

    /// <summary>V, numbers per value.</summary>
    public int ValueSize { get; }

    /// <summary>How the memory changes with each write.</summary>
    public MemoryRule Rule { get; }

    /// <summary>Writes a value at a key (fB).</summary>
    /// <param name="key">[K], not zero; its length does not matter.</param>
    /// <param name="value">[V].</param>
    /// <param name="strength">β, 0 (nothing is written) to 1.</param>
    /// <param name="keep">γ, the share of the memory that is kept, 0 to 1; null: the rule's own. Other than null only for rules whose <see cref="MemoryRule.KeepPerWrite"/> is true.</param>
    /// <exception cref="ArgumentException">A length is wrong, a number is not finite, the key is zero, or strength or keep is out of range.</exception>
    /// <exception cref="OverflowException">A number of the memory would no longer be finite.</exception>
    public void Write(ReadOnlySpan<float> key, ReadOnlySpan<float> value, double strength = 1, double? keep = null)
        => Write(Check([new MemoryPair(key.ToArray(), value.ToArray(), strength, keep)], (_, part) => part.ToLowerInvariant()));

    /// <summary>Writes pairs in their order, as if one by one, but in parallel where the rule allows.</summary>
    /// <inheritdoc cref="Write(ReadOnlySpan{float}, ReadOnlySpan{float}, double, double?)"/>
    /// <param name="pairs">The pairs.</param>
    public void Write(IReadOnlyList<MemoryPair> pairs) => Write(Check(pairs, NameInBatch));

    private void Write(CheckedPairs pairs) => Change(state => Write(Rule, state, pairs, pair => pair.Keep ?? Rule.Keep), pairs.Pairs.Count);

    /// <summary>What a query recalls (fC).</summary>
    /// <param name="query">[K], not zero; its length does not matter.</param>
    /// <returns>[V]; zeros where nothing was written.</returns>
    /// <exception cref="ArgumentException">The length is wrong, a number is not finite, or the query is zero.</exception>
    public float[] Read(ReadOnlySpan<float> query) => Read(Directions([query.ToArray()], _ => nameof(query)));

    /// <summary>What each query recalls.</summary>
    /// <inheritdoc cref="Read(ReadOnlySpan{float})"/>
    /// <param name="queries">[K] each.</param>
    public float[][] Read(IReadOnlyList<float[]> queries)
    {
        ArgumentNullException.ThrowIfNull(queries);
        return queries.Count == 0 ? [] : [.. Read(Directions(queries, i => $"{nameof(queries)}[{i}]")).Chunk(ValueSize)];
    }

    private float[] Read(float[] directions) => Use(state => Rule.Read(state, Rows(directions, KeySize)).contiguous().data<float>().ToArray());

    /// <summary>Fades everything (fA): what every query reads becomes <paramref name="keep"/> times what it was. 0 forgets all.</summary>
    /// <param name="keep">0 to 1.</param>
    /// <exception cref="ArgumentException">The number is out of range.</exception>
    public void Reflect(double keep)
    {
        CheckShare(keep, nameof(keep));
        Change(state => Rule.Fade(state, keep));
    }

    /// <summary>
    /// Rehearses pairs (fA), so that the memory recalls them better: each is a step of gradient descent on its error, <c>H ← H + β k (v − Hᵀ k)ᵀ</c>, whatever the rule (a neural memory takes its own
    /// kind of step). Nothing fades meanwhile. With linearly independent keys at strength 1 it ends at exact recall.
    /// </summary>
    /// <param name="pairs">What is to be recalled; their <see cref="MemoryPair.Keep"/> is not used.</param>
    /// <param name="rounds">How often, 1 or more.</param>
    /// <inheritdoc cref="Write(ReadOnlySpan{float}, ReadOnlySpan{float}, double, double?)"/>
    public void Reflect(IReadOnlyList<MemoryPair> pairs, int rounds = 1)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(rounds, 1);
        var rehearsed = Check(pairs, NameInBatch, recall: true);
        if (pairs.Count == 0) return;
        Change(state =>
        {
            var next = state;
            for (var round = 0; round < rounds; round++)
            {
                using var scope = NewDisposeScope();
                var before = next;
                next = Write(Rule.Rehearsal, before, rehearsed, _ => 1);
                foreach (var part in next) part.MoveToOuterDisposeScope();
                if (round > 0) foreach (var part in before) part.Dispose();
            }
            return next;
        });
    }

    /// <summary>
    /// Removes what is stored at a key (fA), <c>H ← (I − k kᵀ) H</c>: it then reads zero, and keys orthogonal to it read what they did. With a hidden layer its activations a(k) stand for k, and activations
    /// of different keys are never quite orthogonal.
    /// </summary>
    /// <param name="key">[K], not zero; its length does not matter.</param>
    /// <exception cref="ArgumentException">The length is wrong, a number is not finite, or the key is zero.</exception>
    public void Forget(ReadOnlySpan<float> key)
    {
        var direction = Directions([key.ToArray()], _ => nameof(key));
        Change(state => Rule.Forget(state, Rows(direction, KeySize)));
    }

    /// <summary>Size, fullness and norm.</summary>
    public MemoryReport Inspect() => Use(state =>
    {
        var h = state[Rule.Depth - 1].squeeze(0).squeeze(0).to(float64); // [rows, V]
        var singular = linalg.svdvals(h).data<double>().ToArray();
        var sum = singular.Sum();
        var entropy = singular.Where(value => value > 0).Sum(value => -value / sum * Math.Log(value / sum));
        var numbers = state.Sum(part => part.numel());
        return new MemoryReport(Rule.Name, _writes, h.shape[0], numbers, numbers * sizeof(float), h.square().sum().sqrt().item<double>(), sum == 0 ? 0 : Math.Exp(entropy));
    });

    /// <summary>How well the memory recalls pairs, and how similar their keys are. The cost grows with the square of their number.</summary>
    /// <param name="pairs">What should be recalled; strength and keep are not used.</param>
    /// <exception cref="ArgumentException">A length is wrong, a number is not finite, or a key is zero.</exception>
    public InterferenceReport Interference(IReadOnlyList<MemoryPair> pairs)
    {
        var (directions, values, _) = Check(pairs, NameInBatch, recall: true);
        if (pairs.Count == 0) return new InterferenceReport([], 0);
        return Use(state =>
        {
            Tensor keys = Rows(directions, KeySize), want = Rows(values, ValueSize).to(float64).view(-1, ValueSize), got = Rule.Read(state, keys).to(float64).reshape(-1, ValueSize);
            Tensor Length(Tensor x) => x.square().sum([-1]).sqrt();
            Tensor Ratio(Tensor x, Tensor by) => x / where(by == 0, 1, by);
            var cosines = Ratio((got * want).sum([-1]), Length(got) * Length(want)).data<double>().ToArray();
            var errors = Ratio(Length(got - want), Length(want)).data<double>().ToArray();
            return new InterferenceReport([.. cosines.Zip(errors, (cosine, error) => new PairRecall(cosine, error))], LargestCosine(keys.view(-1, KeySize).to(float64)));
        });
    }

    /// <summary>A memory of its own with the same content.</summary>
    public AssociativeMemory Clone() => Use(state => new AssociativeMemory(KeySize, ValueSize, Rule, _writes, () => state));

    /// <summary>Saves rule and content as safetensors, to the last bit.</summary>
    /// <param name="stream">Where to. The file must end where the memory ends, or it cannot be loaded.</param>
    public void Save(Stream stream)
    {
        ArgumentNullException.ThrowIfNull(stream);
        Use(state =>
        {
            var metadata = new Dictionary<string, string>
            {
                [FormatKey] = Format, [RuleKey] = Rule.ToJson(), [KeySizeKey] = Text(KeySize), [ValueSizeKey] = Text(ValueSize), [WritesKey] = Text(_writes),
            };
            metadata[ChecksumKey] = Checksum(metadata, state);
            SafeTensors.Write(stream, [.. Rule.Parts(KeySize, ValueSize).Zip(state, (part, tensor) => (part.Name, tensor))], metadata);
            return true;
        });
    }

    /// <summary>Saves to a file, which is replaced in one piece.</summary>
    /// <inheritdoc cref="Save(Stream)"/>
    /// <param name="path">The file; its folder must exist.</param>
    public void Save(string path) => AtomicFile.Write(path, Save);

    /// <summary>Loads what <see cref="Save(Stream)"/> saved.</summary>
    /// <param name="stream">Where from; read to its end.</param>
    /// <exception cref="FormatException">The data are damaged, cut short, or not an associative memory.</exception>
    public static AssociativeMemory Load(Stream stream)
    {
        ArgumentNullException.ThrowIfNull(stream);
        if (!stream.CanSeek) // its length bounds what a header may claim
        {
            using var copy = new MemoryStream();
            stream.CopyTo(copy);
            copy.Position = 0;
            return Load(copy);
        }
        MLSeqRuntime.EnsureLoaded();
        using var scope = NewDisposeScope();
        var (tensors, metadata) = SafeTensors.ReadAll(stream, stream.Length - stream.Position);
        if (metadata.GetValueOrDefault(FormatKey) != Format) throw new FormatException($"Its format is '{metadata.GetValueOrDefault(FormatKey)}'; expected '{Format}', a saved associative memory.");
        var rule = MemoryRule.FromJson(metadata.GetValueOrDefault(RuleKey, ""));
        var (keySize, valueSize, writes) = ((int)Number(KeySizeKey, 1, MaxSize), (int)Number(ValueSizeKey, 1, MaxSize), Number(WritesKey, 0, long.MaxValue));
        var parts = rule.Parts(keySize, valueSize).ToList();
        if (!tensors.Keys.ToHashSet().SetEquals(parts.Select(part => part.Name)))
            throw new FormatException($"It has the parts {string.Join(", ", tensors.Keys)}; expected {string.Join(", ", parts.Select(part => part.Name))}.");
        foreach (var (name, shape) in parts)
            if (tensors[name].dtype != float32 || !tensors[name].shape.SequenceEqual(shape))
                throw new FormatException($"Its part '{name}' is {tensors[name].dtype} [{string.Join(", ", tensors[name].shape)}]; expected Float32 [{string.Join(", ", shape)}].");
        Tensor[] state = [.. parts.Select(part => tensors[part.Name])];
        if (Checksum(metadata, state) != metadata.GetValueOrDefault(ChecksumKey)) throw new FormatException("Its checksum differs: it was changed after it was saved.");
        if (!state.All(IsFinite)) throw new FormatException("It holds numbers that are not finite.");
        try
        {
            return new AssociativeMemory(keySize, valueSize, rule, writes, () => state);
        }
        catch (ArgumentException e)
        {
            throw new FormatException(e.Message, e);
        }

        long Number(string name, long least, long most)
            => long.TryParse(metadata.GetValueOrDefault(name), NumberStyles.None, CultureInfo.InvariantCulture, out var number) && number >= least && number <= most
                ? number : throw new FormatException($"Its {name} is '{metadata.GetValueOrDefault(name)}'; expected {least} to {most}.");
    }

    /// <summary>Loads from a file.</summary>
    /// <inheritdoc cref="Load(Stream)"/>
    /// <param name="path">The file.</param>
    public static AssociativeMemory Load(string path)
    {
        using var file = File.OpenRead(path);
        return Load(file);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        lock (_turn)
        {
            foreach (var part in _state) part.Dispose();
            (_state, _disposed) = ([], true);
        }
    }

    private T Use<T>(Func<Tensor[], T> work)
    {
        lock (_turn)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            using var scope = NewDisposeScope();
            using var _ = no_grad();
            return work(_state);
        }
    }

    private void Change(Func<Tensor[], Tensor[]> change, long writes = 0) => Use(state =>
    {
        var next = change(state);
        if (!next.All(IsFinite))
            throw new OverflowException($"The {Rule.Name} memory would hold numbers that are not finite; it was left as it was. Write smaller values, or let it fade{(Rule is NeuralMemoryRule ? ", or lower the rate" : "")}.");
        var owned = Owned(next);
        foreach (var part in state) part.Dispose();
        _state = owned;
        _writes += writes;
        return true;
    });

    // Copies: an operator may return its input, or a view of something larger.
    private static Tensor[] Owned(Tensor[] state) => [.. state.Select(part => part.clone().DetachFromDisposeScope())];

    private static bool IsFinite(Tensor x) => x.isfinite().all().item<bool>();

    private Tensor[] Write(MemoryRule rule, Tensor[] state, CheckedPairs pairs, Func<MemoryPair, double> keepOf)
    {
        if (pairs.Pairs.Count == 0) return state;
        double[] keep = [.. pairs.Pairs.Select(keepOf)];
        var logKeep = keep.All(share => share == 1) ? null : PerWrite(keep.Select(share => Math.Log(share)));
        return rule.Write(state, Rows(pairs.Directions, KeySize), Rows(pairs.Values, ValueSize), PerWrite(pairs.Pairs.Select(pair => pair.Strength)), logKeep);
    }

    private static Tensor PerWrite(IEnumerable<double> numbers) => tensor(numbers.Select(number => (float)number).ToArray()).view(1, -1, 1);

    private static Tensor Rows(float[] numbers, int size) => tensor(numbers).view(1, -1, 1, size);

    private static double LargestCosine(Tensor keys)
    {
        var largest = 0.0;
        for (long i = 0, others = keys.shape[0] - 1; others > 0; i++, others--)
        {
            using var scope = NewDisposeScope();
            largest = Math.Max(largest, (keys.narrow(0, i + 1, others) * keys[i]).sum([1]).abs().max().item<double>());
        }
        return largest;
    }

    private sealed record CheckedPairs(float[] Directions, float[] Values, IReadOnlyList<MemoryPair> Pairs);

    private static string NameInBatch(int index, string part) => $"pairs[{index}].{part}";

    // A pair to be recalled needs no rule that takes its keep.
    private CheckedPairs Check(IReadOnlyList<MemoryPair> pairs, Func<int, string, string> nameOf, bool recall = false)
    {
        ArgumentNullException.ThrowIfNull(pairs);
        for (var i = 0; i < pairs.Count; i++)
        {
            string Name(string part) => nameOf(i, part);
            var pair = pairs[i] ?? throw new ArgumentException($"pairs[{i}] is null.", nameof(pairs));
            CheckNumbers(pair.Value, ValueSize, Name(nameof(pair.Value)));
            CheckShare(pair.Strength, Name(nameof(pair.Strength)));
            if (recall || pair.Keep is not { } keep) continue;
            CheckShare(keep, Name(nameof(pair.Keep)));
            if (!Rule.KeepPerWrite)
                throw new ArgumentException($"{Name(nameof(pair.Keep))} is {keep}, but the rule {Rule.Name} does not let a write say how much is kept. Leave it out, or choose Gated, GatedDelta or Titans.", Name(nameof(pair.Keep)));
        }
        return new CheckedPairs(Directions([.. pairs.Select(pair => pair.Key)], i => nameOf(i, nameof(MemoryPair.Key))), [.. pairs.SelectMany(pair => pair.Value)], pairs);
    }

    // The keys one after another, each divided by its length (in float64: squares of float32 may overflow or vanish).
    private float[] Directions(IReadOnlyList<float[]> keys, Func<int, string> nameOf)
    {
        var directions = new float[(long)keys.Count * KeySize];
        for (var i = 0; i < keys.Count; i++)
        {
            CheckNumbers(keys[i], KeySize, nameOf(i));
            var length = Math.Sqrt(keys[i].Sum(number => (double)number * number));
            if (length == 0) throw new ArgumentException($"{nameOf(i)} is zero and has no direction; expected a number other than 0 in it.", nameOf(i));
            for (var j = 0; j < KeySize; j++) directions[(long)i * KeySize + j] = (float)(keys[i][j] / length);
        }
        return directions;
    }

    private static void CheckNumbers(float[]? numbers, int size, string name)
    {
        if (numbers is null) throw new ArgumentException($"{name} is null; expected {size} numbers.", name);
        if (numbers.Length != size) throw new ArgumentException($"{name} has {numbers.Length} numbers; expected {size}, as the memory was made for.", name);
        var bad = Array.FindIndex(numbers, number => !float.IsFinite(number));
        if (bad >= 0) throw new ArgumentException($"{name}[{bad}] is {numbers[bad]}; expected a finite number. Leave such elements out, or replace them.", name);
    }

    private static void CheckShare(double share, string name)
    {
        if (share is not (>= 0 and <= 1)) throw new ArgumentOutOfRangeException(name, $"{name} is {share}; expected 0 to 1.");
    }

    private static void CheckSize(int size, [CallerArgumentExpression(nameof(size))] string name = "")
    {
        if (size is < 1 or > MaxSize) throw new ArgumentOutOfRangeException(name, $"{name} is {size}; expected 1 to {MaxSize}.");
    }

    private static string Text(long number) => number.ToString(CultureInfo.InvariantCulture);

    private static string Checksum(IReadOnlyDictionary<string, string> metadata, Tensor[] state)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (var (name, value) in metadata.Where(pair => pair.Key != ChecksumKey).OrderBy(pair => pair.Key, StringComparer.Ordinal)) hash.AppendData(Encoding.UTF8.GetBytes($"{name}={value}\n"));
        foreach (var part in state) hash.AppendData(part.contiguous().bytes);
        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }
}
