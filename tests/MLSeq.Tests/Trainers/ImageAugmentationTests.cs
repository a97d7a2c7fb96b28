using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace MLSeq.Tests.Trainers;

public sealed class ImageAugmentationTests
{
    private static PixelImage Bytes(Random random, int height, int width, int channels)
    {
        var data = new byte[height * width * channels];
        random.NextBytes(data);
        return new PixelImage(data, height, width, channels);
    }

    private static RawImages Raw(IReadOnlyList<PixelImage> images, IReadOnlyList<byte[]>? masks = null, long[]? labels = null)
    {
        var (places, start) = (new ImagePlace[images.Count], 0L);
        for (var i = 0; i < places.Length; i++)
        {
            places[i] = new ImagePlace(start, images[i].Height, images[i].Width);
            start += images[i].Pixels;
        }
        return new RawImages(cat([.. images.Select(image => image.ToTensor())]).view(start, images[0].Channels), masks is null ? null : tensor(masks.SelectMany(mask => mask).ToArray()), places,
            labels is null ? null : tensor(labels));
    }

    /// <summary>Normalizes such that the numbers of the column come out: bytes as 0 to 255.</summary>
    private static ImageInput Input(ImageColumnKind kind, int channels) => new()
    {
        Kind = kind, Channels = channels, Mean = new float[channels], Scale = [.. Enumerable.Repeat(kind == ImageColumnKind.Singles ? 1f : 255f, channels)],
    };

    private static ImageBatch Vary(ImageAugmentation augmentation, RawImages raw, int height, int width, ImageColumnKind kind = ImageColumnKind.Bytes, long seed = 1)
    {
        manual_seed(seed);
        return new ImageAugmenter(augmentation, Input(kind, (int)raw.Pixels.shape[1]), height, width, float32, CPU).Vary(raw);
    }

    /// <summary>[batch, height, width, channels] flattened.</summary>
    private static float[] Numbers(Tensor images) => images.permute(0, 2, 3, 1).contiguous().to(float32).data<float>().ToArray();

    // ---- The sampler against a loop.

    private static int Mirrored(int i, int size)
    {
        if (i < 0) i = -1 - i;
        if (i >= size) i = 2 * size - 1 - i;
        return Math.Clamp(i, 0, size - 1);
    }

    private static float[] Sampled(PixelImage image, AffineMap map, int height, int width, bool bilinear)
    {
        double At(int y, int x, int channel) => Convert.ToDouble(image.Data.GetValue((Mirrored(y, image.Height) * image.Width + Mirrored(x, image.Width)) * image.Channels + channel));
        var result = new List<float>();
        for (var row = 0; row < height; row++)
            for (var column = 0; column < width; column++)
            {
                float v = (row + 0.5f) / height - 0.5f, u = (column + 0.5f) / width - 0.5f;
                float y = map.Y + map.YV * v + map.YU * u, x = map.X + map.XV * v + map.XU * u;
                for (var channel = 0; channel < image.Channels; channel++)
                {
                    if (!bilinear)
                    {
                        result.Add((float)At((int)Math.Floor(y), (int)Math.Floor(x), channel));
                        continue;
                    }
                    int top = (int)Math.Floor(y - 0.5f), left = (int)Math.Floor(x - 0.5f);
                    double down = y - 0.5 - top, right = x - 0.5 - left;
                    result.Add((float)((1 - down) * ((1 - right) * At(top, left, channel) + right * At(top, left + 1, channel))
                        + down * ((1 - right) * At(top + 1, left, channel) + right * At(top + 1, left + 1, channel))));
                }
            }
        return [.. result];
    }

    [Theory, NoTensorLeaks]
    [InlineData(1, 5, 7)]
    [InlineData(3, 8, 8)]
    [InlineData(2, 1, 9)]
    [InlineData(3, 11, 4)]
    public void Sampling_equals_a_loop_over_pixels(int channels, int height, int width)
    {
        using var scope = NewDisposeScope();
        var random = new Random(channels * 100 + height);
        PixelImage[] images = [Bytes(random, 6, 9, channels), Bytes(random, 1, 1, channels), Bytes(random, 13, 2, channels), Bytes(random, 7, 7, channels)];
        float Draw(float range) => (float)(random.NextDouble() * 2 - 1) * range;
        // Maps that also look far beyond the borders, where the mirror image ends.
        var maps = images.Select(image => new AffineMap(Draw(image.Height) * 2, Draw(image.Width) * 2, Draw(20), Draw(20), Draw(20), Draw(20))).ToArray();
        var raw = Raw(images);
        var sampler = new ImageSampler(raw.Places, maps, height, width, exact: false, CPU);
        var (nearest, bilinear) = (sampler.Nearest(raw.Pixels), sampler.Bilinear(raw.Pixels));
        Assert.Equal(uint8, nearest.dtype);
        Assert.Equal([images.Length, height, width, channels], bilinear.shape);
        for (var i = 0; i < images.Length; i++)
        {
            Assert.Equal(Sampled(images[i], maps[i], height, width, bilinear: false), nearest[i].to(float32).data<float>().ToArray());
            var got = bilinear[i].contiguous().data<float>().ToArray();
            Assert.All(Sampled(images[i], maps[i], height, width, bilinear: true).Zip(got), pair => Assert.Equal(pair.First, pair.Second, 1e-2f));
        }
    }

    // ---- Geometry.

    private static float[] Moved(PixelImage image, int height, int width, Func<int, int, (int Y, int X)> from)
    {
        var result = new List<float>();
        for (var y = 0; y < height; y++)
            for (var x = 0; x < width; x++)
                for (var channel = 0; channel < image.Channels; channel++)
                {
                    var (sourceY, sourceX) = from(y, x);
                    result.Add(((byte[])image.Data)[(Mirrored(sourceY, image.Height) * image.Width + Mirrored(sourceX, image.Width)) * image.Channels + channel]);
                }
        return [.. result];
    }

    [Theory]
    [InlineData(8, 8)]
    [InlineData(7, 7)]
    [InlineData(33, 33)]
    public void Mirroring_quarter_turns_and_shifts_copy_pixels_to_the_bit(int height, int width)
    {
        using var scope = NewDisposeScope();
        var random = new Random(1);
        PixelImage[] images = [.. Enumerable.Range(0, 40).Select(_ => Bytes(random, height, width, 3))];
        var raw = Raw(images);
        float[][] All(ImageAugmentation augmentation) => [.. Numbers(Vary(augmentation, raw, height, width).Images).Chunk(height * width * 3)];
        (float[][] Plain, float[][] Flipped, float[][] Upside, float[][] Turned, float[][] Shifted) = (All(new()), All(new() { HorizontalFlip = 1 }), All(new() { VerticalFlip = 1 }),
            All(new() { QuarterTurns = true }), All(new() { Translation = 0.2 }));
        var (turns, shifts) = (new HashSet<int>(), new HashSet<(int, int)>());
        var most = (int)Math.Round(0.2 * height);
        for (var i = 0; i < images.Length; i++)
        {
            Assert.Equal(Moved(images[i], height, width, (y, x) => (y, x)), Plain[i]);
            Assert.Equal(Moved(images[i], height, width, (y, x) => (y, width - 1 - x)), Flipped[i]);
            Assert.Equal(Moved(images[i], height, width, (y, x) => (height - 1 - y, x)), Upside[i]);
            Func<int, int, (int, int)>[] quarters = [(y, x) => (y, x), (y, x) => (x, width - 1 - y), (y, x) => (height - 1 - y, width - 1 - x), (y, x) => (height - 1 - x, y)];
            turns.Add(Assert.Single(Enumerable.Range(0, 4), turn => Moved(images[i], height, width, quarters[turn]).SequenceEqual(Turned[i])));
            var around = Enumerable.Range(-most, 2 * most + 1).SelectMany(dy => Enumerable.Range(-most, 2 * most + 1), (dy, dx) => (dy, dx));
            shifts.Add(Assert.Single(around, shift => Moved(images[i], height, width, (y, x) => (y + shift.dy, x + shift.dx)).SequenceEqual(Shifted[i])));
        }
        Assert.Equal(4, turns.Count);
        Assert.True(shifts.Count > 5);
    }

    [Fact]
    public void Half_of_the_images_are_mirrored_when_the_probability_is_a_half()
    {
        using var scope = NewDisposeScope();
        PixelImage[] images = [.. Enumerable.Range(0, 400).Select(_ => new PixelImage(new byte[] { 10, 20 }, 1, 2, 1))];
        var first = Numbers(Vary(new() { HorizontalFlip = 0.5 }, Raw(images), 1, 2).Images).Chunk(2).Count(pixels => pixels[0] == 20);
        Assert.InRange(first, 150, 250);
    }

    public static TheoryData<string> Geometries() => ["flips", "turns", "shift", "rotation", "zoom", "part", "all", "rand"];

    private static ImageAugmentation Geometry(string name) => name switch
    {
        "flips" => new() { HorizontalFlip = 0.5, VerticalFlip = 0.5 },
        "turns" => new() { QuarterTurns = true },
        "shift" => new() { Translation = 0.3 },
        "rotation" => new() { Rotation = 60 },
        "zoom" => new() { Zoom = 0.5 },
        "part" => new() { MinimumArea = 0.3 },
        "rand" => new() { RandAugmentLayers = 2 },
        _ => ImageAugmentation.Overhead with { MinimumArea = 0.4, Translation = 0.2, ColorJitter = 0 },
    };

    /// <summary>Where the image shows one class and nothing else, the mask has that class: geometry moves both alike.</summary>
    [Theory]
    [MemberData(nameof(Geometries))]
    public void An_image_and_its_mask_move_alike(string name)
    {
        using var scope = NewDisposeScope();
        var random = new Random(4);
        var (images, masks) = (new List<PixelImage>(), new List<byte[]>());
        for (var i = 0; i < 24; i++)
        {
            // Two rectangles of class 1 on class 0, in images of several sizes.
            var (height, width) = (random.Next(20, 30), random.Next(20, 30));
            var mask = new byte[height * width];
            for (var k = 0; k < 2; k++)
            {
                int top = random.Next(height - 8), left = random.Next(width - 8);
                for (var y = top; y < top + 8; y++) mask.AsSpan(y * width + left, 8).Fill(1);
            }
            masks.Add(mask);
            images.Add(new PixelImage(mask.Select(value => value == 1 ? (byte)200 : (byte)100).ToArray(), height, width, 1));
        }
        var augmentation = Geometry(name);
        var batch = Vary(augmentation, Raw(images, masks), 20, 20);
        var (pixels, classes) = (Numbers(batch.Images), batch.Masks!.data<long>().ToArray());
        if (augmentation.RandAugmentLayers == 0)
        {
            var pure = pixels.Zip(classes).Where(pair => Math.Abs(pair.First - 100) < 1e-3 || Math.Abs(pair.First - 200) < 1e-3).ToList();
            Assert.True(pure.Count > pixels.Length * 0.7, $"{pure.Count} of {pixels.Length}");
            Assert.All(pure, pair => Assert.Equal(pair.First > 150 ? 1 : 0, pair.Second));
            if (augmentation.IsExact) Assert.Equal(pixels.Length, pure.Count);
        }
        else
        {
            // Colours change too, but within one image the two classes stay apart: the correlation of pixels and mask tells whether they lie where the mask says.
            var agreeing = pixels.Chunk(400).Zip(classes.Chunk(400)).Where(pair => pair.Second.Distinct().Count() == 2 && pair.First.Distinct().Count() > 1).ToList();
            Assert.True(agreeing.Count > 15);
            Assert.All(agreeing, pair => Assert.True(Math.Abs(Correlation(pair.First, pair.Second)) > 0.75, $"{Correlation(pair.First, pair.Second)}"));
        }
        Assert.Contains(1, classes);
        Assert.Contains(0, classes);
    }

    private static double Correlation(float[] a, long[] b)
    {
        double meanA = a.Average(), meanB = b.Average();
        double both = 0, squareA = 0, squareB = 0;
        for (var i = 0; i < a.Length; i++)
        {
            both += (a[i] - meanA) * (b[i] - meanB);
            squareA += (a[i] - meanA) * (a[i] - meanA);
            squareB += (b[i] - meanB) * (b[i] - meanB);
        }
        return both / Math.Sqrt(squareA * squareB);
    }

    /// <summary>The maps that were drawn: an image that holds its own coordinates shows where each pixel came from, as bilinear interpolation leaves a linear function as it is.</summary>
    private static List<(double Y, double X, double YY, double YX, double XY, double XX)> Maps(ImageAugmentation augmentation, int imageHeight, int imageWidth, int height, int width, int count = 200)
    {
        using var scope = NewDisposeScope();
        var coordinates = new float[imageHeight * imageWidth * 2];
        for (var i = 0; i < imageHeight * imageWidth; i++) (coordinates[2 * i], coordinates[2 * i + 1]) = (i / imageWidth + 0.5f, i % imageWidth + 0.5f);
        var raw = Raw([.. Enumerable.Repeat(new PixelImage(coordinates, imageHeight, imageWidth, 2), count)]);
        var images = Vary(augmentation, raw, height, width, ImageColumnKind.Singles).Images.permute(0, 2, 3, 1).contiguous();
        var maps = new List<(double, double, double, double, double, double)>();
        for (var i = 0; i < count; i++)
        {
            using var each = NewDisposeScope();
            // The middle, which no border disturbs.
            var at = images[i];
            float Value(int y, int x, int k) => at[y, x, k].item<float>();
            int middle = height / 2, centre = width / 2;
            maps.Add((Value(middle, centre, 0), Value(middle, centre, 1), Value(middle + 1, centre, 0) - Value(middle, centre, 0), Value(middle, centre + 1, 0) - Value(middle, centre, 0),
                Value(middle + 1, centre, 1) - Value(middle, centre, 1), Value(middle, centre + 1, 1) - Value(middle, centre, 1)));
        }
        return maps;
    }

    [Fact]
    public void Rotation_turns_without_distortion_also_where_sides_differ()
    {
        var angles = new List<double>();
        foreach (var m in Maps(new() { Rotation = 30 }, 64, 96, 64, 96))
        {
            Assert.Equal(1, m.YY * m.YY + m.XY * m.XY, 1e-3);
            Assert.Equal(1, m.YX * m.YX + m.XX * m.XX, 1e-3);
            Assert.Equal(0, m.YY * m.YX + m.XY * m.XX, 1e-3);
            Assert.True(m.YY * m.XX - m.YX * m.XY > 0);
            angles.Add(Math.Atan2(m.XY, m.YY) * 180 / Math.PI);
        }
        Assert.InRange(angles.Min(), -30.1, -24);
        Assert.InRange(angles.Max(), 24, 30.1);
        Assert.InRange(angles.Average(), -4, 4);
    }

    [Fact]
    public void Zoom_scales_both_ways_within_its_range()
    {
        var scales = Maps(new() { Zoom = 0.5 }, 64, 96, 64, 96).Select(m =>
        {
            Assert.Equal((0, 0), (Math.Round(m.YX, 3), Math.Round(m.XY, 3)));
            Assert.Equal(m.YY, m.XX, 1e-3);
            return m.YY;
        }).ToList();
        Assert.InRange(scales.Min(), 1 / 1.501, 1 / 1.4);
        Assert.InRange(scales.Max(), 1.4, 1.501);
        Assert.InRange(scales.Count(scale => scale < 1), 70, 130);
    }

    [Fact]
    public void A_part_has_the_area_and_the_proportions_that_were_asked_for()
    {
        var parts = Maps(new() { MinimumArea = 0.25, MaximumAspect = 2 }, 60, 60, 20, 30, count: 400);
        var areas = parts.Select(m => m.YY * m.XX * 20 * 30 / 3600).ToList();
        Assert.InRange(areas.Min(), 0.2499, 0.29);
        Assert.InRange(areas.Max(), 0.85, 1.0001);
        // Of each other's scale, the sides differ by at most 2, but for parts that would leave the image.
        Assert.All(parts, m => Assert.InRange(m.XX / m.YY, 1 / 2.01, 2.01));
        Assert.InRange(parts.Max(m => m.XX / m.YY), 1.3, 2.01);
        Assert.All(parts, m => Assert.True(m.Y - m.YY * 10.5 > -0.01 && m.Y + m.YY * 9.5 < 60.01 && m.X - m.XX * 15.5 > -0.01 && m.X + m.XX * 14.5 < 60.01, $"{m}"));
    }

    [Fact]
    public void Crops_come_from_all_of_a_larger_image()
    {
        foreach (var augmentation in (ImageAugmentation[])[new() { HorizontalFlip = 1e-9 }, ImageAugmentation.None])
        {
            var crops = Maps(augmentation, 40, 50, 32, 32, count: 400);
            Assert.Equal(9, crops.Select(m => m.Y).Distinct().Count());
            Assert.Equal(19, crops.Select(m => m.X).Distinct().Count());
        }
    }

    // ---- Nothing.

    [Fact, NoTensorLeaks]
    public void None_changes_nothing()
    {
        using var scope = NewDisposeScope();
        var random = new Random(5);
        PixelImage[] images = [.. Enumerable.Range(0, 5).Select(_ => Bytes(random, 9, 6, 3))];
        var batch = Vary(ImageAugmentation.None, Raw(images, labels: [3, 1, 4, 1, 5]), 9, 6);
        Assert.Equal(images.SelectMany(image => ((byte[])image.Data).Select(value => (float)value)), Numbers(batch.Images));
        Assert.Equal([3, 1, 4, 1, 5], batch.Labels!.data<long>().ToArray());
        Assert.Equal((null, 1, null), (batch.Partners, batch.Share, batch.Masks));
        // Some rows of a resident data set, in another order, whether or not they all have one size.
        foreach (var others in (PixelImage[][])[images, [.. images, Bytes(random, 4, 4, 3)]])
        {
            var raw = Raw(others);
            batch = Vary(ImageAugmentation.None, raw with { Places = [raw.Places[3], raw.Places[0], raw.Places[3]] }, 9, 6);
            Assert.Equal(((PixelImage[])[images[3], images[0], images[3]]).SelectMany(image => ((byte[])image.Data).Select(value => (float)value)), Numbers(batch.Images));
        }
    }

    [Theory]
    [InlineData(4, 4)]
    [InlineData(5, 3)]
    [InlineData(9, 7)]
    public void Plain_takes_the_centre_as_scoring_does(int rows, int columns)
    {
        using var scope = NewDisposeScope();
        var random = new Random(6);
        var images = Enumerable.Range(0, 3).Select(_ => Bytes(random, 9, 7, 3)).ToList();
        var masks = images.Select(image => Enumerable.Range(0, 63).Select(i => ((byte[])image.Data)[i * 3]).ToArray()).ToList();
        var input = Input(ImageColumnKind.Bytes, 3);
        var batch = new ImageAugmenter(ImageAugmentation.Strong, input, 8, 8, float32, CPU).Plain(Raw(images, masks), rows, columns);
        var scored = input.Stack([.. images.Select(image => image.Centre(rows, columns))], CPU);
        Assert.True((batch.Images - scored).abs().max().item<float>() < 1e-4);
        Assert.Equal(batch.Images[TensorIndex.Colon, 0].round().to(int64).data<long>().ToArray(), batch.Masks!.data<long>().ToArray());
    }

    // ---- Randomness.

    public static TheoryData<string> Presets() => ["light", "standard", "strong", "overhead"];

    private static ImageAugmentation Preset(string name) => name switch
    {
        "light" => ImageAugmentation.Light,
        "standard" => ImageAugmentation.Standard,
        "strong" => ImageAugmentation.Strong,
        _ => ImageAugmentation.Overhead,
    };

    [Theory, NoTensorLeaks]
    [MemberData(nameof(Presets))]
    public void The_same_seed_gives_the_same_batch_and_another_seed_another(string name)
    {
        using var scope = NewDisposeScope();
        var random = new Random(7);
        var raw = Raw([.. Enumerable.Range(0, 16).Select(_ => Bytes(random, 16, 16, 3))], labels: new long[16]);
        Tensor Run(long seed) => Vary(Preset(name), raw, 16, 16, seed: seed).Images;
        Assert.True(Run(1).Same(Run(1)));
        Assert.False(Run(1).Same(Run(2)));
        Assert.False(Run(1).Same(Vary(ImageAugmentation.None, raw, 16, 16).Images));
        Assert.True(Run(3).isfinite().all().item<bool>());
    }

    // ---- Colours.

    private static Tensor Unit(Random random, int batch, int height, int width, int channels)
        => tensor(Enumerable.Range(0, batch * height * width * channels).Select(_ => random.Next(256) / 255f).ToArray(), [batch, height, width, channels]);

    private static Tensor PerImage(params float[] values) => tensor(values, [values.Length, 1, 1, 1]);

    private static double Gray(float[] pixel) => pixel.Length == 3 ? 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2] : pixel.Average();

    /// <summary>Compares an operation with what a loop says of each pixel of each image.</summary>
    private static void AssertEach(Tensor images, Tensor got, Func<int, float[][], int, int, double[]> pixel)
    {
        Assert.Equal(images.shape, got.shape);
        var (batch, height, width, channels) = ((int)images.shape[0], (int)images.shape[1], (int)images.shape[2], (int)images.shape[3]);
        var (from, to) = (images.contiguous().data<float>().ToArray(), got.contiguous().data<float>().ToArray());
        for (var i = 0; i < batch; i++)
        {
            var size = height * width * channels;
            var pixels = from[(i * size)..((i + 1) * size)].Chunk(channels).ToArray();
            for (var place = 0; place < height * width; place++)
            {
                var expected = pixel(i, pixels, place / width, place % width);
                for (var channel = 0; channel < channels; channel++) Assert.Equal(expected[channel], to[i * size + place * channels + channel], 1e-5);
            }
        }
    }

    [Theory, NoTensorLeaks]
    [InlineData(3)]
    [InlineData(1)]
    [InlineData(2)]
    public void Colour_operations_equal_loops_over_pixels(int channels)
    {
        using var scope = NewDisposeScope();
        const int height = 5, width = 7;
        var images = Unit(new Random(channels), 3, height, width, channels);
        float[] factors = [0.3f, 1, 1.7f];
        double[] Saturated(float[] pixel, double factor) => channels == 3 ? [.. pixel.Select(value => Gray(pixel) + (value - Gray(pixel)) * factor)] : [.. pixel.Select(value => (double)value)];
        AssertEach(images, ColorOperations.Contrast(images, PerImage(factors)), (i, all, y, x) =>
        {
            var mean = all.Average(Gray);
            return [.. all[y * width + x].Select(value => mean + (value - mean) * factors[i])];
        });
        AssertEach(images, ColorOperations.Saturate(images, PerImage(factors)), (i, all, y, x) => Saturated(all[y * width + x], factors[i]));
        float[][] jitter = [[1.2f, 0.7f, 1.4f], [1, 1, 1], [0.6f, 1.3f, 0]];
        AssertEach(images, ColorOperations.Jitter(images, tensor(jitter.SelectMany(row => row).ToArray(), [3, 3])), (i, all, y, x) =>
        {
            var bright = all.Select(pixel => pixel.Select(value => value * jitter[i][0]).ToArray()).ToArray();
            var mean = bright.Average(Gray);
            return Saturated([.. bright[y * width + x].Select(value => (float)(mean + (value - mean) * jitter[i][1]))], jitter[i][2]);
        });
        AssertEach(images, ColorOperations.Sharpen(images, PerImage(factors)), (i, all, y, x) => [.. Enumerable.Range(0, channels).Select(channel =>
        {
            var blurred = 0.0;
            for (var dy = -1; dy <= 1; dy++)
                for (var dx = -1; dx <= 1; dx++)
                    blurred += all[Math.Clamp(y + dy, 0, height - 1) * width + Math.Clamp(x + dx, 0, width - 1)][channel] * (dy == 0 && dx == 0 ? 5 : 1) / 13;
            return blurred + (all[y * width + x][channel] - blurred) * factors[i];
        })]);
        AssertEach(images, ColorOperations.Solarize(images, PerImage(0.1f, 0.5f, 1.5f)), (i, all, y, x)
            => [.. all[y * width + x].Select(value => value >= ((float[])[0.1f, 0.5f, 1.5f])[i] ? 1.0 - value : value)]);
        AssertEach(images, ColorOperations.AutoContrast(images), (_, all, y, x) => [.. Enumerable.Range(0, channels).Select(channel =>
        {
            double low = all.Min(pixel => pixel[channel]), high = all.Max(pixel => pixel[channel]);
            return (all[y * width + x][channel] - low) / (high - low);
        })]);
        AssertEach(images, ColorOperations.Equalize(images), (_, all, y, x) => [.. Enumerable.Range(0, channels).Select(channel =>
        {
            var (darkest, value) = (all.Min(pixel => pixel[channel]), all[y * width + x][channel]);
            double first = all.Count(pixel => pixel[channel] == darkest);
            return (all.Count(pixel => pixel[channel] <= value) - first) / (height * width - first);
        })]);
    }

    [Fact]
    public void Posterize_keeps_the_highest_bits_of_every_byte()
    {
        using var scope = NewDisposeScope();
        var all = tensor(Enumerable.Range(0, 256).Select(value => value / 255f).ToArray(), [1, 16, 16, 1]);
        for (var bits = 1; bits <= 8; bits++)
        {
            var kept = (ColorOperations.Posterize(all, PerImage(bits)) * 255).data<float>().ToArray();
            Assert.All(Enumerable.Range(0, 256), value => Assert.Equal(value >> (8 - bits) << (8 - bits), kept[value], 1e-3f));
        }
    }

    [Fact]
    public void Images_of_one_colour_stay_that_colour()
    {
        using var scope = NewDisposeScope();
        var plain = full([2, 4, 4, 3], 0.6f);
        foreach (var changed in (Tensor[])[ColorOperations.AutoContrast(plain), ColorOperations.Equalize(plain), ColorOperations.Contrast(plain, PerImage(0.2f, 1.8f)), ColorOperations.Sharpen(plain, PerImage(0.2f, 1.8f))])
            Assert.True((changed - plain).abs().max().item<float>() < 1e-6);
    }

    [Fact]
    public void Colour_jitter_stays_in_its_range_and_between_black_and_white()
    {
        using var scope = NewDisposeScope();
        PixelImage[] images = [.. Enumerable.Range(0, 300).Select(i => new PixelImage(Enumerable.Repeat((byte)(i < 200 ? 100 : 250), 12).ToArray(), 2, 2, 3))];
        var pixels = Numbers(Vary(new() { ColorJitter = 0.4 }, Raw(images), 2, 2).Images).Chunk(12).Select(image => image[0]).ToList();
        Assert.InRange(pixels.Take(200).Min(), 59.9, 66);
        Assert.InRange(pixels.Take(200).Max(), 134, 140.1);
        Assert.InRange(pixels.Take(200).Average(), 94, 106);
        Assert.Equal(255, pixels.Max(), 1e-3f);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void RandAugment_of_no_magnitude_only_evens_contrast_and_more_changes_more(int channels)
    {
        using var scope = NewDisposeScope();
        var random = new Random(9);
        // Every channel has black, white and the rest evenly: automatic contrast and equalizing hardly change it.
        var bytes = Enumerable.Range(0, 256).SelectMany(value => Enumerable.Repeat((byte)value, channels)).ToArray();
        random.Shuffle(bytes);
        PixelImage[] images = [.. Enumerable.Repeat(new PixelImage(bytes, 16, 16, channels), 200)];
        double Change(double magnitude)
        {
            var varied = Numbers(Vary(new() { RandAugmentLayers = 2, RandAugmentMagnitude = magnitude }, Raw(images), 16, 16).Images);
            Assert.All(varied, value => Assert.InRange(value, 0, 255.001f));
            return varied.Select((value, i) => Math.Abs(value - bytes[i % bytes.Length])).Average();
        }
        var changes = ((double[])[0, 2, 9]).Select(Change).ToArray();
        Assert.True(changes[0] < 1.5, $"{changes[0]}");
        Assert.True(changes[1] > changes[0] + 3 && changes[2] > changes[1] + 3, string.Join(" ", changes));
    }

    [Fact]
    public void RandAugment_of_no_magnitude_leaves_white_white()
    {
        using var scope = NewDisposeScope();
        var bytes = Enumerable.Range(0, 64).Select(i => i % 4 == 0 ? (byte)0 : (byte)255).ToArray();
        var varied = Numbers(Vary(new() { RandAugmentLayers = 3, RandAugmentMagnitude = 0 }, Raw([.. Enumerable.Repeat(new PixelImage(bytes, 8, 8, 1), 100)]), 8, 8).Images);
        Assert.All(varied.Chunk(64), image => Assert.All(image.Zip(bytes), pair => Assert.Equal(pair.Second, pair.First, 2f)));
    }

    // ---- Mixing.

    /// <summary>Images that are all over their own number.</summary>
    private static RawImages Numbered(int count, int side) => Raw([.. Enumerable.Range(0, count).Select(i => new PixelImage(Enumerable.Repeat((byte)(10 * i), side * side).ToArray(), side, side, 1))],
        labels: [.. Enumerable.Range(0, count).Select(i => (long)i)]);

    [Theory, NoTensorLeaks]
    [InlineData(0.001)]
    [InlineData(0.2)]
    [InlineData(1.0)]
    [InlineData(10.0)]
    public void Mixup_mixes_images_as_their_labels(double alpha)
    {
        using var scope = NewDisposeScope();
        var shares = new List<double>();
        for (var seed = 0; seed < 100; seed++)
        {
            using var each = NewDisposeScope();
            var batch = Vary(new() { Mixup = alpha }, Numbered(12, 3), 3, 3, seed: seed);
            Assert.InRange(batch.Share, 0, 1);
            shares.Add(batch.Share);
            var (labels, partners, pixels) = (batch.Labels!.data<long>().ToArray(), batch.Partners!.data<long>().ToArray(), Numbers(batch.Images));
            Assert.Equal(labels, Enumerable.Range(0, 12).Select(i => (long)i));
            Assert.Equal(labels, partners.Order());
            for (var i = 0; i < 12; i++)
                Assert.All(pixels[(i * 9)..(i * 9 + 9)], value => Assert.Equal(10 * (labels[i] * batch.Share + partners[i] * (1 - batch.Share)), value, 1e-3));
        }
        Assert.InRange(shares.Average(), 0.35, 0.65);
        // Beta(α, α) has the variance 1 / (8α + 4).
        Assert.InRange(shares.Select(share => (share - 0.5) * (share - 0.5)).Average() * (8 * alpha + 4), 0.6, 1.5);
    }

    [Fact, NoTensorLeaks]
    public void CutMix_shares_labels_by_area_exactly()
    {
        using var scope = NewDisposeScope();
        var shares = new List<double>();
        for (var seed = 0; seed < 150; seed++)
        {
            using var each = NewDisposeScope();
            var batch = Vary(new() { CutMix = 1 }, Numbered(12, 11), 11, 11, seed: seed);
            shares.Add(batch.Share);
            if (batch.Partners is null)
            {
                Assert.Equal(1, batch.Share);
                continue;
            }
            var (partners, pixels) = (batch.Partners.data<long>().ToArray(), Numbers(batch.Images));
            for (var i = 0; i < 12; i++)
            {
                var own = pixels[(i * 121)..(i * 121 + 121)];
                Assert.All(own, value => Assert.True(value == 10 * i || value == 10 * partners[i]));
                if (partners[i] != i) Assert.Equal(own.Count(value => value == 10 * i) / 121.0, batch.Share, 1e-12);
                // The pasted part is one box.
                var places = Enumerable.Range(0, 121).Where(place => own[place] != 10 * i).ToList();
                if (places.Count > 0) Assert.Equal(places.Count, (places.Max(p => p / 11) - places.Min(p => p / 11) + 1) * (places.Max(p => p % 11) - places.Min(p => p % 11) + 1));
            }
        }
        Assert.True(shares.Min() < 0.2 && shares.Count(share => share > 0.9) is > 5 and < 90, $"{shares.Min()}");
        Assert.InRange(shares.Average(), 0.5, 0.8); // above ½, as boxes are cut at the border
    }

    [Fact]
    public void With_mixup_and_CutMix_each_batch_draws_one_of_the_two()
    {
        using var scope = NewDisposeScope();
        var cut = 0;
        for (var seed = 0; seed < 60; seed++)
        {
            using var each = NewDisposeScope();
            if (Numbers(Vary(new() { CutMix = 1, Mixup = 1 }, Numbered(8, 8), 8, 8, seed: seed).Images).All(value => value % 10 == 0)) cut++;
        }
        Assert.InRange(cut, 15, 45);
    }

    [Fact, NoTensorLeaks]
    public void Erasing_puts_noise_into_a_rectangle_of_some_images()
    {
        using var scope = NewDisposeScope();
        var raw = Raw([.. Enumerable.Range(0, 400).Select(_ => new PixelImage(new byte[24 * 18 * 3], 24, 18, 3))]);
        var images = Numbers(Vary(new() { Erasing = 0.4 }, raw, 24, 18).Images).Chunk(24 * 18 * 3).ToList();
        var (shares, noise) = (new List<double>(), new List<float>());
        foreach (var image in images)
        {
            var changed = Enumerable.Range(0, 24 * 18).Where(place => image[place * 3] != 0).ToList();
            if (changed.Count == 0) continue;
            var (rows, columns) = (changed.Max(p => p / 18) - changed.Min(p => p / 18) + 1, changed.Max(p => p % 18) - changed.Min(p => p % 18) + 1);
            Assert.Equal(changed.Count, rows * columns);
            shares.Add(changed.Count / (24.0 * 18));
            noise.AddRange(changed.SelectMany(place => image[(place * 3)..(place * 3 + 3)]));
        }
        Assert.InRange(shares.Count, 120, 200);
        Assert.InRange(shares.Min(), 0.01, 0.06);
        Assert.InRange(shares.Max(), 0.27, 0.38);
        Assert.Equal(0, noise.Average(), 0.05f);
        Assert.Equal(1, noise.Select(value => value * value).Average(), 0.1f);
    }

    [Fact]
    public void Strong_augmentation_goes_through_in_bfloat16()
    {
        using var scope = NewDisposeScope();
        var random = new Random(1);
        var raw = Raw([.. Enumerable.Range(0, 8).Select(_ => Bytes(random, 12, 12, 3))], labels: new long[8]);
        var batch = new ImageAugmenter(ImageAugmentation.Strong, Input(ImageColumnKind.Bytes, 3), 12, 12, bfloat16, CPU).Vary(raw);
        Assert.Equal(bfloat16, batch.Images.dtype);
        Assert.Equal([8, 3, 12, 12], batch.Images.shape);
        Assert.True(batch.Images.permute(0, 2, 3, 1).is_contiguous(), "channels last in memory");
    }

    // ---- Options and Singles.

    [Fact]
    public void All_options_out_of_range_are_reported_at_once()
    {
        var bad = new ImageAugmentation
        {
            HorizontalFlip = 1.1, VerticalFlip = -0.1, Erasing = double.NaN, MinimumArea = 0, MaximumAspect = 0.5, Translation = 0.6, Rotation = 181, Zoom = -1, ColorJitter = 2,
            RandAugmentLayers = -1, RandAugmentMagnitude = 11, Mixup = double.NaN, CutMix = double.PositiveInfinity, QuarterTurns = true,
        };
        string Message(Action act) => Assert.Throws<ArgumentException>(act).Message;
        var ml = Models.Context();
        var message = Message(() => ml.MulticlassClassification.Trainers.ImageClassification(new ImageClassificationTrainer.Options { Augmentation = bad, ImageHeight = 4, ImageWidth = 5, Channels = 2, CropFraction = 0 }));
        foreach (var name in (string[])["HorizontalFlip", "VerticalFlip", "Erasing", "MinimumArea", "MaximumAspect", "Translation", "Rotation", "Zoom", "ColorJitter", "RandAugmentLayers", "RandAugmentMagnitude",
            "Mixup", "CutMix", "QuarterTurns", "Channels", "CropFraction"]) Assert.Contains(name, message);
        Assert.Contains("for classification", Message(() => ml.ImageSegmentation.Trainers.SemanticSegmentation(new SemanticSegmentationTrainer.Options { Augmentation = ImageAugmentation.Strong })));
        Assert.Contains("Augmentation is null", Message(() => ml.MulticlassClassification.Trainers.ImageClassification(new ImageClassificationTrainer.Options { Augmentation = null! })));
    }

    [Theory]
    [MemberData(nameof(Presets))]
    public void Singles_keep_their_units_and_work_but_for_RandAugment(string name)
    {
        using var scope = NewDisposeScope();
        var random = new Random(3);
        PixelImage[] images = [.. Enumerable.Range(0, 8).Select(_ => new PixelImage(Enumerable.Range(0, 12 * 12 * 2).Select(_ => (float)random.NextDouble() * 5000 - 1000).ToArray(), 12, 12, 2))];
        var augmentation = Preset(name) with { RandAugmentLayers = 0, Erasing = 0 };
        var varied = Numbers(Vary(augmentation, Raw(images, labels: new long[8]), 12, 12, ImageColumnKind.Singles).Images);
        Assert.All(varied, value => Assert.True(float.IsFinite(value)));
        Assert.True(varied.Max() > 2500 && varied.Min() < -300, "not clamped to a byte's range");
        Assert.InRange(varied.Average(), 1000, 2000);
    }
}
