// A lecture's claims about sequence models, as experiments. Each prints a table, draws a plot and ends with RESULT lines; docs/claims.md tells what they show.
using System.Diagnostics;
using MLSeq;
using MLSeq.Examples;
using MLSeq.Examples.Claims;

var command = new CommandLine(args, """
    usage: Claims [--only a|b|c|d|e|f] [--device cpu|cuda] [--full] [--quick] [--seed N] [--threads N] [--out FOLDER]
                  [--mixers a,b] [--pairs 8,16] [--widths 16,32]
                  [--cifar FOLDER] [--masks FOLDER] [--seeds 1,2]
           a  cost and memory of a step against position          b  training time against length, step by step and in chunks
           c  recall of key-value pairs                           d  which value a key that was written twice returns
           e  how much of what was written long ago is still read
           f  whether images need a mixer: MambaOut against itself with an SSM, attention or a delta rule, classifying and segmenting
           --full    the sizes for a GPU          --quick   the same code, tiny
           --cifar, --masks  of (f): CIFAR-10 and a folder of images and masks, in place of the digits and of land and water
           --mixers  of (a), (c) and (f); (c) also knows "additive", DeltaNet that does not erase; --pairs and --widths are of (c)
           --threads of the CPU; 1 measures small sizes best, above all on a busy machine
    """);
MLSeqRuntime.EnsureLoaded();
var lab = new Lab(command);
var experiments = new (string Name, Action<Lab> Run)[]
{
    ("a", CostPerStep.Run), ("b", TrainingTime.Run), ("c", Recall.Run), ("d", Overwriting.Run), ("e", Forgetting.Run), ("f", MambaOut.Run),
};
var only = command.Get("--only", "");
var chosen = experiments.Where(experiment => only.Length == 0 || only.Contains(experiment.Name, StringComparison.Ordinal)).ToList();
if (chosen.Count == 0)
{
    Console.Error.WriteLine($"--only is '{only}'; expected one or more of the letters a to f");
    return 2;
}
foreach (var (name, run) in chosen)
{
    var clock = Stopwatch.StartNew();
    run(lab);
    lab.Result($"claim={name} seconds={clock.Elapsed.TotalSeconds:F0}");
}
return 0;
