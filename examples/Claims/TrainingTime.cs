// (b) "Training a recurrence is sequential; linear recurrences can be trained in parallel."
// Forward and backward of the same operator, once as the loop over time that defines it, once in chunks; softmax attention and libtorch's LSTM beside them.
using System.Diagnostics;
using MLSeq.Examples.Charts;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq.Examples.Claims;

internal static class TrainingTime
{
    private const long Piece = 64;
    private const double MostSeconds = 20; // a form that takes longer is measured once, and not at greater lengths

    public static void Run(Lab lab)
    {
        int[] lengths = lab.Size<int[]>([16, 64], [64, 128, 256, 512, 1024, 2048, 4096], [64, 128, 256, 512, 1024, 2048, 4096]);
        var (batch, heads, size, repeats) = (lab.Size(1, 2, 16), lab.Size(1, 4, 8), lab.Size(8, 32, 64), lab.Size(1, 3, 3));
        var chart = new Chart("Forward and backward against length", "length", "ms", logX: true, logY: true);
        var rows = new List<string[]>();
        var group = 0;
        foreach (var (name, loop, chunks, longest) in Operators(batch, heads, size, lab.Device))
        {
            var measured = new List<(string Form, double?[] Times)>();
            if (loop is not null) measured.Add((chunks is null ? "" : "step by step", Measure(loop, longest)));
            if (chunks is not null) measured.Add((loop is null ? "" : "chunked", Measure(chunks, int.MaxValue)));
            foreach (var (form, times) in measured)
            {
                var title = form.Length == 0 ? name : $"{name}, {form}";
                rows.Add([title, .. times.Select(time => time?.Text(1) ?? "–")]);
                var points = lengths.Zip(times).Where(pair => pair.Second is not null).Select(pair => ((double)pair.First, pair.Second!.Value));
                chart.Line(title, points, dashed: form == "step by step", group: group);
            }
            if (measured.Count == 2)
            {
                var at = Array.FindLastIndex(measured[0].Times, time => time is not null);
                var (slow, fast) = (measured[0].Times[at], measured[1].Times[at]);
                lab.Result($"claim=b operator={name.Compact()} length={lengths[at]} ms_recurrent={slow:F1} ms_chunked={fast:F1} speedup={slow / fast:F1}");
            }
            else lab.Result($"claim=b operator={name.Compact()} length={lengths[^1]} ms={measured[0].Times[^1]:F1}");
            group++;
        }
        lab.Table("b", $"Milliseconds for forward and backward (median of {repeats}); batch {batch}, {heads} heads of {size}, {lab.Device.type}.",
            ["operator and form", .. lengths.Select(length => length.Text())], rows);
        lab.Draw("b", chart);

        double?[] Measure(Func<long, Func<Tensor>> prepare, int longest)
        {
            var times = new double?[lengths.Length];
            for (var i = 0; i < lengths.Length && lengths[i] <= longest; i++)
            {
                using var scope = NewDisposeScope();
                manual_seed(lab.Seed);
                var forward = prepare(lengths[i]);
                double Once()
                {
                    using var _ = NewDisposeScope();
                    lab.Synchronize();
                    var clock = Stopwatch.GetTimestamp();
                    OperatorFailure.Backward(forward());
                    lab.Synchronize();
                    return Stopwatch.GetElapsedTime(clock).TotalMilliseconds;
                }
                times[i] = Once(); // a warm-up where there is time for more
                if (times[i] > 1000 * MostSeconds) break;
                times[i] = Enumerable.Range(0, repeats).Select(_ => Once()).Median();
            }
            return times;
        }
    }

    /// <summary>
    /// The loop over time, piece by piece: autograd's gradient of one position of a tensor is as long as that tensor, which would make the time of a long loop quadratic.
    /// </summary>
    private static Tensor Loop<TState>(TState? state, Func<Tensor[], TState?, (Tensor Output, TState State)> naive, params Tensor[] inputs) where TState : class
    {
        var pieces = inputs.Select(input => input.split(Piece, 1)).ToArray();
        var outputs = new List<Tensor>();
        for (var i = 0; i < pieces[0].Length; i++)
        {
            (var output, state) = naive([.. pieces.Select(piece => piece[i])], state);
            outputs.Add(output);
        }
        return cat(outputs, 1);
    }

    /// <summary>For each operator: the loop and the chunked form, as (length) → (() → loss), and the greatest length whose loop fits into memory.</summary>
    private static IEnumerable<(string Name, Func<long, Func<Tensor>>? Loop, Func<long, Func<Tensor>>? Chunks, int Longest)> Operators(int batch, int heads, int size, Device device)
    {
        Tensor Input(params long[] shape) => randn(shape, device: device).requires_grad_();
        Tensor Keys(long time) => nn.functional.normalize(randn([batch, time, heads, size], device: device), dim: -1).requires_grad_();
        Tensor Gate(long time) => nn.functional.logsigmoid(randn([batch, time, heads], device: device) + 3).detach().requires_grad_();
        (Tensor Q, Tensor K, Tensor V) Triple(long time) => (Keys(time), Keys(time), Input(batch, time, heads, size));

        Func<Tensor> Gated(long time, bool loop)
        {
            var ((q, k, v), decay) = (Triple(time), Gate(time));
            return () => (loop
                ? Loop<Tensor>(null, (part, state) => GatedLinearRecurrence.Naive(part[0], part[1], part[2], part[3], state), q, k, v, decay)
                : GatedLinearRecurrence.Chunked(q, k, v, decay).Output).square().mean();
        }
        Func<Tensor> Delta(long time, bool loop)
        {
            var ((q, k, v), beta, decay) = (Triple(time), rand([batch, time, heads], device: device).requires_grad_(), Gate(time));
            return () => (loop
                ? Loop<Tensor>(null, (part, state) => DeltaRecurrence.Naive(part[0], part[1], part[2], part[3], part[4], state), q, k, v, beta, decay)
                : DeltaRecurrence.Chunked(q, k, v, beta, decay).Output).square().mean();
        }
        Func<Tensor> Scan(long time, bool loop)
        {
            long channels = 2 * heads * size, states = 16; // Mamba's expansion by two
            var (delta, a) = ((rand([batch, time, channels], device: device) * 0.1).requires_grad_(), (-(rand([channels, states], device: device) * 15 + 1)).requires_grad_());
            var (x, b, c) = (Input(batch, time, channels), Input(batch, time, states), Input(batch, time, states));
            return () => (loop
                ? Loop<Tensor>(null, (part, state) => SelectiveScan.Naive(part[0], part[1], a, part[2], part[3], state), x, delta, b, c)
                : SelectiveScan.Chunked(x, delta, a, b, c).Output).square().mean();
        }
        Func<Tensor> Memory(long time, bool loop)
        {
            const int Chunk = 8;
            var (q, k, v) = Triple(time);
            Tensor[] weights = [Input(heads, size, 2 * size), Input(heads, 2 * size, size)];
            var (rate, momentum, keep) = ((rand([batch, time, heads], device: device) / Chunk).requires_grad_(), Gate(time), Gate(time));
            return () =>
            {
                var start = NeuralMemoryState.Start(weights.Select(weight => weight / Math.Sqrt(size)), batch);
                return (loop
                    ? Loop<NeuralMemoryState>(start, (part, state) => NeuralMemory.Naive(part[0], part[1], part[2], new(part[3], part[4], part[5]), state!, Chunk),
                        q, k, v, rate, momentum, keep)
                    : NeuralMemory.Chunked(q, k, v, new NeuralMemoryGates(rate, momentum, keep), start, Chunk).Output).square().mean();
            };
        }
        Func<Tensor> Attention(long time)
        {
            var (q, k, v) = Triple(time);
            return () => nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_casual: true).square().mean();
        }
        Func<Tensor> Lstm(long time)
        {
            var x = Input(batch, time, heads * size);
            var lstm = nn.LSTM(heads * size, heads * size, batchFirst: true);
            lstm.to(device);
            return () => lstm.call(x).Item1.square().mean();
        }

        yield return ("gated linear recurrence", time => Gated(time, true), time => Gated(time, false), 4096);
        yield return ("gated delta recurrence", time => Delta(time, true), time => Delta(time, false), 4096);
        yield return ("selective scan", time => Scan(time, true), time => Scan(time, false), 4096);
        yield return ("neural memory", time => Memory(time, true), time => Memory(time, false), 1024);
        yield return ("LSTM of libtorch", Lstm, null, 4096);
        yield return ("softmax attention", null, Attention, 4096);
    }
}
