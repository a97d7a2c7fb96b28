using System.Globalization;
using ScottPlot;

namespace MLSeq.Examples.Charts;

/// <summary>Lines over two axes, each linear or logarithmic; the legend stands beside the data.</summary>
public sealed class Chart
{
    private const int MostOwnTicks = 10;

    private static readonly MarkerShape[] Markers = [MarkerShape.FilledCircle, MarkerShape.FilledSquare, MarkerShape.FilledTriangleUp, MarkerShape.FilledDiamond];
    private static readonly LinePattern[] Patterns = [LinePattern.Solid, LinePattern.Dashed, LinePattern.Dotted];

    private readonly Plot _plot = new();
    private readonly IPalette _palette = new ScottPlot.Palettes.Category10();
    private readonly bool _logX, _logY;
    private readonly List<(double X, double Y)> _points = [];
    private int _lines;

    /// <summary>An empty chart.</summary>
    /// <param name="title">Above it.</param>
    /// <param name="x">Of the horizontal axis.</param>
    /// <param name="y">Of the vertical axis.</param>
    /// <param name="logX">Whether the horizontal axis is logarithmic.</param>
    /// <param name="logY">Whether the vertical axis is.</param>
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

    /// <summary>Bars of parts on top of one another, one bar per name, one colour per part.</summary>
    public void Stack(string[] names, (string Name, double[] Values)[] parts)
    {
        var below = new double[names.Length];
        for (var part = 0; part < parts.Length; part++)
        {
            var bars = parts[part].Values.Select((value, i) => new Bar { Position = i, ValueBase = below[i], Value = below[i] + value, Size = 0.7, FillColor = _palette.GetColor(part) }).ToArray();
            for (var i = 0; i < names.Length; i++) below[i] += parts[part].Values[i];
            _plot.Add.Bars(bars).LegendText = parts[part].Name;
        }
        _plot.Axes.Bottom.TickGenerator = new ScottPlot.TickGenerators.NumericManual([.. names.Select((name, i) => new Tick(i, name))]);
        _plot.Axes.Bottom.TickLabelStyle.Rotation = 30;
        _plot.Axes.Bottom.TickLabelStyle.Alignment = Alignment.MiddleLeft;
        _plot.Axes.Bottom.MinimumSize = 110;
        _plot.Axes.Margins(bottom: 0);
    }

    /// <summary>Writes a PNG.</summary>
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
