using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// The fused form of <see cref="DeltaRecurrence"/> on CUDA (delta.cu, where the mathematics is): chunks as in the chunked form, but the state goes from chunk to chunk in registers, and only what the gradient needs is
/// written. bfloat16 and float16. The relative error is that of a rounding or two, about 4e-3 in bfloat16. Where nearly equal keys follow each other, β is 1 and nothing decays, most of what makes up the gradients
/// of v and β cancels: there it is up to 4e-2.
/// </summary>
internal sealed class FusedCudaDeltaRecurrence : OperatorFunction<FusedCudaDeltaRecurrence>
{
    /// <inheritdoc cref="DeltaRecurrence.Run"/>
    /// <param name="q">Queries, [b, t, h, K].</param>
    /// <param name="k">Keys, [b, t, h, K].</param>
    /// <param name="v">Values, [b, t, h, V].</param>
    /// <param name="beta">Writing strength, [b, t, h].</param>
    /// <param name="logDecay">As for <see cref="DeltaRecurrence.Run"/>.</param>
    /// <param name="initialState">S_0, [b, h, K, V]; null for zero.</param>
    /// <param name="plan">How the kernels are specialised.</param>
    /// <param name="segment">Chunks that a block walks through; 0 chooses.</param>
    public static (Tensor Output, Tensor FinalState) Run(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? logDecay, Tensor? initialState, DeltaPlan plan, int segment = 0)
    {
        var (keys, values) = (q.shape[3], v.shape[3]);
        var fits = keys == plan.K && values == plan.V;
        initialState = initialState?.to(float32);
        if (!fits) // zeros in the lacking dimensions change nothing
        {
            Tensor Filled(Tensor x, int size) => nn.functional.pad(x, [0, size - x.shape[3]]);
            (q, k, v) = (Filled(q, plan.K), Filled(k, plan.K), Filled(v, plan.V));
            if (initialState is not null) initialState = nn.functional.pad(initialState, [0, plan.V - values, 0, plan.K - keys]);
        }
        var outputs = Run(q, k, v, beta, logDecay, initialState, plan, segment, HasGradient(q, k, v, beta, logDecay, initialState));
        return fits ? (outputs[0], outputs[1]) : (outputs[0].narrow(3, 0, values), outputs[1].narrow(2, 0, keys).narrow(3, 0, values));
    }

    // Inputs: q, k, v, β, logDecay?, initialState?, plan, segment, whether a gradient will be asked for.
    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (q, k, v) = (CudaElements.Rows((Tensor)inputs[0]!, aligned: true), CudaElements.Rows((Tensor)inputs[1]!, aligned: true), CudaElements.Rows((Tensor)inputs[2]!, aligned: true));
        var (beta, logDecay, initial) = ((Tensor)inputs[3]!, (Tensor?)inputs[4], ((Tensor?)inputs[5])?.contiguous());
        var (plan, segment, keep) = ((DeltaPlan)inputs[6]!, (int)inputs[7]!, (bool)inputs[8]!);
        var kernels = new Kernels(plan, segment, q, k, v, beta, logDecay);
        context.save_data("plan", plan);
        context.save_data("segment", segment);
        context.save_data("initial", initial is not null);

        ref var p = ref kernels.Parameters;
        var (output, last) = (kernels.New(v.dtype, v.shape), kernels.New(float32, q.shape[0], q.shape[2], plan.K, plan.V));
        var (gates, inverse) = (kernels.New(float32, kernels.Chunks, plan.Gates, DeltaPlan.Chunk), kernels.New(q.dtype, kernels.Chunks, DeltaPlan.Chunk, DeltaPlan.Chunk));
        (p.Gates, p.Inverse) = (CudaKernel.Address(gates), CudaKernel.Address(inverse));
        kernels.Inverse();

        var transfer = kernels.CutsTime ? kernels.New(bfloat16, kernels.Segments, 2, plan.K, plan.K) : null;
        if (transfer is not null)
        {
            p.Transfer = CudaKernel.Address(transfer);
            kernels.Transfer();
        }
        p.Start = kernels.Edges(initial, reverse: false);
        (p.Output, p.End) = (new CudaHeads(output), kernels.Whole(last));
        var (errors, states) = keep ? (kernels.New(v.dtype, kernels.Chunks, DeltaPlan.Chunk, plan.V), kernels.New(v.dtype, kernels.Chunks, plan.V, plan.K)) : (null, null);
        (p.Errors, p.States) = (CudaElements.AddressOrNull(errors), CudaElements.AddressOrNull(states));
        kernels.Sequential("forward");
        return ([output, last], [q, k, v, beta, logDecay, gates, inverse, transfer, errors, states]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (q, k, v, beta, logDecay) = (saved[0]!, saved[1]!, saved[2]!, saved[3]!, saved[4]);
        var (dOutput, dLast) = (CudaElements.Rows(gradients[0] ?? zeros_like(v), aligned: true), gradients[1]?.contiguous());
        var plan = (DeltaPlan)context.get_data("plan");
        var kernels = new Kernels(plan, (int)context.get_data("segment"), q, k, v, beta, logDecay);
        ref var p = ref kernels.Parameters;
        (p.DOutput, p.Gates, p.Inverse, p.Transfer) = (new CudaHeads(dOutput), CudaKernel.Address(saved[5]!), CudaKernel.Address(saved[6]!), CudaElements.AddressOrNull(saved[7]));

        p.End = kernels.Edges(dLast, reverse: true);
        var dInitial = (bool)context.get_data("initial") ? kernels.New(float32, q.shape[0], q.shape[2], plan.K, plan.V) : null;
        var (dv, dStates) = (kernels.New(v.dtype, v.shape), kernels.New(v.dtype, kernels.Chunks, plan.V, plan.K));
        (p.Start, p.DV, p.DStates) = (kernels.Whole(dInitial), new CudaHeads(dv), CudaKernel.Address(dStates));
        kernels.Sequential("reverse");

        var (dq, dk) = (kernels.New(q.dtype, q.shape), kernels.New(k.dtype, k.shape));
        var parts = kernels.New(float32, [logDecay is null ? 1 : 2, plan.KeyTiles, .. beta.shape]); // of the gradients of β and log a
        (p.DQ, p.DK, p.Errors, p.States) = (new CudaHeads(dq), new CudaHeads(dk), CudaKernel.Address(saved[8]!), CudaKernel.Address(saved[9]!));
        p.DBeta = CudaKernel.Address(parts);
        p.DLogDecay = p.DBeta + (nint)(plan.KeyTiles * beta.numel() * sizeof(float));
        kernels.Gradients();
        var sums = plan.KeyTiles == 1 ? parts.squeeze(1) : parts.sum([1L]);
        return [dq, dk, dv, sums.select(0, 0).to(beta.dtype), logDecay is null ? null : sums.select(0, 1).to(logDecay.dtype), dInitial, null, null, null];
    }

    /// <summary>The kernels for one sequence, and the parameters that they share.</summary>
    private sealed class Kernels
    {
        public Delta Parameters;
        private readonly DeltaPlan _plan;
        private readonly Device _device;
        private readonly long _heads; // of the whole batch

        public Kernels(DeltaPlan plan, int segment, Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? logDecay)
        {
            (_plan, _device, _heads) = (plan, q.device, q.shape[0] * q.shape[2]);
            var chunks = CudaElements.Blocks(q.shape[1], DeltaPlan.Chunk);
            if (segment == 0) segment = plan.Segment(chunks, _heads);
            Parameters = new Delta
            {
                Q = new CudaHeads(q), K = new CudaHeads(k), V = new CudaHeads(v), Beta = new CudaHeads(beta), LogDecay = new CudaHeads(logDecay),
                Time = (int)q.shape[1], Heads = (int)q.shape[2], Chunks = chunks, Segments = CudaElements.Blocks(chunks, segment), Segment = segment,
            };
        }

        /// <summary>Of all heads.</summary>
        public long Chunks => _heads * Parameters.Chunks;

        /// <inheritdoc cref="Chunks"/>
        public long Segments => _heads * Parameters.Segments;

        public bool CutsTime => Parameters.Segments > 1;

        public Tensor New(ScalarType type, params long[] shape) => empty(shape, type, _device);

        public void Inverse() => Launch("inverse", in Parameters, Chunks, 128, _plan.InverseBytes);

        public void Transfer() => Launch("transfer", in Parameters, Segments, 2 * _plan.K, _plan.SequentialBytes);

        public void Sequential(string pass) => Launch(pass, in Parameters, Segments, 2 * _plan.V, _plan.SequentialBytes);

        public void Gradients() => Launch("gradients", in Parameters, Chunks * _plan.KeyTiles, 256, _plan.GradientBytes);

        /// <summary>Where the segments start (reverse: the gradients of their ends), given where the first one does. All of them run from zero side by side, and one kernel joins what comes out.</summary>
        public States Edges(Tensor? first, bool reverse)
        {
            if (!CutsTime) return Whole(first);
            var (local, found) = (New(float32, Segments, _plan.V, _plan.K), New(float32, Segments, _plan.V, _plan.K));
            (Parameters.Start, Parameters.End) = reverse ? (OfSegments(local), default(States)) : (default, OfSegments(local));
            Sequential(reverse ? "reverse" : "forward");
            var join = new Join
            {
                Transfer = Parameters.Transfer, Local = CudaKernel.Address(local), Found = CudaKernel.Address(found), First = Whole(first), Segments = Parameters.Segments, Reverse = reverse ? 1 : 0,
            };
            Launch("join", in join, _heads, 2 * _plan.V, _plan.JoinBytes);
            return OfSegments(found);
        }

        /// <summary>States of whole sequences, [b, h, K, V], contiguous; null: zero, or not wanted.</summary>
        public States Whole(Tensor? x) => x is null ? default : new() { Data = CudaKernel.Address(x), Head = _plan.K * _plan.V, Row = _plan.V, Column = 1 };

        // [b h segments, V, K].
        private States OfSegments(Tensor x)
            => new() { Data = CudaKernel.Address(x), Head = (long)Parameters.Segments * _plan.K * _plan.V, Segment = _plan.K * _plan.V, Row = 1, Column = _plan.K };

        private void Launch<T>(string pass, in T parameters, long blocks, int threads, int sharedBytes) where T : unmanaged
            => CudaKernel.Get("delta", $"delta_{pass}", _plan.Defines).Launch(in parameters, ((int)blocks, 1, 1), threads, sharedBytes);
    }

    // The structs of the kernel file, which says what their fields are.

    [StructLayout(LayoutKind.Sequential)]
    private struct Delta
    {
        public CudaHeads Q, K, V, Output, DOutput, DQ, DK, DV, Beta, LogDecay;
        public nint DBeta, DLogDecay, Gates, Inverse, Errors, States, DStates, Transfer;
        public States Start, End;
        public int Time, Heads, Chunks, Segments, Segment;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Join
    {
        public nint Transfer, Local, Found;
        public States First;
        public int Segments, Reverse;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct States
    {
        public nint Data;
        public long Head, Segment, Row, Column;
    }
}
