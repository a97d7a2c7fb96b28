using System.Globalization;
using TorchSharp;

namespace MLSeq.Examples;

/// <summary>Options of the form <c>--name value</c> and flags of the form <c>--name</c>.</summary>
public sealed class CommandLine
{
    private readonly string[] _args;
    private readonly string _usage;

    /// <summary>Checks that every option is known.</summary>
    /// <param name="args">The program's arguments.</param>
    /// <param name="usage">Printed for <c>--help</c> and for mistakes; names every option as <c>--name</c>.</param>
    public CommandLine(string[] args, string usage)
    {
        (_args, _usage) = (args, usage);
        foreach (var arg in args.Where(arg => arg.StartsWith("--", StringComparison.Ordinal)))
            if (arg == "--help" || !usage.Contains(arg, StringComparison.Ordinal)) Stop(arg == "--help" ? "" : $"unknown option {arg}");
    }

    /// <summary>As given.</summary>
    public IReadOnlyList<string> Arguments => _args;

    /// <summary>Whether a flag is there.</summary>
    public bool Has(string flag) => _args.Contains(flag);

    /// <summary>An option's value, or the default.</summary>
    public string Get(string name, string otherwise)
    {
        var at = Array.IndexOf(_args, name);
        if (at >= 0 && at + 1 >= _args.Length) Stop($"{name} needs a value");
        return at < 0 ? otherwise : _args[at + 1];
    }

    /// <summary>An option's number, or the default.</summary>
    public double Get(string name, double otherwise)
    {
        var text = Get(name, "");
        if (text.Length == 0) return otherwise;
        if (!double.TryParse(text, CultureInfo.InvariantCulture, out var number)) Stop($"{name} is '{text}'; expected a number");
        return number;
    }

    /// <summary>The device named by <c>--device</c>: cpu or cuda; by default the GPU where there is one.</summary>
    public torch.Device Device() => Get("--device", torch.cuda.is_available() ? "cuda" : "cpu") == "cuda" ? torch.CUDA : torch.CPU;

    /// <summary>The element type named by <c>--precision</c>: float32 or bfloat16; by default bfloat16 on a GPU.</summary>
    public torch.ScalarType Precision(torch.Device device)
        => Get("--precision", device.type == DeviceType.CUDA ? "bfloat16" : "float32") == "bfloat16" ? torch.bfloat16 : torch.float32;

    /// <summary>The operators' form named by <c>--form</c>.</summary>
    public OperatorForm Form() => Enum.Parse<OperatorForm>(Get("--form", "auto"), ignoreCase: true);

    /// <summary>The backbone named by <c>--backbone</c>.</summary>
    public Backbone Backbone(string otherwise, int width, int depth = 0, bool bidirectional = true)
        => Known(() => MLSeq.Backbone.Create(Get("--backbone", otherwise), (int)Get("--width", width), (int)Get("--depth", depth), bidirectional));

    /// <summary>The vision backbone named by <c>--backbone</c>, or the default.</summary>
    public VisionBackbone VisionBackbone(VisionBackbone otherwise)
        => Get("--backbone", "") is { Length: > 0 } name ? Known(() => MLSeq.VisionBackbone.Create(name)) : otherwise;

    private T Known<T>(Func<T> create)
    {
        try
        {
            return create();
        }
        catch (ArgumentException e)
        {
            Stop(e.Message);
            throw;
        }
    }

    private void Stop(string mistake)
    {
        if (mistake.Length > 0) Console.Error.WriteLine(mistake);
        Console.Error.WriteLine(_usage);
        Environment.Exit(mistake.Length > 0 ? 2 : 0);
    }
}
