using System.Collections.Concurrent;
using System.Runtime.ExceptionServices;

namespace MLSeq;

/// <summary>Work on many cores that fails as a loop does: with the exception of the first item that has one, itself.</summary>
internal static class ManyCores
{
    public static TResult[] Select<T, TResult>(IReadOnlyList<T> items, Func<T, TResult> work)
    {
        var (results, errors) = (new TResult[items.Count], new ConcurrentBag<(int Item, Exception Error)>());
        Parallel.For(0, results.Length, (i, loop) =>
        {
            try
            {
                results[i] = work(items[i]);
            }
            catch (Exception e)
            {
                errors.Add((i, e));
                loop.Break(); // what comes before it is still tried
            }
        });
        if (!errors.IsEmpty) ExceptionDispatchInfo.Throw(errors.MinBy(error => error.Item).Error);
        return results;
    }
}
