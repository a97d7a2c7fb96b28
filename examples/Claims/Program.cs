// A lecture's claims about sequence models, as experiments. Each prints a table, draws a plot and ends with RESULT lines; docs/claims.md tells what they show.
using System.Diagnostics;
using MLSeq;
using MLSeq.Examples;
using MLSeq.Examples.Claims;

var command = new CommandLine(args, """
    usage: Claims [--only a|b|c|d|e] [--device cpu|cuda] [--full] [--quick] [--seed N] [--threads N] [--out FOLDER]
                  [--mixers a,b] [--pairs 8,16] [--widths 16,32]
           a  cost and memory of a step against position          b  training time against length, step by step and in chunks
           c  recall of key-value pairs                           d  which value a key that was written twice returns
           e  how much of what was written long ago is still read
           --full    the sizes for a GPU          --quick   the same code, tiny
           --mixers  of (a) and (c); (c) also knows "additive", DeltaNet that does not erase; --pairs and --widths are of (c)
           --threads of the CPU; 1 measures small sizes best, above all on a busy machine
    """);
MLSeqRuntime.EnsureLoaded();
var lab = new Lab(command);
var experiments = new (string Name, Action<Lab> Run)[]
{
    ("a", CostPerStep.Run), ("b", TrainingTime.Run), ("c", Recall.Run), ("d", Overwriting.Run), ("e", Forgetting.Run),
};
var only = command.Get("--only", "");
var chosen = experiments.Where(experiment => only.Length == 0 || only.Contains(experiment.Name, StringComparison.Ordinal)).ToList();
if (chosen.Count == 0)
{
    Console.Error.WriteLine($"--only is '{only}'; expected one or more of the letters a to e");
    return 2;
}
foreach (var (name, run) in chosen)
{
    var clock = Stopwatch.StartNew();
    run(lab);
    lab.Result($"claim={name} seconds={clock.Elapsed.TotalSeconds:F0}");
}
return 0;
