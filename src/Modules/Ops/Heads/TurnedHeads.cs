using System.Runtime.InteropServices;
using MLSeq.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// Cuts a projection into queries, keys and what follows, with queries and keys turned by their position (<see cref="Rotary"/>). On CUDA one pass, and one that writes the gradient of the whole projection.
/// </summary>
internal sealed class TurnedHeads : OperatorFunction<TurnedHeads>
{
    private const int Threads = 256, Turned = 2;
    private const string Key = "launch";

    /// <param name="projection">[batch, time, parts · heads · size]: q, k, and the parts that follow.</param>
    /// <param name="parts">How many parts there are, 2 to 4.</param>
    /// <param name="heads">Heads.</param>
    /// <param name="start">The position of the first element.</param>
    /// <param name="keyDivisor">The keys are divided by it.</param>
    /// <returns>All parts, [batch, time, heads, size].</returns>
    public static Tensor[] Run(Tensor projection, int parts, long heads, long start, double keyDivisor = 1)
    {
        if (CudaElements.Serves(projection)) return OperatorFunction<TurnedHeads>.Run(projection, new Shape(parts, heads, start, keyDivisor));
        var cut = projection.chunk(parts, -1).Select(part => part.SplitHeads(heads)).ToArray();
        var rotary = new Rotary(projection.shape[1], cut[0].shape[3], projection, start);
        (cut[0], cut[1]) = (rotary.Apply(cut[0]), rotary.Apply(cut[1]));
        if (keyDivisor != 1) cut[1] = cut[1] / keyDivisor;
        return cut;
    }

    protected override (Tensor[] Outputs, Tensor?[] Saved) Compute(autograd.AutogradContext context, object?[] inputs)
    {
        var (x, shape) = ((Tensor)inputs[0]!, (Shape)inputs[1]!);
        context.save_data(Key, shape);
        var size = x.shape[^1] / (shape.Parts * shape.Heads);
        x = CudaElements.Positions(x, IsAligned(x, size)).Unflatten(-1, shape.Parts, shape.Heads, size);
        var outputs = new Tensor[shape.Parts];
        for (var part = 0; part < shape.Parts; part++) outputs[part] = part < Turned ? empty([x.shape[0], x.shape[1], shape.Heads, size], x.dtype, x.device) : x.select(2, part);
        Launch("rotary_forward", shape, x, backward: false, outputs.AsSpan(0, Turned));
        return (outputs, []);
    }

    protected override Tensor?[] Differentiate(autograd.AutogradContext context, Tensor?[] saved, Tensor?[] gradients)
    {
        var shape = (Shape)context.get_data(Key);
        var like = gradients.First(gradient => gradient is not null)!;
        for (var part = 0; part < shape.Parts; part++) gradients[part] = gradients[part] is { } gradient ? CudaElements.Rows(gradient, IsAligned(like, like.shape[3])) : null;
        var dx = empty([like.shape[0], like.shape[1], shape.Parts, shape.Heads, like.shape[3]], like.dtype, like.device);
        Launch("rotary_backward", shape, dx, backward: true, gradients);
        return [dx.flatten(2), null];
    }

    private static bool IsAligned(Tensor x, long size) => size / 2 % CudaElements.PerPack(x) == 0;

    // x: [batch, time, parts, heads, size], the projection or its gradient.
    private static void Launch(string entry, Shape shape, Tensor x, bool backward, ReadOnlySpan<Tensor?> parts)
    {
        var (size, address, pack) = (x.shape[^1], CudaKernel.Address(x), CudaElements.PerPack(x));
        var parameters = new Parameters
        {
            X = backward ? 0 : address, Dx = backward ? address : 0, Rows = x.shape[0] * x.shape[1], Time = x.shape[1], XStride = x.stride(1), Start = shape.Start, Heads = (int)shape.Heads, PartCount = shape.Parts,
            Turned = Turned,
        };
        for (var part = 0; part < parts.Length; part++) (parameters.Parts[part], parameters.Scales[part]) = (new CudaHeads(parts[part]), part == 1 ? (float)(1 / shape.KeyDivisor) : 1);
        CudaKernel.Get("rotary", entry, ("TYPE", CudaElements.Name(x.dtype)!), ("WIDTH", $"{size}"), ("ALIGNED", IsAligned(x, size) ? "1" : "0"))
            .Launch(in parameters, (CudaElements.Blocks(parameters.Rows * ((size / 2 + pack - 1) / pack), Threads), 1, 1), Threads);
    }

    private sealed record Shape(int Parts, long Heads, long Start, double KeyDivisor);

    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public nint X, Dx;
        public HeadParts Parts;
        public long Rows, Time, XStride, Start;
        public int Heads, PartCount;
        public Scales Scales;
        public int Turned;
    }
}
