using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Loader;
using TorchSharp;

namespace MLSeq.Native;

/// <summary>Finds libtorch and TorchSharp's wrapper and loads them, keeping a record of every step for <see cref="MLSeqRuntime.Diagnose"/>.</summary>
/// <remarks>
/// Order: the folder in <see cref="PathVariable"/> when it is set (and nothing else: an explicit choice that fails is an error); else the
/// files that packages put beside the application.
/// </remarks>
internal static class LibTorchLoader
{
    public const string PathVariable = "MLSEQ_LIBTORCH";

    private static readonly Lock Gate = new();
    private static readonly List<string> StepList = [];
    private static bool _registered, _loaded;
    private static Exception? _failure;
    private static nint _curedWrapper;

    /// <summary>What was done so far, in order.</summary>
    public static IReadOnlyList<string> Steps
    {
        get { lock (Gate) return [.. StepList]; }
    }

    /// <summary>The folder libtorch was found in, or null.</summary>
    public static string? LibTorchFolder { get; private set; }

    /// <summary>Hooks the resolution of TorchSharp's wrapper. Cheap; it acts only after the regular load has failed.</summary>
    public static void Register()
    {
        lock (Gate)
        {
            if (_registered) return;
            _registered = true;
            if (OperatingSystem.IsLinux() && RuntimeInformation.ProcessArchitecture == Architecture.X64)
                AssemblyLoadContext.GetLoadContext(typeof(torch).Assembly)!.ResolvingUnmanagedDll += ResolveWrapper;
        }
    }

    /// <summary>Loads everything once.</summary>
    /// <exception cref="LibTorchLoadException">It cannot be loaded; the same exception on every later call.</exception>
    public static void EnsureLoaded()
    {
        if (Volatile.Read(ref _loaded)) return;
        Register();
        lock (Gate)
        {
            if (_loaded) return;
            if (_failure is not null) throw new LibTorchLoadException(MLSeqRuntime.Explain(_failure.Message, StepList), _failure);
            try
            {
                Load();
                Volatile.Write(ref _loaded, true);
            }
            catch (Exception e) when (e is not OutOfMemoryException)
            {
                _failure = e is TypeInitializationException { InnerException: { } inner } ? inner : e;
                throw new LibTorchLoadException(MLSeqRuntime.Explain(_failure.Message, StepList), _failure);
            }
        }
    }

    private static void Load()
    {
        var choice = Environment.GetEnvironmentVariable(PathVariable);
        if (!string.IsNullOrWhiteSpace(choice))
        {
            LibTorchFolder = FolderOf(choice);
            RefuseSecondLibTorch(LibTorchFolder);
            Preload(LibTorchFolder);
            LoadWrapper();
            StepList.Add($"{PathVariable}: using libtorch of {LibTorchFolder}");
        }
        else
        {
            LibTorchFolder = NativeFolders().FirstOrDefault(folder => File.Exists(Path.Combine(folder, FileName("torch_cpu"))));
            StepList.Add(LibTorchFolder is null
                ? $"packages: no {FileName("torch_cpu")} beside the application; trying the system's library path"
                : $"packages: found {FileName("torch_cpu")} in {LibTorchFolder}");
        }
        torch.InitializeDeviceType(DeviceType.CPU);
        StepList.Add("TorchSharp initialised for the CPU");
    }

    /// <summary>Accepts a libtorch folder (with <c>lib</c> inside) or the <c>lib</c> folder itself, as PyTorch's <c>torch/lib</c>.</summary>
    private static string FolderOf(string choice)
    {
        string[] places = [choice, Path.Combine(choice, "lib"), Path.Combine(choice, "torch", "lib")];
        return places.Select(Path.GetFullPath).FirstOrDefault(place => File.Exists(Path.Combine(place, FileName("torch_cpu"))))
               ?? throw new DirectoryNotFoundException(
                   $"{PathVariable} is '{choice}', but {FileName("torch_cpu")} is neither there nor in its lib folder. " +
                   "Set it to a libtorch folder or to the torch/lib folder of a PyTorch installation, or unset it to use packages.");
    }

    // Once loaded from their full paths, the libraries are found by name (soname) when the wrapper asks for them.
    private static void Preload(string folder)
    {
        foreach (var name in (string[])["c10", "torch_cpu", "c10_cuda", "torch_cuda", "torch"])
        {
            var path = Path.Combine(folder, FileName(name));
            if (!File.Exists(path)) continue; // a CPU build has no CUDA libraries
            NativeLibrary.Load(path);
            StepList.Add($"loaded {path}");
        }
    }

    private static void LoadWrapper()
    {
        var wrapper = WrapperFiles().FirstOrDefault(File.Exists)
                      ?? throw new DllNotFoundException($"{FileName("LibTorchSharp")} (part of the TorchSharp package) is not beside the application.");
        if (NativeLibrary.TryLoad(wrapper, out _)) StepList.Add($"loaded {wrapper}");
        else if (!WrapperCure.IsNeeded()) NativeLibrary.Load(wrapper); // throws, with the loader's own words
        else CureWrapper(wrapper);
    }

    private static nint CureWrapper(string wrapper)
    {
        if (_curedWrapper != 0) return _curedWrapper;
        _curedWrapper = WrapperCure.Load(wrapper, out var step);
        StepList.Add(step);
        return _curedWrapper;
    }

    // Runs after the regular load has failed, on whichever thread touched torch first.
    private static nint ResolveWrapper(Assembly assembly, string name)
    {
        if (name is not ("LibTorchSharp" or "libLibTorchSharp" or "libLibTorchSharp.so")) return 0;
        lock (Gate)
        {
            if (_curedWrapper != 0) return _curedWrapper;
            var wrapper = WrapperFiles().FirstOrDefault(File.Exists);
            if (wrapper is null || !WrapperCure.IsNeeded()) return 0;
            // The copy has no folder of its own to look for its neighbours in: bring them first.
            foreach (var folder in NativeFolders().Where(folder => File.Exists(Path.Combine(folder, FileName("torch_cpu")))).Take(1))
                foreach (var library in (string[])["c10", "torch_cpu", "torch"])
                    NativeLibrary.TryLoad(Path.Combine(folder, FileName(library)), out _);
            return CureWrapper(wrapper); // 0 lets TorchSharp report the original problem
        }
    }

    // TorchSharp's static constructor loads the libtorch beside the application whatever else is loaded, and two of them abort the process.
    private static void RefuseSecondLibTorch(string chosen)
    {
        var other = NativeFolders().FirstOrDefault(folder => File.Exists(Path.Combine(folder, FileName("torch_cpu"))) && Path.GetFullPath(folder) != chosen);
        if (other is not null)
            throw new InvalidOperationException(
                $"{PathVariable} chooses the libtorch of {chosen}, but the application carries another one in {other}, and a process can hold only one. " +
                $"Build the application without a libtorch package (MLSeq's examples: -p:LibTorch=none) or delete that folder's libtorch files; or unset {PathVariable}.");
    }

    internal static IEnumerable<string> NativeFolders()
    {
        var assemblyFolder = Path.GetDirectoryName(typeof(torch).Assembly.Location);
        var declared = (AppContext.GetData("NATIVE_DLL_SEARCH_DIRECTORIES") as string ?? "").Split(Path.PathSeparator, StringSplitOptions.RemoveEmptyEntries);
        foreach (var folder in declared) yield return folder;
        foreach (var root in new[] { AppContext.BaseDirectory, assemblyFolder }.Where(root => !string.IsNullOrEmpty(root)).Distinct())
        {
            yield return root!;
            yield return Path.Combine(root!, "runtimes", RuntimeInformation.RuntimeIdentifier, "native");
            yield return Path.Combine(root!, "runtimes", PortableRid(), "native");
        }
    }

    private static string PortableRid()
        => (OperatingSystem.IsWindows() ? "win" : OperatingSystem.IsMacOS() ? "osx" : "linux") + "-" + RuntimeInformation.ProcessArchitecture.ToString().ToLowerInvariant();

    private static IEnumerable<string> WrapperFiles() => NativeFolders().Select(folder => Path.Combine(folder, FileName("LibTorchSharp")));

    internal static string FileName(string library)
        => OperatingSystem.IsWindows() ? $"{library}.dll" : OperatingSystem.IsMacOS() ? $"lib{library}.dylib" : $"lib{library}.so";
}

internal static class ModuleHook
{
    // The hook has to be in place before TorchSharp is touched for the first time: a failed first load stays failed.
#pragma warning disable CA2255 // a library may use a module initializer for exactly this
    [ModuleInitializer]
    internal static void OnLoad() => LibTorchLoader.Register();
#pragma warning restore CA2255
}
