using System.Collections.Concurrent;

namespace MLSeq.Native;

/// <summary>The kernel files of src/Native/cuda, which are embedded in this assembly.</summary>
internal static class KernelSource
{
    private static readonly ConcurrentDictionary<string, string> Texts = new();

    /// <summary>The text of a kernel file.</summary>
    /// <param name="file">Its name without the extension.</param>
    public static string Kernel(string file) => Text($"{file}.cu");

    /// <summary>What NVRTC compiles: the primitives, then the kernel file, with its own line numbers for messages.</summary>
    public static string Program(string file) => $"{Text("primitives.cuh")}\n#line 1 \"{file}.cu\"\n{Kernel(file)}";

    private static string Text(string name) => Texts.GetOrAdd(name, static name =>
    {
        var assembly = typeof(KernelSource).Assembly;
        using var stream = assembly.GetManifestResourceStream($"cuda/{name}")
                           ?? throw new ArgumentException($"There is no kernel file '{name}'; there are {string.Join(", ", assembly.GetManifestResourceNames().Where(known => known.StartsWith("cuda/", StringComparison.Ordinal)))}.");
        return new StreamReader(stream).ReadToEnd();
    });
}
