using System.Collections.Concurrent;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Where the batches of an image data set come from.</summary>
internal interface IImageSource : IDisposable
{
    /// <summary>Delivers the batches of a plan in order; their tensors are valid until the next one is asked for, or belong to the caller's dispose scope.</summary>
    IImageReader Open(ReadOnlyMemory<int[]> plan);
}

/// <summary>Delivers batches one after the other.</summary>
internal interface IImageReader : IDisposable
{
    RawImages Next();
}

internal static class ImageSource
{
    /// <summary>Keeps the images on the device when they fit and are not decoded anew each time; else sends them batch by batch.</summary>
    public static IImageSource Create(ImageData data, Device device, bool fits) => fits && !data.IsDeferred ? new ResidentImages(data, device) : new StreamedImages(data, device);

    public static int ElementBytes(this ImageData data) => data.Input.ElementType == uint8 ? 1 : sizeof(float);

    /// <summary>Images one after the other as a host tensor [pixels, channels].</summary>
    public static Tensor Join(ImageData data, PixelImage[] images)
    {
        var bytes = data.ElementBytes() * data.Input.Channels;
        var total = images.Sum(image => image.Pixels);
        var joined = data.Input.ElementType == uint8 ? (Array)new byte[total * bytes] : new float[total * data.Input.Channels];
        long at = 0;
        foreach (var image in images)
        {
            Array.Copy(image.Data, 0, joined, at, image.Data.LongLength);
            at += image.Data.LongLength;
        }
        return (joined is byte[]? tensor((byte[])joined) : tensor((float[])joined)).view(total, data.Input.Channels);
    }
}

/// <summary>All images on the device; a batch is places in them.</summary>
internal sealed class ResidentImages : IImageSource
{
    private const long PieceBytes = 64 << 20;

    private readonly Tensor _pixels, _labels;
    private readonly Tensor? _masks;
    private readonly ImagePlace[] _places;
    private readonly Device _device;

    public ResidentImages(ImageData data, Device device)
    {
        _device = device;
        using var scope = NewDisposeScope();
        using var _ = no_grad();
        var rows = Enumerable.Range(0, data.Count).Select(row => data[row]).ToArray();
        _places = new ImagePlace[rows.Length];
        long total = 0;
        for (var i = 0; i < rows.Length; i++)
        {
            _places[i] = new ImagePlace(total, rows[i].Height, rows[i].Width);
            total += (long)rows[i].Height * rows[i].Width;
        }
        _pixels = empty([total, data.Input.Channels], dtype: data.Input.ElementType, device: device).DetachFromDisposeScope();
        if (rows.Any(row => row.Mask is not null)) _masks = empty([total], dtype: uint8, device: device).DetachFromDisposeScope();
        for (int from = 0, to; from < rows.Length; from = to)
        {
            long bytes = 0;
            for (to = from; to < rows.Length && bytes < PieceBytes; to++) bytes += (long)rows[to].Height * rows[to].Width * data.Input.Channels * data.ElementBytes();
            using var piece = NewDisposeScope();
            var (start, images) = (_places[from].Start, rows[from..to]);
            var joined = ImageSource.Join(data, [.. images.Select(row => row.Load())]);
            _pixels.narrow(0, start, joined.shape[0]).copy_(joined);
            _masks?.narrow(0, start, joined.shape[0]).copy_(tensor(images.SelectMany(row => row.Mask!).ToArray()));
        }
        _labels = tensor(data.Labels, device: device).to(int64).DetachFromDisposeScope();
    }

    public IImageReader Open(ReadOnlyMemory<int[]> plan) => new Reader(this, plan);

    public void Dispose()
    {
        _pixels.Dispose();
        _labels.Dispose();
        _masks?.Dispose();
    }

    private sealed class Reader(ResidentImages source, ReadOnlyMemory<int[]> plan) : IImageReader
    {
        private int _next;

        public RawImages Next()
        {
            var rows = plan.Span[_next++];
            var labels = source._masks is null ? source._labels.index_select(0, tensor(rows).Send(source._device).to(int64)) : null;
            return new RawImages(source._pixels, source._masks, Array.ConvertAll(rows, row => source._places[row]), labels);
        }

        public void Dispose()
        {
        }
    }
}

/// <summary>Batches assembled on other threads ahead of need, decoding files where images are not in memory, and sent to the device.</summary>
internal sealed class StreamedImages(ImageData data, Device device) : IImageSource
{
    private const int BatchesAhead = 6;

    public IImageReader Open(ReadOnlyMemory<int[]> plan) => new Reader(data, device, plan);

    public void Dispose()
    {
    }

    private sealed class Reader : IImageReader
    {
        private readonly BlockingCollection<Task<RawImages>> _ready = []; // in the plan's order, several in the making
        private readonly SemaphoreSlim _room = new(BatchesAhead);
        private readonly CancellationTokenSource _stop = new();
        private readonly Task _producer;
        private readonly Device _device;

        public Reader(ImageData data, Device device, ReadOnlyMemory<int[]> plan)
        {
            _device = device;
            _producer = Task.Run(() =>
            {
                try
                {
                    foreach (var rows in plan.ToArray())
                    {
                        _room.Wait(_stop.Token); // before the batch is begun: what was begun is in the queue, where Dispose finds it
                        _ready.Add(Task.Run(() => Assemble(data, rows, device.type == DeviceType.CUDA)));
                    }
                }
                catch (OperationCanceledException)
                {
                    // no more is wanted
                }
                finally
                {
                    _ready.CompleteAdding();
                }
            });
        }

        public RawImages Next()
        {
            var batch = _ready.Take().GetAwaiter().GetResult();
            _room.Release();
            return batch with { Pixels = Send(batch.Pixels), Masks = batch.Masks is { } masks ? Send(masks) : null, Labels = batch.Labels is { } labels ? Send(labels) : null };
        }

        public void Dispose()
        {
            _stop.Cancel();
            _producer.Wait();
            while (_ready.TryTake(out var batch))
            {
                try
                {
                    foreach (var part in Parts(batch.GetAwaiter().GetResult())) part.Dispose();
                }
                catch (ArgumentException)
                {
                    // a file that became unreadable, in a batch that nobody wants any more
                }
            }
            _ready.Dispose();
            _room.Dispose();
            _stop.Dispose();
        }

        // The assembled tensors belong to no scope; what is sent belongs to this thread's.
        private Tensor Send(Tensor host)
        {
            using (host) return _device.type == DeviceType.CPU ? host.alias() : host.to(_device, non_blocking: true);
        }

        private static RawImages Assemble(ImageData data, int[] rows, bool pin)
        {
            using var scope = NewDisposeScope();
            PixelImage[] images = data.IsDeferred ? ManyCores.Select(rows, row => data[row].Load()) : [.. rows.Select(row => data[row].Load())];
            var places = new ImagePlace[rows.Length];
            long total = 0;
            for (var i = 0; i < rows.Length; i++)
            {
                places[i] = new ImagePlace(total, images[i].Height, images[i].Width);
                total += images[i].Pixels;
            }
            Tensor Host(Tensor part) => (pin ? part.pin_memory() : part).DetachFromDisposeScope();
            var masks = data[rows[0]].Mask is null ? null : Host(tensor(rows.SelectMany(row => data[row].Mask!).ToArray()));
            var labels = masks is null ? Host(tensor([.. rows.Select(row => (long)data[row].Label)])) : null;
            return new RawImages(Host(ImageSource.Join(data, images)), masks, places, labels);
        }

        private static IEnumerable<Tensor> Parts(RawImages batch) => new[] { batch.Pixels, batch.Masks, batch.Labels }.OfType<Tensor>();
    }
}
