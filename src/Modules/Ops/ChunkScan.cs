using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>
/// The recurrence between chunks, <c>S_{n+1} = e^{a_n} S_n + U_n</c>, for all n at once: as a product with the matrix of decays between chunks; in
/// groups of groups where there are many, so that the cost stays linear.
/// </summary>
internal static class ChunkScan
{
    private const long Group = 64;

    /// <summary>All states.</summary>
    /// <param name="updates">U: [.., chunks, rows, columns].</param>
    /// <param name="logDecay">a: [.., chunks, 1 or rows], at most 0; null for none. Leading dimensions may be 1.</param>
    /// <param name="initial">S_0: [.., rows, columns]; null for zero.</param>
    /// <param name="reverse">Runs from the last chunk to the first: <c>S_n = e^{a_n} S_{n+1} + U_n</c> from <paramref name="initial"/> as S_chunks.</param>
    /// <returns>S_0 … S_chunks: [.., chunks + 1, rows, columns].</returns>
    public static Tensor Run(Tensor updates, Tensor? logDecay, Tensor? initial, bool reverse = false)
    {
        if (updates.shape[^3] > Group) return RunGroups(updates, logDecay, initial, reverse);
        var perRow = logDecay is not null && logDecay.shape[^1] > 1;
        var (chunks, rows, columns) = (updates.shape[^3], updates.shape[^2], updates.shape[^1]);
        // [.., (rows,) chunks, rest]: one product per decay
        var u = perRow ? updates.transpose(-3, -2) : updates.flatten(-2);
        var cumulated = Cumulated(logDecay, updates, perRow ? rows : 1); // [.., (rows,) chunks + 1]
        if (!perRow) cumulated = cumulated.squeeze(-2);
        var matrix = Decays(cumulated, reverse).to(updates.dtype); // [.., (rows,) chunks + 1, chunks]
        while (matrix.dim() < u.dim()) matrix = matrix.unsqueeze(0);
        var states = matrix.Times(u);
        if (initial is not null)
        {
            var s0 = (perRow ? initial.unsqueeze(-2) : initial.flatten(-2).unsqueeze(-2)).to(updates.dtype); // [.., (rows,) 1, rest]
            var since = reverse ? cumulated.narrow(-1, chunks, 1) - cumulated : cumulated;
            states = states.addcmul(since.exp().unsqueeze(-1).to(updates.dtype), s0, 1);
        }
        return perRow ? states.transpose(-3, -2).contiguous() : states.Unflatten(-1, rows, columns);
    }

    // A_n = a_0 + … + a_{n−1}: [.., rows, chunks + 1]
    private static Tensor Cumulated(Tensor? logDecay, Tensor like, long rows)
    {
        if (logDecay is null) return zeros([1, like.shape[^3] + 1], Chunks.StateType(like), like.device);
        var a = logDecay.Transposed(); // [.., rows, chunks]
        return nn.functional.pad(a.cumsum(-1), [1, 0]);
    }

    // Forward: e^{A_n − A_{m+1}} for m < n. Reverse: e^{A_m − A_n} for m ≥ n.
    private static Tensor Decays(Tensor cumulated, bool reverse)
    {
        var chunks = cumulated.shape[^1] - 1;
        var rows = cumulated.unsqueeze(-1);
        var difference = reverse ? cumulated.narrow(-1, 0, chunks).unsqueeze(-2) - rows : rows - cumulated.narrow(-1, 1, chunks).unsqueeze(-2);
        var (n, m) = (arange(chunks + 1, device: cumulated.device).unsqueeze(1), arange(chunks, device: cumulated.device));
        return difference.masked_fill_(reverse ? m < n : m >= n, double.NegativeInfinity).exp_();
    }

    private static Tensor RunGroups(Tensor updates, Tensor? logDecay, Tensor? initial, bool reverse)
    {
        var chunks = updates.shape[^3];
        var groups = (chunks + Group - 1) / Group;
        var lacking = groups * Group - chunks; // filled with neutral chunks: nothing decays, nothing is added
        if (lacking > 0) updates = nn.functional.pad(updates, [0, 0, 0, 0, 0, lacking]);
        if (lacking > 0 && logDecay is not null) logDecay = nn.functional.pad(logDecay, [0, 0, 0, lacking]);
        var dimension = (int)updates.dim() - 3;
        var inner = logDecay?.Unflatten(-2, groups, Group); // [.., groups, group, 1 or rows]
        var local = Run(updates.Unflatten(dimension, groups, Group), inner, null, reverse); // [.., groups, group + 1, rows, columns]
        var totals = local.select(-3, reverse ? 0 : Group);
        var starts = Run(totals, inner?.sum(-2), initial, reverse); // [.., groups + 1, rows, columns]
        var from = starts.narrow(dimension, reverse ? 1 : 0, groups).unsqueeze(-3);
        Tensor states;
        if (inner is null) states = local + from;
        else
        {
            var cumulated = nn.functional.pad(inner.cumsum(-2), [0, 0, 1, 0]); // [.., groups, group + 1, 1 or rows]
            var since = reverse ? cumulated.narrow(-2, Group, 1) - cumulated : cumulated;
            states = local.addcmul(since.exp().unsqueeze(-1).to(local.dtype), from, 1);
        }
        // The last state of a group is the first of the next.
        var whole = states.narrow(dimension + 1, 0, Group).flatten(dimension, dimension + 1);
        var last = states.select(dimension, groups - 1).narrow(dimension, Group, 1);
        return cat([whole, last], dimension).narrow(dimension, 0, chunks + 1);
    }
}
