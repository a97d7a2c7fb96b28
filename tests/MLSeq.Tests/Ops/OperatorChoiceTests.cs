using MLSeq.Tests.Support;
using TorchSharp;
using Xunit;

namespace MLSeq.Tests.Ops;

public sealed class OperatorChoiceTests : IDisposable
{
    private readonly OperatorForm _before = MLSeqRuntime.Operators;

    [Theory]
    [InlineData(OperatorForm.Auto, 100, true, OperatorForm.Fused)]
    [InlineData(OperatorForm.Auto, 100, false, OperatorForm.Chunked)]
    [InlineData(OperatorForm.Auto, 1, false, OperatorForm.Naive)]
    [InlineData(OperatorForm.Fused, 100, false, OperatorForm.Chunked)]
    [InlineData(OperatorForm.Chunked, 1, true, OperatorForm.Chunked)]
    [InlineData(OperatorForm.Naive, 100, true, OperatorForm.Naive)]
    public void The_form_is_the_one_asked_for_or_the_fastest_there_is(OperatorForm asked, long time, bool hasFused, OperatorForm expected)
    {
        MLSeqRuntime.Operators = asked;
        Assert.Equal(expected, OperatorChoice.For(time, hasFused));
    }

    [Fact]
    public void Training_says_that_the_operators_do_not_run_in_their_fastest_form()
    {
        MLSeqRuntime.Operators = OperatorForm.Auto;
        Assert.Null(OperatorChoice.Remark(DeviceType.CPU, -1));
        MLSeqRuntime.Operators = OperatorForm.Chunked;
        var ml = new Microsoft.ML.MLContext(1);
        var warnings = Models.Warnings(ml);
        Models.Release(TestHost.FixedData.Pipeline(ml, options => options.Epochs = 1).Fit(TestHost.FixedData.View(ml)));
        Assert.Contains(warnings, text => text.Contains("chunked form", StringComparison.Ordinal) && text.Contains(MLSeqRuntime.OperatorsVariable, StringComparison.Ordinal));
        MLSeqRuntime.EnsureLoaded();
        if (!torch.cuda.is_available())
        {
            MLSeqRuntime.Operators = OperatorForm.Auto;
            Assert.Contains("CUDA kernels, which are faster, cannot be used: ", OperatorChoice.Remark(DeviceType.CUDA, 0));
        }
    }

    public void Dispose() => MLSeqRuntime.Operators = _before;
}
