using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Changes of colour, on images [batch, height, width, channels] from 0 to 1.</summary>
internal static class ColorOperations
{
    /// <summary>Brightness, contrast and saturation by one factor per image each: 1 changes nothing.</summary>
    /// <param name="images">[batch, height, width, channels].</param>
    /// <param name="factors">[batch, 3].</param>
    public static Tensor Jitter(Tensor images, Tensor factors)
    {
        var factor = factors.view(-1, 3, 1, 1, 1).unbind(1);
        return Saturate(Contrast(images * factor[0], factor[1]), factor[2]);
    }

    public static Tensor Contrast(Tensor images, Tensor factor) => Blend(Gray(images).mean([1L, 2, 3], keepdim: true), images, factor);

    public static Tensor Saturate(Tensor images, Tensor factor) => images.shape[3] == 3 ? Blend(Gray(images), images, factor) : images;

    /// <summary>Away from a 3 × 3 blur (factor above 1) or towards it.</summary>
    public static Tensor Sharpen(Tensor images, Tensor factor)
    {
        var channels = images.shape[3];
        var kernel = ones([channels, 1, 3, 3], device: images.device);
        kernel.narrow(2, 1, 1).narrow(3, 1, 1).fill_(5);
        var padded = nn.functional.pad(images.permute(0, 3, 1, 2), [1, 1, 1, 1], PaddingModes.Replicate);
        var blurred = nn.functional.conv2d(padded, kernel / 13, groups: channels).permute(0, 2, 3, 1);
        return Blend(blurred, images, factor);
    }

    /// <summary>Inverts what is as bright as the threshold or brighter.</summary>
    public static Tensor Solarize(Tensor images, Tensor threshold) => where(images >= threshold, 1 - images, images);

    /// <summary>Keeps the highest bits of eight.</summary>
    public static Tensor Posterize(Tensor images, Tensor bits)
    {
        var step = pow(2.0, 8 - bits);
        return (images * 255 + 1e-3).div(step).floor().mul(step) / 255; // a byte's value, out of 255 and back, may come a hair short
    }

    /// <summary>Stretches every channel from its darkest to its brightest value.</summary>
    public static Tensor AutoContrast(Tensor images)
    {
        var (low, high) = (images.amin([1L, 2], keepdim: true), images.amax([1L, 2], keepdim: true));
        return where(high > low, (images - low) / (high - low).clamp_min(1e-6), images);
    }

    /// <summary>Gives every channel an even histogram, over 256 levels; one that has a single level stays as it is.</summary>
    public static Tensor Equalize(Tensor images)
    {
        const int Levels = 256;
        var (batch, height, width, channels) = (images.shape[0], images.shape[1], images.shape[2], images.shape[3]);
        var level = (images * (Levels - 1)).round().to(int64).clamp(0, Levels - 1).permute(0, 3, 1, 2).reshape(batch * channels, height * width);
        var histogram = zeros([batch * channels, Levels], device: images.device).scatter_add_(1, level, ones_like(level, dtype: float32));
        var below = histogram.cumsum(1);
        var first = below.gather(1, level.amin([1L], keepdim: true)); // the darkest level stays 0
        var even = ((below - first) / (height * width - first).clamp_min(1)).clamp(0, 1);
        Tensor Image(Tensor flat) => flat.view(batch, channels, height, width).permute(0, 2, 3, 1);
        return where(Image((first < height * width).expand_as(level)), Image(even.gather(1, level)), images);
    }

    private static Tensor Gray(Tensor images)
        => images.shape[3] == 3 ? images.narrow(3, 0, 1) * 0.299 + images.narrow(3, 1, 1) * 0.587 + images.narrow(3, 2, 1) * 0.114 : images.mean([3L], keepdim: true);

    private static Tensor Blend(Tensor from, Tensor to, Tensor factor) => from + (to - from) * factor;
}
