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
}
