using System.IO.Compression;
using Microsoft.ML;
using MLSeq.TestHost;
using MLSeq.Tests.Support;
using Mono.Cecil;
using Xunit;
using static MLSeq.Tests.Support.ModelFiles;

namespace MLSeq.Tests.Transforms;

public sealed class PersistenceTests
{
    private static void SaveModel(string path)
    {
        var ml = Models.Context();
        ml.Model.Save(FixedData.Pipeline(ml).Fit(FixedData.View(ml)), FixedData.View(ml).Schema, path);
    }

    [Fact]
    public void A_fresh_process_scores_bit_for_bit_alike()
    {
        using var folder = new TemporaryFolder();
        SaveModel(folder.File("m.zip"));
        var ml = Models.Context();
        var here = FixedData.Scores(ml, ml.Model.Load(folder.File("m.zip"), out _));
        var (code, output) = Host.Run(["predict", folder.File("m.zip")]);
        Assert.True(code == 0, output);
        Assert.Equal(here, output.Trim().Split('\n'));
    }

    [Fact]
    public void Saving_again_gives_the_same_bytes()
    {
        using var folder = new TemporaryFolder();
        SaveModel(folder.File("m.zip"));
        var ml = Models.Context();
        ml.Model.Save(ml.Model.Load(folder.File("m.zip"), out var schema), schema, folder.File("again.zip"));
        using var first = ZipFile.OpenRead(folder.File("m.zip"));
        using var second = ZipFile.OpenRead(folder.File("again.zip"));
        foreach (var entry in first.Entries.Where(entry => entry.Name is "MLSeq.json" or "Weights.safetensors"))
            Assert.Equal(Bytes(entry), Bytes(second.GetEntry(entry.FullName)!));
        Assert.Contains(first.Entries, entry => entry.Name == "Weights.safetensors");
    }

    [Theory]
    [InlineData("Weights.safetensors", "cut")]
    [InlineData("Weights.safetensors", "longer")]
    [InlineData("Weights.safetensors", "random")]
    [InlineData("Weights.safetensors", "missing")]
    [InlineData("Weights.safetensors", "empty")]
    [InlineData("MLSeq.json", "cut")]
    [InlineData("MLSeq.json", "random")]
    [InlineData("MLSeq.json", "missing")]
    [InlineData("MLSeq.json", "empty")]
    [InlineData("Label", "cut")]
    [InlineData("Label", "random")]
    [InlineData("Label", "missing")]
    [InlineData("MLSeq.json", "\"Width\":16=>\"Width\":16000")] // a network that the weights cannot fill
    [InlineData("MLSeq.json", "\"Depth\":1=>\"Depth\":200")]
    [InlineData("MLSeq.json", "\"Width\":16=>\"Width\":8")]
    [InlineData("MLSeq.json", "\"Classes\":2=>\"Classes\":3")]
    [InlineData("MLSeq.json", "\"Classes\":2=>\"Classes\":-1")]
    [InlineData("MLSeq.json", "\"Format\":1=>\"Format\":2")]
    [InlineData("MLSeq.json", "\"name\":\"gru\"=>\"name\":\"oracle\"")]
    [InlineData("MLSeq.json", "\"name\":\"gru\"=>\"name\":\"lstm\"")]
    [InlineData("MLSeq.json", "\"Buckets\":256=>\"Buckets\":2000000000")]
    [InlineData("MLSeq.json", "\"Buckets\":256=>\"Buckets\":16000000")]
    [InlineData("MLSeq.json", "\"kind\":\"text\"=>\"kind\":\"telepathy\"")]
    [InlineData("MLSeq.json", "\"MaxLength\":1024=>\"MaxLength\":0")]
    [InlineData("MLSeq.json", "\"Pooling\":\"LearnedQuery\"=>\"Pooling\":\"Whirl\"")]
    [InlineData("MLSeq.json", "\"Feature\":\"Text\"=>\"Feature\":null")]
    public void A_damaged_or_foreign_entry_is_refused(string entry, string damage)
    {
        using var folder = new TemporaryFolder();
        SaveModel(folder.File("m.zip"));
        AssertRefused(folder.File("m.zip"), entry, damage);
    }

    [Theory]
    [InlineData("Weights.safetensors")]
    [InlineData("MLSeq.json")]
    [InlineData("Label")]
    [InlineData("Checksums.json")]
    public void One_flipped_bit_is_noticed(string entry)
    {
        using var folder = new TemporaryFolder();
        SaveModel(folder.File("m.zip"));
        var random = new Random(1);
        for (var i = 0; i < 20; i++)
        {
            File.Copy(folder.File("m.zip"), folder.File("damaged.zip"), overwrite: true);
            Damage(folder.File("damaged.zip"), entry, bytes =>
            {
                bytes[random.Next(bytes.Length)] ^= (byte)(1 << random.Next(8));
                return bytes;
            }, renewChecksum: false);
            Assert.Contains("The model cannot be loaded", Refusal(folder.File("damaged.zip")));
        }
    }

    [Fact]
    public void Damage_anywhere_in_the_file_ends_in_an_exception_or_a_model()
    {
        using var folder = new TemporaryFolder();
        SaveModel(folder.File("m.zip"));
        var random = new Random(1);
        var whole = File.ReadAllBytes(folder.File("m.zip"));
        var refused = 0;
        for (var i = 0; i < 25; i++)
        {
            var damaged = whole.ToArray();
            for (var k = 0; k < 8; k++) damaged[random.Next(damaged.Length)] ^= (byte)(1 << random.Next(8));
            try
            {
                new MLContext().Model.Load(new MemoryStream(damaged), out _);
            }
            catch (Exception)
            {
                refused++;
            }
        }
        Assert.True(refused > 15, $"only {refused} of 25 damaged files were refused");
    }
}

/// <summary>The internals of ML.NET that MLSeq is compiled against: listed, so that an update of ML.NET that moves one is noticed here first.</summary>
public sealed class MLNetInternalsTests
{
    [Theory]
    [InlineData("MLSeq.Transforms.dll")]
    [InlineData("MLSeq.Trainers.dll")]
    public void Every_internal_that_is_used_still_resolves(string library)
    {
        var folder = AppContext.BaseDirectory;
        using var resolver = new DefaultAssemblyResolver();
        resolver.AddSearchDirectory(folder);
        using var assembly = AssemblyDefinition.ReadAssembly(Path.Combine(folder, library), new ReaderParameters { AssemblyResolver = resolver });
        var used = new SortedSet<string>();
        foreach (var member in assembly.MainModule.GetMemberReferences().Where(member => IsMLNet(member.DeclaringType)))
        {
            IMemberDefinition? definition = member switch { MethodReference method => method.Resolve(), FieldReference field => field.Resolve(), _ => null };
            Assert.True(definition is not null, $"{member.FullName} no longer exists");
            var isPublic = definition switch { MethodDefinition method => method.IsPublic, FieldDefinition field => field.IsPublic, _ => true };
            if (!isPublic || !IsPublic(definition!.DeclaringType)) used.Add($"{definition!.DeclaringType.Name}.{definition.Name}");
        }
        foreach (var type in assembly.MainModule.GetTypeReferences().Where(IsMLNet))
        {
            var definition = type.Resolve();
            Assert.True(definition is not null, $"{type.FullName} no longer exists");
            if (!IsPublic(definition!)) used.Add(definition!.Name);
        }
        var listed = File.ReadAllLines(Path.Combine(folder, "Transforms", "mlnet-internals.txt")).Where(line => line.Length > 0 && line[0] != '#').ToHashSet();
        Assert.True(used.IsSubsetOf(listed), "not listed in tests/MLSeq.Tests/Transforms/mlnet-internals.txt:\n" + string.Join("\n", used.Except(listed)));
    }

    private static bool IsMLNet(TypeReference? type) => type?.GetElementType().Scope is AssemblyNameReference { Name: var name } && name.StartsWith("Microsoft.ML.", StringComparison.Ordinal);

    private static bool IsPublic(TypeDefinition type) => type.IsNested ? type.IsNestedPublic && IsPublic(type.DeclaringType) : type.IsPublic;
}
