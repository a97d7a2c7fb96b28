using System.Diagnostics.CodeAnalysis;
using System.Security.Cryptography;
using System.Text;

namespace MLSeq.Native;

/// <summary>
/// Keeps compiled kernels on disk, so that a program compiles each only once. A file is the SHA-256 of its name and content, then the content; one that does not match (cut off, damaged, another's) is made anew.
/// Files are replaced in one piece, so several processes may share the folder; without a usable folder everything is compiled again in each process.
/// </summary>
internal sealed class KernelCache
{
    /// <summary>The environment variable that names the folder.</summary>
    public const string FolderVariable = "MLSEQ_KERNEL_CACHE";

    private readonly string? _folder;

    /// <summary>Opens a cache, creating its folder for this user alone.</summary>
    /// <param name="folder">The folder; null: the one of <see cref="FolderVariable"/>, else the user's cache folder.</param>
    public KernelCache(string? folder = null)
    {
        folder ??= Environment.GetEnvironmentVariable(FolderVariable) is { Length: > 0 } chosen ? chosen : UsersFolder();
        State = $"in {folder}";
        try
        {
            folder = Path.GetFullPath(folder ?? throw new IOException("the user has no folder for caches"));
            if (OperatingSystem.IsWindows()) Directory.CreateDirectory(folder);
            else Directory.CreateDirectory(folder, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
            // Whoever can write there decides what runs on the device.
            if (!OperatingSystem.IsWindows() && (File.GetUnixFileMode(folder) & (UnixFileMode.GroupWrite | UnixFileMode.OtherWrite)) != 0) throw new IOException($"other users can write to {folder}");
            _folder = folder;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException or NotSupportedException)
        {
            State = $"none ({e.Message.TrimEnd('.')}; {FolderVariable} names another folder)";
        }
    }

    /// <summary>Where kernels are kept, or why they are not.</summary>
    public string State { get; private set; }

    /// <summary>What the parts name, from the folder or made now.</summary>
    /// <param name="parts">Everything that the content depends on.</param>
    /// <param name="make">Makes it.</param>
    public byte[] Get(IEnumerable<string> parts, Func<byte[]> make)
    {
        if (_folder is null) return make();
        var name = Name(parts);
        var path = Path.Combine(_folder, $"{name}.kernel");
        if (TryRead(path, name, out var content)) return content;
        content = make();
        try
        {
            AtomicFile.Write(path, file =>
            {
                file.Write(Checksum(name, content));
                file.Write(content);
            });
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            State = $"none ({e.Message.TrimEnd('.')})"; // read-only or full: next time again
        }
        return content;
    }

    private static bool TryRead(string path, string name, [NotNullWhen(true)] out byte[]? content)
    {
        content = null;
        try
        {
            if (!File.Exists(path)) return false;
            var file = File.ReadAllBytes(path);
            if (file.Length <= SHA256.HashSizeInBytes || !file.AsSpan(0, SHA256.HashSizeInBytes).SequenceEqual(Checksum(name, file.AsSpan(SHA256.HashSizeInBytes)))) return false;
            content = file[SHA256.HashSizeInBytes..];
            return true;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return false;
        }
    }

    // Every part with its length: no two lists of parts run together to the same text.
    private static string Name(IEnumerable<string> parts)
        => Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(string.Concat(parts.Select(part => $"{part.Length}:{part}")))));

    private static byte[] Checksum(string name, ReadOnlySpan<byte> content)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        hash.AppendData(Encoding.UTF8.GetBytes(name));
        hash.AppendData(content);
        return hash.GetHashAndReset();
    }

    private static string? UsersFolder()
    {
        var home = Environment.GetFolderPath(Environment.SpecialFolder.UserProfile);
        var root = OperatingSystem.IsWindows() ? Environment.GetFolderPath(Environment.SpecialFolder.LocalApplicationData)
            : Environment.GetEnvironmentVariable("XDG_CACHE_HOME") is { Length: > 0 } xdg ? xdg
            : home.Length > 0 ? Path.Combine(home, ".cache") : "";
        return root.Length > 0 ? Path.Combine(root, "MLSeq", "kernels") : null;
    }
}
