using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Images of any sizes in one tensor on the device, before augmentation.</summary>
/// <param name="Pixels">Byte or Single [pixels, channels]: image after image, row by row.</param>
/// <param name="Masks">Byte [pixels]: the class of every pixel; null when classifying.</param>
/// <param name="Places">Where each image of the batch lies.</param>
/// <param name="Labels">Int64 [batch]: the class of every image; null when segmenting.</param>
internal sealed record RawImages(Tensor Pixels, Tensor? Masks, ImagePlace[] Places, Tensor? Labels);

/// <summary>Where an image lies in <see cref="RawImages.Pixels"/>.</summary>
/// <param name="Start">Its first pixel.</param>
/// <param name="Height">Rows.</param>
/// <param name="Width">Columns.</param>
internal readonly record struct ImagePlace(long Start, int Height, int Width);
