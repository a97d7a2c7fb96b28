using System.Text;
using MLSeq.Native;
using MLSeq.Tests.Support;
using Xunit;

namespace MLSeq.Tests.Native;

public sealed class KernelCacheTests : IDisposable
{
    private static readonly byte[] Content = Encoding.ASCII.GetBytes(string.Concat(Enumerable.Range(0, 500)));

    private readonly TemporaryFolder _folder = new();
    private int _made;

    private string Folder => _folder.File("kernels");

    [Fact]
    public void What_was_made_is_found_again_and_other_parts_name_something_else()
    {
        Assert.Equal(Content, Get(new(Folder), "a", "bc"));
        Assert.Equal(Content, Get(new(Folder), "a", "bc"));
        Assert.Equal(1, _made);
        Get(new(Folder), "ab", "c");
        Get(new(Folder), "abc");
        Assert.Equal(3, _made);
        Assert.Equal(3, Directory.GetFiles(Folder).Length);
        Assert.Equal($"in {Folder}", new KernelCache(Folder).State);
    }

    [Fact]
    public void A_damaged_file_is_made_anew()
    {
        Get(new(Folder), "a");
        var path = Directory.GetFiles(Folder).Single();
        var whole = File.ReadAllBytes(path);
        List<byte[]> damaged = [whole[..^1], whole[..40], whole[..32], whole[..5], [], [.. whole, 0], new byte[whole.Length]];
        foreach (var at in (int[])[0, 31, 32, whole.Length - 1])
        {
            var copy = whole.ToArray();
            copy[at] ^= 1;
            damaged.Add(copy);
        }
        foreach (var bytes in damaged)
        {
            File.WriteAllBytes(path, bytes);
            var before = _made;
            Assert.Equal(Content, Get(new(Folder), "a"));
            Assert.Equal(before + 1, _made);
            Assert.Equal(whole, File.ReadAllBytes(path));
        }
    }

    [Fact]
    public void A_file_in_the_place_of_another_is_not_believed()
    {
        Get(new(Folder), "a");
        var path = Directory.GetFiles(Folder).Single();
        new KernelCache(Folder).Get(["b"], () => [1, 2, 3]);
        File.Copy(Directory.GetFiles(Folder).Single(file => file != path), path, overwrite: true);
        Assert.Equal(Content, Get(new(Folder), "a"));
    }

    [Fact]
    public async Task Several_writers_leave_whole_files()
    {
        await Task.WhenAll(Enumerable.Range(0, 8).Select(_ => Task.Run(() =>
        {
            for (var i = 0; i < 20; i++) Assert.Equal(Content, new KernelCache(Folder).Get([$"{i}"], () => Content));
        })));
        Assert.Equal(20, Directory.GetFiles(Folder).Length); // and nothing temporary
        for (var i = 0; i < 20; i++) Get(new(Folder), $"{i}");
        Assert.Equal(0, _made);
    }

    [Fact]
    public void Without_a_usable_folder_everything_is_made_each_time()
    {
        File.WriteAllText(Folder, "a file where the folder should be");
        var cache = new KernelCache(Folder);
        Assert.Equal(Content, Get(cache, "a"));
        Assert.Equal(Content, Get(cache, "a"));
        Assert.Equal(2, _made);
        Assert.StartsWith("none (", cache.State);
        Assert.Contains("MLSEQ_KERNEL_CACHE", cache.State);
    }

    [Fact]
    public void A_folder_that_goes_away_is_survived()
    {
        var cache = new KernelCache(Folder);
        Directory.Delete(Folder);
        Assert.Equal(Content, Get(cache, "a"));
        Assert.StartsWith("none (", cache.State);
    }

    [Fact]
    public void The_folder_is_the_users_alone()
    {
        if (OperatingSystem.IsWindows()) return;
        Get(new(Folder), "a");
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute, File.GetUnixFileMode(Folder));
        File.SetUnixFileMode(Folder, File.GetUnixFileMode(Folder) | UnixFileMode.OtherWrite);
        var cache = new KernelCache(Folder);
        Assert.Contains("other users can write", cache.State);
        Get(cache, "a");
        Assert.Equal(2, _made);
    }

    public void Dispose() => _folder.Dispose();

    private byte[] Get(KernelCache cache, params string[] parts) => cache.Get(parts, () =>
    {
        _made++;
        return Content;
    });
}
