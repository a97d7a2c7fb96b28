// What the kernels are written in: element types, tensor-core products, asynchronous copies. NVRTC compiles every kernel file after this one, without any header of a CUDA toolkit.
// tests/cuda-emulator/emulator.h offers the same names on a CPU: what is added here is added there.
//
// A kernel takes one struct of parameters and is declared with KERNEL(name, Params, threads) { ... p.field ... }. Dynamic shared memory: SHARED_MEMORY(name), a char array aligned to 16 bytes.

#define KERNEL(name, Params, threads) extern "C" __global__ void __launch_bounds__(threads) name(const Params p)
#define KERNEL_MIN_BLOCKS(name, Params, threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Params p)
#define SHARED_MEMORY(name) extern __shared__ __align__(16) char name[]
#define DEVICE __device__ __forceinline__ // not static: a specialisation of a template may not be

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct bf16 { unsigned short bits; };
struct fp16 { unsigned short bits; };
typedef float fp32;

// ---- conversions; pairs are packed with the first element in the low half

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
DEVICE float to_float(fp16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }

template <class T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE bf16 from_float<bf16>(float x) { bf16 y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
template <> DEVICE fp16 from_float<fp16>(float x) { fp16 y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }

template <class T> DEVICE u32 pack2(float first, float second);
template <> DEVICE u32 pack2<bf16>(float first, float second) { u32 y; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(second), "f"(first)); return y; }
template <> DEVICE u32 pack2<fp16>(float first, float second) { u32 y; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(second), "f"(first)); return y; }

template <class T> DEVICE float2 unpack2(u32 x);
template <> DEVICE float2 unpack2<bf16>(u32 x) { return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)); }
template <> DEVICE float2 unpack2<fp16>(u32 x)
{
    float2 y;
    asm("{ .reg .f16 lo, hi; mov.b32 {lo, hi}, %2; cvt.f32.f16 %0, lo; cvt.f32.f16 %1, hi; }" : "=f"(y.x), "=f"(y.y) : "r"(x));
    return y;
}

// Element-wise product of two pairs, in their own type.
template <class T> DEVICE u32 multiply2(u32 a, u32 b);
template <> DEVICE u32 multiply2<bf16>(u32 a, u32 b) { u32 y; asm("{ .reg .b32 z; mov.b32 z, 0x80008000; fma.rn.bf16x2 %0, %1, %2, z; }" : "=r"(y) : "r"(a), "r"(b)); return y; }
template <> DEVICE u32 multiply2<fp16>(u32 a, u32 b) { u32 y; asm("mul.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b)); return y; }

// ---- sixteen bytes of elements, as floats

template <class T> struct Pack { static constexpr int size = 16 / sizeof(T); float x[16 / sizeof(T)]; };

DEVICE void load16(Pack<float>& pack, const float* from)
{
    float4 y = *(const float4*)from;
    pack.x[0] = y.x; pack.x[1] = y.y; pack.x[2] = y.z; pack.x[3] = y.w;
}
template <class T> DEVICE void load16(Pack<T>& pack, const T* from)
{
    uint4 y = *(const uint4*)from;
    u32 pairs[4] = { y.x, y.y, y.z, y.w };
#pragma unroll
    for (int i = 0; i < 4; i++)
    {
        float2 pair = unpack2<T>(pairs[i]);
        pack.x[2 * i] = pair.x;
        pack.x[2 * i + 1] = pair.y;
    }
}
DEVICE void store16(float* to, const Pack<float>& pack) { *(float4*)to = make_float4(pack.x[0], pack.x[1], pack.x[2], pack.x[3]); }
template <class T> DEVICE void store16(T* to, const Pack<T>& pack)
{
    *(uint4*)to = make_uint4(pack2<T>(pack.x[0], pack.x[1]), pack2<T>(pack.x[2], pack.x[3]), pack2<T>(pack.x[4], pack.x[5]), pack2<T>(pack.x[6], pack.x[7]));
}

// The same for the first `count` elements, the others being 0 or not written. aligned: the address is a multiple of 16 bytes, and there are all or none.
template <bool aligned, class T> DEVICE Pack<T> load_pack(const T* from, int count)
{
    Pack<T> pack;
    if (aligned && count > 0) load16(pack, from);
    else for (int i = 0; i < Pack<T>::size; i++) pack.x[i] = i < count ? to_float(from[i]) : 0.0f;
    return pack;
}
template <bool aligned, class T> DEVICE void store_pack(T* to, const Pack<T>& pack, int count)
{
    if (aligned)
    {
        if (count > 0) store16(to, pack);
    }
    else for (int i = 0; i < Pack<T>::size; i++) if (i < count) to[i] = from_float<T>(pack.x[i]);
}

// ---- functions of one number

DEVICE float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float log2_fast(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float reciprocal_fast(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float rsqrt_fast(float x) { float y; asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

// ---- exchange within a warp; all 32 lanes take part

DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE float shuffle_up(float x, int distance) { return __shfl_up_sync(0xffffffffu, x, distance); }
DEVICE float shuffle_down(float x, int distance) { return __shfl_down_sync(0xffffffffu, x, distance); }
DEVICE float shuffle_from(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
DEVICE u32 shuffle_xor(u32 x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE u32 shuffle_from(u32 x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }

// ---- tensor cores. g = lane / 4, i = lane % 4; each register holds two neighbouring elements:
// a: rows g, g+8, g, g+8 at columns 2i, 2i, 2i+8, 2i+8 (16 x 16); b: rows 2i, 2i+8 at column g (16 x 8); c: rows g, g, g+8, g+8 at columns 2i, 2i+1, 2i, 2i+1 (16 x 8).

// c += a b
template <class T> DEVICE void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <> DEVICE void mma<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> DEVICE void mma<fp16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned). r[m]: of matrix m, row g at columns 2i, 2i+1 (transposed: rows 2i, 2i+1 at column g).
DEVICE void load_matrices(u32 (&r)[4], const void* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
DEVICE void load_matrices_transposed(u32 (&r)[4], const void* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// An 8 x 8 matrix of 16-bit elements in registers (lane: row g, columns 2i and 2i+1), transposed.
DEVICE u32 transpose_matrix(u32 x) { u32 y; asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x)); return y; }

// ---- global to shared memory in the background

// 16 bytes; zeros where not valid (the source is not read then).
DEVICE void copy_async(void* to, const void* from, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
DEVICE void copy_async_4(void* to, const void* from, bool valid)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" :: "r"(shared_address(to)), "l"(from), "r"(valid ? 4 : 0) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's committed groups are under way.
template <int pending> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(pending) : "memory"); }

// Asks for the 128 bytes around an address to be brought into the L2 cache.
