using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>One pre-norm residual block: <c>x = x + mixer(norm(x)); x = x + mlp(norm(x))</c>.</summary>
/// <remarks>A block leaves its last sum to the norm that follows, which computes it in passing (<see cref="AddNorm"/>).</remarks>
internal sealed class ResidualBlock : nn.Module<Tensor, Tensor?, SequencePadding?, MixerState?, (Tensor X, Tensor Update)>
{
    private readonly LayerNorm mixerNorm;
    private readonly TokenMixer mixer;
    private readonly LayerNorm? mlpNorm;
    private readonly SwiGlu? mlp;
    private readonly ResidualUpdate mixerUpdate;
    private readonly ResidualUpdate? mlpUpdate;

    /// <param name="backbone">Gives the mixer, the width, the MLP and the dropout.</param>
    /// <param name="layer">Which block it is.</param>
    /// <param name="dropPath">See <see cref="ResidualUpdate"/>, like <paramref name="layerScale"/>; sequence models use neither.</param>
    /// <param name="layerScale">0: none.</param>
    public ResidualBlock(Backbone backbone, int layer, double dropPath = 0, double layerScale = 0) : base(nameof(ResidualBlock))
    {
        ResidualUpdate Update() => new(backbone.Width, backbone.Dropout, dropPath, layerScale);

        mixerNorm = nn.LayerNorm(backbone.Width);
        mixer = backbone.CreateMixer(layer);
        mixerUpdate = Update();
        if (backbone.MlpWidth > 0)
        {
            mlpNorm = nn.LayerNorm(backbone.Width);
            mlp = new SwiGlu(backbone.Width, backbone.MlpWidth);
            mlpUpdate = Update();
        }
        RegisterComponents();
    }

    /// <param name="x">[batch, time, width].</param>
    /// <param name="update">What is still to be added to x; null: nothing.</param>
    /// <param name="padding">See <see cref="TokenMixer.forward"/>, like <paramref name="state"/>.</param>
    /// <param name="state">What precedes.</param>
    /// <returns>The block's result is the sum of both.</returns>
    public override (Tensor X, Tensor Update) forward(Tensor x, Tensor? update, SequencePadding? padding, MixerState? state)
    {
        (x, var normed) = AddNorm.Run(x, update, mixerNorm);
        update = mixerUpdate.call(mixer.call(normed, padding, state));
        if (mlp is null) return (x, update);
        (x, normed) = AddNorm.Run(x, update, mlpNorm!);
        return (x, mlpUpdate!.call(mlp.call(normed)));
    }

    /// <summary><see cref="forward"/> over spans, in place; null when the mixer has no such form.</summary>
    internal SpanUpdate? OverSpans()
    {
        if (mixer.OverSpans() is not { } mix) return null;
        var (normalize, update) = (mixerNorm.OverSpans(), mixerUpdate.OverSpans());
        var (normalizeForMlp, applyMlp, updateOfMlp) = (mlpNorm?.OverSpans(), mlp?.OverSpans(), mlpUpdate?.OverSpans());
        return (x, state, work) =>
        {
            using var frame = work.Open();
            var normal = work.Take(x.Count, x.Width);
            var change = work.Take(x.Count, x.Width);
            x.CopyTo(normal);
            normalize(normal, null, work);
            mix(normal, change, state, work);
            update(change, null, work);
            for (var t = 0; t < x.Count; t++) x[t].Add(change[t]);
            if (state is not null) state.Position += x.Count;
            if (applyMlp is null) return;
            x.CopyTo(normal);
            normalizeForMlp!(normal, null, work);
            applyMlp(normal, change, null, work);
            updateOfMlp!(change, null, work);
            for (var t = 0; t < x.Count; t++) x[t].Add(change[t]);
        };
    }
}

/// <summary>A backbone's module: its residual blocks and a last norm, [batch, time, width] to [batch, time, width].</summary>
internal sealed class SequenceStack : nn.Module<Tensor, SequencePadding?, IReadOnlyList<MixerState>?, Tensor>
{
    private readonly ModuleList<ResidualBlock> blocks;
    private readonly LayerNorm norm;

    public SequenceStack(Backbone backbone) : base(nameof(SequenceStack))
    {
        backbone.Validate();
        blocks = nn.ModuleList(Enumerable.Range(0, backbone.Depth).Select(layer => new ResidualBlock(backbone, layer)).ToArray());
        norm = nn.LayerNorm(backbone.Width);
        RegisterComponents();
    }

    /// <param name="x">[batch, time, width].</param>
    /// <param name="padding">Which positions are real; null when all are.</param>
    /// <param name="states">One per block: the sequence goes on from there, see <see cref="TokenMixer.forward"/>. Null: nothing precedes.</param>
    public override Tensor forward(Tensor x, SequencePadding? padding, IReadOnlyList<MixerState>? states)
    {
        Tensor? update = null;
        for (var i = 0; i < blocks.Count; i++) (x, update) = blocks[i].call(x, update, padding, states?[i]);
        return AddNorm.Run(x, update, norm).Norm;
    }

    /// <summary><see cref="forward"/> over spans, in place, with one state per block; null when a mixer has no such form.</summary>
    internal SpanStack? OverSpans()
    {
        var updates = blocks.Select(block => block.OverSpans()).ToArray();
        if (updates.Contains(null)) return null;
        var normalize = norm.OverSpans();
        return (x, states, work) =>
        {
            for (var i = 0; i < updates.Length; i++) updates[i]!(x, states?[i], work);
            normalize(x, null, work);
        };
    }
}
