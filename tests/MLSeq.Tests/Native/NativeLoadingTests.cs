using System.Buffers.Binary;
using System.Text;
using MLSeq.Native;
using MLSeq.Tests.Support;
using Xunit;

namespace MLSeq.Tests.Native;

public sealed class NativeLoadingTests
{
    [Fact]
    public void Weakens_the_named_version_and_nothing_else()
    {
        var image = MadeElf("GLIBCXX_3.4.32", "GLIBCXX_3.4.21");
        var before = image.ToArray();
        Assert.Equal(1, ElfVersionNeeds.Weaken(image, "GLIBCXX_3.4.32"));
        var changed = Enumerable.Range(0, image.Length).Where(i => image[i] != before[i]).ToList();
        Assert.Equal([MadeElfFlagsOffset], changed);
        Assert.Equal(2, image[MadeElfFlagsOffset]);
        Assert.Equal(0, ElfVersionNeeds.Weaken(image, "GLIBCXX_9"));
    }

    [Fact]
    public void Leaves_damaged_and_foreign_files_alone()
    {
        Assert.Equal(0, ElfVersionNeeds.Weaken(new byte[10], "GLIBCXX_3.4.32"));
        Assert.Equal(0, ElfVersionNeeds.Weaken(Encoding.ASCII.GetBytes(new string('x', 500)), "GLIBCXX_3.4.32"));
        var whole = MadeElf("GLIBCXX_3.4.32", "GLIBCXX_3.4.21");
        for (var length = 0; length < whole.Length; length++) ElfVersionNeeds.Weaken(whole.AsSpan(0, length).ToArray(), "GLIBCXX_3.4.32"); // no exception
        var random = new Random(1);
        for (var i = 0; i < 2000; i++)
        {
            var damaged = whole.ToArray();
            for (var k = 0; k < 4; k++) damaged[random.Next(4, damaged.Length)] = (byte)random.Next(256);
            ElfVersionNeeds.Weaken(damaged, "GLIBCXX_3.4.32");
        }
    }

    [Fact]
    public void Fresh_process_loads_unpatched_package_files()
    {
        var (code, output) = Host.Run(["torch-first"]);
        Assert.True(code == 0, output);
        Assert.Equal("4", output.Trim());
    }

    [Fact]
    public void Diagnose_tells_what_was_found()
    {
        var report = MLSeqRuntime.Diagnose();
        Assert.True(report.IsLoaded, report.ToString());
        Assert.Null(report.Remedy);
        Assert.Empty(report.Missing);
        Assert.NotEmpty(report.Steps);
        Assert.Contains("libtorch: loaded", report.ToString());
    }

    [Theory]
    [InlineData(null, "operators: auto\n")]
    [InlineData("Chunked", "operators: chunked (MLSEQ_OPERATORS is 'Chunked')\n")]
    [InlineData("fast", "operators: auto (MLSEQ_OPERATORS is 'fast', which is none of auto, naive, chunked, fused, and is ignored)\n")]
    [InlineData("2", "operators: auto (MLSEQ_OPERATORS is '2', which is none of")]
    public void Diagnose_tells_the_form_of_the_operators(string? chosen, string expected)
    {
        var (code, output) = Host.Run(["diagnose"], new() { [MLSeqRuntime.OperatorsVariable] = chosen });
        Assert.Equal(0, code);
        Assert.Contains(expected, output.ReplaceLineEndings("\n"));
    }

    [Fact]
    public void A_wrong_explicit_path_is_an_error_with_a_remedy()
    {
        using var folder = new TemporaryFolder();
        var (code, output) = Host.Run(["diagnose"], new() { ["MLSEQ_LIBTORCH"] = folder.Path });
        Assert.Equal(0, code);
        Assert.Contains("NOT loaded", output);
        Assert.Contains(folder.Path, output);
        Assert.Contains("remedy:", output);
    }

    [Fact]
    public void An_explicit_path_is_where_libtorch_comes_from()
    {
        if (!OperatingSystem.IsLinux()) return; // reads /proc
        using var folder = new TemporaryFolder();
        CopyHost(folder.Path, withWrapper: true);
        foreach (var choice in (string[])[PackageFolder, Path.Combine(PackageFolder, ".", "")])
        {
            var (code, output) = Host.Run(["maps"], new() { ["MLSEQ_LIBTORCH"] = choice, ["LD_LIBRARY_PATH"] = null }, folder.Path);
            Assert.True(code == 0, output);
            var cpu = output.Split('\n').Where(line => line.Contains("libtorch_cpu", StringComparison.Ordinal)).ToList();
            Assert.Equal([Path.Combine(PackageFolder, "libtorch_cpu.so")], cpu);
        }
    }

    [Fact]
    public void An_explicit_path_beside_a_package_is_refused_with_a_remedy()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File(LibTorchLoader.FileName("torch_cpu")), "another libtorch");
        var (code, output) = Host.Run(["diagnose"], new() { ["MLSEQ_LIBTORCH"] = folder.Path });
        Assert.True(code == 0, output);
        Assert.Contains("NOT loaded", output);
        Assert.Contains(PackageFolder, output);
        Assert.Contains("-p:LibTorch=none", output);
    }

    [Fact]
    public void A_missing_package_is_named()
    {
        using var folder = new TemporaryFolder();
        CopyHost(folder.Path, withWrapper: false);
        var (code, output) = Host.Run(["diagnose"], new() { ["NUGET_PACKAGES"] = folder.Path, ["LD_LIBRARY_PATH"] = null }, folder.Path);
        Assert.True(code == 0, output);
        Assert.Contains("NOT loaded", output);
        Assert.Contains("missing: ", output);
        Assert.Contains("remedy: Reference the package libtorch-cpu-", output);
    }

    private static string PackageFolder
        => LibTorchLoader.NativeFolders().Select(Path.GetFullPath).First(folder => File.Exists(Path.Combine(folder, LibTorchLoader.FileName("torch_cpu"))));

    /// <summary>The test host without libtorch: no package files beside it and none that its deps.json would lead to.</summary>
    private static void CopyHost(string target, bool withWrapper)
    {
        foreach (var file in Directory.EnumerateFiles(Host.Folder).Where(file => Path.GetExtension(file) is ".dll" or ".json" && !Path.GetFileName(file).EndsWith("TestHost.deps.json", StringComparison.Ordinal)))
            File.Copy(file, Path.Combine(target, Path.GetFileName(file)));
        var wrapper = LibTorchLoader.FileName("LibTorchSharp");
        if (withWrapper) File.Copy(LibTorchLoader.NativeFolders().Select(folder => Path.Combine(folder, wrapper)).First(File.Exists), Path.Combine(target, wrapper));
    }

    private const int MadeElfFlagsOffset = 64 + 16 + 4;

    // Header, one .gnu.version_r with one library and two versions, its string table, three section headers.
    private static byte[] MadeElf(string first, string second)
    {
        var image = new byte[64 + 16 + 32 + 64 + 3 * 64];
        void U16(int at, int value) => BinaryPrimitives.WriteUInt16LittleEndian(image.AsSpan(at), (ushort)value);
        void U32(int at, long value) => BinaryPrimitives.WriteUInt32LittleEndian(image.AsSpan(at), (uint)value);
        void U64(int at, long value) => BinaryPrimitives.WriteInt64LittleEndian(image.AsSpan(at), value);
        U32(0, 0x464C457F);
        image[4] = 2;
        image[5] = 1;
        int need = 64, aux = need + 16, strings = aux + 32, sections = strings + 64;
        U64(0x28, sections);
        U16(0x3A, 64);
        U16(0x3C, 3);
        U16(need, 1);
        U16(need + 2, 2);
        U32(need + 8, 16);
        var at = 1;
        foreach (var (version, i) in new[] { first, second }.Select((version, i) => (version, i)))
        {
            Encoding.ASCII.GetBytes(version).CopyTo(image, strings + at);
            U32(aux + 16 * i + 8, at);
            U32(aux + 16 * i + 12, i == 0 ? 16 : 0);
            at += version.Length + 1;
        }
        U32(sections + 64 + 4, 0x6FFFFFFE);
        U64(sections + 64 + 0x18, need);
        U32(sections + 64 + 0x28, 2);
        U64(sections + 128 + 0x18, strings);
        return image;
    }
}
