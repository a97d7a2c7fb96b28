using TorchSharp;
using static TorchSharp.torch;

namespace MLSeq;

/// <summary>The states between chunks.</summary>
/// <param name="Edges">What each chunk meets at the edge where the recurrence enters it: [.., chunks, rows, columns]. S_0 … S_{chunks−1} forwards, S_1 … S_chunks backwards.</param>
/// <param name="Last">What the recurrence ends with: [.., rows, columns]. S_chunks forwards, S_0 backwards.</param>
internal readonly record struct ChunkStates(Tensor Edges, Tensor Last);

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
    /// <param name="initial">The state to begin with: [.., rows, columns]; null for zero.</param>
    /// <param name="reverse">Runs from the last chunk to the first: <c>S_n = e^{a_n} S_{n+1} + U_n</c> from S_chunks.</param>
    public static ChunkStates Run(Tensor updates, Tensor? logDecay, Tensor? initial, bool reverse = false)
    {
        if (updates.shape[^3] > Group) return RunGroups(updates, logDecay, initial, reverse);
        var perRow = logDecay is not null && logDecay.shape[^1] > 1;
        var (chunks, rows, columns) = (updates.shape[^3], updates.shape[^2], updates.shape[^1]);
        // [.., (rows,) chunks, rest]: one product per decay
        var u = perRow ? updates.transpose(-3, -2) : updates.flatten(-2);
        var cumulated = Cumulated(logDecay, updates); // [.., 1 or rows, chunks + 1]
        if (!perRow) cumulated = cumulated.squeeze(-2);
        var decays = Decays(cumulated, reverse).to(updates.dtype); // [.., (rows,) chunks + 1, chunks]
        while (decays.dim() < u.dim()) decays = decays.unsqueeze(0);
        var since = (reverse ? cumulated.narrow(-1, chunks, 1) - cumulated : cumulated).exp_().unsqueeze(-1).to(updates.dtype); // of the initial state
        Tensor States(long from, long count)
        {
            var states = decays.narrow(-2, from, count).Times(u);
            if (initial is not null)
            {
                var start = (perRow ? initial.unsqueeze(-2) : initial.flatten(-2).unsqueeze(-2)).to(updates.dtype); // [.., (rows,) 1, rest]
                states = states.addcmul(since.narrow(-2, from, count), start, 1);
            }
            return perRow ? states.transpose(-3, -2).contiguous() : states.Unflatten(-1, rows, columns);
        }
        return new ChunkStates(States(reverse ? 1 : 0, chunks), States(reverse ? 0 : chunks, 1).squeeze(-3));
    }

    // A_n = a_0 + … + a_{n−1}: [.., rows, chunks + 1]
    private static Tensor Cumulated(Tensor? logDecay, Tensor like)
        => logDecay is null
            ? zeros([1, 1, like.shape[^3] + 1], Chunks.StateType(like), like.device)
            : nn.functional.pad(logDecay.transpose(-1, -2).cumsum(-1), [1, 0]);

    // Forwards: e^{A_n − A_{m+1}} for m < n. Backwards: e^{A_m − A_n} for m ≥ n.
    private static Tensor Decays(Tensor cumulated, bool reverse)
    {
        var chunks = cumulated.shape[^1] - 1;
        var rows = cumulated.unsqueeze(-1);
        var difference = reverse ? cumulated.narrow(-1, 0, chunks).unsqueeze(-2) - rows : rows - cumulated.narrow(-1, 1, chunks).unsqueeze(-2);
        var (n, m) = (arange(chunks + 1, device: cumulated.device).unsqueeze(1), arange(chunks, device: cumulated.device));
        return difference.masked_fill_(reverse ? m < n : m >= n, double.NegativeInfinity).exp_();
    }

    private static ChunkStates RunGroups(Tensor updates, Tensor? logDecay, Tensor? initial, bool reverse)
    {
        var chunks = updates.shape[^3];
        var groups = (chunks + Group - 1) / Group;
        var lacking = groups * Group - chunks; // filled with neutral chunks: nothing decays, nothing is added
        if (lacking > 0) updates = nn.functional.pad(updates, [0, 0, 0, 0, 0, lacking]);
        if (lacking > 0 && logDecay is not null) logDecay = nn.functional.pad(logDecay, [0, 0, 0, lacking]);
        var inner = logDecay?.Unflatten(-2, groups, Group); // [.., groups, group, 1 or rows]
        var local = Run(updates.Unflatten(-3, groups, Group), inner, null, reverse); // [.., groups, group, rows, columns]
        var across = Run(local.Last, inner?.sum([-2L]), initial, reverse); // [.., groups, rows, columns]
        var from = across.Edges.unsqueeze(-3);
        if (inner is null) return new ChunkStates((local.Edges + from).flatten(-4, -3).narrow(-3, 0, chunks), across.Last);
        var cumulated = inner.cumsum(-2);
        var since = reverse ? cumulated.narrow(-2, Group - 1, 1) - cumulated : cumulated - inner; // from the group's edge to the chunk's
        return new ChunkStates(local.Edges.addcmul(since.exp_().unsqueeze(-1).to(from.dtype), from, 1).flatten(-4, -3).narrow(-3, 0, chunks), across.Last);
    }
}
