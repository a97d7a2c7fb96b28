// S_t = a_t S_{t−1} + k_t u_tᵀ, u_t = β_t e_t, e_t = v_t − a_t S_{t−1}ᵀ k_t, o_t = S_tᵀ q_t (src/Modules/Ops/DeltaRecurrence), and its gradient.
//
// What key k_{t+1} holds is read in the same pass over S in which step t writes. The gradient keeps e. Backwards in time, with du_t = dS_tᵀ k_t and w_t = β_t du_t,
//     dS_{t−1} = a_t (dS_t − k_t w_tᵀ) + q_{t−1} do_{t−1}ᵀ,    dv_t = w_t,   dβ_t = e_tᵀ du_t,   dk_t = dS_t u_t − a_t S_{t−1} w_t,   dq_t = S_t do_t:
// a sweep for du; once more, transposed, for dS_t u_t; and forwards, transposed, S from the known u for the rest.
// v scales what is written in step t, a_1 … a_t what is read, so with G_t = log a_1 + … + log a_t, dG_t = q_tᵀ dq_t − v_tᵀ dv_t, and S_T ∘ dS_T more at the end.
#include "abi.h"

struct DeltaParameters
{
    i32 batch, time, heads, keys, values, threads;
    i32 gates; // 1, or 0 without decay
    i32 reserved;
    View q, k, v, beta, g, o;
    View e;                // [batch, time, heads, values], for the gradient; may be null
    float *initial, *last; // S_0 (or null) and S_T, [batch, heads, keys, values]
    // For the gradient:
    View dO, dq, dk, dv, dBeta, dg;
    float *dLast, *dInitial; // of S_T and of S_0; each may be null
};

namespace {

constexpr int Vectors = HasManyRegisters ? 4 : 2; // of a tile; one step at a time, since a step's writing depends on the reading of the one before

// One row of a tile: a factor times `lanes` numbers.
template <int V> INLINE void load_row(vec (&row)[1][V], const float* from, i64 lanes, float factor = 1)
{
    for (int v = 0; v < V; v++) row[0][v] = load(from + v * Lanes, lanes - v * Lanes) * factor;
}
template <int V> INLINE void store_row(float* to, const vec (&row)[1][V], i64 lanes, float factor = 1)
{
    for (int v = 0; v < V; v++) store(to + v * Lanes, row[0][v] * factor, lanes - v * Lanes);
}
template <int V> INLINE void clear(vec (&row)[1][V])
{
    for (int v = 0; v < V; v++) row[0][v] = splat(0);
}

struct Head
{
    const DeltaParameters& p;
    i64 b, h, last;
    float* decay; // a_t, [time + 1]; the last is 1, which a sweep backwards begins with
    Scratch scratch;

    Head(const DeltaParameters& p, i64 head) : p(p), b(head / p.heads), h(head % p.heads), last(p.time - 1), scratch(tile_size() + p.time + 1)
    {
        decay = scratch.data + tile_size();
        for (i64 t = 0; t < p.time; t++) decay[t] = p.gates == 0 ? 1 : exponential(splat(*p.g.at(b, t, h)))[0];
        decay[p.time] = 1;
    }

    i64 tile_size() const { return (i64)(p.keys > p.values ? p.keys : p.values) * Vectors * Lanes; }

    float beta(i64 t) const { return *p.beta.at(b, t, h); }

    OverRows decay_at(i64 t) const { return { decay + t, 0 }; }

    Matrix state(float* all) const { return { all == nullptr ? nullptr : all + (b * p.heads + h) * p.keys * p.values, p.values, 1 }; }

    // o and e. Tiles of S: [keys, some values].
    template <Decay D> void forward(Matrix start, Matrix end, i64 part, i64 parts)
    {
        float* tile = scratch.data;
        OverRows q = p.q.rows(b, h), k = p.k.rows(b, h);
        tiles<Vectors>(p.values, part, parts, [&](auto width, i64 column, i64 lanes)
        {
            constexpr int V = decltype(width)::value;
            vec fade[1][V], y[1][1][V], out[2][1][V]; // out: o_t and, next, what key k_{t+1} holds
            load_tile(tile, p.keys, V * Lanes, start, column, lanes);
            clear(y[0]);
            pass<Decay::None, 1, V, 1, 2>(tile, p.keys, k, fade, { k }, y, { q, k }, out);
            for (i64 t = 0; t <= last; t++)
            {
                vec value[1][V];
                load_row(value, p.v.at(b, t, h) + column, lanes);
                for (int v = 0; v < V; v++) value[0][v] -= out[1][0][v] * decay[t]; // e_t
                if (p.e.data != nullptr) store_row(p.e.at(b, t, h) + column, value, lanes);
                for (int v = 0; v < V; v++) y[0][0][v] = value[0][v] * beta(t);
                pass<D, 1, V, 1, 2>(tile, p.keys, decay_at(t), fade, { k.from(t) }, y, { q.from(t), k.from(t < last ? t + 1 : t) }, out);
                store_row(p.o.at(b, t, h) + column, out[0], lanes);
            }
            store_tile(tile, p.keys, V * Lanes, end, column, lanes);
        });
    }

    // du, dv and the initial state's gradient. Tiles of dS: [keys, some values].
    template <Decay D> void backward_values(View du, Matrix start, Matrix end, i64 part, i64 parts)
    {
        float* tile = scratch.data;
        OverRows q = p.q.rows(b, h), k = p.k.rows(b, h);
        tiles<Vectors>(p.values, part, parts, [&](auto width, i64 column, i64 lanes)
        {
            constexpr int V = decltype(width)::value;
            vec fade[1][V], y[2][1][V], out[1][1][V]; // y: −a_{t+1} w_{t+1} and do_t; out: du_t
            load_tile(tile, p.keys, V * Lanes, start, column, lanes);
            clear(y[0]);
            for (i64 t = last; t >= 0; t--)
            {
                load_row(y[1], p.dO.at(b, t, h) + column, lanes);
                pass<D, 1, V, 2, 1>(tile, p.keys, decay_at(t + 1), fade, { k.from(t < last ? t + 1 : t), q.from(t) }, y, { k.from(t) }, out);
                store_row(du.at(b, t, h) + column, out[0], lanes);
                store_row(p.dv.at(b, t, h) + column, out[0], lanes, beta(t));
                for (int v = 0; v < V; v++) y[0][0][v] = out[0][0][v] * (-decay[t] * beta(t));
            }
            if (end.data == nullptr) return;
            clear(y[1]);
            pass<D, 1, V, 2, 1>(tile, p.keys, decay_at(0), fade, { k, q }, y, { k }, out);
            store_tile(tile, p.keys, V * Lanes, end, column, lanes);
        });
    }

    // dS_t u_t of dk. Tiles of dSᵀ: [values, some keys].
    template <Decay D> void backward_keys(Matrix start, i64 part, i64 parts)
    {
        float* tile = scratch.data;
        OverRows w = p.dv.rows(b, h), dO = p.dO.rows(b, h), e = p.e.rows(b, h);
        tiles<Vectors>(p.keys, part, parts, [&](auto width, i64 column, i64 lanes)
        {
            constexpr int V = decltype(width)::value;
            vec fade[1][V], y[2][1][V], out[1][1][V]; // y: −a_{t+1} k_{t+1} and q_t; out: dS_t e_t
            load_tile(tile, p.values, V * Lanes, start, column, lanes);
            clear(y[0]);
            for (i64 t = last; t >= 0; t--)
            {
                load_row(y[1], p.q.at(b, t, h) + column, lanes);
                pass<D, 1, V, 2, 1>(tile, p.values, decay_at(t + 1), fade, { w.from(t < last ? t + 1 : t), dO.from(t) }, y, { e.from(t) }, out);
                store_row(p.dk.at(b, t, h) + column, out[0], lanes, beta(t));
                load_row(y[0], p.k.at(b, t, h) + column, lanes, -decay[t]);
            }
        });
    }

    // dq, and −a_t S_{t−1} w_t of dk. Tiles of Sᵀ: [values, some keys].
    template <Decay D> void forward_keys(Matrix start, Matrix end, i64 part, i64 parts)
    {
        float* tile = scratch.data;
        OverRows w = p.dv.rows(b, h), dO = p.dO.rows(b, h), e = p.e.rows(b, h);
        tiles<Vectors>(p.keys, part, parts, [&](auto width, i64 column, i64 lanes)
        {
            constexpr int V = decltype(width)::value;
            vec fade[1][V], y[1][1][V], out[2][1][V]; // out: dq_t and S_t w_{t+1}
            load_tile(tile, p.values, V * Lanes, start, column, lanes);
            clear(y[0]);
            pass<Decay::None, 1, V, 1, 2>(tile, p.values, e, fade, { e }, y, { dO, w }, out);
            for (i64 t = 0; t <= last; t++)
            {
                vec dk[1][V];
                load_row(dk, p.dk.at(b, t, h) + column, lanes);
                for (int v = 0; v < V; v++) dk[0][v] -= out[1][0][v] * decay[t];
                store_row(p.dk.at(b, t, h) + column, dk, lanes);
                load_row(y[0], p.k.at(b, t, h) + column, lanes, beta(t));
                pass<D, 1, V, 1, 2>(tile, p.values, decay_at(t), fade, { e.from(t) }, y, { dO.from(t), w.from(t < last ? t + 1 : t) }, out);
                store_row(p.dq.at(b, t, h) + column, out[0], lanes);
            }
            store_tile(tile, p.values, V * Lanes, end, column, lanes);
        });
    }

    // dβ_t, and dg_t = Σ_{s ≥ t} dG_s. A decay of 0 lets nothing through: its gradient is 0, and the sum begins anew before it.
    void number_gradients(View du, const Matrix& end, const Matrix& dEnd)
    {
        double dG = 0;
        for (i64 i = 0; end.data != nullptr && dEnd.data != nullptr && i < p.keys; i++) dG += dot(&end.at(i, 0), &dEnd.at(i, 0), p.values);
        for (i64 t = last; t >= 0; t--)
        {
            *p.dBeta.at(b, t, h) = dot(p.e.at(b, t, h), du.at(b, t, h), p.values);
            if (p.gates == 0) continue;
            dG += (double)dot(p.q.at(b, t, h), p.dq.at(b, t, h), p.keys) - dot(p.v.at(b, t, h), p.dv.at(b, t, h), p.values);
            if (decay[t] == 0) dG = 0;
            *p.dg.at(b, t, h) = (float)dG;
        }
    }
};

}

EXPORT(delta_forward, DeltaParameters)
{
    i64 heads = (i64)p.batch * p.heads, cut = parts(heads, p.threads, p.values);
    parallel(heads * cut, p.threads, [&](i64 item)
    {
        Head head(p, item / cut);
        Matrix start = head.state(p.initial), end = head.state(p.last);
        p.gates == 0 ? head.forward<Decay::None>(start, end, item % cut, cut) : head.forward<Decay::All>(start, end, item % cut, cut);
    });
}

EXPORT(delta_backward, DeltaParameters)
{
    i64 heads = (i64)p.batch * p.heads, time = p.time;
    bool atEnd = p.gates > 0 && p.dLast != nullptr;
    Scratch scratch(heads * (time * p.values + (atEnd ? p.keys * p.values : 0)));
    View du = { scratch.data, p.heads * time * p.values, p.values, time * p.values };
    float* last = atEnd ? scratch.data + heads * time * p.values : nullptr; // S_T

    i64 cut = parts(heads, p.threads, p.values);
    parallel(heads * cut, p.threads, [&](i64 item)
    {
        Head head(p, item / cut);
        Matrix start = head.state(p.dLast), end = head.state(p.dInitial);
        p.gates == 0 ? head.backward_values<Decay::None>(du, start, end, item % cut, cut) : head.backward_values<Decay::All>(du, start, end, item % cut, cut);
    });
    cut = parts(heads, p.threads, p.keys);
    parallel(heads * cut, p.threads, [&](i64 item)
    {
        Head head(p, item / cut);
        Matrix dEnd = head.state(p.dLast).transposed(), start = head.state(p.initial).transposed(), end = head.state(last).transposed();
        p.gates == 0 ? head.backward_keys<Decay::None>(dEnd, item % cut, cut) : head.backward_keys<Decay::All>(dEnd, item % cut, cut);
        p.gates == 0 ? head.forward_keys<Decay::None>(start, end, item % cut, cut) : head.forward_keys<Decay::All>(start, end, item % cut, cut);
    });
    parallel(heads, p.threads, [&](i64 item)
    {
        Head head(p, item);
        head.number_gradients(du, head.state(last), head.state(p.dLast));
    });
}
