// A process for tests that need a fresh or a dying one.
using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq;
using MLSeq.TestHost;

switch (args[0])
{
    case "diagnose": // how the native library is found
        Console.Write(MLSeqRuntime.Diagnose());
        break;
    case "torch-first": // TorchSharp touched before anything of MLSeq but its module initializer
        MLSeqRuntime.Diagnose();
        Console.WriteLine(TorchSharp.torch.ones(2, 2).sum().item<float>());
        break;
    case "maps": // which libtorch files this process has mapped
        MLSeqRuntime.EnsureLoaded();
        using (TorchSharp.torch.NewDisposeScope()) TorchSharp.torch.ones(2).sum().item<float>();
        foreach (var file in File.ReadLines("/proc/self/maps").Select(line => line.Split(' ')[^1]).Where(file => file.Contains("torch", StringComparison.Ordinal) && file.Contains(".so", StringComparison.Ordinal)).Distinct())
            Console.WriteLine(file);
        break;
    case "predict": // predict MODEL: scores of the fixed rows, bit for bit
        foreach (var line in FixedData.Scores(new MLContext(), new MLContext().Model.Load(args[1], out _))) Console.WriteLine(line);
        break;
    case "train": // train FOLDER MODEL [kill-after-steps]: with checkpoints; a process that dies on the way when told to
        var dieAfter = args.Length > 3 ? int.Parse(args[3]) : int.MaxValue;
        var ml = new MLContext(1);
        var model = FixedData.Pipeline(ml, options =>
        {
            options.CheckpointFolder = args[1];
            options.CheckpointInterval = TimeSpan.FromTicks(1); // after every step
            options.Progress = new Killer(dieAfter);
        }).Fit(FixedData.View(ml));
        ml.Model.Save(model, FixedData.View(ml).Schema, args[2]);
        foreach (var line in FixedData.Scores(ml, model)) Console.WriteLine(line);
        break;
    default:
        return 2;
}
return 0;

internal sealed class Killer(int reports) : IProgress<TrainingProgress>
{
    private int _seen;

    public void Report(TrainingProgress value)
    {
        // The hard way: no finalizer, no finally, no flush.
        if (++_seen >= reports) System.Diagnostics.Process.GetCurrentProcess().Kill();
    }
}
