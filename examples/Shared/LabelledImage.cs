namespace MLSeq.Examples;

/// <summary>One labelled image.</summary>
/// <param name="Label">Its class, from 0.</param>
/// <param name="Pixels">0 to 255, channel by channel and row by row: [channels, height, width].</param>
public sealed record LabelledImage(int Label, byte[] Pixels);
