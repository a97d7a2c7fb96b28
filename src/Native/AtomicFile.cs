namespace MLSeq;

/// <summary>Files that are replaced in one piece: a crash leaves the old one or the new one, never half of one.</summary>
internal static class AtomicFile
{
    /// <summary>Writes a file beside <paramref name="path"/>, then puts it in its place.</summary>
    public static void Write(string path, Action<Stream> write)
    {
        var temporary = $"{path}.{Guid.NewGuid():N}.tmp";
        try
        {
            using (var file = new FileStream(temporary, FileMode.CreateNew, FileAccess.Write, FileShare.None, 1 << 20))
            {
                write(file);
                file.Flush(flushToDisk: true);
            }
            File.Move(temporary, path, overwrite: true);
        }
        finally
        {
            File.Delete(temporary);
        }
    }
}
