using Microsoft.ML;
using Microsoft.ML.Data;

namespace MLSeq;

/// <summary>Class probabilities of scored rows, and the getters of the two columns that classifiers add.</summary>
/// <param name="classes">Numbers per row.</param>
internal sealed class ClassScores(int classes)
{
    private float[] _probabilities = [];

    /// <summary>Room for the probabilities of so many rows, [rows, classes]; valid until the next call.</summary>
    public float[] Rows(int count)
    {
        if (_probabilities.Length < count * classes) _probabilities = new float[count * classes];
        return _probabilities;
    }

    /// <summary>The getter of output column 0 (<c>PredictedLabel</c>) or 1 (<c>Score</c>) at the row that <paramref name="row"/> tells.</summary>
    public Delegate CreateGetter(int output, Func<int> row)
        => output == 0
            ? (ValueGetter<uint>)((ref uint value) => value = PredictedKey(Row(row())))
            : (ValueGetter<VBuffer<float>>)((ref VBuffer<float> value) =>
            {
                var editor = VBufferEditor.Create(ref value, classes);
                Row(row()).CopyTo(editor.Values);
                value = editor.Commit();
            });

    private ReadOnlySpan<float> Row(int row) => _probabilities.AsSpan(row * classes, classes);

    // Not-a-number everywhere gives 0, the missing key, as ML.NET's own scorers do.
    private static uint PredictedKey(ReadOnlySpan<float> scores)
    {
        uint best = 0;
        for (var i = 0; i < scores.Length; i++)
            if (scores[i] >= 0 && (best == 0 || scores[i] > scores[(int)best - 1])) best = (uint)i + 1;
        return best;
    }
}
