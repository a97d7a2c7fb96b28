namespace MLSeq;

/// <summary>What the trainers of classifiers share.</summary>
public abstract class ClassificationOptions : TrainingOptions
{
    /// <summary>The label column: a key.</summary>
    public string LabelColumnName { get; set; } = "Label";

    /// <summary>The feature column.</summary>
    public string FeatureColumnName { get; set; } = "Features";

    /// <summary>The column of class probabilities that scoring adds.</summary>
    public string ScoreColumnName { get; set; } = "Score";

    /// <summary>The column of the likeliest class that scoring adds.</summary>
    public string PredictedLabelColumnName { get; set; } = "PredictedLabel";

    /// <summary>Probability of dropping a pooled feature while training.</summary>
    public double HeadDropout { get; set; } = 0.1;

    /// <summary>Weight of each class in the loss, in the order of the label's keys; null: all alike.</summary>
    public IReadOnlyList<double>? ClassWeights { get; set; }

    internal override IEnumerable<string> Problems()
    {
        foreach (var problem in base.Problems()) yield return problem;
        foreach (var (name, value) in new[] { (nameof(LabelColumnName), LabelColumnName), (nameof(FeatureColumnName), FeatureColumnName), (nameof(ScoreColumnName), ScoreColumnName), (nameof(PredictedLabelColumnName), PredictedLabelColumnName) })
            if (string.IsNullOrWhiteSpace(value)) yield return $"{name} is empty; expected a column's name.";
        if (HeadDropout is not (>= 0 and < 1)) yield return $"HeadDropout is {HeadDropout}; expected at least 0 and below 1.";
        foreach (var problem in WeightProblems(ClassWeights)) yield return problem;
    }

    internal override IEnumerable<object> FingerprintParts() => [.. base.FingerprintParts(), HeadDropout, .. (ClassWeights ?? []).Cast<object>()];
}
