// Where a training step spends its time, for every backbone, and how the step grows with the length: a table, two pictures and RESULT lines.
using System.Diagnostics;
using MLSeq;
using MLSeq.Examples;
using MLSeq.Examples.Charts;
using TorchSharp;
using static TorchSharp.torch;

var command = new CommandLine(args, """
    usage: Profile [--backbones a,b] [--device cpu|cuda] [--precision float32|bfloat16] [--width N] [--depth N] [--batch N] [--time N] [--lengths a,b] [--steps N]
                   [--form auto|naive|chunked|fused] [--out FOLDER] [--quick]
           milliseconds of forward, backward and optimizer of one training step (byte classifier) at one length, and of the whole step at several lengths
    """);
MLSeqRuntime.EnsureLoaded();
MLSeqRuntime.Operators = command.Form();
var quick = command.Has("--quick");
var device = command.Device();
var onGpu = device.type == DeviceType.CUDA;
var precision = command.Precision(device);
int width = (int)command.Get("--width", quick ? 32 : onGpu ? 512 : 64), depth = (int)command.Get("--depth", quick ? 1 : onGpu ? 4 : 2);
int batch = (int)command.Get("--batch", quick ? 2 : onGpu ? 64 : 8), time = (int)command.Get("--time", quick ? 32 : onGpu ? 1024 : 256), steps = (int)command.Get("--steps", quick ? 2 : onGpu ? 10 : 5);
int[] lengths = [.. command.Get("--lengths", quick ? "16,32" : onGpu ? "256,512,1024,2048,4096,8192" : "64,128,256,512,1024").Split(',').Select(int.Parse)];
var names = command.Get("--backbones", quick ? "gru,transformer,mamba2" : string.Join(',', Backbone.Names)).Split(',');
var folder = command.Get("--out", "profile");
Directory.CreateDirectory(folder);

Console.WriteLine($"{device}, {precision}, width {width}, {depth} blocks, batch {batch}; milliseconds per step (median of {steps})\n");
Console.WriteLine($"{"backbone",-22}{"forward",10}{"backward",10}{"optimizer",11}   whole step at " + string.Join(", ", lengths));
var parts = new (string Name, double[] Values)[] { ("forward", new double[names.Length]), ("backward", new double[names.Length]), ("optimizer", new double[names.Length]) };
var growth = new Chart($"A training step's time against length ({device}, width {width}, {depth} blocks, {batch * time:N0} bytes a batch)", "length", "microseconds per byte", logX: true, logY: true);
for (var i = 0; i < names.Length; i++)
{
    var at = Step(names[i], batch, time);
    for (var part = 0; part < parts.Length; part++) parts[part].Values[i] = at[part];
    // The same number of bytes at every length: what remains is the cost of the length itself.
    var perByte = lengths.Select(length => (Length: length, Rows: Math.Max(1, batch * time / length))).Select(size => (X: (double)size.Length, Y: 1000 * Step(names[i], size.Rows, size.Length).Sum() / (size.Rows * size.Length))).ToArray();
    growth.Line(names[i], perByte);
    Console.WriteLine(FormattableString.Invariant($"{names[i],-22}{at[0],10:F2}{at[1],10:F2}{at[2],11:F2}   ") + string.Join(", ", perByte.Select(point => FormattableString.Invariant($"{point.Y:F3}"))) + " µs/byte");
    Console.WriteLine(FormattableString.Invariant($"RESULT backbone={names[i]} device={device} precision={precision} batch={batch} time={time} width={width} depth={depth} forward_ms={at[0]:F3} backward_ms={at[1]:F3} optimizer_ms={at[2]:F3} ") +
        FormattableString.Invariant($"us_per_byte_first={perByte[0].Y:F4} us_per_byte_last={perByte[^1].Y:F4}"));
}
var share = new Chart($"A training step ({device}, width {width}, {depth} blocks, batch {batch}, length {time})", "", "milliseconds");
share.Stack(names, parts);
share.Save(Path.Combine(folder, "profile-step.png"));
growth.Save(Path.Combine(folder, "profile-growth.png"));

// Medians of forward, backward and optimizer.
double[] Step(string name, int rows, int length)
{
    using var scope = NewDisposeScope();
    manual_seed(1);
    using var network = new SequenceClassifier(new SequenceClassifierSpec(Backbone.Create(name, width, depth) with { Dropout = 0 }, new ElementKind.Tokens(257), SequencePooling.Mean, Classes: 4));
    using var parameters = new FlatParameters(network, precision, device);
    using var optimizer = new AdamW(parameters, weightDecay: 0.01, clipping: 1);
    network.train();
    var (bytes, labels) = (randint(1, 257, [rows, length], device: device, dtype: int64), randint(0, 4, [rows], device: device, dtype: int64));
    var measured = new List<double[]>();
    for (var step = -2; step < steps; step++)
    {
        using var stepScope = NewDisposeScope();
        var (clock, marks) = (Stopwatch.StartNew(), new double[4]);
        void Mark(int at)
        {
            if (onGpu) cuda.synchronize();
            marks[at] = clock.Elapsed.TotalMilliseconds;
        }
        Mark(0);
        var loss = nn.functional.cross_entropy(network.call(new SequenceBatch(bytes, null), null), labels);
        Mark(1);
        OperatorFailure.Backward(loss);
        Mark(2);
        optimizer.Step(step + 3, 1e-4, 1);
        Mark(3);
        if (step >= 0) measured.Add([marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]]);
    }
    return [.. Enumerable.Range(0, 3).Select(part => measured.Select(step => step[part]).Order().ElementAt(measured.Count / 2))];
}
