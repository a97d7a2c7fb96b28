// What .NET hands over: src/Native/Cpu/CpuKernels.cs and the operators have the same structs.
#pragma once
#include "state.h"

// The library holds every kernel once per instruction set; the set is the end of a function's name, as in mlseq_linear_forward_avx2, and .NET, which knows the processor, chooses.
#if defined(_WIN32)
#define MLSEQ_VISIBLE __declspec(dllexport)
#else
#define MLSEQ_VISIBLE __attribute__((visibility("default")))
#endif
#define MLSEQ_JOIN(name, set) mlseq_##name##_##set
#define MLSEQ_NAME(name, set) MLSEQ_JOIN(name, set)
#define EXPORT(name, Parameters) extern "C" MLSEQ_VISIBLE void MLSEQ_NAME(name, MLSEQ_SET)(const Parameters& p)

// A tensor [batch, time, heads, size] whose last dimension is contiguous; the others may have any stride, 0 where one row serves all. A null pointer: there is none.
struct View
{
    float* data;
    i64 batch, time, head;
    float* at(i64 b, i64 t, i64 h) const { return data + b * batch + t * time + h * head; }
    OverRows rows(i64 b, i64 h) const { return { at(b, 0, h), time }; }
    OverColumns columns(i64 b, i64 h) const { return { at(b, 0, h), time }; }
};
