namespace MLSeq;

/// <summary>Which rows make up each batch.</summary>
internal static class BatchPlan
{
    /// <summary>Batches whose rows are drawn together and then sorted by length.</summary>
    private const int BucketBatches = 32;

    /// <summary>A shuffled epoch in which each batch holds rows of like length, to keep padding small.</summary>
    public static int[][] Shuffled(ReadOnlySpan<int> rows, Func<int, int> length, int batchSize, ulong seed)
    {
        var random = new SplitMix(seed);
        var order = rows.ToArray();
        random.Shuffle<int>(order);
        foreach (var bucket in order.Chunk(batchSize * BucketBatches).Select((chunk, i) => (Start: i * batchSize * BucketBatches, chunk.Length)))
        {
            var part = order.AsSpan(bucket.Start, bucket.Length);
            var lengths = new int[part.Length];
            for (var i = 0; i < part.Length; i++) lengths[i] = length(part[i]);
            if (lengths.AsSpan().IndexOfAnyExcept(lengths[0]) < 0) continue; // equal lengths: keep the shuffled order
            // The place in the shuffled order breaks ties, since Sort is not stable.
            var keys = lengths.Select((value, i) => ((long)value << 32) | (uint)i).ToArray();
            keys.AsSpan().Sort(part);
        }
        var batches = order.Chunk(batchSize).ToArray();
        random.Shuffle<int[]>(batches);
        return batches;
    }

    /// <summary>A shuffled epoch of rows of like size.</summary>
    public static int[][] Shuffled(ReadOnlySpan<int> rows, int batchSize, ulong seed)
    {
        var order = rows.ToArray();
        new SplitMix(seed).Shuffle<int>(order);
        return [.. order.Chunk(batchSize)];
    }

    /// <summary>All rows once, sorted by length, for evaluation.</summary>
    public static int[][] Sorted(ReadOnlySpan<int> rows, Func<int, int> length, int batchSize)
        => [.. rows.ToArray().OrderBy(length).Chunk(batchSize)];

    /// <summary>Sets apart a share of each class's rows.</summary>
    /// <returns>Training rows and validation rows.</returns>
    public static (int[] Training, int[] Validation) Split(ReadOnlySpan<int> labels, double fraction, ulong seed)
    {
        var rows = Enumerable.Range(0, labels.Length).ToArray();
        if (fraction <= 0) return (rows, []);
        new SplitMix(seed).Shuffle<int>(rows);
        var classes = labels.ToArray();
        var apart = rows.GroupBy(row => classes[row]).SelectMany(group => group.Take((int)(group.Count() * fraction))).ToHashSet();
        return ([.. Enumerable.Range(0, labels.Length).Where(row => !apart.Contains(row))], [.. Enumerable.Range(0, labels.Length).Where(apart.Contains)]);
    }
}
