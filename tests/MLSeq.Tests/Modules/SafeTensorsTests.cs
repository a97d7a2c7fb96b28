using System.Buffers.Binary;
using System.Text;
using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Modules;

[NoTensorLeaks]
public sealed class SafeTensorsTests
{
    private static byte[] Written()
    {
        using var scope = NewDisposeScope();
        using var stream = new MemoryStream();
        SafeTensors.Write(stream, [("a", arange(6, dtype: float32).view(2, 3)), ("b", tensor(new long[] { 7 }))], new Dictionary<string, string> { ["k"] = "v" });
        return stream.ToArray();
    }

    private static string Read(byte[] bytes)
    {
        using var scope = NewDisposeScope();
        Tensor a = zeros(2, 3), b = zeros(1, dtype: int64);
        var metadata = SafeTensors.Read(new MemoryStream(bytes), [("a", a), ("b", b)]);
        return $"{string.Join(",", a.data<float>().ToArray())}|{b.item<long>()}|{metadata["k"]}";
    }

    private static byte[] WithHeader(string header, int dataBytes)
    {
        var bytes = new byte[8 + header.Length + dataBytes];
        BinaryPrimitives.WriteInt64LittleEndian(bytes, header.Length);
        Encoding.ASCII.GetBytes(header).CopyTo(bytes, 8);
        return bytes;
    }

    [Fact]
    public void Round_trips() => Assert.Equal("0,1,2,3,4,5|7|v", Read(Written()));

    [Fact]
    public void Layout_is_the_format_s()
    {
        var bytes = Written();
        var length = (int)BinaryPrimitives.ReadInt64LittleEndian(bytes);
        Assert.Equal(0, length % 8);
        var header = Encoding.UTF8.GetString(bytes, 8, length);
        Assert.Contains("""{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"I64","shape":[1],"data_offsets":[24,32]}}""", header);
        Assert.Equal(8 + length + 32, bytes.Length);
    }

    [Fact]
    public void Refuses_every_truncation_and_any_excess()
    {
        var whole = Written();
        for (var length = 0; length < whole.Length; length++) Assert.Throws<FormatException>(() => Read(whole[..length]));
        Assert.Throws<FormatException>(() => Read([.. whole, 0]));
    }

    [Theory]
    [InlineData("""{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}""", "missing")]
    [InlineData("""{"a":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]},"b":{"dtype":"I64","shape":[1],"data_offsets":[24,32]}}""", "expected F32 [2, 3]")]
    [InlineData("""{"a":{"dtype":"F64","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"I64","shape":[1],"data_offsets":[24,32]}}""", "expected F32")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[8,32]},"b":{"dtype":"I64","shape":[1],"data_offsets":[24,32]}}""", "does not follow")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"I64","shape":[1],"data_offsets":[24,99]}}""", "99")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"I64","shape":[1],"data_offsets":[24,32]},"c":{"dtype":"U8","shape":[0],"data_offsets":[32,32]}}""", "Unexpected")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}""", "twice")]
    [InlineData("""{"a":{"dtype":5,"shape":"x"}}""", "header")]
    [InlineData("""[1,2]""", "header")]
    [InlineData("""{"a":""", "header")]
    public void Refuses_a_header_that_does_not_fit(string header, string reason)
        => Assert.Contains(reason.Trim('9'), Assert.Throws<FormatException>(() => Read(WithHeader(header, 32))).Message);

    [Fact]
    public void Refuses_a_giant_header_without_allocating_it()
    {
        var bytes = new byte[64];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, ulong.MaxValue);
        Assert.Throws<FormatException>(() => Read(bytes));
    }
}
