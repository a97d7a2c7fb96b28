using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using System.Runtime.InteropServices;
using System.Text;

namespace MLSeq.Native;

/// <summary>NVIDIA's run-time compiler, a library that comes with libtorch for CUDA and with PyTorch: CUDA C++ in, machine code out.</summary>
internal sealed unsafe class Nvrtc
{
    private readonly nint _library;

    private Nvrtc(nint library, string path)
    {
        (_library, Path) = (library, path);
        int major, minor, count;
        Check(((delegate* unmanaged[Cdecl]<int*, int*, int>)Export("nvrtcVersion"))(&major, &minor), "version");
        Version = new Version(major, minor);
        Check(((delegate* unmanaged[Cdecl]<int*, int>)Export("nvrtcGetNumSupportedArchs"))(&count), "architectures"); // since CUDA 11.2
        var architectures = new int[count];
        fixed (int* first = architectures) Check(((delegate* unmanaged[Cdecl]<int*, int>)Export("nvrtcGetSupportedArchs"))(first), "architectures");
        Architectures = architectures;
    }

    /// <summary>Where it was found: a file, or a name on the system's library path.</summary>
    public string Path { get; }

    /// <summary>The version of CUDA that it belongs to.</summary>
    public Version Version { get; }

    /// <summary>The compute capabilities that it compiles for, as 90.</summary>
    public IReadOnlyList<int> Architectures { get; }

    public override string ToString() => $"NVRTC {Version} ({Path})";

    /// <summary>Finds one whose output the driver understands.</summary>
    /// <param name="driver">The driver's version of CUDA: code of a later major version does not load there.</param>
    /// <param name="nvrtc">The first that does.</param>
    /// <param name="whyNot">Why there is none.</param>
    public static bool TryFind(Version driver, [NotNullWhen(true)] out Nvrtc? nvrtc, [NotNullWhen(false)] out string? whyNot)
    {
        var refused = new List<string>();
        foreach (var place in Places())
        {
            if (!TryLoad(place, out nvrtc, out var problem)) refused.AddRange(problem is null ? [] : [problem]);
            else if (nvrtc.Version.Major > driver.Major) refused.Add($"{nvrtc} is newer than the driver, which serves CUDA {driver}");
            else
            {
                whyNot = null;
                return true;
            }
        }
        nvrtc = null;
        whyNot = $"NVIDIA's run-time compiler (NVRTC) is not found beside libtorch, in PyTorch's nvidia folders, on the system's library path or in a CUDA toolkit{string.Concat(refused.Select(text => $"; {text}"))}";
        return false;
    }

    /// <summary>Loads one.</summary>
    /// <param name="place">A file or a name.</param>
    /// <param name="nvrtc">The compiler.</param>
    /// <param name="problem">What is wrong with it; null when there is nothing by that name.</param>
    public static bool TryLoad(string place, [NotNullWhen(true)] out Nvrtc? nvrtc, out string? problem)
    {
        (nvrtc, problem) = (null, null);
        if (!NativeLibrary.TryLoad(place, out var library))
        {
            if (File.Exists(place)) problem = $"{place} does not load";
            return false;
        }
        try
        {
            nvrtc = new Nvrtc(library, place);
            return true;
        }
        catch (Exception e) when (e is EntryPointNotFoundException or InvalidOperationException)
        {
            problem = $"{place} cannot be used: {e.Message}";
            return false;
        }
    }

    /// <summary>Compiles a program.</summary>
    /// <param name="source">Its text.</param>
    /// <param name="name">What the compiler's messages call it.</param>
    /// <param name="options">The compiler's options.</param>
    /// <param name="ptx">Whether to return PTX, which the driver translates, and not machine code.</param>
    /// <exception cref="InvalidOperationException">It cannot be compiled; the message is the compiler's log.</exception>
    public byte[] Compile(string source, string name, IReadOnlyList<string> options, bool ptx)
    {
        nint program;
        fixed (byte* text = Encoding.UTF8.GetBytes(source + '\0'), title = Encoding.UTF8.GetBytes(name + '\0'))
            Check(((delegate* unmanaged[Cdecl]<nint*, byte*, byte*, int, byte**, byte**, int>)Export("nvrtcCreateProgram"))(&program, text, title, 0, null, null), name);
        var arguments = options.Select(Marshal.StringToCoTaskMemUTF8).ToArray();
        try
        {
            int error;
            fixed (nint* first = arguments) error = ((delegate* unmanaged[Cdecl]<nint, int, nint*, int>)Export("nvrtcCompileProgram"))(program, arguments.Length, first);
            if (error != 0) throw new InvalidOperationException($"{Describe(error)}\n{Encoding.UTF8.GetString(Read(program, "nvrtcGetProgramLog")).TrimEnd('\0', '\n')}");
            return Read(program, ptx ? "nvrtcGetPTX" : "nvrtcGetCUBIN");
        }
        finally
        {
            foreach (var argument in arguments) Marshal.FreeCoTaskMem(argument);
            ((delegate* unmanaged[Cdecl]<nint*, int>)Export("nvrtcDestroyProgram"))(&program);
        }
    }

    private byte[] Read(nint program, string what)
    {
        nuint size;
        Check(((delegate* unmanaged[Cdecl]<nint, nuint*, int>)Export($"{what}Size"))(program, &size), what);
        var bytes = new byte[size];
        fixed (byte* first = bytes) Check(((delegate* unmanaged[Cdecl]<nint, byte*, int>)Export(what))(program, first), what);
        return bytes;
    }

    private void Check(int error, string what)
    {
        if (error != 0) throw new InvalidOperationException($"{what}: {Describe(error)}");
    }

    private string Describe(int error) => Marshal.PtrToStringUTF8(((delegate* unmanaged[Cdecl]<int, nint>)Export("nvrtcGetErrorString"))(error)) ?? $"NVRTC error {error}";

    private nint Export(string name) => NativeLibrary.GetExport(_library, name);

    // Libtorch's own first, because it suits the driver that libtorch works with.
    private static IEnumerable<string> Places()
    {
        var loaded = LoadedFiles();
        var torch = loaded.Where(file => System.IO.Path.GetFileName(file).Contains("torch_cuda", StringComparison.OrdinalIgnoreCase)).Select(file => System.IO.Path.GetDirectoryName(file)!)
            .Concat(LibTorchLoader.LibTorchFolder is { } folder ? [folder] : []).Concat(LibTorchLoader.NativeFolders()).Distinct().ToList();
        return [.. loaded.Where(IsNvrtc), .. FilesIn(torch.SelectMany(folder => (string[])[folder, .. NvidiaFolders(folder)])), .. SystemNames(), .. FilesIn(ToolkitFolders())];
    }

    private static List<string> LoadedFiles()
    {
        using var process = Process.GetCurrentProcess();
        return [.. process.Modules.Cast<ProcessModule>().Select(module => module.FileName)];
    }

    /// <summary>The folders of NVIDIA's Python packages, which lie beside PyTorch's: site-packages/nvidia/*/lib for site-packages/torch/lib.</summary>
    internal static IEnumerable<string> NvidiaFolders(string torchFolder)
    {
        var nvidia = System.IO.Path.GetFullPath(System.IO.Path.Combine(torchFolder, "..", "..", "nvidia"));
        if (!Directory.Exists(nvidia)) return [];
        return Directory.EnumerateDirectories(nvidia).SelectMany(package => (string[])[System.IO.Path.Combine(package, "lib"), System.IO.Path.Combine(package, "bin"), System.IO.Path.Combine(package, "bin", "x86_64")]);
    }

    private static IEnumerable<string> ToolkitFolders()
    {
        string?[] roots = [Environment.GetEnvironmentVariable("CUDA_PATH"), Environment.GetEnvironmentVariable("CUDA_HOME"), OperatingSystem.IsWindows() ? null : "/usr/local/cuda"];
        return roots.OfType<string>().Where(root => root.Length > 0).SelectMany(root => ((string[])["lib64", "lib", "bin", "bin/x64"]).Select(sub => System.IO.Path.Combine(root, sub)));
    }

    private static string[] SystemNames()
        => OperatingSystem.IsWindows() ? ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"] : ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"];

    /// <summary>The compilers in some folders, the newest of each folder first.</summary>
    internal static IEnumerable<string> FilesIn(IEnumerable<string> folders)
        => folders.Where(Directory.Exists).SelectMany(folder => Directory.EnumerateFiles(folder, "*nvrtc*").Where(IsNvrtc).OrderByDescending(System.IO.Path.GetFileName, StringComparer.Ordinal));

    // libnvrtc.so.13, libnvrtc-08c4863f.so.12 (libtorch's packages), nvrtc64_120_0.dll; not its helper libraries nor the alternative compiler for parallel use.
    private static bool IsNvrtc(string file)
    {
        var name = System.IO.Path.GetFileName(file).ToLowerInvariant();
        return name.Contains("nvrtc", StringComparison.Ordinal) && !name.Contains("builtins", StringComparison.Ordinal) && !name.Contains("alt", StringComparison.Ordinal) && !name.Contains("caffe2", StringComparison.Ordinal)
               && (OperatingSystem.IsWindows() ? name.EndsWith(".dll", StringComparison.Ordinal) : name.Contains(".so", StringComparison.Ordinal));
    }
}
