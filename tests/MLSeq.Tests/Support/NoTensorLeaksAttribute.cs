using System.Reflection;
using TorchSharp;
using Xunit.Sdk;

namespace MLSeq.Tests.Support;

/// <summary>
/// Fails a test that leaves tensors undisposed. What a finalizer frees counts as left: the collector is held off while the test runs.
/// </summary>
/// <remarks>Networks of fitted models live as long as the model; such a test frees them with <see cref="Models.Release"/>.</remarks>
[AttributeUsage(AttributeTargets.Method | AttributeTargets.Class)]
public sealed class NoTensorLeaksAttribute : BeforeAfterTestAttribute
{
    private const long Allocation = 200L << 20; // managed bytes a test may use while no collection runs

    private long _before;
    private bool _held;

    public override void Before(MethodInfo methodUnderTest)
    {
        MLSeqRuntime.EnsureLoaded();
        GC.Collect();
        GC.WaitForPendingFinalizers(); // what earlier tests left to their finalizers
        GC.Collect();
        _held = GC.TryStartNoGCRegion(Allocation);
        _before = torch.Tensor.TotalCount;
    }

    public override void After(MethodInfo methodUnderTest)
    {
        var left = torch.Tensor.TotalCount - _before;
        var collected = _held && System.Runtime.GCSettings.LatencyMode != System.Runtime.GCLatencyMode.NoGCRegion;
        if (_held && !collected) GC.EndNoGCRegion();
        Xunit.Assert.True(left == 0, $"{methodUnderTest.Name} left {left} tensors undisposed.");
        Xunit.Assert.False(collected || !_held, $"{methodUnderTest.Name} allocated more than {Allocation >> 20} MiB, so that a collection may have hidden a leak; make the test smaller.");
    }
}
