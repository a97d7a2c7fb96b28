namespace MLSeq;

// The forms over spans: the same mathematics as the modules', for one sequence on the CPU in float32. A module is made of operators of libtorch, each of which takes microseconds to begin; over
// spans, one element of a small network takes less than one of them. A form holds copies of the weights, laid out for it, and serves many threads; state and workspace belong to one sequence.

/// <summary>A <see cref="TokenMixer"/>: mixes the rows of x, [time, width], into y, likewise. With a state, it goes on from there in place, and does not touch the position.</summary>
internal delegate void SpanMixer(Rows x, Rows y, MixerState? state, Workspace work);

/// <summary>Changes x, [time, width], in place.</summary>
internal delegate void SpanUpdate(Rows x, MixerState? state, Workspace work);

/// <summary>A <see cref="SequenceStack"/>: changes x, [time, width], in place. One state per block, or null.</summary>
internal delegate void SpanStack(Rows x, IReadOnlyList<MixerState>? states, Workspace work);

/// <summary>A <see cref="SequenceEmbedding"/>: each element to a row of x, [time, width].</summary>
internal delegate void SpanEmbedding(SequenceRow row, Rows x);

/// <summary>A <see cref="Pooling"/>: the rows of x, [time, width], and what the state knows, to one vector.</summary>
internal delegate void SpanPooling(Rows x, Span<float> pooled, MixerState? state, Workspace work);

/// <summary>A <see cref="SequenceClassifier"/>, and the softmax: a sequence, or its next elements, to class probabilities.</summary>
internal delegate void SpanClassifier(SequenceRow row, SequenceState? state, Workspace work, Span<float> probabilities);

/// <summary>One sequence in host memory.</summary>
internal readonly ref struct SequenceRow
{
    /// <summary>Elements.</summary>
    public required int Count { get; init; }

    /// <summary>[count, channels] of a series; empty for others.</summary>
    public Span<float> Values { get; init; }

    /// <summary>Token ids, or words as rows of a table of pieces; empty for a series.</summary>
    public ReadOnlySpan<int> Tokens { get; init; }

    /// <summary>The hashed pieces (1-based) of all words, end to end.</summary>
    public ReadOnlySpan<int> Pieces { get; init; }

    /// <summary>Where in <see cref="Pieces"/> each word ends.</summary>
    public ReadOnlySpan<int> PieceEnds { get; init; }

    /// <summary>The pieces of an element that is a word.</summary>
    public ReadOnlySpan<int> PiecesOf(int element)
    {
        var word = Tokens[element];
        return Pieces[(word == 0 ? 0 : PieceEnds[word - 1])..PieceEnds[word]];
    }
}
