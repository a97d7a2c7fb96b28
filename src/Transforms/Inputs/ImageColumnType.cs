using System.Runtime.CompilerServices;
using Microsoft.ML.Data;
using Microsoft.ML.Transforms.Image;

namespace MLSeq;

/// <summary>
/// Tells ML.NET that an <see cref="MLImage"/> property without attribute is an image of any size. Without that, ML.NET 5.0.1 can neither read a column of such images into objects
/// (CreateEnumerable, PredictionEngine) nor make one of them: [ImageType] with a size fits columns of exactly this type only, and [ImageType] without a size throws.
/// </summary>
internal static class ImageColumnType
{
#pragma warning disable CA2255 // wherever the first use is, objects with images work from there on
    [ModuleInitializer]
    internal static void Register()
#pragma warning restore CA2255
    {
        try
        {
            DataViewTypeManager.Register(new ImageDataViewType(), typeof(MLImage));
        }
        catch (ArgumentException)
        {
            // The application has registered another type for such properties, which then holds.
        }
    }
}
