using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>The fused form of <see cref="DeltaRecurrence"/> on a CPU: src/Native/cpu/delta.cpp.</summary>
internal sealed class FusedCpuDeltaRecurrence : OperatorFunction<FusedCpuDeltaRecurrence>
{
    /// <summary>DeltaParameters of the kernel.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public int Batch, Time, Heads, Keys, Values, Threads, Gates, Reserved;
        public CpuView Q, K, V, Beta, G, O, E;
        public nint Initial, Last;
        public CpuView DOutput, DQ, DK, DV, DBeta, DG;
        public nint DLast, DInitial;

        public Parameters(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? logDecay, Tensor? initial, Tensor? corrections)
        {
            (Batch, Time, Heads, Keys, Values, Threads) = ((int)q.shape[0], (int)q.shape[1], (int)q.shape[2], (int)q.shape[3], (int)v.shape[3], get_num_threads());
            Gates = logDecay is null ? 0 : 1;
            (Q, K, V, Beta, G, E) = (CpuView.OfRows(q), CpuView.OfRows(k), CpuView.OfRows(v), CpuView.OfNumbers(beta), CpuView.OfNumbers(logDecay), CpuView.OfRows(corrections));
            Initial = CpuKernels.Address(initial);
        }
    }

    /// <summary>As <see cref="DeltaRecurrence.Run"/>.</summary>
    public static (Tensor Output, Tensor FinalState) Run(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? logDecay, Tensor? initialState)
    {
        var outputs = OperatorFunction<FusedCpuDeltaRecurrence>.Run(q, k, v, beta, logDecay, initialState, HasGradient(q, k, v, beta, logDecay, initialState));
        return (outputs[0], outputs[1]);
    }

    // Inputs: q, k, v, β, logDecay?, initialState?, whether a gradient will be asked for.
    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (q, k, v) = (((Tensor)inputs[0]!).WithRows(), ((Tensor)inputs[1]!).WithRows(), ((Tensor)inputs[2]!).WithRows());
        var (beta, logDecay, initial) = ((Tensor)inputs[3]!, (Tensor?)inputs[4], ((Tensor?)inputs[5])?.contiguous());
        var corrections = (bool)inputs[6]! ? empty(v.shape, float32) : null; // v_t − a_t S_{t−1}ᵀ k_t
        var (output, last) = (empty(v.shape, float32), empty([q.shape[0], q.shape[2], q.shape[3], v.shape[3]], float32));
        CpuKernels.Run("delta_forward", new Parameters(q, k, v, beta, logDecay, initial, corrections) { O = CpuView.OfRows(output), Last = CpuKernels.Address(last) });
        return ([output, last], [q, k, v, beta, logDecay, initial, corrections]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (q, k, v, beta, logDecay, initial, corrections) = (saved[0]!, saved[1]!, saved[2]!, saved[3]!, saved[4], saved[5], saved[6]!);
        var (dOutput, dLast) = (gradients[0]?.WithRows() ?? zeros(v.shape, float32), gradients[1]?.contiguous());
        var (dq, dk, dv, dBeta) = (empty(q.shape, float32), empty(k.shape, float32), empty(v.shape, float32), empty(beta.shape, float32));
        var (dLogDecay, dInitial) = (logDecay is null ? null : empty(logDecay.shape, float32), initial is null ? null : empty(initial.shape, float32));
        CpuKernels.Run("delta_backward", new Parameters(q, k, v, beta, logDecay, initial, corrections)
        {
            DOutput = CpuView.OfRows(dOutput),
            DQ = CpuView.OfRows(dq),
            DK = CpuView.OfRows(dk),
            DV = CpuView.OfRows(dv),
            DBeta = CpuView.OfNumbers(dBeta),
            DG = CpuView.OfNumbers(dLogDecay),
            DLast = CpuKernels.Address(dLast),
            DInitial = CpuKernels.Address(dInitial),
        });
        return [dq, dk, dv, dBeta, dLogDecay, dInitial, null];
    }
}
