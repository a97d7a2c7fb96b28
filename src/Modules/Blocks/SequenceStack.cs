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
    private readonly double _dropout;

    public ResidualBlock(Backbone backbone, int layer) : base(nameof(ResidualBlock))
    {
        mixerNorm = nn.LayerNorm(backbone.Width);
        mixer = backbone.CreateMixer(layer);
        if (backbone.MlpWidth > 0)
        {
            mlpNorm = nn.LayerNorm(backbone.Width);
            mlp = new SwiGlu(backbone.Width, backbone.MlpWidth);
        }
        _dropout = backbone.Dropout;
        RegisterComponents();
    }

    public override Tensor forward(Tensor x, SequencePadding? padding, MixerState? state)
    {
        x = x + Drop(mixer.call(mixerNorm.call(x), padding, state));
        return mlp is null ? x : x + Drop(mlp.call(mlpNorm!.call(x)));
    }

    private Tensor Drop(Tensor update) => training && _dropout > 0 ? nn.functional.dropout(update, _dropout) : update;
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
