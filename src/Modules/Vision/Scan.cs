using static TorchSharp.torch;

namespace MLSeq;

/// <summary>The order in which a token mixer reads the places of a map.</summary>
public enum VisionScan
{
    /// <summary>Row after row. A bidirectional mixer also reads backward, and attention has no order at all.</summary>
    RowMajor,

    /// <summary>Blocks take turns: row after row forward, the same backward, column after column forward, the same backward. For mixers that read one way.</summary>
    FourWay,
}

/// <summary>Maps as sequences. The directions of a four-way scan are those of VMamba (Liu et al. 2024), here one per block instead of all in each.</summary>
internal static class ScanOrder
{
    /// <summary>The direction of block <paramref name="layer"/>: 0 along the rows, 1 back along the rows, 2 along the columns, 3 back along the columns.</summary>
    public static int Direction(this VisionScan scan, int layer) => scan == VisionScan.FourWay ? layer % 4 : 0;

    /// <summary>[batch, height, width, features] to [batch, height · width, features] in the order of the direction.</summary>
    public static Tensor Sequence(Tensor map, int direction)
    {
        var sequence = (direction < 2 ? map : map.transpose(1, 2)).flatten(1, 2);
        return direction % 2 == 0 ? sequence : sequence.flip(1);
    }

    /// <summary>The reverse of <see cref="Sequence"/>.</summary>
    public static Tensor Map(Tensor sequence, int direction, long height, long width)
    {
        if (direction % 2 != 0) sequence = sequence.flip(1);
        return direction < 2 ? sequence.Unflatten(1, height, width) : sequence.Unflatten(1, width, height).transpose(1, 2);
    }
}
