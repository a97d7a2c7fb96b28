using System.Globalization;

namespace MLSeq.Examples;

/// <summary>One labelled series.</summary>
/// <param name="Label">Its class.</param>
/// <param name="Samples">Time by time: all channels of the first time, then of the second, and so on.</param>
public sealed record LabelledSeries(string Label, float[] Samples);

/// <summary>The <c>.ts</c> format of the UEA and UCR archives: one line per series, channels separated by colons, the class last.</summary>
public static class TimeSeriesFile
{
    /// <summary>Reads the series of a file whose channels have equal lengths.</summary>
    public static IEnumerable<LabelledSeries> Read(string path)
    {
        foreach (var line in File.ReadLines(path).Where(line => line.Length > 0 && line[0] is not ('@' or '#')))
        {
            var parts = line.Split(':');
            var channels = parts[..^1].Select(part => part.Split(',').Select(number => float.Parse(number, CultureInfo.InvariantCulture)).ToArray()).ToArray();
            var samples = new float[channels[0].Length * channels.Length];
            for (var time = 0; time < channels[0].Length; time++)
                for (var channel = 0; channel < channels.Length; channel++)
                    samples[time * channels.Length + channel] = channels[channel][time];
            yield return new LabelledSeries(parts[^1], samples);
        }
    }
}
