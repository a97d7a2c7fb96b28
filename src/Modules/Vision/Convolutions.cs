using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Convolutions of images, which libtorch 2.10 gets wrong in two cases.</summary>
internal static class Convolutions
{
    /// <summary>The convolution of <paramref name="x"/> [batch, inputs, height, width].</summary>
    /// <remarks>
    /// On some CPUs, maps with their features first in memory are convolved wrongly where the features are no multiple of 16. They are brought last, which is also the faster order on a GPU. A single feature counts as first
    /// however it lies: gray images, which come out wrong in bfloat16, are convolved in Single.
    /// </remarks>
    public static Tensor Apply(this Conv2d convolution, Tensor x, int stride, int padding)
        => x.dtype == bfloat16 && x.shape[1] == 1 && x.device_type == DeviceType.CPU
            ? nn.functional.conv2d(x.to(float32), convolution.weight.to(float32), convolution.bias?.to(float32), strides: [stride, stride], padding: [padding, padding]).to(bfloat16)
            : convolution.call(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2));
}
