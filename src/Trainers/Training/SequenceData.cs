using Microsoft.ML;
using Microsoft.ML.Data;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Labelled sequences in host memory, read once.</summary>
internal sealed class SequenceData(SequenceBuffer sequences, int[] labels, long missingLabels)
{
    public SequenceBuffer Sequences { get; } = sequences;

    /// <summary>Per row, 0 … classes − 1.</summary>
    public int[] Labels { get; } = labels;

    /// <summary>Rows skipped because their label is missing.</summary>
    public long MissingLabels { get; } = missingLabels;

    public int Count => Labels.Length;

    /// <summary>Reads a view.</summary>
    /// <exception cref="ArgumentException">A feature is not a finite number; the message names row, position and channel.</exception>
    public static SequenceData Read(IDataView view, string labelColumn, string featureColumn, SequenceInput input, Action checkAlive)
    {
        var (label, feature) = (view.Schema[labelColumn], view.Schema[featureColumn]);
        var (buffer, labels, missing) = (input.CreateBuffer(), new List<int>(), 0L);
        using var cursor = view.GetRowCursor([label, feature]);
        var getLabel = cursor.GetGetter<uint>(label);
        var readSequence = input.CreateReader(cursor, feature);
        uint key = 0;
        while (cursor.MoveNext())
        {
            if ((labels.Count & 1023) == 0) checkAlive();
            getLabel(ref key);
            if (key == 0)
            {
                missing++;
                continue;
            }
            var filled = buffer.Values.Length;
            readSequence(buffer);
            CheckFinite(buffer, filled, cursor.Position, featureColumn);
            labels.Add((int)key - 1);
        }
        return new SequenceData(buffer, [.. labels], missing);
    }

    private static void CheckFinite(SequenceBuffer buffer, int from, long row, string column)
    {
        var values = buffer.Values[from..];
        for (var i = 0; i < values.Length; i++)
            if (!float.IsFinite(values[i]))
                throw new ArgumentException($"Row {row} of column '{column}' is {values[i]} at time {i / buffer.Channels}, channel {i % buffer.Channels}; expected finite numbers. " +
                    "Replace or remove such rows first (Transforms.ReplaceMissingValues, Data.FilterRowsByMissingValues).");
    }

    /// <summary>Bytes on a device when kept there whole.</summary>
    public long DeviceBytes => (long)Sequences.Values.Length * sizeof(float) + (long)Sequences.Tokens.Length * sizeof(int) + (long)Count * 3 * sizeof(long);
}

/// <summary>A labelled batch.</summary>
internal sealed record LabelledBatch(SequenceBatch Sequences, Tensor Labels);

/// <summary>Where the batches of a data set come from.</summary>
internal interface IBatchSource : IDisposable
{
    /// <summary>Delivers the batches of a plan in order; their tensors belong to the caller's dispose scope.</summary>
    IBatchReader Open(ReadOnlyMemory<int[]> plan);
}

/// <summary>Delivers batches one after the other.</summary>
internal interface IBatchReader : IDisposable
{
    LabelledBatch Next();
}

/// <summary>The data set kept on the device; a batch is a gather there.</summary>
internal sealed class ResidentSource : IBatchSource
{
    private readonly SequenceData _data;
    private readonly Tensor _elements; // Single [total, channels], or Int32 [total]
    private readonly Tensor _starts, _lengths, _labels; // Int64 [rows]
    private readonly Tensor? _words;
    private readonly Device _device;

    public ResidentSource(SequenceData data, Device device)
    {
        (_data, _device) = (data, device);
        using var scope = NewDisposeScope();
        var sequences = data.Sequences;
        _elements = (sequences.Channels > 0
            ? tensor(sequences.Values.ToArray(), [sequences.TotalLength, sequences.Channels], device: device)
            : tensor(sequences.Tokens.ToArray(), device: device)).DetachFromDisposeScope();
        var rows = Enumerable.Range(0, data.Count).ToArray();
        _starts = tensor([.. rows.Select(sequences.Start)], device: device).DetachFromDisposeScope();
        _lengths = tensor([.. rows.Select(row => (long)sequences.Length(row))], device: device).DetachFromDisposeScope();
        _labels = tensor([.. data.Labels.Select(label => (long)label)], device: device).DetachFromDisposeScope();
        if (sequences.HasWords) _words = sequences.PieceTable(device).to(int32).DetachFromDisposeScope();
    }

    public IBatchReader Open(ReadOnlyMemory<int[]> plan) => new Reader(this, plan);

    public void Dispose()
    {
        foreach (var part in new[] { _elements, _starts, _lengths, _labels, _words }) part?.Dispose();
    }

    private LabelledBatch Gather(int[] rows)
    {
        var sequences = _data.Sequences;
        long time = rows.Max(sequences.Length), shortest = rows.Min(sequences.Length);
        var index = tensor(rows).Send(_device).to(int64);
        // Padded positions read on into the next row; masks make their content irrelevant.
        var places = (_starts.index_select(0, index).unsqueeze(1) + arange(time, device: _device)).clamp_max_(sequences.TotalLength - 1).flatten();
        var elements = _elements.index_select(0, places);
        var padding = shortest == time ? null : new SequencePadding(_lengths.index_select(0, index), time);
        var labels = _labels.index_select(0, index);
        if (sequences.Channels > 0) return new(new(elements.view(rows.Length, time, sequences.Channels), padding), labels);
        if (_words is null) return new(new(elements.view(rows.Length, time).to(int64), padding), labels);
        var (words, number, _) = elements.to(int64).unique(sorted: true, return_inverse: true);
        return new(new(number!.view(rows.Length, time), padding, _words.index_select(0, words).to(int64)), labels);
    }

    private sealed class Reader(ResidentSource source, ReadOnlyMemory<int[]> plan) : IBatchReader
    {
        private int _next;

        public LabelledBatch Next() => source.Gather(plan.Span[_next++]);

        public void Dispose()
        {
        }
    }
}

/// <summary>The data set kept in host memory; batches are assembled on another thread ahead of need and sent to the device.</summary>
internal sealed class StreamedSource(SequenceData data, Device device) : IBatchSource
{
    private const int BatchesAhead = 4;

    public IBatchReader Open(ReadOnlyMemory<int[]> plan) => new Reader(data, device, plan);

    public void Dispose()
    {
    }

    private sealed class Reader : IBatchReader
    {
        private readonly System.Collections.Concurrent.BlockingCollection<LabelledBatch> _ready = new(BatchesAhead);
        private readonly CancellationTokenSource _stop = new();
        private readonly Task _producer;
        private readonly Device _device;

        public Reader(SequenceData data, Device device, ReadOnlyMemory<int[]> plan)
        {
            _device = device;
            _producer = Task.Run(() => Produce(data, device.type == DeviceType.CUDA, plan));
        }

        public LabelledBatch Next()
        {
            LabelledBatch batch;
            try
            {
                batch = _ready.Take();
            }
            catch (InvalidOperationException) when (_producer.IsFaulted) // the producer ended early: its reason is the one to report
            {
                _producer.GetAwaiter().GetResult();
                throw;
            }
            var padding = batch.Sequences.Padding is { } own ? new SequencePadding(Send(own.Lengths), own.Time) : null;
            return new(new(Send(batch.Sequences.Elements), padding, batch.Sequences.Words is { } words ? Send(words) : null), Send(batch.Labels));
        }

        public void Dispose()
        {
            _stop.Cancel();
            try
            {
                _producer.Wait();
            }
            catch (AggregateException)
            {
                // reported by Next, or no longer of interest
            }
            while (_ready.TryTake(out var batch))
                foreach (var part in Parts(batch)) part.Dispose();
            _ready.Dispose();
            _stop.Dispose();
        }

        // The producer's tensors belong to no scope; what is sent belongs to this thread's.
        private Tensor Send(Tensor host)
        {
            using (host) return _device.type == DeviceType.CPU ? host.alias() : host.to(_device, non_blocking: true);
        }

        private void Produce(SequenceData data, bool pin, ReadOnlyMemory<int[]> plan)
        {
            try
            {
                foreach (var rows in plan.ToArray())
                {
                    LabelledBatch batch;
                    using (var scope = NewDisposeScope())
                    {
                        var labels = tensor([.. rows.Select(row => (long)data.Labels[row])]);
                        batch = new(data.Sequences.Gather(rows, CPU), labels);
                        if (pin) batch = Pin(batch);
                        foreach (var part in Parts(batch)) part.DetachFromDisposeScope();
                    }
                    try
                    {
                        _ready.Add(batch, _stop.Token);
                    }
                    catch (OperationCanceledException)
                    {
                        foreach (var part in Parts(batch)) part.Dispose();
                        return;
                    }
                }
            }
            finally
            {
                _ready.CompleteAdding();
            }
        }

        private static LabelledBatch Pin(LabelledBatch batch) => new(
            new(batch.Sequences.Elements.pin_memory(), batch.Sequences.Padding is { } padding ? new SequencePadding(padding.Lengths.pin_memory(), padding.Time) : null,
                batch.Sequences.Words?.pin_memory()),
            batch.Labels.pin_memory());

        private static IEnumerable<Tensor> Parts(LabelledBatch batch)
            => new[] { batch.Sequences.Elements, batch.Sequences.Padding?.Lengths, batch.Sequences.Words, batch.Labels }.OfType<Tensor>();
    }
}
