using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// The fused form of <see cref="GatedLinearRecurrence"/> on CUDA for bfloat16 and float16 (linear.cu): chunked as <see cref="ChunkedLinearRecurrence"/> is, but scores and states never leave the multiprocessor.
/// All gradients are the function itself on other operands: <c>dq = F(do, v, k)</c>, <c>dv = F'(k, q, do)</c>, <c>dk = F'(v, do, q)</c>, F' in reverse.
/// </summary>
internal sealed class FusedCudaLinearRecurrence : OperatorFunction<FusedCudaLinearRecurrence>
{
    private const int MostBlocks = 65535; // of a grid's second and third dimension

    /// <summary>Whether the kernels serve these tensors.</summary>
    public static bool Serves(Tensor q, Tensor k, Tensor v, Tensor? logDecay)
    {
        static bool Size(long size) => size is > 0 and <= LinearPlan.MostKeys && size % 8 == 0; // rows are read 16 bytes at a time
        if (q.dtype is not (ScalarType.BFloat16 or ScalarType.Float16) || k.dtype != q.dtype || v.dtype != q.dtype || logDecay?.dim() == 4) return false;
        var (keys, values) = (q.shape[3], v.shape[3]);
        return Size(keys) && Size(values) && q.shape[0] is > 0 and <= MostBlocks && q.shape[2] is > 0 and <= MostBlocks && LinearPlan.For(q, keys, values) is not null && LinearPlan.For(q, values, keys) is not null;
    }

    /// <inheritdoc cref="GatedLinearRecurrence.Run"/>
    public static (Tensor Output, Tensor FinalState) Run(Tensor q, Tensor k, Tensor v, Tensor? logDecay, Tensor? initialState)
    {
        var outputs = Run(inputs: [q, k, v, logDecay?.to(float32), initialState?.to(float32), logDecay is { requires_grad: true }]);
        return (outputs[0], outputs[1]);
    }

    // Inputs: q, k, v, logDecay?, initialState?, whether the gate's gradient will be asked for.
    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (q, k, v, logDecay, initial) = (CudaElements.Rows((Tensor)inputs[0]!, aligned: true), CudaElements.Rows((Tensor)inputs[1]!, aligned: true), CudaElements.Rows((Tensor)inputs[2]!, aligned: true), (Tensor?)inputs[3], (Tensor?)inputs[4]);
        var plan = LinearPlan.For(q, q.shape[3], v.shape[3])!;
        var final = empty([q.shape[0], q.shape[2], q.shape[3], v.shape[3]], float32, q.device);
        var pass = new LinearPass { Plan = plan, SegmentChunks = plan.SegmentChunks(v), Operands = (q, k, v), LogDecay = logDecay, Start = initial, End = final };
        context.save_data("gate", inputs[5]!);
        return ([pass.Run(), final], [q, k, v, logDecay, initial, pass.Starts]);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var (q, k, v, logDecay, initial, starts) = (saved[0]!, saved[1]!, saved[2]!, saved[3], saved[4], saved[5]);
        var (dOutput, dFinal) = (CudaElements.Rows(gradients[0] ?? zeros_like(v), aligned: true), gradients[1]);
        var (plan, transposed) = (LinearPlan.For(q, q.shape[3], v.shape[3])!, LinearPlan.For(q, v.shape[3], q.shape[3])!); // dq and dk go with the transposed state
        var segment = plan.SegmentChunks(v);
        var dInitial = initial is null ? null : empty(initial.shape, float32, q.device);
        var gate = (bool)context.get_data("gate");

        var dqPass = new LinearPass
        {
            Plan = transposed, SegmentChunks = segment, Operands = (dOutput, v, k), LogDecay = logDecay, Start = initial?.Transposed(), Starts = starts?.Transposed(), Other = gate ? q : null,
        };
        var dvPass = new LinearPass { Plan = plan, SegmentChunks = segment, Operands = (k, q, dOutput), LogDecay = logDecay, Reverse = true, Start = dFinal };
        var (dq, dv) = (dqPass.Run(), dvPass.Run());
        var dkPass = new LinearPass
        {
            Plan = transposed, SegmentChunks = segment, Operands = (v, dOutput, q), LogDecay = logDecay, Reverse = true, Start = dFinal?.Transposed(), Starts = dvPass.Starts?.Transposed(),
            End = dInitial?.Transposed(), Other = gate ? k : null, Before = dqPass,
        };
        return [dq, dkPass.Run(), dv, gate ? dkPass.GateGradient() : null, dInitial, null];
    }
}
