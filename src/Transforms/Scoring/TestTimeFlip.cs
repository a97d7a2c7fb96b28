using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Averages what a network says of an image and of its mirror images.</summary>
internal static class TestTimeFlip
{
    /// <param name="flips">The mirror images.</param>
    /// <param name="images">[batch, channels, height, width].</param>
    /// <param name="score">The network, to probabilities.</param>
    /// <param name="restore">Whether the result is a map [batch, …, height, width] that has to be mirrored back.</param>
    public static Tensor Average(this ImageFlips flips, Tensor images, Func<Tensor, Tensor> score, bool restore)
    {
        long[][] all = flips switch
        {
            ImageFlips.Horizontal => [[], [3]],
            ImageFlips.Vertical => [[], [2]],
            ImageFlips.Horizontal | ImageFlips.Vertical => [[], [3], [2], [2, 3]],
            _ => [[]],
        };
        return all.Select(axes =>
        {
            if (axes.Length == 0) return score(images);
            var scores = score(images.flip(axes));
            return restore ? scores.flip(axes) : scores;
        }).Aggregate((sum, next) => sum + next) / all.Length;
    }
}
