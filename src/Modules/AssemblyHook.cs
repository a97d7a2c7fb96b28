using System.Runtime.CompilerServices;
using MLSeq.Native;

namespace MLSeq;

internal static class AssemblyHook
{
#pragma warning disable CA2255 // touching the runtime's assembly installs its hook before TorchSharp is used
    [ModuleInitializer]
    internal static void OnLoad() => LibTorchLoader.Register();
#pragma warning restore CA2255
}
