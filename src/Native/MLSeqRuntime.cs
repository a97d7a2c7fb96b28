using System.Reflection;
using System.Runtime.InteropServices;
using System.Text;
using MLSeq.Native;
using TorchSharp;

namespace MLSeq;

/// <summary>Loads the native library (libtorch) that MLSeq computes with, and tells in plain words what it found.</summary>
/// <remarks>
/// libtorch comes from a package that the application references (<c>libtorch-cpu-linux-x64</c>, for example) or from the folder named by the
/// environment variable <c>MLSEQ_LIBTORCH</c>: a libtorch folder or the <c>torch/lib</c> folder of a PyTorch installation, CPU or CUDA.
/// MLSeq calls <see cref="EnsureLoaded"/> by itself; call it first in an application that also uses TorchSharp directly.
/// </remarks>
public static class MLSeqRuntime
{
    /// <summary>The environment variable that <see cref="Operators"/> begins with: auto, naive, chunked or fused.</summary>
    public const string OperatorsVariable = "MLSEQ_OPERATORS";

    /// <summary>In which form the recurrences are computed, in the whole process: to compare forms, or to leave a kernel out that does not work somewhere.</summary>
    public static OperatorForm Operators { get; set; } = FormNamed(Environment.GetEnvironmentVariable(OperatorsVariable)) ?? OperatorForm.Auto;

    /// <summary>Loads libtorch now. Repeated calls are free.</summary>
    /// <exception cref="LibTorchLoadException">It cannot be loaded. The message says what was tried and the remedy.</exception>
    public static void EnsureLoaded() => LibTorchLoader.EnsureLoaded();

    /// <summary>Tries to load libtorch and reports platform, versions, what was tried, found and missing, and the remedy. Never throws.</summary>
    public static RuntimeReport Diagnose()
    {
        string? failure = null;
        var cuda = new List<string>();
        try
        {
            EnsureLoaded();
            if (torch.cuda.is_available())
                for (var i = 0; i < torch.cuda.device_count(); i++)
                    cuda.Add($"cuda:{i}");
        }
        catch (LibTorchLoadException e)
        {
            failure = e.InnerException?.Message ?? e.Message;
        }
        return new RuntimeReport
        {
            IsLoaded = failure is null,
            Platform = $"{RuntimeInformation.OSDescription} ({RuntimeInformation.RuntimeIdentifier}), .NET {Environment.Version}",
            TorchSharpVersion = Version(typeof(torch).Assembly),
            MLSeqVersion = Version(typeof(MLSeqRuntime).Assembly),
            LibTorchFolder = LibTorchLoader.LibTorchFolder,
            CudaDevices = cuda,
            Operators = OperatorsAndWhy(),
            Kernels = [$"CPU: {(failure is null ? CpuKernels.Status : "libtorch is needed first")}", .. CudaRuntime.Describe(cuda.Count, cuda.Count == 0 ? null : CudaRuntime.Instance)],
            Steps = LibTorchLoader.Steps,
            Missing = Missing(),
            Failure = failure,
            Remedy = failure is null ? null : Remedy(failure),
        };
    }

    /// <summary>The form of a name in any case, or null.</summary>
    internal static OperatorForm? FormNamed(string? name)
    {
        foreach (var form in Enum.GetValues<OperatorForm>())
            if (form.ToString().Equals(name?.Trim(), StringComparison.OrdinalIgnoreCase)) return form;
        return null;
    }

    private static string OperatorsAndWhy()
    {
        var chosen = Environment.GetEnvironmentVariable(OperatorsVariable);
        var form = Operators.ToString().ToLowerInvariant();
        if (string.IsNullOrWhiteSpace(chosen)) return form;
        var names = string.Join(", ", Enum.GetNames<OperatorForm>()).ToLowerInvariant();
        return FormNamed(chosen) is null ? $"{form} ({OperatorsVariable} is '{chosen}', which is none of {names}, and is ignored)" : $"{form} ({OperatorsVariable} is '{chosen}')";
    }

    internal static string Explain(string failure, IReadOnlyList<string> steps)
    {
        var text = new StringBuilder("libtorch could not be loaded: ").AppendLine(FirstLine(failure));
        foreach (var step in steps) text.Append("  tried: ").AppendLine(step);
        foreach (var missing in Missing()) text.Append("  missing: ").AppendLine(missing);
        return text.Append("  remedy: ").Append(Remedy(failure)).ToString();
    }

    private static List<string> Missing()
    {
        var explicitChoice = Environment.GetEnvironmentVariable(LibTorchLoader.PathVariable);
        var folders = LibTorchLoader.NativeFolders().ToList();
        bool Exists(string library) => folders.Any(folder => File.Exists(Path.Combine(folder, LibTorchLoader.FileName(library))));
        var missing = new List<string>();
        if (!Exists("LibTorchSharp")) missing.Add($"{LibTorchLoader.FileName("LibTorchSharp")} (package TorchSharp) beside the application");
        if (string.IsNullOrWhiteSpace(explicitChoice) && !Exists("torch_cpu"))
            missing.Add($"{LibTorchLoader.FileName("torch_cpu")} (a libtorch package) beside the application");
        return missing;
    }

    private static string Remedy(string failure)
    {
        if (failure.Contains("GLIBC", StringComparison.Ordinal))
            return "This system's C or C++ library is older than libtorch needs: use a distribution of 2022 or later.";
        if (failure.Contains("libgomp", StringComparison.Ordinal))
            return "Install the OpenMP runtime (Debian, Ubuntu: apt-get install libgomp1).";
        if (failure.Contains(LibTorchLoader.PathVariable, StringComparison.Ordinal)) return "As said above; then start the process again.";
        var package = OperatingSystem.IsWindows() ? "libtorch-cpu-win-x64" : OperatingSystem.IsMacOS() ? "libtorch-cpu-osx-arm64" : "libtorch-cpu-linux-x64";
        return $"Reference the package {package} in the application, or set {LibTorchLoader.PathVariable} to a libtorch folder or to the torch/lib folder of a PyTorch installation, then start the process again.";
    }

    private static string FirstLine(string text) => text.AsSpan().TrimStart().ToString().Split('\n')[0].TrimEnd();

    private static string Version(Assembly assembly)
        => assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion.Split('+')[0] ?? assembly.GetName().Version?.ToString() ?? "unknown";
}

/// <summary>What <see cref="MLSeqRuntime.Diagnose"/> found. <see cref="ToString"/> is the text to read or to put into a bug report.</summary>
public sealed record RuntimeReport
{
    /// <summary>Whether libtorch is loaded and usable.</summary>
    public required bool IsLoaded { get; init; }

    /// <summary>Operating system, runtime identifier and .NET version.</summary>
    public required string Platform { get; init; }

    /// <summary>The version of TorchSharp.</summary>
    public required string TorchSharpVersion { get; init; }

    /// <summary>The version of MLSeq.</summary>
    public required string MLSeqVersion { get; init; }

    /// <summary>The folder that libtorch was found in, or null when it came from the system's library path or not at all.</summary>
    public required string? LibTorchFolder { get; init; }

    /// <summary>The CUDA devices that can be used, as <c>cuda:0</c>; empty without any.</summary>
    public required IReadOnlyList<string> CudaDevices { get; init; }

    /// <summary>The form in which the recurrences are computed (<see cref="MLSeqRuntime.Operators"/>), and what the environment variable has to do with it.</summary>
    public required string Operators { get; init; }

    /// <summary>MLSeq's own kernels, a line for each kind of device: where they come from, or why they cannot be used there.</summary>
    public required IReadOnlyList<string> Kernels { get; init; }

    /// <summary>What was tried, in order.</summary>
    public required IReadOnlyList<string> Steps { get; init; }

    /// <summary>Files that were looked for beside the application and are not there.</summary>
    public required IReadOnlyList<string> Missing { get; init; }

    /// <summary>Why loading failed, or null.</summary>
    public required string? Failure { get; init; }

    /// <summary>What to do about it, or null when nothing needs doing.</summary>
    public required string? Remedy { get; init; }

    /// <inheritdoc/>
    public override string ToString()
    {
        var text = new StringBuilder()
            .AppendLine($"MLSeq {MLSeqVersion}, TorchSharp {TorchSharpVersion}")
            .AppendLine($"platform: {Platform}")
            .AppendLine($"libtorch: {(IsLoaded ? "loaded" : "NOT loaded")}{(LibTorchFolder is null ? "" : $", from {LibTorchFolder}")}")
            .AppendLine($"CUDA: {(CudaDevices.Count == 0 ? "no device can be used; computing on the CPU" : string.Join(", ", CudaDevices))}")
            .AppendLine($"operators: {Operators}");
        foreach (var kernels in Kernels) text.AppendLine($"kernels: {kernels}");
        foreach (var step in Steps) text.AppendLine($"tried: {step}");
        foreach (var missing in Missing) text.AppendLine($"missing: {missing}");
        if (Failure is not null) text.AppendLine($"failure: {Failure}");
        if (Remedy is not null) text.AppendLine($"remedy: {Remedy}");
        return text.ToString();
    }
}

/// <summary>libtorch could not be loaded. The message says what was tried, what is missing and the remedy.</summary>
public sealed class LibTorchLoadException : Exception
{
    /// <summary>Creates the exception.</summary>
    public LibTorchLoadException(string message, Exception? innerException) : base(message, innerException)
    {
    }
}
