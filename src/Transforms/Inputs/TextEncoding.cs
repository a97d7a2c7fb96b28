using System.Text;
using System.Text.Json.Serialization;
using Microsoft.ML.Tokenizers;

namespace MLSeq;

/// <summary>How a text becomes a sequence. Saved inside the model, vocabulary included.</summary>
[JsonPolymorphic(TypeDiscriminatorPropertyName = "kind", UnknownDerivedTypeHandling = JsonUnknownDerivedTypeHandling.FailSerialization)]
[JsonDerivedType(typeof(WordTextEncoding), "words")]
[JsonDerivedType(typeof(Utf8TextEncoding), "utf8")]
[JsonDerivedType(typeof(VocabularyTextEncoding), "vocabulary")]
public abstract record TextEncoding
{
    private protected TextEncoding()
    {
    }

    /// <summary>
    /// The default: one position per word; a word's vector is the sum of the vectors of its hashed pieces (itself and its character n-grams), as in
    /// fastText, so that small data sets are learned well and unseen words have a vector.
    /// </summary>
    /// <param name="buckets">Distinct vectors; pieces are hashed into them.</param>
    /// <param name="shortest">Characters of the shortest n-gram.</param>
    /// <param name="longest">Characters of the longest n-gram; 0: whole words only.</param>
    public static TextEncoding Words(int buckets = 1 << 16, int shortest = 3, int longest = 5)
        => new WordTextEncoding { Buckets = buckets, Shortest = shortest, Longest = longest };

    /// <summary>One position per UTF-8 byte: for symbol strings such as DNA, and for long-sequence models.</summary>
    public static TextEncoding Utf8Bytes() => new Utf8TextEncoding();

    /// <summary>One position per token of a BERT-style WordPiece vocabulary.</summary>
    /// <param name="vocabularyFile">A <c>vocab.txt</c> with one piece per line. Its content becomes part of the model.</param>
    public static TextEncoding WordPiece(string vocabularyFile)
        => VocabularyTextEncoding.Create("wordpiece", File.ReadAllBytes(vocabularyFile), null);

    /// <summary>One position per token of a byte-level BPE vocabulary, as of GPT-2 and RoBERTa.</summary>
    /// <param name="vocabularyFile">A <c>vocab.json</c>. Its content becomes part of the model.</param>
    /// <param name="mergesFile">A <c>merges.txt</c>. Its content becomes part of the model.</param>
    public static TextEncoding ByteLevelBpe(string vocabularyFile, string mergesFile)
        => VocabularyTextEncoding.Create("bpe", File.ReadAllBytes(vocabularyFile), File.ReadAllBytes(mergesFile));

    /// <summary>What the positions are to the network.</summary>
    internal abstract ElementKind Element { get; }

    /// <summary>Checks values that may come from a file.</summary>
    internal abstract void Validate();

    /// <summary>Appends the elements of <paramref name="text"/> to the row that <paramref name="buffer"/> has open.</summary>
    internal abstract void Encode(ReadOnlySpan<char> text, SequenceBuffer buffer);
}

/// <summary>Words as sums of hashed pieces; see <see cref="TextEncoding.Words"/>.</summary>
public sealed record WordTextEncoding : TextEncoding
{
    private const int LongestWord = 64, MostPieces = 48;

    /// <summary>Distinct vectors.</summary>
    public int Buckets { get; init; } = 1 << 16;

    /// <summary>Characters of the shortest n-gram.</summary>
    public int Shortest { get; init; } = 3;

    /// <summary>Characters of the longest n-gram; 0: whole words only.</summary>
    public int Longest { get; init; } = 5;

    internal override ElementKind Element => new ElementKind.Words(Buckets);

    internal override void Validate()
    {
        if (Buckets is < 16 or > 1 << 24) throw new ArgumentException($"Buckets is {Buckets}; expected 16 to {1 << 24}.");
        if (Shortest is < 1 or > 16 || Longest is < 0 or > 16) throw new ArgumentException($"N-grams of {Shortest} to {Longest} characters; expected 1 to 16.");
    }

    internal override void Encode(ReadOnlySpan<char> text, SequenceBuffer buffer)
    {
        for (var i = 0; i < text.Length;)
        {
            if (char.IsWhiteSpace(text[i]))
            {
                i++;
                continue;
            }
            var length = WordLength(text[i..]);
            buffer.AddWord(text.Slice(i, length), this);
            i += length;
        }
    }

    /// <summary>A run of letters and digits is a word; any other character is one by itself.</summary>
    private static int WordLength(ReadOnlySpan<char> text)
    {
        var length = 0;
        while (length < text.Length && length < LongestWord && (char.IsLetterOrDigit(text[length]) || char.GetUnicodeCategory(text[length]) == System.Globalization.UnicodeCategory.NonSpacingMark))
            length++;
        return length > 0 ? length : char.IsHighSurrogate(text[0]) && text.Length > 1 ? 2 : 1;
    }

    /// <summary>The hashed pieces, 1 … Buckets, of a word: the word, its shape where it has capitals or digits, and the n-grams of &lt;word&gt;.</summary>
    internal void AddPieces(ReadOnlySpan<char> word, List<int> pieces)
    {
        Span<char> marked = stackalloc char[LongestWord + 2];
        marked[0] = '<';
        word.ToLowerInvariant(marked[1..]);
        marked[word.Length + 1] = '>';
        marked = marked[..(word.Length + 2)];
        var limit = pieces.Count + MostPieces;
        pieces.Add(Bucket(marked, 0));
        Span<char> shape = stackalloc char[LongestWord];
        if (Shape(word, shape)) pieces.Add(Bucket(shape[..word.Length], 1));
        for (var n = Shortest; n <= Math.Min(Longest, marked.Length - 1); n++)
            for (var start = 0; start + n <= marked.Length && pieces.Count < limit; start++)
                pieces.Add(Bucket(marked.Slice(start, n), 2));
    }

    // "Free" and "FREE", "2" and "08452810075" differ in what they say: Aaaa, AAAA, 0, 00000000000.
    private static bool Shape(ReadOnlySpan<char> word, Span<char> shape)
    {
        var telling = false;
        for (var i = 0; i < word.Length; i++)
        {
            shape[i] = char.IsUpper(word[i]) ? 'A' : char.IsDigit(word[i]) ? '0' : 'a';
            telling |= shape[i] != 'a';
        }
        return telling;
    }

    // FNV-1a over UTF-16 units, mixed once more because the remainder uses the low bits.
    private int Bucket(ReadOnlySpan<char> piece, uint kind)
    {
        var hash = 2166136261u ^ kind;
        foreach (var unit in piece) hash = (hash ^ unit) * 16777619u;
        hash ^= hash >> 15;
        hash *= 0x2C1B3C6Du;
        hash ^= hash >> 13;
        return (int)(hash % (uint)Buckets) + 1;
    }
}

/// <summary>UTF-8 bytes; see <see cref="TextEncoding.Utf8Bytes"/>.</summary>
public sealed record Utf8TextEncoding : TextEncoding
{
    internal override ElementKind Element => new ElementKind.Tokens(257);

    internal override void Validate()
    {
    }

    internal override void Encode(ReadOnlySpan<char> text, SequenceBuffer buffer)
    {
        Span<byte> bytes = stackalloc byte[4];
        foreach (var rune in text.EnumerateRunes())
        {
            var count = rune.EncodeToUtf8(bytes);
            for (var i = 0; i < count; i++) buffer.AddToken(bytes[i] + 1);
        }
    }
}

/// <summary>Tokens of a vocabulary (Microsoft.ML.Tokenizers); see <see cref="TextEncoding.WordPiece"/> and <see cref="TextEncoding.ByteLevelBpe"/>.</summary>
public sealed record VocabularyTextEncoding : TextEncoding
{
    private readonly Lazy<Tokenizer> _tokenizer;

    /// <summary>Used when a model is read.</summary>
    [JsonConstructor]
    internal VocabularyTextEncoding(string algorithm, byte[] vocabulary, byte[]? merges, int count)
    {
        (Algorithm, Vocabulary, Merges, Count) = (algorithm, vocabulary, merges, count);
        _tokenizer = new Lazy<Tokenizer>(CreateTokenizer);
    }

    /// <summary><c>wordpiece</c> or <c>bpe</c>.</summary>
    public string Algorithm { get; }

    /// <summary>The vocabulary file's content.</summary>
    [JsonInclude]
    internal byte[] Vocabulary { get; }

    /// <summary>The merges file's content.</summary>
    [JsonInclude]
    internal byte[]? Merges { get; }

    /// <summary>Tokens in the vocabulary: the largest id + 1.</summary>
    public int Count { get; }

    internal static VocabularyTextEncoding Create(string algorithm, byte[] vocabulary, byte[]? merges)
    {
        var count = algorithm == "wordpiece"
            ? Encoding.UTF8.GetString(vocabulary).TrimEnd('\n').Split('\n').Length
            : System.Text.Json.JsonSerializer.Deserialize<Dictionary<string, int>>(vocabulary)!.Values.Max() + 1;
        var encoding = new VocabularyTextEncoding(algorithm, vocabulary, merges, count);
        encoding.Validate();
        return encoding;
    }

    internal override ElementKind Element => new ElementKind.Tokens(Count + 1);

    internal override void Validate()
    {
        if (Count is < 1 or > 1 << 22) throw new ArgumentException($"A vocabulary of {Count} tokens; expected 1 to {1 << 22}.");
        _ = _tokenizer.Value;
    }

    internal override void Encode(ReadOnlySpan<char> text, SequenceBuffer buffer)
    {
        var ids = _tokenizer.Value is BertTokenizer bert ? bert.EncodeToIds(text, addSpecialTokens: false) : _tokenizer.Value.EncodeToIds(text);
        foreach (var id in ids) buffer.AddToken(id >= 0 && id < Count ? id + 1 : 0);
    }

    private Tokenizer CreateTokenizer()
    {
        using var vocabulary = new MemoryStream(Vocabulary);
        if (Algorithm == "wordpiece") return BertTokenizer.Create(vocabulary);
        if (Algorithm != "bpe" || Merges is null) throw new ArgumentException($"'{Algorithm}' is no tokenizer that MLSeq knows, or its merges are missing.");
        using var merges = new MemoryStream(Merges);
        return CodeGenTokenizer.Create(vocabulary, merges);
    }
}
