using static TorchSharp.torch;

namespace MLSeq;

/// <summary>What a network has learned.</summary>
internal static class NamedTensors
{
    /// <summary>All parameters and buffers by name, in the order of the modules.</summary>
    public static IReadOnlyList<(string Name, Tensor Value)> State(this nn.Module network)
        => [.. network.named_parameters().Select(entry => (entry.name, (Tensor)entry.parameter)), .. network.named_buffers().Select(entry => (entry.name, entry.buffer))];
}
