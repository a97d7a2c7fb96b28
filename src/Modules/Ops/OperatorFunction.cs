using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// An operator with a gradient of its own: what autograd needs, and who disposes what. A derived class says only how to compute.
/// </summary>
/// <typeparam name="T">The derived class itself.</typeparam>
internal abstract class OperatorFunction<T> : autograd.MultiTensorFunction<T> where T : OperatorFunction<T>, new()
{
    private const string AnchorKey = "anchor", TensorsKey = "tensors";

    public override string Name => typeof(T).Name;

    /// <summary>The outputs, and what the gradient needs (inputs may be among it).</summary>
    /// <param name="context">Keeps what is not a tensor.</param>
    /// <param name="inputs">As given to <see cref="Run"/>; no gradient is tracked.</param>
    protected abstract (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs);

    /// <summary>The gradient of every input (null for those that have none).</summary>
    /// <param name="context">What <see cref="Compute"/> kept.</param>
    /// <param name="saved">What it saved.</param>
    /// <param name="gradients">Of every output; null where the loss does not depend on it.</param>
    protected abstract Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients);

    /// <summary>Applies the operator, recording it for autograd where an input asks for a gradient.</summary>
    public static Tensor[] Run(params object?[] inputs)
    {
        using var scope = NewDisposeScope(); // the graph has its own references to what was saved
        var outputs = apply(inputs!).ToArray();
        foreach (var output in outputs) output.MoveToOuterDisposeScope();
        return outputs;
    }

    /// <summary>Whether autograd will ask for the gradient of an operator with these inputs; if not, nothing needs to be kept for it.</summary>
    public static bool HasGradient(params ReadOnlySpan<Tensor?> inputs)
    {
        if (!is_grad_enabled()) return false;
        foreach (var input in inputs)
            if (input is { requires_grad: true }) return true;
        return false;
    }

    public sealed override List<Tensor> forward(autograd.AutogradContext ctx, params object[] vars)
    {
        ctx.set_materialize_grads(false);
        ctx.save_data(TensorsKey, vars.Select(input => input is Tensor).ToArray());
        ctx.save_data(AnchorKey, new Anchor(vars.OfType<Tensor>().First()));
        var (outputs, saved) = Compute(ctx, vars);
        ctx.save_for_backward([.. saved.Select(tensor => tensor!)]);
        return [.. outputs];
    }

    public sealed override List<Tensor> backward(autograd.AutogradContext ctx, List<Tensor> grad_outputs)
    {
        using var scope = NewDisposeScope();
        Tensor?[] received = [.. grad_outputs.Select(gradient => gradient is null || gradient.IsInvalid ? null : gradient)];
        Tensor?[] gradients;
        try
        {
            gradients = Differentiate(ctx, [.. ctx.get_saved_variables()], received);
        }
        catch (Exception e)
        {
            return OperatorFailure.Report(e, (bool[])ctx.get_data(TensorsKey));
        }
        var anchor = (Anchor)ctx.get_data(AnchorKey);
        foreach (var gradient in gradients.OfType<Tensor>().Distinct())
        {
            gradient.MoveToOuterDisposeScope();
            // CUDA's autograd has a thread of its own, which has no scope: the scope of the inputs takes the result, or it would wait for the finalizer.
            if (gradient.device_type == DeviceType.CUDA) gradient.MoveToOtherDisposeScope(anchor.Tensor);
        }
        foreach (var gradient in received) gradient?.Dispose();
        return [.. gradients.Select(gradient => gradient!)];
    }

    private sealed record Anchor(Tensor Tensor);
}

/// <summary>
/// Brings an exception out of a gradient. Managed exceptions cannot cross libtorch's native frames (the process would end), so the operator returns a gradient of an impossible shape,
/// which libtorch refuses with an error of its own, and the cause waits here.
/// </summary>
internal static class OperatorFailure
{
    private static Exception? _cause;

    /// <summary>Keeps the cause and returns what libtorch will refuse, for each input that is a tensor.</summary>
    public static List<Tensor> Report(Exception cause, bool[] isTensor)
    {
        _cause = cause;
        return [.. isTensor.Select(tensor => tensor ? zeros([0, 3, 0, 7, 0, 3]).MoveToOuterDisposeScope() : null!)];
    }

    /// <summary>Back-propagates; an operator's failure surfaces as the exception that it was.</summary>
    public static void Backward(Tensor loss)
    {
        try
        {
            loss.backward();
        }
        catch (Exception e) when (Interlocked.Exchange(ref _cause, null) is { } cause)
        {
            throw new InvalidOperationException($"Back-propagation failed: {cause.Message}", new AggregateException(cause, e));
        }
    }
}
