using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>One pre-norm residual block: <c>x = x + mixer(norm(x)); x = x + mlp(norm(x))</c>.</summary>
internal sealed class ResidualBlock : nn.Module<Tensor, SequencePadding?, MixerState?, Tensor>
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

    public override Tensor forward(Tensor x, SequencePadding? padding, MixerState? state)
    {
        x = x + mixerUpdate.call(mixer.call(mixerNorm.call(x), padding, state));
        return mlp is null ? x : x + mlpUpdate!.call(mlp.call(mlpNorm!.call(x)));
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
        for (var i = 0; i < blocks.Count; i++) x = blocks[i].call(x, padding, states?[i]);
        return norm.call(x);
    }
}
