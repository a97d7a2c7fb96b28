using System.Runtime.CompilerServices;

[assembly: InternalsVisibleTo("MLSeq.Tests")]
