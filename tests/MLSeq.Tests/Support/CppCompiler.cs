using System.Diagnostics;
using System.Runtime.InteropServices;
using Xunit;

namespace MLSeq.Tests.Support;

/// <summary>The machine's C++ compiler, for what stands in for CUDA (tests/cuda-emulator).</summary>
internal static class CppCompiler
{
    private static readonly Lazy<string?> Found = new(() => OperatingSystem.IsLinux() && RuntimeInformation.ProcessArchitecture == Architecture.X64
        ? (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':').Select(folder => Path.Combine(folder, "g++")).FirstOrDefault(File.Exists) : null);

    private static readonly Lazy<TemporaryFolder> Libraries = new(() =>
    {
        var folder = new TemporaryFolder();
        AppDomain.CurrentDomain.ProcessExit += (_, _) => folder.Dispose();
        return folder;
    });

    private static int _libraries;

    /// <summary>Why nothing can be compiled; null: it can.</summary>
    public static string? WhyNot => Found.Value is null ? "CUDA is emulated with g++ on Linux (x64), which is not there." : null;

    /// <summary>Compiles a file into a library.</summary>
    /// <param name="name">The file's name in messages.</param>
    /// <param name="text">Its text.</param>
    /// <param name="options">Further options.</param>
    /// <param name="header">A file of tests/cuda-emulator that it is compiled after.</param>
    /// <returns>The library; it lies there until the process ends.</returns>
    public static string Compile(string name, string text, IReadOnlyList<string> options, string? header = null)
    {
        var folder = Directory.CreateDirectory(Path.Combine(Libraries.Value.Path, $"{Interlocked.Increment(ref _libraries)}")).FullName;
        File.WriteAllText(Path.Combine(folder, name), text);
        if (header is not null) File.WriteAllText(Path.Combine(folder, header), EmulatorFile(header));
        string[] arguments = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", .. header is null ? [] : (string[])["-include", header], .. options, "-x", "c++", name, "-o", "library.so"];
        using var process = Process.Start(new ProcessStartInfo(Found.Value ?? throw new InvalidOperationException(WhyNot), arguments) { WorkingDirectory = folder, RedirectStandardError = true })!;
        var errors = process.StandardError.ReadToEnd();
        process.WaitForExit();
        Assert.True(process.ExitCode == 0, $"{name} {string.Join(' ', options)}\n{errors}");
        return Path.Combine(folder, "library.so");
    }

    /// <summary>A file of tests/cuda-emulator.</summary>
    public static string EmulatorFile(string name)
    {
        using var stream = typeof(CppCompiler).Assembly.GetManifestResourceStream($"cuda-emulator/{name}")!;
        return new StreamReader(stream).ReadToEnd();
    }
}

/// <summary>A test that needs <see cref="EmulatedCuda"/>; skipped, and said so, where there is no C++ compiler.</summary>
public sealed class EmulatedCudaFactAttribute : FactAttribute
{
    public EmulatedCudaFactAttribute() => Skip = CppCompiler.WhyNot;
}

/// <summary>Likewise, with data.</summary>
public sealed class EmulatedCudaTheoryAttribute : TheoryAttribute
{
    public EmulatedCudaTheoryAttribute() => Skip = CppCompiler.WhyNot;
}
