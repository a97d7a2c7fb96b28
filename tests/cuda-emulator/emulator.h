// Runs CUDA kernels on a CPU, so that their arithmetic and their synchronisation are tested where there is no GPU. Stands in for src/Native/cuda/primitives.cuh.
//
// Every thread of a block is a fiber. It runs until it must wait: for its warp (shuffles, tensor-core products) or for its block (__syncthreads); which warp goes on next is drawn from a
// seed, so that a missing barrier shows as wrong numbers under some seed. Shared memory begins as NaN. An asynchronous copy happens as late as allowed: when it is waited for.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t i64;

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }

namespace emulator
{
struct Index { u32 x = 0, y = 0, z = 0; };

struct Copy { void* to; const void* from; int bytes; bool valid; };

const int stack_bytes = 1 << 17;

struct Fiber
{
    void* stack_pointer = nullptr;
    std::unique_ptr<char[]> stack; // not initialised: the pages that a thread does not reach cost no memory
    Index thread;
    bool waiting = false, done = false;
    std::vector<Copy> open;                  // asynchronous copies not yet committed
    std::vector<std::vector<Copy>> groups;   // committed, not yet done
};

struct Warp { int arrived = 0; void* lanes[32]; };

struct Block
{
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    int at_barrier = 0, alive = 0;
    Fiber* current = nullptr;
    void* scheduler = nullptr;
    void (*body)(const void*) = nullptr;
    const void* parameters = nullptr;
};

static Block block;
static Index block_index, grid_size, block_size;
static std::vector<char> shared_storage;
static char* shared;

extern "C" void emulator_switch(void** from, void* to);
#ifndef EMULATOR_SWITCH_DEFINED
#define EMULATOR_SWITCH_DEFINED
asm(R"(
.text
.local emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#endif

static inline void yield() { emulator_switch(&block.current->stack_pointer, block.scheduler); }

static inline int thread_number(const Index& t) { return (int)(t.x + block_size.x * (t.y + block_size.y * t.z)); }
static inline int lane() { return thread_number(block.current->thread) % 32; }

static inline void release(int from, int to) { for (int i = from; i < to; i++) block.fibers[i].waiting = false; }

// All lanes of the warp bring an argument; the last to arrive computes for all.
template <class A, class F> static inline void collective(A& mine, F compute)
{
    int number = thread_number(block.current->thread), first = number / 32 * 32;
    Warp& warp = block.warps[number / 32];
    warp.lanes[number % 32] = &mine;
    block.current->waiting = true;
    if (++warp.arrived == 32)
    {
        A* lanes[32];
        for (int i = 0; i < 32; i++) lanes[i] = (A*)warp.lanes[i];
        compute(lanes);
        warp.arrived = 0;
        release(first, first + 32);
    }
    while (block.current->waiting) yield();
}

static inline void barrier()
{
    block.current->waiting = true;
    if (++block.at_barrier == block.alive)
    {
        block.at_barrier = 0;
        release(0, (int)block.fibers.size());
    }
    while (block.current->waiting) yield();
}

static inline void perform(const Copy& copy)
{
    if (copy.valid) memcpy(copy.to, copy.from, copy.bytes);
    else memset(copy.to, 0, copy.bytes);
}

static void entry()
{
    block.body(block.parameters);
    block.current->done = true;
    block.alive--;
    if (block.at_barrier > 0 && block.at_barrier == block.alive)
    {
        block.at_barrier = 0;
        release(0, (int)block.fibers.size());
    }
    yield();
    abort();
}

static void run_block(std::mt19937& random)
{
    int threads = (int)(block_size.x * block_size.y * block_size.z), warps = threads / 32;
    if (threads % 32 != 0) { fprintf(stderr, "emulator: %d threads; expected a multiple of 32\n", threads); abort(); }
    memset(shared, 0xff, shared_storage.size() - 128);
    block.fibers.resize(threads);
    block.warps.assign(warps, Warp());
    block.alive = threads;
    block.at_barrier = 0;
    for (int i = 0; i < threads; i++)
    {
        Fiber& fiber = block.fibers[i];
        if (!fiber.stack) fiber.stack.reset(new char[stack_bytes]);
        fiber.thread = { i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y) };
        fiber.waiting = fiber.done = false;
        fiber.open.clear();
        fiber.groups.clear();
        uintptr_t top = ((uintptr_t)fiber.stack.get() + stack_bytes) & ~(uintptr_t)63;
        void** frame = (void**)(top - 8);
        *--frame = (void*)&entry;
        for (int r = 0; r < 6; r++) *--frame = nullptr;
        fiber.stack_pointer = frame;
    }
    std::vector<int> order(warps);
    for (int i = 0; i < warps; i++) order[i] = i;
    while (block.alive > 0)
    {
        bool progress = false;
        std::shuffle(order.begin(), order.end(), random);
        for (int warp : order)
            for (bool again = true; again;) // a warp runs until its block holds it up
            {
                again = false;
                for (int i = warp * 32; i < warp * 32 + 32; i++)
                {
                    Fiber& fiber = block.fibers[i];
                    if (fiber.waiting || fiber.done) continue;
                    block.current = &fiber;
                    emulator_switch(&block.scheduler, fiber.stack_pointer);
                    progress = again = true;
                }
            }
        if (!progress)
        {
            fprintf(stderr, "emulator: deadlock in block (%u, %u, %u): %d of %d threads at the barrier\n", block_index.x, block_index.y, block_index.z, block.at_barrier, block.alive);
            abort();
        }
    }
}
} // namespace emulator

// Launches a kernel, as the host sees it: entry point, parameters, grid, threads, bytes of dynamic shared memory, seed of the schedule.
extern "C" void emulator_launch(void (*kernel)(const void*), const void* parameters, u32 grid_x, u32 grid_y, u32 grid_z, u32 threads, u32 shared_bytes, u32 seed)
{
    using namespace emulator;
    std::mt19937 random(seed);
    grid_size = { grid_x, grid_y, grid_z };
    block_size = { threads, 1, 1 };
    shared_storage.resize(shared_bytes + 128);
    shared = (char*)(((uintptr_t)shared_storage.data() + 127) & ~(uintptr_t)127);
    block.body = kernel;
    block.parameters = parameters;
    for (u32 z = 0; z < grid_z; z++)
        for (u32 y = 0; y < grid_y; y++)
            for (u32 x = 0; x < grid_x; x++)
            {
                block_index = { x, y, z };
                run_block(random);
            }
}

// ---- the language

#define KERNEL(name, Params, threads) \
    static void name##_body(const Params& p); \
    extern "C" void name(const void* parameters) { name##_body(*(const Params*)parameters); } \
    static void name##_body(const Params& p)
#define KERNEL_MIN_BLOCKS(name, Params, threads, blocks) KERNEL(name, Params, threads)
#define SHARED_MEMORY(name) char* const name = emulator::shared
#define DEVICE static inline
#define __device__
#define __shared__ static
#define __restrict__
#define __forceinline__ inline
#define __constant__ static
#define __align__(n) alignas(n)
#define threadIdx (emulator::block.current->thread)
#define blockIdx emulator::block_index
#define gridDim emulator::grid_size
#define blockDim emulator::block_size

static inline void __syncthreads() { emulator::barrier(); }
static inline void __syncwarp(u32 = 0xffffffffu) { int nothing = 0; emulator::collective(nothing, [](int**) {}); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline float atomicAdd(float* to, float x) { float old = *to; *to += x; return old; }
static inline int atomicAdd(int* to, int x) { int old = *to; *to += x; return old; }
static inline u32 atomicAdd(u32* to, u32 x) { u32 old = *to; *to += x; return old; }
static inline float __uint_as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
static inline u32 __float_as_uint(float x) { u32 y; memcpy(&y, &x, 4); return y; }
static inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
static inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float __ldg(const float* p) { return *p; }
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }

struct bf16 { unsigned short bits; };
struct fp16 { unsigned short bits; };
typedef float fp32;

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
static inline float to_float(fp16 x) { _Float16 y; memcpy(&y, &x, 2); return (float)y; }

template <class T> static inline T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline bf16 from_float<bf16>(float x)
{
    u32 bits = __float_as_uint(x);
    if (x != x) return { 0x7fff };
    return { (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) };
}
template <> inline fp16 from_float<fp16>(float x) { _Float16 y = (_Float16)x; fp16 z; memcpy(&z, &y, 2); return z; }

template <class T> static inline u32 pack2(float first, float second) { return from_float<T>(first).bits | (u32)from_float<T>(second).bits << 16; }
template <class T> static inline float2 unpack2(u32 x) { return { to_float(T{ (unsigned short)x }), to_float(T{ (unsigned short)(x >> 16) }) }; }
template <class T> static inline u32 multiply2(u32 a, u32 b) { float2 x = unpack2<T>(a), y = unpack2<T>(b); return pack2<T>(x.x * y.x, x.y * y.y); }

// ---- sixteen bytes of elements, as floats

template <class T> struct Pack { static constexpr int size = 16 / sizeof(T); float x[16 / sizeof(T)]; };

static inline void load16(Pack<float>& pack, const float* from)
{
    float4 y = *(const float4*)from;
    pack.x[0] = y.x; pack.x[1] = y.y; pack.x[2] = y.z; pack.x[3] = y.w;
}
template <class T> static inline void load16(Pack<T>& pack, const T* from)
{
    uint4 y = *(const uint4*)from;
    u32 pairs[4] = { y.x, y.y, y.z, y.w };
    for (int i = 0; i < 4; i++)
    {
        float2 pair = unpack2<T>(pairs[i]);
        pack.x[2 * i] = pair.x;
        pack.x[2 * i + 1] = pair.y;
    }
}
static inline void store16(float* to, const Pack<float>& pack) { *(float4*)to = make_float4(pack.x[0], pack.x[1], pack.x[2], pack.x[3]); }
template <class T> static inline void store16(T* to, const Pack<T>& pack)
{
    *(uint4*)to = make_uint4(pack2<T>(pack.x[0], pack.x[1]), pack2<T>(pack.x[2], pack.x[3]), pack2<T>(pack.x[4], pack.x[5]), pack2<T>(pack.x[6], pack.x[7]));
}

// The same for the first `count` elements, the others being 0 or not written. aligned: the address is a multiple of 16 bytes, and there are all or none.
template <bool aligned, class T> static inline Pack<T> load_pack(const T* from, int count)
{
    Pack<T> pack;
    if (aligned && count > 0) load16(pack, from);
    else for (int i = 0; i < Pack<T>::size; i++) pack.x[i] = i < count ? to_float(from[i]) : 0.0f;
    return pack;
}
template <bool aligned, class T> static inline void store_pack(T* to, const Pack<T>& pack, int count)
{
    if (aligned)
    {
        if (count > 0) store16(to, pack);
    }
    else for (int i = 0; i < Pack<T>::size; i++) if (i < count) to[i] = from_float<T>(pack.x[i]);
}

static inline float exp2_fast(float x) { return exp2f(x); }
static inline float log2_fast(float x) { return log2f(x); }
static inline float reciprocal_fast(float x) { return 1 / x; }
static inline float rsqrt_fast(float x) { return 1 / sqrtf(x); }

namespace emulator
{
template <class T> struct Shuffle { T value, result; int from; };

template <class T> static inline T shuffle(T x, int from)
{
    Shuffle<T> mine = { x, x, from };
    collective(mine, [](Shuffle<T>** lanes) { for (int i = 0; i < 32; i++) lanes[i]->result = lanes[lanes[i]->from]->value; });
    return mine.result;
}

struct Product { float* c; const u32* a; u32 b[2]; };

struct Matrices { const void* row; u32* r; bool transposed; };
} // namespace emulator

template <class T> static inline T shuffle_xor(T x, int mask) { return emulator::shuffle(x, emulator::lane() ^ mask); }
template <class T> static inline T shuffle_from(T x, int lane) { return emulator::shuffle(x, lane & 31); }
template <class T> static inline T shuffle_up(T x, int distance) { int l = emulator::lane(); return emulator::shuffle(x, l >= distance ? l - distance : l); }
template <class T> static inline T shuffle_down(T x, int distance) { int l = emulator::lane(); return emulator::shuffle(x, l + distance < 32 ? l + distance : l); }
template <class T> static inline T __shfl_xor_sync(u32, T x, int mask) { return shuffle_xor(x, mask); }
template <class T> static inline T __shfl_sync(u32, T x, int lane) { return shuffle_from(x, lane); }
template <class T> static inline T __shfl_up_sync(u32, T x, int distance) { return shuffle_up(x, distance); }
template <class T> static inline T __shfl_down_sync(u32, T x, int distance) { return shuffle_down(x, distance); }

template <class T> static inline void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1)
{
    emulator::Product mine = { c, a, { b0, b1 } };
    emulator::collective(mine, [](emulator::Product** lanes)
    {
        float x[16][16], y[16][8];
        for (int l = 0; l < 32; l++)
        {
            int g = l / 4, i = l % 4;
            for (int r = 0; r < 4; r++)
            {
                float2 pair = unpack2<T>(lanes[l]->a[r]);
                int row = g + (r & 1) * 8, column = 2 * i + (r / 2) * 8;
                x[row][column] = pair.x;
                x[row][column + 1] = pair.y;
            }
            for (int r = 0; r < 2; r++)
            {
                float2 pair = unpack2<T>(lanes[l]->b[r]);
                y[2 * i + 8 * r][g] = pair.x;
                y[2 * i + 8 * r + 1][g] = pair.y;
            }
        }
        for (int l = 0; l < 32; l++)
            for (int r = 0; r < 4; r++)
            {
                int row = l / 4 + (r / 2) * 8, column = 2 * (l % 4) + (r & 1);
                float sum = lanes[l]->c[r];
                for (int k = 0; k < 16; k++) sum += x[row][k] * y[k][column];
                lanes[l]->c[r] = sum;
            }
    });
}

namespace emulator
{
static inline void load(u32 (&r)[4], const void* row, bool transposed)
{
    if ((uintptr_t)row % 16 != 0) { fprintf(stderr, "emulator: a matrix row is not aligned to 16 bytes\n"); abort(); }
    Matrices mine = { row, r, transposed };
    collective(mine, [](Matrices** lanes)
    {
        for (int l = 0; l < 32; l++)
            for (int m = 0; m < 4; m++)
            {
                auto element = [&](int row, int column) { return (u32)((const unsigned short*)lanes[8 * m + row]->row)[column]; };
                int g = l / 4, i = 2 * (l % 4);
                lanes[l]->r[m] = lanes[l]->transposed ? element(i, g) | element(i + 1, g) << 16 : element(g, i) | element(g, i + 1) << 16;
            }
    });
}

static inline void copy_later(void* to, const void* from, int bytes, bool valid)
{
    if ((uintptr_t)to % bytes != 0 || (valid && (uintptr_t)from % bytes != 0)) { fprintf(stderr, "emulator: an asynchronous copy is not aligned to %d bytes\n", bytes); abort(); }
    block.current->open.push_back({ to, from, bytes, valid });
}
} // namespace emulator

static inline void load_matrices(u32 (&r)[4], const void* row) { emulator::load(r, row, false); }
static inline void load_matrices_transposed(u32 (&r)[4], const void* row) { emulator::load(r, row, true); }

static inline u32 transpose_matrix(u32 x)
{
    struct Turn { u32 x, y; } mine = { x, 0 };
    emulator::collective(mine, [](Turn** lanes)
    {
        auto element = [&](int row, int column) { return lanes[4 * row + column / 2]->x >> (column % 2 * 16) & 0xffffu; };
        for (int l = 0; l < 32; l++) lanes[l]->y = element(2 * (l % 4), l / 4) | element(2 * (l % 4) + 1, l / 4) << 16;
    });
    return mine.y;
}

static inline void copy_async(void* to, const void* from, bool valid) { emulator::copy_later(to, from, 16, valid); }
static inline void copy_async_4(void* to, const void* from, bool valid) { emulator::copy_later(to, from, 4, valid); }
static inline void copy_commit()
{
    emulator::Fiber& fiber = *emulator::block.current;
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
}
template <int pending> static inline void copy_wait()
{
    auto& groups = emulator::block.current->groups;
    while ((int)groups.size() > pending)
    {
        for (const auto& copy : groups.front()) emulator::perform(copy);
        groups.erase(groups.begin());
    }
}
