using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Sending small things to the device while it works.</summary>
internal static class HostTensors
{
    /// <summary>A host tensor on the device. To CUDA it goes through pinned memory: an ordinary copy would first wait for all work that the device still has to do.</summary>
    public static Tensor Send(this Tensor host, Device device) => device.type == DeviceType.CPU ? host : host.pin_memory().to(device, non_blocking: true);
}
