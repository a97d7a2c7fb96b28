// usage: ReferencePatcher <friend assembly> <output folder> <dll>...
// Writes compile-time copies of ML.NET assemblies that carry [InternalsVisibleTo("<friend assembly>")].
// ML.NET keeps what a first-class component needs (ModelSaveContext, VersionInfo, SchemaShape.Column's constructor) internal
// and grants it to its own assemblies in just this way. The copies are never run and never shipped.
using Mono.Cecil;

var (friend, outputFolder) = (args[0], args[1]);
Directory.CreateDirectory(outputFolder);
foreach (var dll in args[2..])
{
    var resolver = new DefaultAssemblyResolver();
    resolver.AddSearchDirectory(Path.GetDirectoryName(dll));
    using var assembly = AssemblyDefinition.ReadAssembly(dll, new ReaderParameters { AssemblyResolver = resolver });
    var existing = assembly.CustomAttributes.First(a => a.AttributeType.Name == "InternalsVisibleToAttribute");
    var granted = new CustomAttribute(existing.Constructor);
    granted.ConstructorArguments.Add(new CustomAttributeArgument(assembly.MainModule.TypeSystem.String, friend));
    assembly.CustomAttributes.Add(granted);
    assembly.Write(Path.Combine(outputFolder, Path.GetFileName(dll)));
}
