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
}
