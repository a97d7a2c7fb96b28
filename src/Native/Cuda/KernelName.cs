using System.Diagnostics.CodeAnalysis;

namespace MLSeq.Native;

/// <summary>A kernel: its file, its entry point and the macros that specialise it.</summary>
internal sealed record KernelName(string File, string Entry, (string Name, string Value)[] Defines)
{
    public override string ToString() => $"CUDA kernel {File}.{Entry} ({string.Join(' ', Defines.Select(define => $"{define.Name}={define.Value}"))})";

    /// <summary>The same without memory of its own: what a caller has at hand.</summary>
    public readonly ref struct View(string file, string entry, ReadOnlySpan<(string Name, string Value)> defines)
    {
        public readonly string File = file, Entry = entry;
        public readonly ReadOnlySpan<(string Name, string Value)> Defines = defines;
    }

    /// <summary>Finds a name by its view, so that looking up a kernel allocates nothing.</summary>
    public sealed class Comparer : IEqualityComparer<KernelName>, IAlternateEqualityComparer<View, KernelName>
    {
        public KernelName Create(View view) => new(view.File, view.Entry, view.Defines.ToArray());

        public bool Equals(View view, KernelName name) => view.File == name.File && view.Entry == name.Entry && view.Defines.SequenceEqual(name.Defines);

        public int GetHashCode(View view)
        {
            var hash = HashCode.Combine(view.File, view.Entry);
            foreach (var (_, value) in view.Defines) hash = HashCode.Combine(hash, value);
            return hash;
        }

        public bool Equals(KernelName? x, KernelName? y) => ReferenceEquals(x, y) || x is not null && y is not null && Equals(ViewOf(x), y);

        public int GetHashCode([DisallowNull] KernelName name) => GetHashCode(ViewOf(name));

        private static View ViewOf(KernelName name) => new(name.File, name.Entry, name.Defines);
    }
}
