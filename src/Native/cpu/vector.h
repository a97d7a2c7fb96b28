// A vector of floats as wide as the instruction set for which this file is compiled. GCC and Clang know vectors as a language extension; for other compilers a vector is a small array, and its
// loops are theirs to vectorise.
#pragma once
#include <stdint.h>
#include <string.h>

typedef int64_t i64;
typedef int32_t i32;

#if defined(_MSC_VER)
#define INLINE static __forceinline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

namespace {

#if defined(__AVX512F__)
constexpr int Lanes = 16;
#elif defined(__AVX__)
constexpr int Lanes = 8;
#else
constexpr int Lanes = 4;
#endif

// Vectors that a pass over the state keeps in registers: half as many where there are only 16 of them.
#if defined(__AVX512F__) || defined(__aarch64__) || defined(_M_ARM64)
constexpr bool HasManyRegisters = true;
#else
constexpr bool HasManyRegisters = false;
#endif

#if defined(__GNUC__) || defined(__clang__)

typedef float vec __attribute__((vector_size(4 * Lanes)));
typedef i32 ivec __attribute__((vector_size(4 * Lanes)));
typedef float vec_anywhere __attribute__((vector_size(4 * Lanes), aligned(4), may_alias));

INLINE vec load(const float* from) { return *(const vec_anywhere*)from; }
INLINE void store(float* to, vec x) { *(vec_anywhere*)to = x; }
INLINE vec splat(float x) { return x - vec{}; }
INLINE ivec bits(vec x) { return (ivec)x; }
INLINE vec from_bits(ivec x) { return (vec)x; }
// Lane by lane, a where the mask is −1, b where it is 0.
INLINE vec where(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }

#else

struct ivec { i32 lane[Lanes]; };
struct vec
{
    float lane[Lanes];
    float& operator[](int i) { return lane[i]; }
    float operator[](int i) const { return lane[i]; }
};

#define LANE_BY_LANE(result, expression) { result y; for (int i = 0; i < Lanes; i++) y.lane[i] = (expression); return y; }
INLINE vec load(const float* from) LANE_BY_LANE(vec, from[i])
INLINE void store(float* to, vec x) { for (int i = 0; i < Lanes; i++) to[i] = x.lane[i]; }
INLINE vec splat(float x) LANE_BY_LANE(vec, x)
INLINE ivec bits(vec x) { ivec y; memcpy(&y, &x, sizeof y); return y; }
INLINE vec from_bits(ivec x) { vec y; memcpy(&y, &x, sizeof y); return y; }
INLINE vec where(ivec mask, vec a, vec b) LANE_BY_LANE(vec, mask.lane[i] ? a.lane[i] : b.lane[i])
#define OPERATOR(op) \
    INLINE vec operator op(vec a, vec b) LANE_BY_LANE(vec, a.lane[i] op b.lane[i]) \
    INLINE vec operator op(vec a, float b) LANE_BY_LANE(vec, a.lane[i] op b) \
    INLINE vec operator op(float a, vec b) LANE_BY_LANE(vec, a op b.lane[i]) \
    INLINE vec& operator op##=(vec& a, vec b) { return a = a op b; } \
    INLINE vec& operator op##=(vec& a, float b) { return a = a op b; }
OPERATOR(+) OPERATOR(-) OPERATOR(*) OPERATOR(/)
INLINE ivec operator>(vec a, vec b) LANE_BY_LANE(ivec, a.lane[i] > b.lane[i] ? -1 : 0)
INLINE ivec operator<=(vec a, vec b) LANE_BY_LANE(ivec, a.lane[i] <= b.lane[i] ? -1 : 0)
INLINE ivec operator+(ivec a, ivec b) LANE_BY_LANE(ivec, a.lane[i] + b.lane[i])
INLINE ivec operator<<(ivec a, int n) LANE_BY_LANE(ivec, (i32)((uint32_t)a.lane[i] << n))

#endif

// The first `lanes` numbers (all of them, or what a row has left); the rest is zero.
INLINE vec load(const float* from, i64 lanes)
{
    if (lanes >= Lanes) return load(from);
    float all[Lanes] = {};
    for (i64 i = 0; i < lanes; i++) all[i] = from[i];
    return load(all);
}
INLINE void store(float* to, vec x, i64 lanes)
{
    if (lanes >= Lanes) return store(to, x);
    for (i64 i = 0; i < lanes; i++) to[i] = x[i];
}

INLINE float sum(vec x)
{
    float y = 0;
    for (int i = 0; i < Lanes; i++) y += x[i];
    return y;
}

// e^x to about one unit in the last place: x = n ln 2 + r, and e^r = 1 + r + r² p(r) with the polynomial of least error on |r| ≤ ln 2 / 2. Zero below −87, where float32 has no normal number left;
// not above 88.
INLINE vec exponential(vec x)
{
    const vec lowest = splat(-87.33f);
    const float magic = 12582912.0f; // 1.5 · 2^23: adding it rounds to an integer, which the low bits then hold
    vec shifted = x * 1.44269504f + magic;
    vec n = shifted - magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f; // ln 2 in two parts, the first with few digits
    vec p = ((((r * 1.38143206e-3f) + 8.36885069e-3f) * r + 4.16684002e-2f) * r + 1.66665196e-1f) * r + 4.99999940e-1f;
    vec y = r * r * p + r + 1.0f;
    return where(x <= lowest, splat(0), from_bits(bits(y) + (bits(shifted) << 23))); // a NaN stays one
}

// 1 / (1 + e^−x)
INLINE vec sigmoid(vec x)
{
    const vec most = splat(88);
    vec minus = splat(0) - x;
    return 1.0f / (1.0f + exponential(where(minus > most, most, minus)));
}

}
