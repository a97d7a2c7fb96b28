// (c) "Memory is not infinite: when there is more to remember than the memory has dimensions, what was written interferes." Which mixers recall, and with how much state?
// Multi-query associative recall (Arora et al., "Zoology: measuring and improving recall in efficient language models", 2023): k₁ v₁ … k_N v_N, then the keys again in
// another order; at each of these the model must name the key's value.
using System.Diagnostics;
using MLSeq.Examples.Charts;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq.Examples.Claims;

internal static class Recall
{
    private const int Depth = 2;
    private const double Solved = 0.995, Good = 0.99, WeightDecay = 0.01, Clipping = 1, WarmupFraction = 0.1;

    /// <summary>One size of the task and of the model.</summary>
    /// <remarks>Mixed: training sequences have all pairs, a half, a quarter and an eighth of them in turn, because short ones teach the rule (as in Zoology); tests have all.</remarks>
    private sealed record Setting(int Vocabulary, int Pairs, int Width, int Batch, int Steps, double[] Rates, bool Mixed = false)
    {
        public int Time => 3 * Pairs;
    }

    public static void Run(Lab lab)
    {
        double[] rates = lab.Size<double[]>([3e-3], [3e-3, 1e-2], [3e-3, 1e-3]);
        var basic = lab.Size(new Setting(32, 4, 16, 16, 20, rates), new Setting(64, 8, 32, 64, 1000, rates), new Setting(8192, 64, 128, 128, 6000, rates, Mixed: true));
        var pairs = lab.Numbers("--pairs", lab.Size<int[]>([2, 4], [4, 8], [64]));
        var widths = lab.Numbers("--widths", lab.Size<int[]>([16], [32], [64, 128]));
        basic = basic with { Pairs = pairs.Contains(basic.Pairs) ? basic.Pairs : pairs[0], Width = widths.Contains(basic.Width) ? basic.Width : widths[^1] };
        string[] telling = ["transformer", "linearattention", Additive, "mamba2", "deltanet", "gateddeltanet"];
        string[] all = lab.Full ? telling : [.. Backbone.Names, Additive];
        if (lab.Mixers.Length > 0) all = telling = lab.Mixers.Split(',');
        var outcomes = new Dictionary<(string Mixer, int Pairs, int Width), Outcome>();
        foreach (var setting in widths.SelectMany(width => pairs.Select(count => basic with { Pairs = count, Width = width })))
            foreach (var mixer in setting == basic ? all : telling)
            {
                var outcome = Best(lab, mixer, setting);
                outcomes[(mixer, setting.Pairs, setting.Width)] = outcome;
                lab.Result($"claim=c mixer={mixer} pairs={setting.Pairs} width={setting.Width} vocabulary={setting.Vocabulary} time={setting.Time} state_numbers={outcome.StateNumbers}",
                    $"recall={outcome.Recall:F4} rate={outcome.Rate} steps={outcome.Steps} seconds={outcome.Seconds:F1}");
            }
        Outcome? At(string mixer, int count, int width) => outcomes.GetValueOrDefault((mixer, count, width));

        var title = $"Recall: {basic.Pairs} pairs, width {basic.Width}, {Depth} blocks, vocabulary {basic.Vocabulary.Text()}, at most {basic.Steps.Text()} steps of {basic.Batch} sequences, " +
            $"best of {rates.Length} learning rates, {lab.Device.type}.";
        lab.Table("c", title, ["mixer", "state (numbers)", "recall", "steps", "learning rate", "seconds"],
            [.. all.Select(mixer => (mixer, At: At(mixer, basic.Pairs, basic.Width)!)).Select(row =>
                new[] { row.mixer, row.At.StateNumbers.Text(), row.At.Recall.Text(3), row.At.Steps.Text(), row.At.Rate.Text(3), row.At.Seconds.Text(0) })]);
        var grid = widths.SelectMany(width => pairs.Select(count => (Width: width, Pairs: count))).ToArray();
        lab.Table("c", "Recall against width (and so the size of the state) and number of pairs.", ["mixer", .. grid.Select(cell => $"width {cell.Width}, {cell.Pairs} pairs")],
            [.. telling.Select(mixer => new[] { mixer }.Concat(grid.Select(cell => At(mixer, cell.Pairs, cell.Width)!.Recall.Text(3))).ToArray())], first: false);

        // Against the number of pairs where there are several, else against the width.
        var byPairs = pairs.Length > 1;
        var chart = new Chart($"Recall against the {(byPairs ? "number of pairs" : "width")} ({Depth} blocks)", byPairs ? "pairs" : "width", "recall", logX: true);
        foreach (var fix in byPairs ? widths : pairs)
            foreach (var (i, mixer) in telling.Index())
                chart.Line($"{mixer}, {(byPairs ? $"width {fix}" : $"{fix} pairs")}",
                    (byPairs ? pairs : widths).Select(x => ((double)x, (byPairs ? At(mixer, x, fix) : At(mixer, fix, x))!.Recall)),
                    dashed: byPairs && fix != widths[^1], group: i);
        chart.Vertical(-0.03, 1.03);
        lab.Draw("c", chart);
    }

    private const string Additive = "additive";

    private sealed record Outcome(double Recall, double Rate, int Steps, long StateNumbers, double Seconds);

    private static Outcome Best(Lab lab, string mixer, Setting setting)
    {
        Outcome? best = null;
        foreach (var rate in setting.Rates)
        {
            var outcome = Train(lab, Create(mixer, setting.Width), setting, rate);
            if (best is null || outcome.Recall > best.Recall) best = outcome;
            if (best.Recall >= Good) break;
        }
        return best!;
    }

    private static Backbone Create(string mixer, int width)
    {
        Backbone backbone = mixer switch
        {
            Additive => new AdditiveBackbone { Width = width },
            "hybrid" => Backbone.Hybrid(recurrentPerAttention: 1, width: width),
            _ => Backbone.Create(mixer, width),
        };
        backbone = backbone with { Depth = Depth, Dropout = 0 };
        return backbone is MultiHeadBackbone heads ? heads with { Heads = 2 } : backbone;
    }

    private static Outcome Train(Lab lab, Backbone backbone, Setting setting, double rate)
    {
        var clock = Stopwatch.StartNew();
        using var scope = NewDisposeScope();
        manual_seed(lab.Seed);
        using var network = new Recaller(backbone, setting.Vocabulary);
        using var parameters = new FlatParameters(network, float32, lab.Device);
        using var optimizer = new AdamW(parameters, WeightDecay, Clipping);
        var step = 0;
        double recent = 0;
        while (step < setting.Steps && recent < Solved)
        {
            using var stepScope = NewDisposeScope();
            var pairs = setting.Mixed ? setting.Pairs >> (step % 4) : setting.Pairs;
            var (tokens, answers) = Draw(setting with { Pairs = pairs }, setting.Batch, lab.Device);
            var logits = network.call(tokens, pairs); // [batch · pairs, vocabulary]
            OperatorFailure.Backward(nn.functional.cross_entropy(logits, answers));
            optimizer.Step(++step, Schedule(rate, step, setting.Steps), 1);
            if (step % 48 == 1) recent = Correct(logits, answers); // all pairs, and a fresh batch each time, so it is a test
        }
        using var _ = no_grad();
        var recall = Enumerable.Range(0, 8).Select(_ =>
        {
            using var testScope = NewDisposeScope();
            var (tokens, answers) = Draw(setting, setting.Batch, lab.Device);
            return Correct(network.call(tokens, setting.Pairs), answers);
        }).Average();
        return new Outcome(recall, rate, step, network.StateNumbers(setting), clock.Elapsed.TotalSeconds);
    }

    private static double Correct(Tensor logits, Tensor answers)
    {
        using var scope = NewDisposeScope();
        return logits.argmax(-1).eq(answers).to(float32).mean().cpu().item<float>();
    }

    private static double Schedule(double rate, int step, int steps)
    {
        var warmup = WarmupFraction * steps;
        return step <= warmup ? rate * step / warmup : rate * 0.5 * (1 + Math.Cos(Math.PI * (step - warmup) / (steps - warmup)));
    }

    /// <summary>Fresh sequences: the first half of the vocabulary are keys, the second values. Tokens [batch, 3 · pairs]; the queries' values [batch · pairs].</summary>
    private static (Tensor Tokens, Tensor Answers) Draw(Setting setting, int batch, Device device)
    {
        var half = setting.Vocabulary / 2;
        var keys = rand([batch, half], device: device).topk(setting.Pairs, -1).indexes; // no key twice
        var values = randint(half, setting.Vocabulary, [batch, setting.Pairs], device: device, dtype: int64);
        var order = rand([batch, setting.Pairs], device: device).argsort(-1);
        var tokens = cat([stack([keys, values], -1).flatten(1), keys.gather(1, order)], 1);
        return (tokens, values.gather(1, order).flatten());
    }

    /// <summary>Token → vector → backbone → a score for each token, at the queries.</summary>
    private sealed class Recaller : nn.Module<Tensor, int, Tensor>
    {
        private readonly Embedding embedding;
        private readonly SequenceStack stack;
        private readonly Linear head;

        public Recaller(Backbone backbone, int vocabulary) : base(nameof(Recaller))
        {
            embedding = nn.Embedding(vocabulary, backbone.Width);
            stack = new SequenceStack(backbone);
            head = nn.Linear(backbone.Width, vocabulary, hasBias: false);
            using (no_grad()) head.weight.copy_(embedding.weight! / Math.Sqrt(backbone.Width)); // a token begins by scoring itself
            RegisterComponents();
        }

        public override Tensor forward(Tensor tokens, int queries)
        {
            var x = stack.call(embedding.call(tokens), null, null);
            return head.call(x.narrow(1, x.shape[1] - queries, queries).flatten(0, 1));
        }

        /// <summary>How many numbers the blocks keep after one sequence.</summary>
        public long StateNumbers(Setting setting)
        {
            using var scope = NewDisposeScope();
            var states = Enumerable.Range(0, Depth).Select(_ => new MixerState()).ToArray();
            stack.call(embedding.call(zeros([1, setting.Time], int64, embedding.weight!.device)), null, states);
            var numbers = states.Sum(state => state.Tensors.Values.Sum(tensor => tensor.numel()));
            foreach (var state in states) state.Dispose();
            return numbers;
        }
    }
}
