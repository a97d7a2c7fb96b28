namespace System.Runtime.CompilerServices;

/// <summary>Recognised by the runtime by its full name: lets this assembly use the internals of the named one. Not part of the base library.</summary>
[AttributeUsage(AttributeTargets.Assembly, AllowMultiple = true)]
internal sealed class IgnoresAccessChecksToAttribute(string assemblyName) : Attribute
{
    public string AssemblyName { get; } = assemblyName;
}
