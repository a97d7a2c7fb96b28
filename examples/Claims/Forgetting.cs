// (e) "Every memory of constant size must forget; the rules differ in what and how fast."
// A pair is written, then n others with random keys. How much of its value does its key still return, and how much of the others' values comes along?
using MLSeq.Examples.Charts;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Examples.Claims;

internal static class Forgetting
{
    public static void Run(Lab lab)
    {
        int furthest = lab.Size(32, 512, 2048), trials = lab.Size(8, 32, 256);
        int[] distances = lab.Size<int[]>([1, 16, 32], [1, 16, 64, 256, 512], [1, 16, 64, 256, 1024, 2048]);
        var chart = new Chart("What is left of a pair after n others", "pairs written since", "share of the largest response", logX: true);
        var rows = new List<string[]>();
        foreach (var (name, response, interference) in Profiles(lab, furthest, trials))
        {
            rows.Add([name, .. distances.Select(n => response[n].Text(2)), .. distances.Skip(1).Select(n => interference?[n].Text(2) ?? "–")]);
            chart.Line(name, Enumerable.Range(1, furthest).Where(n => IsDrawn(n)).Select(n => ((double)n, response[n])), markers: false);
            var half = Array.FindIndex(response, Array.IndexOf(response, response.Max()), value => value < 0.5);
            lab.Result($"claim=e rule={name.Compact()} half_life={(half < 0 ? "over_" + furthest : half)} response_{distances[^1]}={response[^1]:F3}",
                $"interference_{distances[^1]}={interference?[^1] ?? double.NaN:F3}");
        }
        lab.Table("e", "Left: share of the value that its key still returns after n other pairs. Right: length of what comes along from the others (the value has length 1). " +
            $"{trials} trials, size {Rules.Size}.",
            ["memory", .. distances.Select(n => $"n = {n.Text()}"), .. distances.Skip(1).Select(n => $"others, n = {n.Text()}")], rows);
        chart.Vertical(-0.05, 1.05);
        lab.Draw("e", chart);
    }

    // Evenly in logarithm: what is further is noisier and needs fewer points.
    private static bool IsDrawn(int n) => n < 16 || (int)(Math.Log2(n) * 8) != (int)(Math.Log2(n - 1) * 8);

    /// <summary>Response and interference after n pairs, n = 0 …, in units of the largest response.</summary>
    private static IEnumerable<(string Name, double[] Response, double[]? Interference)> Profiles(Lab lab, int furthest, int trials)
    {
        foreach (var (name, read) in Rules.All())
        {
            using var scope = NewDisposeScope();
            using var _ = no_grad();
            manual_seed(lab.Seed);
            var (k, v) = (Rules.RandomUnits(trials, furthest + 1, lab.Device), Rules.RandomUnits(trials, furthest + 1, lab.Device));
            var o = read(k.narrow(1, 0, 1).expand(-1, furthest + 1, -1, -1).contiguous(), k, v);
            var first = v.narrow(1, 0, 1);
            var response = (o * first).sum([-1L], keepdim: true); // [trials, time, 1, 1]
            var rest = (o - response * first).norm(-1).mean([0, 2]); // [time]
            var mean = response.mean([0, 2, 3]);
            var largest = mean.max();
            yield return (name, Doubles(mean / largest), Doubles(rest / largest));
        }
        yield return ("Mamba, per channel", Mamba(lab, furthest), null);
    }

    /// <summary>Mamba's channels keep numbers, not pairs: the response of the scan to one input, at its initial A (−1 … −16) and Δ, with B and C at one; the mean of many channels.</summary>
    private static double[] Mamba(Lab lab, int furthest)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        const int Channels = 256, States = 16;
        manual_seed(lab.Seed);
        var x = zeros([1, furthest + 1, Channels], device: lab.Device);
        x.select(1, 0).fill_(1);
        var delta = (rand([Channels], device: lab.Device) * Math.Log(100) + Math.Log(0.001)).exp().expand(1, furthest + 1, -1);
        var a = -arange(1, States + 1, dtype: float32, device: lab.Device).expand(Channels, -1);
        var map = ones([1, furthest + 1, States], device: lab.Device);
        var (y, _) = SelectiveScan.Run(x, delta.contiguous(), a.contiguous(), map, map);
        return Doubles((y / y.narrow(1, 0, 1)).mean([0, 2]));
    }

    private static double[] Doubles(Tensor x) => x.to(float64).cpu().data<double>().ToArray();
}
