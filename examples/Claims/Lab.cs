using System.Globalization;
using MLSeq.Examples.Charts;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Examples.Claims;

/// <summary>What all experiments share: the size, the device, tables, plots and results.</summary>
internal sealed class Lab
{
    private readonly CommandLine _command;
    private readonly string _folder;

    public Lab(CommandLine command)
    {
        _command = command;
        (Quick, Full) = (command.Has("--quick"), command.Has("--full"));
        Seed = (long)command.Get("--seed", 1);
        Mixers = command.Get("--mixers", "");
        Device = command.Get("--device", "cpu") == "cuda" ? CUDA : CPU;
        if (command.Get("--threads", 0) is > 0 and var threads) set_num_threads((int)threads);
        _folder = command.Get("--out", "claims");
        Directory.CreateDirectory(_folder);
    }

    /// <summary>The same code in seconds.</summary>
    public bool Quick { get; }

    /// <summary>The sizes for a GPU.</summary>
    public bool Full { get; }

    public long Seed { get; }

    public Device Device { get; }

    /// <summary>The user's choice of mixers, separated by commas; empty: the experiment's.</summary>
    public string Mixers { get; }

    /// <summary>The user's list of numbers, or the experiment's.</summary>
    public int[] Numbers(string option, int[] otherwise)
    {
        var list = _command.Get(option, "");
        return list.Length == 0 ? otherwise : [.. list.Split(',').Select(number => int.Parse(number, CultureInfo.InvariantCulture)).Order()];
    }

    /// <summary>The user's text, or the experiment's.</summary>
    public string Text(string option, string otherwise) => _command.Get(option, otherwise);

    /// <summary>One of three, by size.</summary>
    public T Size<T>(T quick, T normal, T full) => Quick ? quick : Full ? full : normal;

    /// <summary>Waits until the device has done what it was told, for clocks.</summary>
    public void Synchronize()
    {
        if (Device.type == DeviceType.CUDA) cuda.synchronize();
    }

    /// <summary>One machine-readable line.</summary>
    public void Result(params FormattableString[] parts) => Console.WriteLine($"RESULT {string.Join(' ', parts.Select(FormattableString.Invariant))}");

    /// <summary>Prints a table and appends it as Markdown to <c>claims-X.md</c>.</summary>
    /// <param name="claim">The experiment's letter.</param>
    /// <param name="title">What the table shows; the first table of an experiment starts its file anew.</param>
    /// <param name="columns">The heads.</param>
    /// <param name="rows">The cells.</param>
    /// <param name="first">Whether this is the experiment's first table.</param>
    public void Table(string claim, string title, string[] columns, IReadOnlyList<string[]> rows, bool first = true)
    {
        var widths = columns.Select((column, i) => rows.Select(row => row[i].Length).Append(column.Length).Max()).ToArray();
        Console.WriteLine($"\n{title}");
        foreach (var row in rows.Prepend(columns))
            Console.WriteLine("  " + string.Join("  ", row.Select((cell, i) => i == 0 ? cell.PadRight(widths[i]) : cell.PadLeft(widths[i]))));
        var markdown = new List<string> { $"{title}\n", $"| {string.Join(" | ", columns)} |", $"|---|{string.Concat(columns.Skip(1).Select(_ => "---:|"))}" };
        markdown.AddRange(rows.Select(row => $"| {string.Join(" | ", row)} |"));
        var path = Path.Combine(_folder, $"claims-{claim}.md");
        var text = string.Join('\n', markdown) + "\n";
        if (first) File.WriteAllText(path, text);
        else File.AppendAllText(path, "\n" + text);
    }

    /// <summary>Draws lines into <c>claims-X.png</c>.</summary>
    public void Draw(string name, Chart chart) => chart.Save(Path.Combine(_folder, $"claims-{name}.png"));
}

/// <summary>Numbers as readers want them.</summary>
internal static class Numbers
{
    public static double Median(this IEnumerable<double> values)
    {
        var sorted = values.Order().ToArray();
        return sorted.Length % 2 == 1 ? sorted[sorted.Length / 2] : (sorted[sorted.Length / 2 - 1] + sorted[sorted.Length / 2]) / 2;
    }

    /// <summary>A name as one word of a RESULT line.</summary>
    public static string Compact(this string name)
        => name.Replace("γ = ", "", StringComparison.Ordinal).Replace(",", "", StringComparison.Ordinal).Replace(' ', '_').ToLowerInvariant();

    /// <summary>With decimals.</summary>
    public static string Text(this double value, int decimals) => (Math.Round(value, decimals) + 0.0).ToString("N" + decimals, CultureInfo.InvariantCulture); // no "-0"

    /// <summary>Without: 1,000.</summary>
    public static string Text(this long value) => value.ToString("N0", CultureInfo.InvariantCulture);

    /// <summary>Without: 1,000.</summary>
    public static string Text(this int value) => ((long)value).Text();
}
