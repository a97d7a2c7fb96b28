using System.Reflection;
using System.Runtime;
using TorchSharp;
using Xunit.Sdk;

namespace MLSeq.Tests.Support;

/// <summary>
/// Counts the tensors that some work leaves to the finalizer. The collector is held off meanwhile; the tensors it then finds are those that nobody disposed.
/// </summary>
/// <remarks>The difference of <c>Tensor.TotalCount</c> over the work would not do: TorchSharp counts a parameter's tensor twice and releases it once.</remarks>
internal sealed class TensorLeaks
{
    private const long Allocation = 200L << 20; // managed bytes that may be used while no collection runs

    private readonly bool _held;

    public TensorLeaks()
    {
        Collect(); // what earlier work left to its finalizers
        _held = GC.TryStartNoGCRegion(Allocation);
    }

    /// <summary>How many were left since the constructor.</summary>
    public long Count()
    {
        var collected = !_held || GCSettings.LatencyMode != GCLatencyMode.NoGCRegion;
        if (!collected) GC.EndNoGCRegion();
        var before = torch.Tensor.TotalCount;
        GC.Collect(0); // what is older than the constructor, a model of an earlier test for instance, is in a higher generation
        GC.WaitForPendingFinalizers();
        Xunit.Assert.False(collected, $"The test allocated more than {Allocation >> 20} MiB, so that a collection may have hidden a leak; make it smaller.");
        return before - torch.Tensor.TotalCount;
    }

    /// <summary>Frees what is unreachable; again while that frees tensors, because one finalized module can make the next one unreachable.</summary>
    public static void Collect()
    {
        for (var before = long.MaxValue; before > torch.Tensor.TotalCount;)
        {
            before = torch.Tensor.TotalCount;
            GC.Collect();
            GC.WaitForPendingFinalizers();
        }
    }
}

public sealed class TensorLeaksTests
{
    [Xunit.Fact]
    public void Tensors_left_to_the_finalizer_are_counted_and_disposed_ones_are_not()
    {
        MLSeqRuntime.EnsureLoaded();
        var leaks = new TensorLeaks();
        Use(left: 3);
        Xunit.Assert.Equal(3, leaks.Count());
        leaks = new TensorLeaks();
        Use(left: 0);
        Xunit.Assert.Equal(0, leaks.Count());
    }

    [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
    private static void Use(int left)
    {
        using (torch.NewDisposeScope()) torch.nn.Linear(2, 2).Dispose();
        for (var i = 0; i < left; i++) torch.zeros(2);
    }
}

/// <summary>Fails a test that leaves tensors undisposed.</summary>
/// <remarks>Networks of fitted models live as long as the model; such a test frees them with <see cref="Models.Release"/>.</remarks>
[AttributeUsage(AttributeTargets.Method | AttributeTargets.Class)]
public sealed class NoTensorLeaksAttribute : BeforeAfterTestAttribute
{
    private TensorLeaks? _leaks;

    public override void Before(MethodInfo methodUnderTest)
    {
        MLSeqRuntime.EnsureLoaded();
        _leaks = new TensorLeaks();
    }

    public override void After(MethodInfo methodUnderTest)
    {
        var left = _leaks!.Count();
        Xunit.Assert.True(left == 0, $"{methodUnderTest.Name} left {left} tensors undisposed.");
    }
}
