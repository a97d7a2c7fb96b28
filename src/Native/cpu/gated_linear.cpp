// S_t = diag(a_t) S_{t−1} + k_t v_tᵀ, o_t = S_tᵀ q_t (src/Modules/Ops/GatedLinearRecurrence), and its gradient.
//
// Forwards in time runs S_t, backwards dS_t = a_{t+1} dS_{t+1} + q_t do_tᵀ; then dq_t = S_t do_t, dk_t = dS_t v_t, dv_t = dS_tᵀ k_t. To read along the rows is to read the transposed state along its
// columns, so all of these are one sweep, of S written with (x, y) and read with r: o is (k, v | q); dq is (v, k | do) of Sᵀ; dv is (q, do | k) backwards; dk is (do, q | v) of dSᵀ backwards. No state is kept.
// G_t = log a_1 + … + log a_t enters with q_t and leaves with k_t, so dG_t = q_t ∘ dq_t − k_t ∘ dk_t, and S_T ∘ dS_T more at the end.
#include "abi.h"
#include "state.h"

struct LinearParameters
{
    i32 batch, time, heads, keys, values, threads;
    i32 gates; // numbers of g per head and step: 0, 1 or `keys`
    i32 reserved;
    View q, k, v, g, o;
    float *initial, *last; // S_0 (or null) and S_T, [batch, heads, keys, values]
    // For the gradient:
    View dO, dq, dk, dv, dg;
    float *dLast, *dInitial; // of S_T and of S_0; each may be null
};

namespace {

// A sweep over time of one head.
struct Sweep
{
    i64 time, rows, columns;
    OverRows x;       // written, over the rows
    OverColumns y;    // written, over the columns
    OverRows r;       // what to read with
    OverColumns out;  // what is read
    Decay kind;
    const float* decay; // before step t: decay[t * decay_step ..]
    i64 decay_step;
    Matrix start, end;  // the state before and after; each may be null
    const float* after; // fades the state after the last step; may be null
};

template <Decay D, int Steps, int Vectors> INLINE void advance(const Sweep& s, float* tile, i64 t, i64 column, i64 lanes)
{
    vec fade[Steps][Vectors], y[1][Steps][Vectors], out[1][Steps][Vectors];
    for (int n = 0; n < Steps; n++)
        for (int v = 0; v < Vectors; v++)
        {
            i64 first = column + v * Lanes, real = lanes - v * Lanes;
            y[0][n][v] = load(s.y.at(t + n) + first, real);
            fade[n][v] = D == Decay::Columns ? load(s.decay + (t + n) * s.decay_step + first, real) : splat(1);
        }
    pass<D, Steps, Vectors, 1, 1>(tile, s.rows, OverRows{ s.decay, s.decay_step }.from(t), fade, { s.x.from(t) }, y, { s.r.from(t) }, out);
    for (int n = 0; n < Steps; n++)
        for (int v = 0; v < Vectors; v++) store(s.out.at(t + n) + column + v * Lanes, out[0][n][v], lanes - v * Lanes);
}

template <Decay D> void run(const Sweep& s, float* tile, i64 part, i64 parts)
{
    constexpr int Steps = 4, Vectors = HasManyRegisters ? 2 : 1; // steps · vectors to read into and as many to write: all in registers
    tiles<Vectors>(s.columns, part, parts, [&](auto width, i64 column, i64 lanes)
    {
        constexpr int V = decltype(width)::value;
        load_tile(tile, s.rows, V * Lanes, s.start, column, lanes);
        i64 t = 0;
        for (; t + Steps <= s.time; t += Steps) advance<D, Steps, V>(s, tile, t, column, lanes);
        for (; t < s.time; t++) advance<D, 1, V>(s, tile, t, column, lanes);
        if (D != Decay::None && s.after != nullptr)
            for (i64 i = 0; i < s.rows; i++)
                for (i64 j = 0; j < lanes; j++) tile[i * V * Lanes + j] *= s.after[D == Decay::Rows ? i : D == Decay::Columns ? column + j : 0];
        store_tile(tile, s.rows, V * Lanes, s.end, column, lanes);
    });
}

void run(const Sweep& s, float* tile, i64 part, i64 parts)
{
    switch (s.kind)
    {
        case Decay::None: return run<Decay::None>(s, tile, part, parts);
        case Decay::All: return run<Decay::All>(s, tile, part, parts);
        case Decay::Rows: return run<Decay::Rows>(s, tile, part, parts);
        case Decay::Columns: return run<Decay::Columns>(s, tile, part, parts);
    }
}

// What the sweeps of one head share.
struct Head
{
    const LinearParameters& p;
    i64 b, h;
    float* decay; // a_t, [time + 1, gates]; the last are ones, which a sweep backwards begins with
    Scratch scratch;

    Head(const LinearParameters& p, i64 head) : p(p), b(head / p.heads), h(head % p.heads), scratch(tile_size() + ((i64)p.time + 1) * p.gates)
    {
        decay = scratch.data + tile_size();
        for (i64 t = 0; t < p.time; t++)
            for (i64 i = 0; i < p.gates; i += Lanes) store(decay + t * p.gates + i, exponential(load(p.g.at(b, t, h) + i, p.gates - i)), p.gates - i);
        for (i64 i = 0; i < p.gates; i++) decay[(i64)p.time * p.gates + i] = 1;
    }

    i64 tile_size() const { return (i64)(p.keys > p.values ? p.keys : p.values) * 2 * Lanes; }

    Matrix state(float* all) const { return { all == nullptr ? nullptr : all + (b * p.heads + h) * p.keys * p.values, p.values, 1 }; }

    // The state as [keys, values], or transposed.
    void forward(View x, View y, View r, View out, bool transposed, Matrix start, Matrix end, i64 part, i64 parts)
    {
        Sweep s = { p.time, transposed ? p.values : p.keys, transposed ? p.keys : p.values, x.rows(b, h), y.columns(b, h), r.rows(b, h), out.columns(b, h), kind(transposed), decay, p.gates,
            transposed ? start.transposed() : start, transposed ? end.transposed() : end, nullptr };
        run(s, scratch.data, part, parts);
    }

    void backward(View x, View y, View r, View out, bool transposed, Matrix start, Matrix end, i64 part, i64 parts)
    {
        i64 last = p.time - 1;
        Sweep s = { p.time, transposed ? p.values : p.keys, transposed ? p.keys : p.values, x.rows(b, h).reversed(last), y.columns(b, h).reversed(last), r.rows(b, h).reversed(last), out.columns(b, h).reversed(last),
            kind(transposed), decay + (last + 1) * p.gates, -p.gates, transposed ? start.transposed() : start, transposed ? end.transposed() : end, decay };
        run(s, scratch.data, part, parts);
    }

    Decay kind(bool transposed) const { return p.gates == 0 ? Decay::None : p.gates == 1 ? Decay::All : transposed ? Decay::Columns : Decay::Rows; }

    // dg_t = Σ_{s ≥ t} dG_s. A decay of 0 lets nothing through: its gradient is 0, and the sum begins anew before it.
    void gate_gradient(const Matrix& last, const Matrix& dLast)
    {
        Scratch sums(2 * p.gates);
        double* dG = (double*)sums.data; // [gates]
        for (i64 i = 0; i < p.gates; i++) dG[i] = 0;
        for (i64 i = 0; dLast.data != nullptr && i < p.keys; i++)
            for (i64 j = 0; j < p.values; j++) dG[p.gates == 1 ? 0 : i] += last.at(i, j) * dLast.at(i, j);
        for (i64 t = p.time - 1; t >= 0; t--)
        {
            const float *q = p.q.at(b, t, h), *k = p.k.at(b, t, h), *dq = p.dq.at(b, t, h), *dk = p.dk.at(b, t, h), *a = decay + t * p.gates;
            float* dg = p.dg.at(b, t, h);
            if (p.gates == 1) dG[0] += difference(q, dq, k, dk, p.keys);
            else
                for (i64 i = 0; i < p.keys; i++) dG[i] += q[i] * dq[i] - k[i] * dk[i];
            for (i64 i = 0; i < p.gates; i++) dg[i] = (float)(dG[i] = a[i] == 0 ? 0 : dG[i]);
        }
    }
};

}

EXPORT(linear_forward, LinearParameters)
{
    i64 heads = (i64)p.batch * p.heads, cut = parts(heads, p.threads, p.values);
    parallel(heads * cut, p.threads, [&](i64 item)
    {
        Head head(p, item / cut);
        head.forward(p.k, p.v, p.q, p.o, false, head.state(p.initial), head.state(p.last), item % cut, cut);
    });
}

EXPORT(linear_backward, LinearParameters)
{
    i64 heads = (i64)p.batch * p.heads, cut = parts(heads, p.threads, p.keys > p.values ? p.keys : p.values);
    bool atEnd = p.gates > 0 && p.dg.data != nullptr && p.dLast != nullptr;
    Scratch last(atEnd ? heads * p.keys * p.values : 0); // S_T
    parallel(heads * cut, p.threads, [&](i64 item)
    {
        Head head(p, item / cut);
        head.forward(p.v, p.k, p.dO, p.dq, true, head.state(p.initial), head.state(atEnd ? last.data : nullptr), item % cut, cut);
        head.backward(p.q, p.dO, p.k, p.dv, false, head.state(p.dLast), head.state(p.dInitial), item % cut, cut);
        head.backward(p.dO, p.q, p.v, p.dk, true, head.state(p.dLast), {}, item % cut, cut);
    });
    if (p.dg.data != nullptr)
        parallel(heads, p.threads, [&](i64 item)
        {
            Head head(p, item);
            head.gate_gradient(head.state(last.data), head.state(p.dLast));
        });
}
