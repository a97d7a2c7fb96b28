using System.Buffers.Binary;
using System.Text;

namespace MLSeq.Native;

/// <summary>
/// Edits the symbol-version requirements (<c>.gnu.version_r</c>) of a 64-bit little-endian ELF image.
/// </summary>
/// <remarks>
/// Layout after the System V gABI and the LSB symbol-versioning supplement: a chain of <c>Verneed</c> records, one per needed
/// library, each with a chain of <c>Vernaux</c> records, one per version. A version flagged <c>VER_FLG_WEAK</c> may be absent
/// from the library at load time.
/// </remarks>
internal static class ElfVersionNeeds
{
    private const uint ElfMagic = 0x464C457F;
    private const uint SectionTypeVerneed = 0x6FFFFFFE;
    private const ushort WeakFlag = 2;
    private const int SectionHeaderSize = 64;

    /// <summary>Marks every required version whose name is <paramref name="version"/> as weak, in place.</summary>
    /// <returns>How many requirements were marked: 0 when the image is not such an ELF file, is damaged, or has no such requirement.</returns>
    public static int Weaken(Span<byte> image, string version)
    {
        try
        {
            return IsElf64LittleEndian(image) ? WeakenSections(image, version) : 0;
        }
        catch (Exception e) when (e is ArgumentOutOfRangeException or OverflowException)
        {
            return 0; // an offset that points outside the file: leave such a file to the system's loader
        }
    }

    private static bool IsElf64LittleEndian(ReadOnlySpan<byte> image)
        => image.Length >= 64 && U32(image, 0) == ElfMagic && image[4] == 2 && image[5] == 1;

    private static int WeakenSections(Span<byte> image, string version)
    {
        var sections = Offset(image, 0x28);
        int count = U16(image, 0x3C), marked = 0;
        for (var i = 0; i < count; i++)
        {
            var section = sections + i * SectionHeaderSize;
            if (U32(image, section + 4) != SectionTypeVerneed) continue;
            var stringTable = sections + checked((int)U32(image, section + 0x28)) * SectionHeaderSize; // sh_link
            marked += WeakenChain(image, Offset(image, section + 0x18), Offset(image, stringTable + 0x18), version);
        }
        return marked;
    }

    private static int WeakenChain(Span<byte> image, int need, int strings, string version)
    {
        var marked = 0;
        while (true)
        {
            var aux = need + (int)U32(image, need + 8);
            for (int k = U16(image, need + 2); k > 0; k--)
            {
                if (Text(image, strings + (int)U32(image, aux + 8)) == version)
                {
                    BinaryPrimitives.WriteUInt16LittleEndian(image[(aux + 4)..], (ushort)(U16(image, aux + 4) | WeakFlag));
                    marked++;
                }
                aux += (int)U32(image, aux + 12);
            }
            var next = (int)U32(image, need + 12);
            if (next <= 0) return marked; // the chain only runs forward, so it ends
            need += next;
        }
    }

    private static ushort U16(ReadOnlySpan<byte> image, int at) => BinaryPrimitives.ReadUInt16LittleEndian(image[at..]);

    private static uint U32(ReadOnlySpan<byte> image, int at) => BinaryPrimitives.ReadUInt32LittleEndian(image[at..]);

    private static int Offset(ReadOnlySpan<byte> image, int at)
    {
        var offset = BinaryPrimitives.ReadUInt64LittleEndian(image[at..]);
        return offset < (ulong)image.Length ? (int)offset : throw new ArgumentOutOfRangeException(nameof(at));
    }

    private static string Text(ReadOnlySpan<byte> image, int at)
    {
        var tail = image[at..];
        var end = tail.IndexOf((byte)0);
        return end < 0 ? throw new ArgumentOutOfRangeException(nameof(at)) : Encoding.ASCII.GetString(tail[..end]);
    }
}
