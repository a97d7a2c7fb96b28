using System.Globalization;
using ScottPlot;
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

/// <summary>Lines over two axes, each linear or logarithmic; the legend stands beside the data.</summary>
internal sealed class Chart
{
    private const int MostOwnTicks = 10;

    private static readonly MarkerShape[] Markers = [MarkerShape.FilledCircle, MarkerShape.FilledSquare, MarkerShape.FilledTriangleUp, MarkerShape.FilledDiamond];
    private static readonly LinePattern[] Patterns = [LinePattern.Solid, LinePattern.Dashed, LinePattern.Dotted];

    private readonly Plot _plot = new();
    private readonly IPalette _palette = new ScottPlot.Palettes.Category10();
    private readonly bool _logX, _logY;
    private readonly List<(double X, double Y)> _points = [];
    private int _lines;

    public Chart(string title, string x, string y, bool logX = false, bool logY = false)
    {
        (_logX, _logY) = (logX, logY);
        _plot.Title(title);
        _plot.XLabel(x);
        _plot.YLabel(y);
    }

    /// <summary>One line. Lines of one <paramref name="group"/> share a colour; by itself, the eleventh looks like the first, but dashed.</summary>
    public void Line(string name, IEnumerable<(double X, double Y)> points, bool? dashed = null, int group = -1, bool markers = true)
    {
        var drawn = points.Where(point => (!_logX || point.X > 0) && (!_logY || point.Y > 0)).ToArray();
        _points.AddRange(drawn);
        var color = _palette.GetColor((group < 0 ? _lines : group) % 10);
        var (xs, ys) = (drawn.Select(point => _logX ? Math.Log10(point.X) : point.X).ToArray(), drawn.Select(point => _logY ? Math.Log10(point.Y) : point.Y).ToArray());
        var line = _plot.Add.Scatter(xs, ys, color);
        line.LegendText = name;
        line.LineWidth = 2;
        line.LinePattern = dashed is null ? Patterns[_lines / 10 % Patterns.Length] : dashed.Value ? LinePattern.Dashed : LinePattern.Solid;
        line.MarkerSize = markers ? 7 : 0;
        line.MarkerShape = Markers[_lines / 10 % Markers.Length];
        _lines++;
    }

    /// <summary>Bars in groups, one group per name, one colour per series.</summary>
    public void Bars(string[] names, (string Name, double[] Values)[] series)
    {
        for (var s = 0; s < series.Length; s++)
        {
            var bars = series[s].Values.Select((value, i) => new Bar { Position = i + (s - (series.Length - 1) / 2.0) * 0.35, Value = value, Size = 0.3, FillColor = _palette.GetColor(s) }).ToArray();
            _plot.Add.Bars(bars).LegendText = series[s].Name;
        }
        _plot.Axes.Bottom.TickGenerator = new ScottPlot.TickGenerators.NumericManual([.. names.Select((name, i) => new Tick(i, name))]);
    }

    /// <summary>Bounds of the vertical axis, in its own units.</summary>
    public void Vertical(double from, double to) => _plot.Axes.SetLimitsY(_logY ? Math.Log10(from) : from, _logY ? Math.Log10(to) : to);

    public void Save(string path)
    {
        if (_logX) _plot.Axes.Bottom.TickGenerator = Ticks(_points.Select(point => point.X));
        if (_logY) _plot.Axes.Left.TickGenerator = Ticks(_points.Select(point => point.Y));
        _plot.Font.Set(Fonts.Sans);
        _plot.ShowLegend(Edge.Right);
        _plot.SavePng(path, 900, 520);
        Console.WriteLine($"plot: {path}");
    }

    // The axis shows logarithms, its labels the numbers: those that occur, if they are few; else 1, 2, 5, 10 … over a short range, powers of ten over a long one.
    private static ScottPlot.TickGenerators.NumericManual Ticks(IEnumerable<double> values)
    {
        var ticks = new ScottPlot.TickGenerators.NumericManual();
        var distinct = values.Distinct().ToArray();
        if (distinct.Length is > 0 and <= MostOwnTicks)
        {
            foreach (var value in distinct) ticks.AddMajor(Math.Log10(value), Label(value));
            return ticks;
        }
        var (from, to) = values.Any() ? (values.Min(), values.Max()) : (1, 10);
        int[] labelled = to / from < 3000 ? [1, 2, 5] : [1];
        for (var exponent = (int)Math.Floor(Math.Log10(from)) - 1; exponent <= Math.Log10(to) + 1; exponent++)
            for (var digit = 1; digit < 10; digit++)
            {
                var value = digit * Math.Pow(10, exponent);
                if (labelled.Contains(digit)) ticks.AddMajor(Math.Log10(value), Label(value));
                else ticks.AddMinor(Math.Log10(value));
            }
        return ticks;

        static string Label(double value) => value.ToString("#,0.####", CultureInfo.InvariantCulture);
    }
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
