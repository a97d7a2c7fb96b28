// (d) "Linear attention never changes what it has written. The delta rule takes away what a key holds before it writes there."
// A key is written with an old value, n other pairs follow, then the key is written again with a new value, then m other pairs. What does the key return?
using MLSeq.Examples.Charts;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Examples.Claims;

internal static class Overwriting
{
    private const int Old = 0, New = 1; // values are unit vectors along an axis; the others' lie along the other axes

    public static void Run(Lab lab)
    {
        int[] between = lab.Size<int[]>([0, 4], [0, 1, 2, 4, 8, 16, 32, 64, 128], [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]);
        int shown = lab.Size(4, 16, 16), after = lab.Size(4, 32, 32), trials = lab.Size(4, 48, 512);
        var chart = new Chart("A key written twice: does it return the new value?", "other pairs between the two (first point: none)", "cosine to the new value − cosine to the old", logX: true);
        var rows = new List<string[]>();
        foreach (var (name, read) in Rules.All().Append(ClosingGate()))
        {
            var points = between.Select(n => (N: n, Read: Measure(lab, read, n, 0, trials))).ToArray();
            var at = Measure(lab, read, shown, after, trials);
            rows.Add([name, at.New.Text(2), at.Old.Text(2), at.NewLater.Text(2), at.OldLater.Text(2), at.OtherBefore.Text(2), at.OtherAfter.Text(2)]);
            bool? overAnother = name is "linear attention" or "gated delta rule" ? true : null;
            chart.Line(name, points.Select(point => (point.N == 0 ? 0.5 : point.N, point.Read.New - point.Read.Old)), dashed: overAnother);
            var last = points[^1];
            lab.Result($"claim=d rule={name.Compact()} between={shown} new={at.New:F3} old={at.Old:F3} new_later={at.NewLater:F3} old_later={at.OldLater:F3}",
                $"other_before={at.OtherBefore:F3} other_after={at.OtherAfter:F3} between_max={last.N} new_max={last.Read.New:F3} old_max={last.Read.Old:F3}");
        }
        lab.Table("d", $"Cosine of what the key returns, {shown} other pairs between its two values ({trials} trials, keys and values of size {Rules.Size}).",
            ["memory", "to the new value", "to the old", $"{after} pairs later: new", "old", "another key before the second write", "after it"], rows);
        lab.Draw("d", chart);
    }

    /// <summary>What a gate on the whole memory can do: close when the key comes again. It cannot know that by itself.</summary>
    private static Rule ClosingGate() => new("scalar gate that closes at the second write", (q, k, v) =>
    {
        var again = k.select(1, 0).unsqueeze(1).mul(k).sum([-1L]) > 0.999; // [trials, time, 1]
        again.select(1, 0).fill_(false);
        return Rules.Gated(q, k, v, Rules.Constant(k, 0).masked_fill(again, double.NegativeInfinity));
    });

    private static Reads Measure(Lab lab, Func<Tensor, Tensor, Tensor, Tensor> read, int between, int after, int trials)
    {
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        manual_seed(lab.Seed);
        int second = between + 1, time = between + 2 + after;
        var k = Rules.RandomUnits(trials, time, lab.Device);
        k.narrow(1, second, 1).copy_(k.narrow(1, 0, 1));
        var axes = randint(2, Rules.Size, [trials, time], device: lab.Device, dtype: int64);
        axes.select(1, 0).fill_(Old);
        axes.select(1, second).fill_(New);
        var v = nn.functional.one_hot(axes, Rules.Size).to(float32).unsqueeze(2);

        var o = Unit(read(k.narrow(1, 0, 1).expand(-1, time, -1, -1).contiguous(), k, v));
        double Along(int axis, int t) => o.select(1, t).select(-1, axis).mean().cpu().item<float>();
        var (otherBefore, otherAfter) = (double.NaN, double.NaN);
        if (after > 0)
        {
            var (other, value) = (second / 2, v.narrow(1, second / 2, 1)); // one in the middle
            var p = Unit(read(k.narrow(1, other, 1).expand(-1, time, -1, -1).contiguous(), k, v)).mul(value).sum([-1L]);
            (otherBefore, otherAfter) = (p.select(1, between).mean().cpu().item<float>(), p.select(1, second).mean().cpu().item<float>());
        }
        return new Reads(Along(New, second), Along(Old, second), Along(New, time - 1), Along(Old, time - 1), otherBefore, otherAfter);
    }

    private static Tensor Unit(Tensor o) => nn.functional.normalize(o, dim: -1, eps: 1e-12);

    private sealed record Reads(double New, double Old, double NewLater, double OldLater, double OtherBefore, double OtherAfter);
}
