using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Transforms;

public sealed class ImageScalingTests
{
    [Theory, NoTensorLeaks]
    [InlineData(7, 5, 3, 7, 5)]
    [InlineData(7, 5, 3, 14, 11)]
    [InlineData(37, 41, 1, 8, 9)]
    [InlineData(64, 48, 4, 33, 63)]
    [InlineData(1, 1, 2, 5, 3)]
    [InlineData(30, 20, 3, 1, 1)]
    public void It_is_what_torch_makes(int height, int width, int channels, int newHeight, int newWidth)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var image = rand(height, width, channels);
        var expected = nn.functional.interpolate(image.permute(2, 0, 1).unsqueeze(0), [newHeight, newWidth], mode: InterpolationMode.Bilinear, align_corners: false, antialias: true)
            .squeeze(0).permute(1, 2, 0);
        var got = tensor(ImageScaling.Scale(image.data<float>().ToArray(), height, width, channels, newHeight, newWidth), [newHeight, newWidth, channels]);
        Assert.True((got - expected).abs().max().item<float>() < 1e-5, $"{(got - expected).abs().max().item<float>()}");
    }

    [Fact]
    public void Bytes_are_rounded_and_stay_in_range()
    {
        var white = new PixelImage(Enumerable.Repeat((byte)255, 9 * 7 * 3).ToArray(), 9, 7, 3);
        Assert.All((byte[])white.Resized(4, 13).Data, value => Assert.Equal(255, value));
        var ramp = new PixelImage(new byte[] { 0, 10, 20, 30 }, 1, 4, 1);
        Assert.Equal([7, 23], (byte[])ramp.Resized(1, 2).Data); // (3 · 0 + 3 · 10 + 1 · 20) / 7, and its mirror image
        Assert.Same(ramp, ramp.Resized(1, 4));
    }

    [Theory]
    [InlineData(8000, 1)]
    [InlineData(1, 8000)]
    public void A_strip_is_cropped_before_it_is_scaled(int height, int width)
    {
        var input = new ImageInput { Kind = ImageColumnKind.Image, Channels = 1, Height = 224, Width = 224, Resize = ImageResize.Crop };
        var before = GC.GetAllocatedBytesForCurrentThread();
        var fitted = input.Fitted(new PixelImage(new byte[height * width], height, width, 1));
        Assert.Equal((224, 224), (fitted.Height, fitted.Width));
        Assert.True(GC.GetAllocatedBytesForCurrentThread() - before < 10 << 20);
    }

    [Fact]
    public void A_file_that_claims_too_many_pixels_is_refused_before_it_is_decoded()
    {
        using var folder = new TemporaryFolder();
        // 65536 × 16385 pixels: times four, that is 262,144 in 32 bits.
        File.WriteAllBytes(folder.File("bomb.png"), BlackPng(65536, 16385));
        var error = Assert.Throws<ArgumentException>(() => ImagePixels.Decode(folder.File("bomb.png")));
        Assert.Contains("16385 × 65536 pixels", error.Message);
        Assert.Contains("expected at most", error.Message);
    }

    // One bit per pixel; only the header matters, as nothing is decoded.
    private static byte[] BlackPng(int width, int height)
    {
        using var stream = new MemoryStream();
        stream.Write([0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A]);
        void Chunk(string type, byte[] data)
        {
            Span<byte> number = stackalloc byte[4];
            System.Buffers.Binary.BinaryPrimitives.WriteInt32BigEndian(number, data.Length);
            stream.Write(number);
            byte[] named = [.. System.Text.Encoding.ASCII.GetBytes(type), .. data];
            stream.Write(named);
            System.Buffers.Binary.BinaryPrimitives.WriteUInt32BigEndian(number, Crc(named));
            stream.Write(number);
        }
        var header = new byte[13];
        System.Buffers.Binary.BinaryPrimitives.WriteInt32BigEndian(header, width);
        System.Buffers.Binary.BinaryPrimitives.WriteInt32BigEndian(header.AsSpan(4), height);
        header[8] = 1;
        Chunk("IHDR", header);
        using (var rows = new MemoryStream())
        {
            using (var zip = new System.IO.Compression.ZLibStream(rows, System.IO.Compression.CompressionLevel.Fastest, leaveOpen: true)) zip.Write(new byte[1 << 16]);
            Chunk("IDAT", rows.ToArray());
        }
        Chunk("IEND", []);
        return stream.ToArray();
    }

    private static uint Crc(byte[] data)
    {
        var crc = 0xFFFFFFFF;
        foreach (var value in data)
        {
            crc ^= value;
            for (var bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) * 0xEDB88320);
        }
        return ~crc;
    }
}
