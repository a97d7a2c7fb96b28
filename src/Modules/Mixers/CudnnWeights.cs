using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// cuDNN wants the weights of a recurrent layer at the start of one storage, in its own order; otherwise libtorch copies them together at every call and
/// says so on standard error each time.
/// </summary>
internal static class CudnnWeights
{
    /// <summary>Lays out the recurrent layers of a network on CUDA as cuDNN wants it.</summary>
    /// <returns>The names of their parameters, which must keep this storage; none on the CPU.</returns>
    public static HashSet<string> Compact(nn.Module network, Device device)
    {
        var names = new HashSet<string>();
        if (device.type != DeviceType.CUDA) return names;
        foreach (var (name, module) in network.named_modules())
        {
            switch (module)
            {
                case RNN rnn: rnn.flatten_parameters(); break;
                case LSTM lstm: lstm.flatten_parameters(); break;
                case GRU gru: gru.flatten_parameters(); break;
                default: continue;
            }
            foreach (var (parameter, _) in module.named_parameters()) names.Add($"{name}.{parameter}");
        }
        return names;
    }

    /// <summary>Moves a network to a device, recurrent layers compact.</summary>
    public static void MoveTo(this nn.Module network, Device device)
    {
        network.to(device);
        Compact(network, device);
    }
}
