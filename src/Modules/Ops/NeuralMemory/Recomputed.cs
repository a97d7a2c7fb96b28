using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// A stretch of a neural memory's sequence whose inner results are computed again in the backward pass: autograd would keep some twenty copies of the memory for every chunk, this keeps one per stretch.
/// </summary>
/// <remarks>Chen et al., "Training deep nets with sublinear memory cost", 2016.</remarks>
internal sealed class RecomputedMemory : OperatorFunction<RecomputedMemory>
{
    private const int Sequences = 6; // q, k, v, θ, log η, log (1 − α)

    /// <summary>As <see cref="NeuralMemory.Stretch"/>.</summary>
    public static (Tensor Output, NeuralMemoryState State) Run(Tensor[] sequences, NeuralMemoryState state, int chunk)
    {
        var outputs = OperatorFunction<RecomputedMemory>.Run([.. sequences, .. state.Memory, .. state.Momentum, .. state.ChunkStart, state.Seen, chunk]);
        return (outputs[0], State(outputs[1..], state.Seen + sequences[0].shape[2]));
    }

    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        Tensor[] tensors = [.. inputs.OfType<Tensor>()];
        context.save_data("seen", (long)inputs[^2]!);
        context.save_data("chunk", (int)inputs[^1]!);
        return (Outputs(tensors, (long)inputs[^2]!, (int)inputs[^1]!), tensors);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        using var _ = enable_grad();
        Tensor[] leaves = [.. saved.Select(tensor => tensor!.detach().requires_grad_())];
        var outputs = Outputs(leaves, (long)context.get_data("seen"), (int)context.get_data("chunk"));
        var wanted = Enumerable.Range(0, outputs.Length).Where(i => gradients[i] is not null).ToArray();
        var result = autograd.grad([.. wanted.Select(i => outputs[i])], leaves, [.. wanted.Select(i => gradients[i]!)], allow_unused: true);
        return [.. result.Select(gradient => gradient.IsInvalid ? null : gradient), null, null];
    }

    // The output, then memory, momentum and the open chunk's start of every layer; copies, because an output must not be an input.
    private static Tensor[] Outputs(Tensor[] tensors, long seen, int chunk)
    {
        var (output, state) = NeuralMemory.Stretch(tensors[..Sequences], State(tensors[Sequences..], seen), chunk);
        return [output, .. state.Memory, .. state.Momentum, .. state.ChunkStart.Select(layer => layer.clone())];
    }

    private static NeuralMemoryState State(Tensor[] parts, long seen)
    {
        var layers = parts.Length / 3;
        return new NeuralMemoryState(parts[..layers], parts[layers..(2 * layers)], parts[(2 * layers)..], seen);
    }
}
