// (a) "Inference of a recurrence costs the same at every step; attention must keep all keys and values, and each step costs more than the one before."
// A causal stack of two blocks streams one element at a time. Copies of its state at several positions are stepped in turn, so that a busy machine slows all alike.
using System.Diagnostics;
using MLSeq.Examples.Charts;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Examples.Claims;

internal static class CostPerStep
{
    private const int Depth = 2, Warmup = 10;
    private const string Windowed = "transformer, window 256";

    public static void Run(Lab lab)
    {
        var width = lab.Size(32, 128, 512);
        int[] positions = lab.Size<int[]>([100, 1000], [1000, 3000, 10_000, 30_000, 100_000], [1000, 3000, 10_000, 30_000, 100_000]);
        var steps = lab.Size(30, 200, 200);
        var names = lab.Mixers.Length > 0 ? lab.Mixers.Split(',') : [.. Backbone.Names, Windowed];
        var chart = new Chart($"A step's time against position (width {width}, {Depth} blocks)", "position", "ms per step (median)", logX: true, logY: true);
        var rows = new List<string[]>();
        foreach (var name in names)
        {
            var (times, bytes, filled) = Measure(lab, Create(name, width), positions, steps);
            double ratio = times[^1] / times[0], growth = (double)bytes[^1] / bytes[0];
            rows.Add([name, .. times.Select(time => time.Text(3)), ratio.Text(2), (bytes[0] / 1024.0).Text(1), (bytes[^1] / 1024.0).Text(1)]);
            chart.Line(name, positions.Select((position, i) => ((double)position, times[i])), dashed: growth > 1);
            lab.Result($"claim=a mixer={name.Compact()} ms_first={times[0]:F4} ms_last={times[^1]:F4} ratio={ratio:F3} bytes_first={bytes[0]} bytes_last={bytes[^1]}",
                $"position={positions[^1]} filled_cache={(filled ? "true" : "false")}");
        }
        lab.Table("a", $"Milliseconds per step (median of {steps}) at each position, and the state's size. Width {width}, {Depth} blocks, one sequence, {lab.Device.type}.",
            ["mixer", .. positions.Select(position => $"at {position.Text()}"), "last / first", "first KiB", "last KiB"], rows);
        lab.Draw("a", chart);
    }

    private static Backbone Create(string name, int width) => name switch
    {
        Windowed => Backbone.Transformer(width, Depth, window: 256),
        "hybrid" => Backbone.Hybrid(recurrentPerAttention: 1, width: width, depth: Depth), // one block of each
        _ => Backbone.Create(name, width, Depth),
    };

    private static (double[] Milliseconds, long[] Bytes, bool Filled) Measure(Lab lab, Backbone backbone, int[] positions, int steps)
    {
        using var scope = NewDisposeScope();
        using var _ = inference_mode();
        manual_seed(lab.Seed);
        using var stack = new SequenceStack(backbone);
        stack.eval();
        stack.to(lab.Device);
        var grows = backbone is TransformerBackbone { Window: 0 } or HybridBackbone;
        var states = grows ? [.. positions.Select(position => Filled(stack, backbone, position, lab.Device))] : Read(stack, backbone, positions, lab.Device);
        var times = positions.Select(_ => new List<double>()).ToArray();
        var bytes = states.Select(state => state.Sum(block => block.Bytes)).ToArray();
        for (var step = -Warmup; step < steps; step++)
            for (var at = 0; at < positions.Length; at++)
            {
                using var stepScope = NewDisposeScope();
                var x = randn([1, 1, backbone.Width], device: lab.Device);
                lab.Synchronize();
                var clock = Stopwatch.GetTimestamp();
                stack.call(x, null, states[at]);
                lab.Synchronize();
                if (step >= 0) times[at].Add(Stopwatch.GetElapsedTime(clock).TotalMilliseconds);
            }
        foreach (var block in states.SelectMany(state => state)) block.Dispose();
        return ([.. times.Select(Numbers.Median)], bytes, grows);
    }

    /// <summary>Reads random elements in long pieces and keeps a copy of the state at each position.</summary>
    private static MixerState[][] Read(SequenceStack stack, Backbone backbone, int[] positions, Device device)
    {
        const int Piece = 1000;
        var state = Empty(backbone);
        var copies = new List<MixerState[]>();
        foreach (var position in positions)
        {
            while (state[0].Position < position)
            {
                using var scope = NewDisposeScope();
                stack.call(randn([1, Math.Min(Piece, position - state[0].Position), backbone.Width], device: device), null, state);
            }
            copies.Add([.. state.Select(Copy)]);
        }
        foreach (var block in state) block.Dispose();
        return [.. copies];
    }

    /// <summary>Attention's cache holds random keys and values: reading so far would cost the square of the position, and a step's time does not depend on what they are.</summary>
    private static MixerState[] Filled(SequenceStack stack, Backbone backbone, int position, Device device)
    {
        using var scope = NewDisposeScope();
        var state = Empty(backbone);
        stack.call(randn([1, 1, backbone.Width], device: device), null, state);
        foreach (var block in state)
        {
            block.Position = position;
            foreach (var (name, tensor) in block.Tensors.Where(part => part.Key is "keys" or "values").ToList())
                block.Set(name, randn([tensor.shape[0], tensor.shape[1], position, tensor.shape[3]], device: device));
        }
        return state;
    }

    private static MixerState[] Empty(Backbone backbone) => [.. Enumerable.Range(0, backbone.Depth).Select(_ => new MixerState())];

    private static MixerState Copy(MixerState state)
    {
        var copy = new MixerState { Position = state.Position };
        foreach (var (name, tensor) in state.Tensors) copy.Set(name, tensor.clone());
        return copy;
    }
}
