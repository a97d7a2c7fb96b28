namespace MLSeq;

/// <summary>SplitMix64 (Steele, Lea and Flood 2014): a counter-based generator, so that order and dropout of any step follow from the seed and the step alone.</summary>
internal struct SplitMix(ulong state)
{
    public static ulong Mix(params ReadOnlySpan<long> values)
    {
        ulong hash = 0x9E3779B97F4A7C15;
        foreach (var value in values) hash = new SplitMix(hash ^ (ulong)value).Next();
        return hash;
    }

    public ulong Next()
    {
        var z = state += 0x9E3779B97F4A7C15;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    }

    /// <summary>From <paramref name="from"/> (included) to <paramref name="to"/>.</summary>
    public double Uniform(double from, double to) => from + (to - from) * (Next() >> 11) * (1.0 / (1L << 53));

    /// <summary>0 … <paramref name="count"/> − 1.</summary>
    public int Index(int count) => (int)(Next() % (ulong)count);

    public bool Chance(double probability) => Uniform(0, 1) < probability;

    public void Shuffle<T>(Span<T> items)
    {
        for (var i = items.Length - 1; i > 0; i--)
        {
            var j = (int)(Next() % (ulong)(i + 1));
            (items[i], items[j]) = (items[j], items[i]);
        }
    }
}
