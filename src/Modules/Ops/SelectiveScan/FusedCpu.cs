using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>The fused form of <see cref="SelectiveScan"/> on a CPU: src/Native/cpu/selective_scan.cpp.</summary>
internal sealed class FusedCpuSelectiveScan : OperatorFunction<FusedCpuSelectiveScan>
{
    private const long Block = 16, WidestVector = 16; // of the kernel: steps between the states that are kept; floats of a vector

    /// <summary>ScanParameters of the kernel.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public int Batch, Time, Channels, States, Threads, Reserved;
        public CpuView X, Delta, B, C, Y;
        public nint A, Initial, Last, Starts;
        public CpuView DY, DX, DDelta, DB, DC;
        public nint DA, DLast, DInitial;

        public Parameters(Tensor x, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? initial, Tensor? starts)
        {
            (Batch, Time, Channels, States, Threads) = ((int)x.shape[0], (int)x.shape[1], (int)x.shape[2], (int)a.shape[1], get_num_threads());
            (X, Delta, B, C) = (CpuView.OfRows(x), CpuView.OfRows(delta), CpuView.OfRows(b), CpuView.OfRows(c));
            (A, Initial, Starts) = (CpuKernels.Address(a), CpuKernels.Address(initial), CpuKernels.Address(starts));
        }
    }

    /// <summary>As <see cref="SelectiveScan.Run"/>.</summary>
    public static (Tensor Output, Tensor FinalState) Run(Tensor x, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? initialState)
    {
        var outputs = OperatorFunction<FusedCpuSelectiveScan>.Run(x, delta, a, b, c, initialState, HasGradient(x, delta, a, b, c, initialState));
        return (outputs[0], outputs[1]);
    }

    // Inputs: x, Δ, A, B, C, initialState?, whether a gradient will be asked for.
    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (x, delta, a) = (((Tensor)inputs[0]!).WithRows(), ((Tensor)inputs[1]!).WithRows(), ((Tensor)inputs[2]!).contiguous());
        var (b, c, initial) = (((Tensor)inputs[3]!).WithRows(), ((Tensor)inputs[4]!).WithRows(), ((Tensor?)inputs[5])?.contiguous());
        var blocks = (x.shape[1] + Block - 1) / Block;
        var starts = (bool)inputs[6]! ? empty([x.shape[0], blocks, a.shape[1], (x.shape[2] + WidestVector - 1) / WidestVector * WidestVector], float32) : null;
        var (y, last) = (empty(x.shape, float32), empty([x.shape[0], .. a.shape], float32));
        CpuKernels.Run("scan_forward", new Parameters(x, delta, a, b, c, initial, starts) { Y = CpuView.OfRows(y), Last = CpuKernels.Address(last) });
        return ([y, last], [x, delta, a, b, c, initial, starts]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (x, delta, a, b, c, initial, starts) = (saved[0]!, saved[1]!, saved[2]!, saved[3]!, saved[4]!, saved[5], saved[6]!);
        var (dy, dLast) = (gradients[0]?.WithRows() ?? zeros(x.shape, float32), gradients[1]?.contiguous());
        var (dx, dDelta, da, db, dc) = (empty(x.shape, float32), empty(x.shape, float32), empty(a.shape, float32), empty(b.shape, float32), empty(c.shape, float32));
        var dInitial = initial is null ? null : empty(initial.shape, float32);
        CpuKernels.Run("scan_backward", new Parameters(x, delta, a, b, c, initial, starts)
        {
            DY = CpuView.OfRows(dy),
            DX = CpuView.OfRows(dx),
            DDelta = CpuView.OfRows(dDelta),
            DB = CpuView.OfRows(db),
            DC = CpuView.OfRows(dc),
            DA = CpuKernels.Address(da),
            DLast = CpuKernels.Address(dLast),
            DInitial = CpuKernels.Address(dInitial),
        });
        return [dx, dDelta, da, db, dc, dInitial, null];
    }
}
