using static TorchSharp.torch;

namespace MLSeq;

/// <summary>One of the maps that a vision stack returns.</summary>
/// <param name="Width">Features per place.</param>
/// <param name="Stride">Pixels of the image per place, in each direction.</param>
internal readonly record struct FeatureLevel(int Width, int Stride);

/// <summary>
/// A vision backbone's module: images [batch, channels, height, width] to one feature map per level, [batch, width, ⌈height / stride⌉, ⌈width / stride⌉], finest first.
/// </summary>
/// <remarks>Any image size of at least one pixel goes through. Images come with channels last in memory (a permuted view); results may have either order.</remarks>
internal abstract class VisionStack(string name) : nn.Module<Tensor, Tensor[]>(name)
{
    /// <summary>What <c>forward</c> returns, map by map.</summary>
    public abstract IReadOnlyList<FeatureLevel> Levels { get; }
}

/// <summary>Marks a module whose parameters and buffers stay float32 in a bfloat16 network: batch norm, whose running statistics bfloat16 cannot follow.</summary>
internal interface IKeepsFloat32;
