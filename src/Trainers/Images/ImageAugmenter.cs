using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>A batch as the network and the loss want it.</summary>
/// <param name="Images">[batch, channels, height, width], normalized, channels last in memory.</param>
/// <param name="Labels">Int64 [batch], when classifying.</param>
/// <param name="Partners">Int64 [batch]: the classes mixed in; null: none.</param>
/// <param name="Share">The share of <paramref name="Labels"/> against <paramref name="Partners"/>.</param>
/// <param name="Masks">Int64 [batch, height, width], when segmenting.</param>
internal sealed record ImageBatch(Tensor Images, Tensor? Labels, Tensor? Partners, double Share, Tensor? Masks);

/// <summary>Makes batches of raw images, varied as <see cref="ImageAugmentation"/> says or as they are. What is random is drawn on the host from torch's seed, so that every device draws alike (but for the noise of erasing).</summary>
/// <param name="augmentation">How images are varied.</param>
/// <param name="input">How they are normalized.</param>
/// <param name="height">Rows that training sees.</param>
/// <param name="width">Columns that training sees.</param>
/// <param name="precision">Element type of the network.</param>
/// <param name="device">Where to compute.</param>
internal sealed class ImageAugmenter(ImageAugmentation augmentation, ImageInput input, int height, int width, ScalarType precision, Device device)
{
    private const int NoiseAttempts = 10;

    private enum RandomOperation
    {
        Identity, AutoContrast, Equalize, Rotate, Solarize, Saturate, Posterize, Contrast, Brightness, Sharpness, ShearX, ShearY, TranslateX, TranslateY,
    }

    /// <summary>A training batch.</summary>
    public ImageBatch Vary(RawImages raw)
    {
        using var _ = no_grad();
        var random = new SplitMix((ulong)randint(0, long.MaxValue, 1).item<long>());
        var batch = raw.Places.Length;
        var operations = new RandomOperation[augmentation.RandAugmentLayers, batch];
        for (var layer = 0; layer < augmentation.RandAugmentLayers; layer++)
            for (var i = 0; i < batch; i++) operations[layer, i] = (RandomOperation)random.Index(Enum.GetValues<RandomOperation>().Length);
        var maps = new AffineMap[batch];
        for (var i = 0; i < batch; i++) maps[i] = Map(raw.Places[i], Enumerable.Range(0, augmentation.RandAugmentLayers).Select(layer => operations[layer, i]), raw.Masks is not null, ref random);

        var (pixels, masks) = Sample(raw, maps, height, width, augmentation.IsExact);
        if (augmentation.ColorJitter > 0 || augmentation.RandAugmentLayers > 0)
        {
            pixels = ImageInput.Unit(pixels);
            if (augmentation.ColorJitter > 0) pixels = InRange(ColorOperations.Jitter(pixels, Factors(batch, augmentation.ColorJitter, ref random)));
            for (var layer = 0; layer < augmentation.RandAugmentLayers; layer++) pixels = Apply(pixels, layer, operations, ref random);
        }
        var images = Normalized(pixels);
        if (augmentation.Erasing > 0) images = Erase(images, ref random);
        return Mix(images, raw.Labels, masks, ref random);
    }

    /// <summary>A batch as scoring sees it: the middle of each image.</summary>
    /// <param name="raw">Images of one size.</param>
    /// <param name="rows">Rows of the middle.</param>
    /// <param name="columns">Columns of the middle.</param>
    public ImageBatch Plain(RawImages raw, int rows, int columns)
    {
        using var _ = no_grad();
        var maps = Array.ConvertAll(raw.Places, place => Window(place, (place.Height - rows) / 2, (place.Width - columns) / 2, rows, columns));
        var (pixels, masks) = Sample(raw, maps, rows, columns, exact: true);
        return new ImageBatch(Normalized(pixels).permute(0, 3, 1, 2), raw.Labels, null, 1, masks);
    }

    private static AffineMap Window(ImagePlace place, int top, int left, int rows, int columns) => AffineMap.Window(top + rows / 2.0, left + columns / 2.0, rows, columns);

    private (Tensor Pixels, Tensor? Masks) Sample(RawImages raw, AffineMap[] maps, int rows, int columns, bool exact)
    {
        // Whole images of one size lie one after the other: a batch is a gather of rows.
        var size = (long)rows * columns;
        if (maps.Select((map, i) => map == AffineMap.Window(rows / 2.0, columns / 2.0, rows, columns) && raw.Places[i].Height == rows && raw.Places[i].Width == columns
            && raw.Places[i].Start % size == 0).All(whole => whole) && raw.Pixels.shape[0] % size == 0)
        {
            var index = tensor(raw.Places.Select(place => place.Start / size).ToArray()).Send(device);
            Tensor Whole(Tensor flat) => flat.view([-1, size, .. flat.shape[1..]]).index_select(0, index).view([maps.Length, rows, columns, .. flat.shape[1..]]);
            return (Whole(raw.Pixels), raw.Masks is null ? null : Whole(raw.Masks).to(int64));
        }
        var sampler = new ImageSampler(raw.Places, maps, rows, columns, exact, device);
        var pixels = sampler.Bilinear(raw.Pixels);
        if (pixels.dtype != raw.Pixels.dtype) pixels = pixels / 255; // bytes that were interpolated are Singles in units of full brightness
        return (pixels, raw.Masks is null ? null : sampler.Nearest(raw.Masks).to(int64));
    }

    /// <summary>Draws the geometry of one image.</summary>
    private AffineMap Map(ImagePlace place, IEnumerable<RandomOperation> operations, bool keepsScale, ref SplitMix random)
    {
        var a = augmentation;
        if (!a.HasGeometry && height == place.Height && width == place.Width) return Window(place, 0, 0, height, width);
        AffineMap map;
        if (a.MinimumArea < 1)
        {
            // A part of random area and proportions, scaled to the result: of the image, or, when scoring sees pixels at their own scale, of what training sees of it.
            var area = random.Uniform(a.MinimumArea, 1) * (keepsScale ? (double)height * width : (double)place.Height * place.Width);
            var aspect = Math.Exp(random.Uniform(-1, 1) * Math.Log(a.MaximumAspect)) * width / height;
            double rows = Math.Min(place.Height, Math.Sqrt(area / aspect)), columns = Math.Min(place.Width, Math.Sqrt(area * aspect));
            map = AffineMap.Window(rows / 2 + random.Uniform(0, place.Height - rows), columns / 2 + random.Uniform(0, place.Width - columns), rows, columns);
        }
        else
        {
            int Origin(int size, int seen, ref SplitMix random) => size > seen ? random.Index(size - seen + 1) : (size - seen) / 2;
            map = Window(place, Origin(place.Height, height, ref random), Origin(place.Width, width, ref random), height, width);
        }
        if (a.Translation > 0) map = Shifted(map, random.Uniform(-a.Translation, a.Translation) * height, random.Uniform(-a.Translation, a.Translation) * width, a.IsExact);
        if (a.HorizontalFlip > 0 && random.Chance(a.HorizontalFlip)) map = map.After(1, 0, 0, -1);
        if (a.VerticalFlip > 0 && random.Chance(a.VerticalFlip)) map = map.After(-1, 0, 0, 1);
        if (a.QuarterTurns) map = random.Index(4) switch { 1 => map.After(0, -1, 1, 0), 2 => map.After(-1, 0, 0, -1), 3 => map.After(0, 1, -1, 0), _ => map };
        if (a.Rotation > 0) map = Turned(map, random.Uniform(-a.Rotation, a.Rotation));
        if (a.Zoom > 0)
        {
            var scale = Math.Exp(random.Uniform(-1, 1) * Math.Log(1 + a.Zoom));
            map = map.After(scale, 0, 0, scale);
        }
        var strength = a.RandAugmentMagnitude / 10;
        foreach (var operation in operations)
        {
            var sign = random.Chance(0.5) ? 1 : -1;
            map = operation switch
            {
                RandomOperation.Rotate => Turned(map, sign * 30 * strength),
                RandomOperation.ShearX => map.After(1, 0, sign * 0.3 * strength * height / width, 1),
                RandomOperation.ShearY => map.After(1, sign * 0.3 * strength * width / height, 0, 1),
                RandomOperation.TranslateX => Shifted(map, 0, sign * 0.45 * strength * width, exact: false),
                RandomOperation.TranslateY => Shifted(map, sign * 0.45 * strength * height, 0, exact: false),
                _ => map,
            };
        }
        return map;
    }

    private static AffineMap Shifted(AffineMap map, double down, double right, bool exact)
    {
        if (exact) (down, right) = (Math.Round(down), Math.Round(right));
        return map with { Y = map.Y + (float)down, X = map.X + (float)right };
    }

    private AffineMap Turned(AffineMap map, double degrees)
    {
        var (sin, cos) = Math.SinCos(degrees * Math.PI / 180);
        return map.After(cos, -sin * width / height, sin * height / width, cos);
    }

    private Tensor Factors(int count, double range, ref SplitMix random)
    {
        var factors = new float[count * 3];
        for (var i = 0; i < factors.Length; i++) factors[i] = (float)random.Uniform(1 - range, 1 + range);
        return tensor(factors, [count, 3]).Send(device);
    }

    /// <summary>The colour operations of one layer: each on the images that drew it.</summary>
    private Tensor Apply(Tensor pixels, int layer, RandomOperation[,] operations, ref SplitMix random)
    {
        var strength = augmentation.RandAugmentMagnitude / 10;
        foreach (var operation in Enum.GetValues<RandomOperation>())
        {
            var rows = Enumerable.Range(0, operations.GetLength(1)).Where(i => operations[layer, i] == operation).Select(i => (long)i).ToArray();
            if (rows.Length == 0 || operation is RandomOperation.Identity or RandomOperation.Rotate or >= RandomOperation.ShearX) continue;
            var values = new float[rows.Length]; // 1 ± up to 0.9
            for (var i = 0; i < values.Length; i++) values[i] = (float)(1 + (random.Chance(0.5) ? 0.9 : -0.9) * strength);
            var factor = tensor(values, [values.Length, 1, 1, 1]).Send(device);
            var index = tensor(rows).Send(device);
            var chosen = pixels.index_select(0, index);
            var changed = operation switch
            {
                RandomOperation.AutoContrast => ColorOperations.AutoContrast(chosen),
                RandomOperation.Equalize => ColorOperations.Equalize(chosen),
                RandomOperation.Solarize => ColorOperations.Solarize(chosen, full_like(factor, 256.0 / 255 * (1 - strength))), // of no strength: above white
                RandomOperation.Saturate => ColorOperations.Saturate(chosen, factor),
                RandomOperation.Posterize => ColorOperations.Posterize(chosen, full_like(factor, 8 - Math.Round(4 * strength))),
                RandomOperation.Contrast => ColorOperations.Contrast(chosen, factor),
                RandomOperation.Brightness => chosen * factor,
                _ => ColorOperations.Sharpen(chosen, factor),
            };
            pixels = pixels.index_copy(0, index, InRange(changed));
        }
        return pixels;
    }

    // Bytes stay between black and white; other units know no bounds.
    private Tensor InRange(Tensor pixels) => input.Kind == ImageColumnKind.Singles ? pixels : pixels.clamp(0, 1);

    // As ImageInput.Normalized, in one multiplication and one addition; in Single, so that only the result is rounded to the network's type.
    private Tensor Normalized(Tensor pixels)
    {
        var unit = pixels.dtype == uint8 ? 255 : 1;
        var factor = tensor(input.Scale.Select(scale => scale / unit).ToArray()).Send(device);
        var zero = tensor(input.Mean.Zip(input.Scale, (mean, scale) => -mean * scale).ToArray()).Send(device);
        return zero.addcmul(pixels.to(float32), factor, 1).to(precision);
    }

    /// <summary>Puts noise into a rectangle of some of the images.</summary>
    private Tensor Erase(Tensor images, ref SplitMix random)
    {
        var batch = (int)images.shape[0];
        var boxes = new long[batch * 4]; // top, bottom, left, right
        for (var i = 0; i < batch; i++)
        {
            if (!random.Chance(augmentation.Erasing)) continue;
            for (var attempt = 0; attempt < NoiseAttempts; attempt++)
            {
                var area = random.Uniform(0.02, 1.0 / 3) * height * width;
                var aspect = Math.Exp(random.Uniform(-1, 1) * Math.Log(3));
                int rows = (int)Math.Round(Math.Sqrt(area * aspect)), columns = (int)Math.Round(Math.Sqrt(area / aspect));
                if (rows < 1 || columns < 1 || rows > height || columns > width) continue;
                int top = random.Index(height - rows + 1), left = random.Index(width - columns + 1);
                ((long[])[top, top + rows, left, left + columns]).CopyTo(boxes, i * 4);
                break;
            }
        }
        var box = tensor(boxes, [batch, 4, 1, 1, 1]).Send(device).unbind(1);
        var y = arange(height, device: device).view(1, height, 1, 1);
        var x = arange(width, device: device).view(1, 1, width, 1);
        var inside = (y >= box[0]).logical_and(y < box[1]).logical_and(x >= box[2]).logical_and(x < box[3]);
        return where(inside, randn_like(images), images);
    }

    /// <summary>Mixup or CutMix of the batch with itself in another order.</summary>
    private ImageBatch Mix(Tensor images, Tensor? labels, Tensor? masks, ref SplitMix random)
    {
        var a = augmentation;
        ImageBatch Batch(Tensor pixels, Tensor? partners, double share) => new(pixels.permute(0, 3, 1, 2), labels, partners, share, masks);
        if (labels is null || a.Mixup == 0 && a.CutMix == 0) return Batch(images, null, 1);
        var batch = images.shape[0];
        var order = Enumerable.Range(0, (int)batch).Select(i => (long)i).ToArray();
        random.Shuffle<long>(order);
        var index = tensor(order).Send(device);
        var cut = a.Mixup == 0 || a.CutMix > 0 && random.Chance(0.5);
        var alpha = tensor((float)(cut ? a.CutMix : a.Mixup));
        using var beta = distributions.Beta(alpha, alpha); // its tensors belong to no scope
        double share = beta.sample().item<float>();
        if (!cut) return Batch(images * share + images.index_select(0, index) * (1 - share), labels.index_select(0, index), share);
        // A box of area 1 − share about a random place, cut at the border.
        double rows = height * Math.Sqrt(1 - share), columns = width * Math.Sqrt(1 - share), y = random.Uniform(0, height), x = random.Uniform(0, width);
        int top = (int)Math.Clamp(y - rows / 2, 0, height), bottom = (int)Math.Clamp(y + rows / 2, 0, height), left = (int)Math.Clamp(x - columns / 2, 0, width), right = (int)Math.Clamp(x + columns / 2, 0, width);
        if (bottom <= top || right <= left) return Batch(images, null, 1);
        var pasted = images.clone();
        Tensor Box(Tensor all) => all.narrow(1, top, bottom - top).narrow(2, left, right - left);
        Box(pasted).copy_(Box(images).index_select(0, index));
        return Batch(pasted, labels.index_select(0, index), 1 - (double)(bottom - top) * (right - left) / ((double)height * width));
    }
}
