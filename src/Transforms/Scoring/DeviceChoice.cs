using Microsoft.ML.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>Where to compute: a device named in options, else ML.NET's GPU setting, else the first CUDA device, else the CPU.</summary>
internal static class DeviceChoice
{
    /// <summary>Resolves a device.</summary>
    /// <param name="env">Gives <c>MLContext.GpuDeviceId</c> and <c>FallbackToCpu</c>.</param>
    /// <param name="name"><c>cpu</c>, <c>cuda</c>, <c>cuda:1</c>, or null to choose.</param>
    /// <param name="say">Told why the CPU is used although a GPU was asked for.</param>
    /// <exception cref="ArgumentException">The name is no device, or names one that cannot be used.</exception>
    public static Device Resolve(IHostEnvironment env, string? name, Action<string> say)
    {
        MLSeqRuntime.EnsureLoaded();
        if (name is not null) return Named(name);
        if (env is not IHostEnvironmentInternal { GpuDeviceId: { } gpu } host)
            return cuda.is_available() ? CUDA : CPU;
        if (cuda.is_available() && gpu >= 0 && gpu < cuda.device_count()) return device(DeviceType.CUDA, gpu);
        var reason = $"MLContext.GpuDeviceId is {gpu}, but {(cuda.is_available() ? $"there are only {cuda.device_count()} CUDA devices" : "no CUDA device can be used (see MLSeqRuntime.Diagnose())")}.";
        if (!host.FallbackToCpu) throw new ArgumentException($"{reason} Set FallbackToCpu, or another GpuDeviceId.");
        say($"{reason} Computing on the CPU.");
        return CPU;
    }

    private static Device Named(string name)
    {
        var parts = name.Trim().ToLowerInvariant().Split(':');
        if (parts is ["cpu"]) return CPU;
        if (parts is ["cuda"] or ["cuda", _])
        {
            var index = parts.Length == 1 ? 0 : int.TryParse(parts[1], out var parsed) ? parsed : -1;
            if (cuda.is_available() && index >= 0 && index < cuda.device_count()) return device(DeviceType.CUDA, index);
            throw new ArgumentException($"Device '{name}' was asked for, but {(cuda.is_available() ? $"the CUDA devices are 0 to {cuda.device_count() - 1}" : "no CUDA device can be used; MLSeqRuntime.Diagnose() tells why")}.");
        }
        throw new ArgumentException($"'{name}' is no device; expected cpu, cuda or cuda:N.");
    }
}
