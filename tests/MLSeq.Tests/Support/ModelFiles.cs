using System.IO.Compression;
using System.Security.Cryptography;
using System.Text.Json;
using Microsoft.ML;
using Xunit;

namespace MLSeq.Tests.Support;

/// <summary>Damages saved models.</summary>
internal static class ModelFiles
{
    /// <summary>Damages an entry, renews its checksum, and expects that loading is refused without a tensor left behind.</summary>
    /// <param name="path">A saved model.</param>
    /// <param name="entry">An entry of it.</param>
    /// <param name="damage">cut, longer, random, empty, missing, or <c>text=>other text</c>.</param>
    public static void AssertRefused(string path, string entry, string damage)
    {
        Damage(path, entry, bytes => Damaged(bytes, damage), renewChecksum: true);
        var leaks = new TensorLeaks();
        var text = Refusal(path);
        Assert.Equal(0, leaks.Count());
        Assert.Contains("The model cannot be loaded", text);
        Assert.Contains("Nothing was loaded", text);
    }

    public static string Refusal(string path) => Assert.ThrowsAny<Exception>(() => new MLContext().Model.Load(path, out _)).ToString();

    public static byte[] Bytes(ZipArchiveEntry entry)
    {
        using var stream = entry.Open();
        using var copy = new MemoryStream();
        stream.CopyTo(copy);
        return copy.ToArray();
    }

    /// <summary>Rewrites one entry of a model zip (null: takes it away), with or without the checksum that belongs to it.</summary>
    public static void Damage(string path, string name, Func<byte[], byte[]?> change, bool renewChecksum)
    {
        using var zip = ZipFile.Open(path, ZipArchiveMode.Update);
        void Rewrite(string name, Func<byte[], byte[]?> change)
        {
            var entry = zip.Entries.Single(entry => entry.Name == name);
            var (fullName, bytes) = (entry.FullName, change(Bytes(entry)));
            entry.Delete();
            if (bytes is null) return;
            using var stream = zip.CreateEntry(fullName).Open();
            stream.Write(bytes);
        }
        byte[]? changed = null;
        Rewrite(name, bytes => changed = change(bytes));
        if (renewChecksum && changed is not null)
            Rewrite("Checksums.json", bytes =>
            {
                var checksums = JsonSerializer.Deserialize<Dictionary<string, string>>(bytes)!;
                checksums[name] = Convert.ToHexStringLower(SHA256.HashData(changed));
                return JsonSerializer.SerializeToUtf8Bytes(checksums);
            });
    }

    private static byte[]? Damaged(byte[] bytes, string damage)
    {
        if (damage.Split("=>") is [var from, var to])
        {
            var text = System.Text.Encoding.UTF8.GetString(bytes);
            Assert.Contains(from, text);
            return System.Text.Encoding.UTF8.GetBytes(text.Replace(from, to, StringComparison.Ordinal));
        }
        return damage switch
        {
            "cut" => bytes[..(bytes.Length * 2 / 3)],
            "longer" => [.. bytes, 1, 2, 3],
            "empty" => [],
            "random" => RandomBytes(bytes.Length),
            _ => null, // missing
        };
    }

    private static byte[] RandomBytes(int count)
    {
        var bytes = new byte[count];
        new Random(1).NextBytes(bytes);
        return bytes;
    }
}
