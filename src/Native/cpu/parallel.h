// Work shared among threads, and memory to work in.
#pragma once
#include "vector.h"
#include <stdlib.h>
#if defined(__SSE__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace {

// Numbers below the normal ones count as zero while this lives: a state that fades would otherwise end in arithmetic that is a hundred times slower.
struct FlushToZero
{
#if defined(__SSE__) || defined(_M_X64)
    unsigned before = _mm_getcsr();
    FlushToZero() { _mm_setcsr(before | 0x8040); }
    ~FlushToZero() { _mm_setcsr(before); }
#endif
};

// Calls work(item) for every item. The threads are those of OpenMP, which libtorch uses too (on Linux the same ones: both find one libgomp).
template <class Work> void parallel(i64 items, i32 threads, const Work& work)
{
#if defined(_OPENMP)
    if (threads > 1 && items > 1)
    {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (i64 item = 0; item < items; item++)
        {
            FlushToZero guard;
            work(item);
        }
        return;
    }
#endif
    (void)threads;
    FlushToZero guard;
    for (i64 item = 0; item < items; item++) work(item);
}

// Floats that begin at a cache line.
struct Scratch
{
    void* block;
    float* data;
    explicit Scratch(i64 floats) : block(malloc((size_t)floats * sizeof(float) + 63)), data((float*)(((uintptr_t)block + 63) & ~(uintptr_t)63)) {}
    ~Scratch() { free(block); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

}
