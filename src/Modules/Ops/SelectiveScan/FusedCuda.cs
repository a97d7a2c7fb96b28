using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// The fused form of <see cref="SelectiveScan"/> on CUDA (selective_scan.cu): the states never leave the registers but for one every <see cref="ScanPlan.Chunk"/> positions, from which the gradient computes
/// the others again.
/// </summary>
internal sealed class FusedCudaSelectiveScan : OperatorFunction<FusedCudaSelectiveScan>
{
    private const int MostBatches = 65535, LinkThreads = 256; // of a grid's last dimension; of a block of the kernel that links segments

    /// <summary>Whether the kernels serve these tensors.</summary>
    public static bool Serves(Tensor x, Tensor a)
        => CudaElements.Name(x.dtype) is not null && a.shape[1] is > 0 and <= ScanPlan.MostStates && x.shape[0] is > 0 and <= MostBatches && x.shape[2] > 0 && CudaKernel.CanRunOn(x);

    /// <inheritdoc cref="SelectiveScan.Run"/>
    /// <param name="x">Input, [b, t, c].</param>
    /// <param name="delta">Step Δ, [b, t, c].</param>
    /// <param name="a">A, [c, n].</param>
    /// <param name="inputMap">B, [b, t, n].</param>
    /// <param name="outputMap">C, [b, t, n].</param>
    /// <param name="initialState">h_0, [b, c, n]; null for zero.</param>
    /// <param name="segment">Chunks that a block walks through; 0 chooses.</param>
    public static (Tensor Output, Tensor FinalState) Run(Tensor x, Tensor delta, Tensor a, Tensor inputMap, Tensor outputMap, Tensor? initialState, int segment = 0)
    {
        if (CudaElements.Name(delta.dtype) is null) delta = delta.to(float32);
        (a, inputMap, outputMap, initialState) = (a.to(float32), inputMap.to(x.dtype), outputMap.to(x.dtype), initialState?.to(float32));
        var outputs = Run(x, delta, a, inputMap, outputMap, initialState, (long)segment, HasGradient(x, delta, a, inputMap, outputMap, initialState));
        return (outputs[0], outputs[1]);
    }

    // Inputs: x, Δ, A, B, C, initialState?, segment, whether a gradient will be asked for.
    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (x, delta, a) = (CudaElements.Rows((Tensor)inputs[0]!), CudaElements.Rows((Tensor)inputs[1]!), ((Tensor)inputs[2]!).contiguous());
        var (b, c, initial) = (CudaElements.Rows((Tensor)inputs[3]!), CudaElements.Rows((Tensor)inputs[4]!), ((Tensor?)inputs[5])?.contiguous());
        var plan = ScanPlan.For(x, delta, a, gradient: false);
        var scan = new Scan(plan, x, delta, a, b, c, initial, (int)(long)inputs[6]!) { Aligned = CudaSequence.Alignment(x, delta) == CudaElements.PackBytes ? 1 : 0 };
        var (y, final) = (empty(x.shape, x.dtype, x.device), empty([x.shape[0], .. a.shape], float32, x.device));
        var starts = (bool)inputs[7]! ? empty([x.shape[0], scan.Chunks, x.shape[2], plan.Padded], float32, x.device) : null;
        (scan.Y, scan.Final, scan.Starts) = (CudaKernel.Address(y), CudaKernel.Address(final), CudaElements.AddressOrNull(starts));
        Launch("forward", plan, scan, x, plan.SharedBytes);
        context.save_data("segment", inputs[6]!);
        return ([y, final], [x, delta, a, b, c, initial, starts]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (x, delta, a, b, c, initial, starts) = (saved[0]!, saved[1]!, saved[2]!, saved[3]!, saved[4]!, saved[5], saved[6]!);
        var (dy, dFinal) = (CudaElements.Rows(gradients[0] ?? zeros_like(x)), gradients[1]?.contiguous());
        var plan = ScanPlan.For(x, delta, a, gradient: true);
        var scan = new Scan(plan, x, delta, a, b, c, initial, (int)(long)context.get_data("segment")) { Dy = new(dy), Aligned = CudaSequence.Alignment(x, delta, dy) == CudaElements.PackBytes ? 1 : 0 };
        Tensor New(ScalarType type, params long[] shape) => empty(shape, type, x.device);
        var (dx, dDelta, dInitial) = (New(x.dtype, x.shape), New(delta.dtype, delta.shape), initial is null ? null : New(float32, initial.shape));
        // What several blocks add to is summed afterwards, always in the same order.
        var (dA, dB, dC) = (New(float32, [x.shape[0] * scan.Segments, .. a.shape]), New(float32, [plan.Blocks(x), .. b.shape]), New(float32, [plan.Blocks(x), .. c.shape]));
        (scan.Starts, scan.DFinal, scan.DInitial) = (CudaKernel.Address(starts), CudaElements.AddressOrNull(dFinal), CudaElements.AddressOrNull(dInitial));
        (scan.Dx, scan.DDelta, scan.DA, scan.DB, scan.DC) = (CudaKernel.Address(dx), CudaKernel.Address(dDelta), CudaKernel.Address(dA), CudaKernel.Address(dB), CudaKernel.Address(dC));
        Launch("backward", plan, scan, x, plan.GradientSharedBytes);
        return [dx, dDelta, dA.sum([0L]), dB.sum([0L]).to(b.dtype), dC.sum([0L]).to(c.dtype), dInitial, null, null];
    }

    private static void Launch(string pass, ScanPlan plan, Scan scan, Tensor x, int sharedBytes)
    {
        CudaKernel Kernel(string name) => CudaKernel.Get("selective_scan", $"selective_scan_{name}", plan.Defines);
        var (batch, channels) = ((int)x.shape[0], scan.Channels);
        var grid = (plan.Blocks(x), scan.Segments, batch);
        if (scan.Segments > 1)
        {
            var (links, totals) = (empty([batch, scan.Segments, channels, plan.Padded], float32, x.device), empty([batch, scan.Segments, channels], float32, x.device));
            (scan.Links, scan.Totals) = (CudaKernel.Address(links), CudaKernel.Address(totals));
            Kernel($"{pass}_ends").Launch(in scan, grid, plan.Threads, plan.SharedBytes);
            Kernel($"link_{pass}").Launch(in scan, (CudaElements.Blocks((long)channels * plan.Padded, LinkThreads), 1, batch), LinkThreads);
        }
        Kernel(pass).Launch(in scan, grid, plan.Threads, sharedBytes);
    }

    /// <summary>Scan of the kernel file, which says what the fields are.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct Scan
    {
        public CudaSequence X, Delta;
        public nint A;
        public CudaSequence B, C;
        public nint Initial, Final, Y, Starts, Links, Totals;
        public CudaSequence Dy;
        public nint DFinal, Dx, DDelta, DA, DB, DC, DInitial;
        public int Time, Channels, Chunks, Segment, Aligned;

        public Scan(ScanPlan plan, Tensor x, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? initial, int segment)
        {
            (X, Delta, A, B, C, Initial) = (new(x), new(delta), CudaKernel.Address(a), new(b), new(c), CudaElements.AddressOrNull(initial));
            (Time, Channels) = ((int)x.shape[1], (int)x.shape[2]);
            Chunks = (Time + plan.Chunk - 1) / plan.Chunk;
            Segment = segment > 0 ? segment : plan.Segment(x, Chunks);
        }

        public readonly int Segments => (Chunks + Segment - 1) / Segment;
    }
}
