// The state of a linear recurrence, S [rows × columns], and what all of them do with it: fade, add outer products, read.
//
// Columns never mix: column j of S and of what is read depends only on column j of what is written. So S is worked off in tiles of a few vectors of columns, each through the whole sequence while it
// stays in the first cache; threads share the tiles; and since every sum runs over the rows in their order, neither the cut into tiles nor one into pieces of time changes a bit of the result.
#pragma once
#include "parallel.h"

namespace {

// What multiplies S before a step writes: nothing, one number, one per row or one per column.
enum class Decay { None, All, Rows, Columns };

// A vector over the rows of S for every step: element i of step t is data[t * step + i].
struct OverRows
{
    const float* data;
    i64 step;
    OverRows from(i64 t) const { return { data + t * step, step }; }
    OverRows reversed(i64 last) const { return { data + last * step, -step }; } // backwards in time
};

// Likewise over the columns.
struct OverColumns
{
    float* data;
    i64 step;
    float* at(i64 t) const { return data + t * step; }
    OverColumns reversed(i64 last) const { return { data + last * step, -step }; }
};

// S ← decay ∘ S + Σ_u x_u y_uᵀ and then out_r = Sᵀ r_r, for a few steps, in one pass over a tile of S: each row is loaded once, taken through the steps in registers, and stored.
// state: [rows, Vectors · Lanes]. decay: over the rows (Decay::Rows), or its first element for all (Decay::All). fade: over the columns (Decay::Columns).
template <Decay D, int Steps, int Vectors, int Updates, int Reads>
INLINE void pass(float* __restrict state, i64 rows, OverRows decay, const vec (&fade)[Steps][Vectors], const OverRows (&x)[Updates], const vec (&y)[Updates][Steps][Vectors], const OverRows (&r)[Reads], vec (&out)[Reads][Steps][Vectors])
{
    float all[Steps];
    if (D == Decay::All)
        for (int t = 0; t < Steps; t++) all[t] = decay.data[t * decay.step];
    for (int n = 0; n < Reads; n++)
        for (int t = 0; t < Steps; t++)
            for (int v = 0; v < Vectors; v++) out[n][t][v] = splat(0);
    for (i64 i = 0; i < rows; i++, state += Vectors * Lanes)
    {
        vec s[Vectors];
        for (int v = 0; v < Vectors; v++) s[v] = load(state + v * Lanes);
        for (int t = 0; t < Steps; t++)
        {
            if (D == Decay::All)
                for (int v = 0; v < Vectors; v++) s[v] *= all[t];
            if (D == Decay::Rows)
                for (int v = 0; v < Vectors; v++) s[v] *= decay.data[t * decay.step + i];
            if (D == Decay::Columns)
                for (int v = 0; v < Vectors; v++) s[v] *= fade[t][v];
            for (int u = 0; u < Updates; u++)
                for (int v = 0; v < Vectors; v++) s[v] += x[u].data[t * x[u].step + i] * y[u][t][v];
            for (int n = 0; n < Reads; n++)
                for (int v = 0; v < Vectors; v++) out[n][t][v] += r[n].data[t * r[n].step + i] * s[v];
        }
        for (int v = 0; v < Vectors; v++) store(state + v * Lanes, s[v]);
    }
}

// A matrix with any strides: the state as it comes in or goes out, as it is or transposed. A null pointer: zeros, or nowhere to go.
struct Matrix
{
    float* data;
    i64 row, column;
    float& at(i64 i, i64 j) const { return data[i * row + j * column]; }
    Matrix transposed() const { return { data, column, row }; }
};

// Columns [first, first + lanes) of a matrix to a tile [rows, width], filled up with zeros; and back.
INLINE void load_tile(float* tile, i64 rows, i64 width, const Matrix& from, i64 first, i64 lanes)
{
    for (i64 i = 0; i < rows; i++)
        for (i64 j = 0; j < width; j++) tile[i * width + j] = from.data != nullptr && j < lanes ? from.at(i, first + j) : 0;
}
INLINE void store_tile(const float* tile, i64 rows, i64 width, const Matrix& to, i64 first, i64 lanes)
{
    for (i64 i = 0; to.data != nullptr && i < rows; i++)
        for (i64 j = 0; j < lanes; j++) to.at(i, first + j) = tile[i * width + j];
}

// Into how many parts of their columns `items` states are cut, so that every thread has one.
INLINE i64 parts(i64 items, i32 threads, i64 columns)
{
    if (items == 0) return 1;
    i64 wanted = (threads + items - 1) / items, most = (columns + Lanes - 1) / Lanes;
    return wanted < most ? wanted : most;
}

template <int V> struct Width { static constexpr int value = V; };

// Part n of `parts` of the columns, in tiles of Vectors vectors, and of one vector for what remains. Calls work(Width<vectors of the tile>, first column, columns that are real).
template <int Vectors, class Work> INLINE void tiles(i64 columns, i64 n, i64 parts, const Work& work)
{
    i64 vectors = (columns + Lanes - 1) / Lanes, first = vectors * n / parts * Lanes, last = vectors * (n + 1) / parts * Lanes;
    if (last > columns) last = columns;
    for (; last - first >= Vectors * Lanes; first += Vectors * Lanes) work(Width<Vectors>(), first, (i64)(Vectors * Lanes));
    for (; first < last; first += Lanes) work(Width<1>(), first, last - first < Lanes ? last - first : (i64)Lanes);
}

// Σ a b, and Σ (a b − c d).
INLINE float dot(const float* a, const float* b, i64 size)
{
    vec y = splat(0);
    for (i64 i = 0; i < size; i += Lanes) y += load(a + i, size - i) * load(b + i, size - i);
    return sum(y);
}
INLINE float difference(const float* a, const float* b, const float* c, const float* d, i64 size)
{
    vec y = splat(0);
    for (i64 i = 0; i < size; i += Lanes) y += load(a + i, size - i) * load(b + i, size - i) - load(c + i, size - i) * load(d + i, size - i);
    return sum(y);
}

}
