using Microsoft.ML;
using Microsoft.ML.Data;

namespace MLSeq;

/// <summary>Reads rows of one cursor and scores them together. One session belongs to one cursor and one thread.</summary>
internal abstract class ScoringSession
{
    /// <summary>Reads the cursor's current row.</summary>
    public abstract void Append();

    /// <summary>Scores all rows read since the last call.</summary>
    public abstract void Score();

    /// <summary>The getter of output column <paramref name="output"/> (0: the first column that the transformer adds) at the scored row that <paramref name="row"/> tells.</summary>
    public abstract Delegate CreateGetter(int output, Func<int> row);
}

/// <summary>What the batched data view and the row mapper need of a transformer.</summary>
internal interface IBatchedTransformer
{
    DataViewSchema GetOutputSchema(DataViewSchema input);

    /// <summary>The column that is read; throws when it is missing or of another type.</summary>
    DataViewSchema.Column FeatureColumn(DataViewSchema input);

    ScoringSession CreateSession(DataViewRow row, DataViewSchema.Column features);

    /// <summary>Rows that a cursor reads ahead.</summary>
    int ReadAhead { get; }
}
