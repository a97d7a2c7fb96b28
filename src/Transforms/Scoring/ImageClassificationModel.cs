using Microsoft.ML;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>A trained image classifier ready to score: network, input and device. Used by many threads at once; nothing in it changes.</summary>
internal sealed class ImageClassificationModel
{
    /// <summary>Bound on rows × pixels × channels of a batch.</summary>
    private const long BatchElements = 1 << 23;

    public ImageClassificationModel(ImageClassifierSpec spec, ImageInput input, ImageClassifier network, Device device, ImageFlips testTimeFlips)
    {
        (Spec, Input, Network, Device, TestTimeFlips) = (spec, input, network, device, testTimeFlips);
        network.eval();
    }

    public ImageClassifierSpec Spec { get; }

    public ImageInput Input { get; }

    public ImageClassifier Network { get; }

    public Device Device { get; }

    /// <summary>Mirror images over which probabilities are averaged, with the image itself.</summary>
    public ImageFlips TestTimeFlips { get; }

    /// <summary>Reads rows of a cursor and scores them.</summary>
    public ScoringSession CreateSession(DataViewRow row, DataViewSchema.Column features) => new Session(this, Input.CreateReader(row, features));

    /// <summary>Class probabilities, [images, classes].</summary>
    private void Score(IReadOnlyList<Func<PixelImage>> images, float[] probabilities)
    {
        var batchRows = (int)Math.Clamp(BatchElements / ((long)Input.Height * Input.Width * Input.Channels), 1, 256);
        for (var from = 0; from < images.Count; from += batchRows)
        {
            var fitted = ManyCores.Select([.. images.Skip(from).Take(batchRows)], load => load());
            using var scope = NewDisposeScope();
            using var _ = inference_mode();
            var batch = Input.Stack(fitted, Device);
            var scores = TestTimeFlips.Average(batch, images => Network.call(images).softmax(1), restore: false);
            scores.cpu().data<float>().ToArray().CopyTo(probabilities, from * Spec.Classes);
        }
    }

    private sealed class Session(ImageClassificationModel model, Func<Func<PixelImage>> read) : ScoringSession
    {
        private readonly ClassScores _scores = new(model.Spec.Classes);
        private readonly List<Func<PixelImage>> _images = [];

        // Files are decoded when they are scored; other images are fitted at once, so that a batch of photographs is not held in full size.
        public override void Append()
        {
            var load = read();
            if (model.Input.Kind == ImageColumnKind.File)
            {
                _images.Add(() => model.Input.Fitted(load()));
                return;
            }
            var fitted = model.Input.Fitted(load());
            _images.Add(() => fitted);
        }

        public override void Score()
        {
            model.Score(_images, _scores.Rows(_images.Count));
            _images.Clear();
        }

        public override Delegate CreateGetter(int output, Func<int> row) => _scores.CreateGetter(output, row);
    }
}
