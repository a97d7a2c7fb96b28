using Microsoft.ML;
using Microsoft.ML.Data;
using MLSeq;

namespace MLSeq
{
    /// <summary>Follows one sequence as it arrives: takes the next element, returns the prediction for all elements so far.</summary>
    /// <remarks>
    /// <para>Each element costs the same, however many came before it, and the state has a constant size (a Transformer without a window excepted: it keeps all keys and values). The predictions are
    /// those of the batch, up to rounding: after n elements, what <c>Transform</c> says of the sequence of these n.</para>
    /// <para>Like ML.NET's PredictionEngine it serves one thread; engines of many streams share one model.</para>
    /// </remarks>
    /// <typeparam name="TElement">The next piece of the sequence, with the columns of a row of training: for text, the next words in its text property; for series, the numbers of the next time (or of
    /// several); for token ids, the next ones. A label is not needed.</typeparam>
    /// <typeparam name="TPrediction">What to read of the prediction, as for a PredictionEngine.</typeparam>
    public sealed class StreamingEngine<TElement, TPrediction> : IDisposable
        where TElement : class
        where TPrediction : class, new()
    {
        private readonly StreamingScorer _scorer;
        private readonly PredictionEngine<TElement, TPrediction> _engine;

        internal StreamingEngine(ModelOperationsCatalog catalog, ITransformer model, PredictionEngineOptions? options)
        {
            ArgumentNullException.ThrowIfNull(model);
            var steps = Flattened(model).ToList();
            var classifiers = steps.OfType<SequenceClassificationTransformer>().ToList();
            if (classifiers.Count != 1)
                throw new ArgumentException($"The model has {classifiers.Count} sequence classifiers; expected one, trained with SequenceClassification.", nameof(model));
            _scorer = new StreamingScorer(classifiers[0].Model);
            var schema = new MLContext().Data.LoadFromEnumerable(Array.Empty<TElement>(), options?.InputSchemaDefinition).Schema;
            var chain = Applicable(steps, classifiers[0], new StreamingTransformer(classifiers[0], _scorer), schema);
            _engine = catalog.CreatePredictionEngine<TElement, TPrediction>(new TransformerChain<ITransformer>([.. chain]), new PredictionEngineOptions
            {
                InputSchemaDefinition = options?.InputSchemaDefinition, OutputSchemaDefinition = options?.OutputSchemaDefinition, IgnoreMissingColumns = options?.IgnoreMissingColumns ?? true, OwnsTransformer = false,
            });
        }

        /// <summary>Elements so far (words, bytes, tokens or times; a piece may bring several).</summary>
        public long Position => _scorer.Position;

        /// <summary>Bytes that the memory of the past takes.</summary>
        public long StateBytes => _scorer.StateBytes;

        /// <summary>Takes in the next piece and predicts from all so far. A piece without elements changes nothing.</summary>
        /// <exception cref="InvalidOperationException"><typeparamref name="TPrediction"/> reads nothing that depends on the sequence.</exception>
        public TPrediction Predict(TElement element)
        {
            ArgumentNullException.ThrowIfNull(element);
            var before = _scorer.Scored;
            var prediction = _engine.Predict(element);
            if (_scorer.Scored == before)
                throw new InvalidOperationException($"{typeof(TPrediction).Name} has no property that depends on the classifier, so the element was not read; give it a Score or a PredictedLabel.");
            return prediction;
        }

        /// <summary>Forgets all elements: the next one begins a new sequence.</summary>
        public void Reset() => _scorer.Reset();

        /// <summary>Writes the memory of the past, bit for bit; <see cref="Restore(Stream)"/> goes on from there, in this process or another.</summary>
        public void CheckPoint(Stream stream)
        {
            ArgumentNullException.ThrowIfNull(stream);
            _scorer.Save(stream);
        }

        /// <summary>Writes the memory of the past into a file, which is replaced only when the new one is complete.</summary>
        public void CheckPoint(string path)
        {
            ArgumentException.ThrowIfNullOrEmpty(path);
            AtomicFile.Write(path, _scorer.Save);
        }

        /// <summary>Goes on from what <see cref="CheckPoint(Stream)"/> wrote.</summary>
        /// <exception cref="FormatException">The stream is damaged or holds the state of another model. The engine stays as it was.</exception>
        public void Restore(Stream stream)
        {
            ArgumentNullException.ThrowIfNull(stream);
            _scorer.Load(stream);
        }

        /// <summary>Goes on from what <see cref="CheckPoint(string)"/> wrote.</summary>
        /// <inheritdoc cref="Restore(Stream)"/>
        public void Restore(string path)
        {
            using var stream = File.OpenRead(path);
            _scorer.Load(stream);
        }

        /// <inheritdoc/>
        public void Dispose()
        {
            _engine.Dispose();
            _scorer.Dispose();
        }

        private static IEnumerable<ITransformer> Flattened(ITransformer model)
            => model is IEnumerable<ITransformer> chain ? chain.SelectMany(Flattened) : [model];

        // What comes before the classifier and needs a column that elements lack is left out: the mapping of the label, typically. Any other mismatch is an error: leaving out a
        // normalization of the features, for example, would give wrong predictions without a word.
        private static IEnumerable<ITransformer> Applicable(List<ITransformer> steps, SequenceClassificationTransformer classifier, StreamingTransformer streaming, DataViewSchema schema)
        {
            var at = steps.IndexOf(classifier);
            for (var i = 0; i < steps.Count; i++)
            {
                var step = i == at ? streaming : steps[i];
                try
                {
                    schema = step.GetOutputSchema(schema);
                }
                catch (Exception e) when (i < at && e.Message.Contains("Could not find", StringComparison.Ordinal)) // ML.NET's words for a missing column
                {
                    continue;
                }
                yield return step;
            }
        }
    }
}

namespace Microsoft.ML
{
    /// <summary>MLSeq's additions to <c>ml.Model</c>.</summary>
    public static class MLSeqModelCatalog
    {
        /// <summary>Makes an engine that follows one sequence as it arrives.</summary>
        /// <typeparam name="TElement">The next piece of the sequence; see <see cref="StreamingEngine{TElement, TPrediction}"/>.</typeparam>
        /// <typeparam name="TPrediction">What to read of the prediction.</typeparam>
        /// <param name="catalog"><c>ml.Model</c>.</param>
        /// <param name="model">A model with one sequence classifier whose backbone is not bidirectional; it may have other steps before and after it.</param>
        /// <param name="options">Schemas of element and prediction, as for a PredictionEngine.</param>
        /// <exception cref="ArgumentException">The model has no sequence classifier, or several.</exception>
        /// <exception cref="NotSupportedException">The model's backbone looks ahead.</exception>
        public static StreamingEngine<TElement, TPrediction> CreateStreamingEngine<TElement, TPrediction>(this ModelOperationsCatalog catalog, ITransformer model, PredictionEngineOptions? options = null)
            where TElement : class
            where TPrediction : class, new()
            => new(catalog, model, options);
    }
}
