using System.ComponentModel;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using Microsoft.Win32.SafeHandles;

namespace MLSeq.Native;

/// <summary>
/// Loads TorchSharp's Linux wrapper on systems whose libstdc++ is older than the one it was linked against (Debian 12, Ubuntu 22.04).
/// </summary>
/// <remarks>
/// The wrapper requires version <c>GLIBCXX_3.4.32</c> for <c>std::ios_base_library_init</c> alone, which no relocation uses; the system's loader
/// refuses it for that requirement. A copy in memory with the requirement marked weak loads everywhere. The package's file is never changed.
/// </remarks>
internal static partial class WrapperCure
{
    private const string RequiredVersion = "GLIBCXX_3.4.32";
    private const string SymbolOfThatVersion = "_ZSt21ios_base_library_initv";

    /// <summary>True when this system's libstdc++ lacks the version the wrapper asks for. Decided by symbol: the loader's text is localised.</summary>
    public static bool IsNeeded()
        => OperatingSystem.IsLinux()
           && NativeLibrary.TryLoad("libstdc++.so.6", out var libstdcxx)
           && !NativeLibrary.TryGetExport(libstdcxx, SymbolOfThatVersion, out _);

    /// <summary>Loads a cured copy of the wrapper at <paramref name="path"/>; libtorch must be found already.</summary>
    /// <param name="path">The wrapper in the package.</param>
    /// <param name="step">What was done, in words.</param>
    /// <returns>The handle, or 0.</returns>
    public static nint Load(string path, out string step)
    {
        var image = File.ReadAllBytes(path);
        if (ElfVersionNeeds.Weaken(image, RequiredVersion) == 0)
        {
            step = $"{path} does not ask for {RequiredVersion}: nothing to cure";
            return 0;
        }
        if (TryLoadFromMemory(image, out var handle))
        {
            step = $"loaded a copy of {path} from memory with {RequiredVersion} made optional (this system's libstdc++ is older)";
            return handle;
        }
        step = TryLoadFromCache(image, out handle, out var copy)
            ? $"loaded {copy}, a copy of {path} with {RequiredVersion} made optional (this system's libstdc++ is older)"
            : $"could not load a copy of {path} with {RequiredVersion} made optional, neither from memory nor from {copy}";
        return handle;
    }

    // An anonymous file: nothing on disk, no race between processes, nothing another user could exchange.
    private static bool TryLoadFromMemory(byte[] image, out nint handle)
    {
        handle = 0;
        try
        {
            var descriptor = MemfdCreate("libLibTorchSharp.so", 1 /* MFD_CLOEXEC */);
            if (descriptor < 0) return false;
            using var file = new SafeFileHandle(descriptor, ownsHandle: true);
            RandomAccess.Write(file, image, 0);
            return NativeLibrary.TryLoad($"/proc/self/fd/{descriptor}", out handle);
        }
        catch (Exception e) when (e is EntryPointNotFoundException or DllNotFoundException or IOException or UnauthorizedAccessException)
        {
            return false;
        }
    }

    // For systems that forbid executing an anonymous file (SELinux, for example).
    private static bool TryLoadFromCache(byte[] image, out nint handle, out string copy)
    {
        var folder = Path.Combine(CacheRoot(), Convert.ToHexString(SHA256.HashData(image))[..16]);
        copy = Path.Combine(folder, "libLibTorchSharp.so");
        handle = 0;
        try
        {
            if (!OperatingSystem.IsWindows())
                Directory.CreateDirectory(folder, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
            if (!File.Exists(copy) || !File.ReadAllBytes(copy).AsSpan().SequenceEqual(image))
            {
                var temporary = $"{copy}.{Guid.NewGuid():N}";
                File.WriteAllBytes(temporary, image);
                File.Move(temporary, copy, overwrite: true);
            }
            return NativeLibrary.TryLoad(copy, out handle);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or Win32Exception)
        {
            return false;
        }
    }

    private static string CacheRoot()
    {
        var local = Environment.GetFolderPath(Environment.SpecialFolder.LocalApplicationData);
        return string.IsNullOrEmpty(local)
            ? Path.Combine(Path.GetTempPath(), $"MLSeq-{Environment.UserName}")
            : Path.Combine(local, "MLSeq", "native");
    }

    [LibraryImport("libc", EntryPoint = "memfd_create", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int MemfdCreate(string name, uint flags);
}
