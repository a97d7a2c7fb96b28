using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>The fused form of <see cref="GatedLinearRecurrence"/> on a CPU, where the recurrence as it is written is the least work: src/Native/cpu/gated_linear.cpp.</summary>
internal sealed class FusedCpuLinearRecurrence : OperatorFunction<FusedCpuLinearRecurrence>
{
    /// <summary>LinearParameters of the kernel.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public int Batch, Time, Heads, Keys, Values, Threads, Gates, Reserved;
        public CpuView Q, K, V, G, O;
        public nint Initial, Last;
        public CpuView DOutput, DQ, DK, DV, DG;
        public nint DLast, DInitial;

        public Parameters(Tensor q, Tensor k, Tensor v, Tensor? logDecay, Tensor? initial)
        {
            (Batch, Time, Heads, Keys, Values, Threads) = ((int)q.shape[0], (int)q.shape[1], (int)q.shape[2], (int)q.shape[3], (int)v.shape[3], get_num_threads());
            Gates = logDecay is null ? 0 : logDecay.dim() == 4 ? Keys : 1;
            (Q, K, V, G) = (CpuView.OfRows(q), CpuView.OfRows(k), CpuView.OfRows(v), Gate(logDecay));
            Initial = CpuKernels.Address(initial);
        }

        public static CpuView Gate(Tensor? x) => x?.dim() == 4 ? CpuView.OfRows(x) : CpuView.OfNumbers(x);
    }

    // Inputs: q, k, v, logDecay?, initialState?.
    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (q, k, v, logDecay, initial) = (((Tensor)inputs[0]!).WithRows(), ((Tensor)inputs[1]!).WithRows(), ((Tensor)inputs[2]!).WithRows(), (Tensor?)inputs[3], ((Tensor?)inputs[4])?.contiguous());
        if (logDecay?.dim() == 4) logDecay = logDecay.WithRows();
        var (output, last) = (empty(v.shape, float32), empty([q.shape[0], q.shape[2], q.shape[3], v.shape[3]], float32));
        CpuKernels.Run("linear_forward", new Parameters(q, k, v, logDecay, initial) { O = CpuView.OfRows(output), Last = CpuKernels.Address(last) });
        return ([output, last], [q, k, v, logDecay, initial]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (q, k, v, logDecay, initial) = (saved[0]!, saved[1]!, saved[2]!, saved[3], saved[4]);
        var (dOutput, dLast) = (gradients[0]?.WithRows() ?? zeros(v.shape, float32), gradients[1]?.contiguous());
        var (dq, dk, dv) = (empty(q.shape, float32), empty(k.shape, float32), empty(v.shape, float32));
        var dLogDecay = logDecay is null || logDecay.dim() == 1 ? null : empty(logDecay.shape, float32);
        var dInitial = initial is null ? null : empty(initial.shape, float32);
        CpuKernels.Run("linear_backward", new Parameters(q, k, v, logDecay, initial)
        {
            DOutput = CpuView.OfRows(dOutput),
            DQ = CpuView.OfRows(dq),
            DK = CpuView.OfRows(dk),
            DV = CpuView.OfRows(dv),
            DG = Parameters.Gate(dLogDecay),
            DLast = CpuKernels.Address(dLast),
            DInitial = CpuKernels.Address(dInitial),
        });
        return [dq, dk, dv, dLogDecay, dInitial];
    }
}
