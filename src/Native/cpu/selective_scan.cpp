// h_t = e^{Δ_t A} ∘ h_{t−1} + Δ_t x_t B_tᵀ, y_t = h_t C_t (src/Modules/Ops/SelectiveScan), and its gradient.
//
// Every channel has its own state of n numbers: a vector holds one of them for neighbouring channels. The states at the beginning of every block of time are kept for the gradient, which goes through the
// blocks from the last to the first: forwards through the block once more, keeping its states, then backwards,
//     dh_t = e^{Δ_{t+1} A} ∘ dh_{t+1} + dy_t C_tᵀ.
// What all channels share (dB_t, dC_t) is summed over the lanes only once per block and group of channels.
#include "abi.h"
#include "channels.h"

struct ScanParameters
{
    i32 batch, time, channels, states, threads, reserved;
    View x, delta, B, C, y; // one head
    float *A;               // [channels, states]
    float *initial, *last;  // h_0 (or null) and h_T, [batch, channels, states]
    float* starts;          // h before every block, [batch, blocks, states, channels rounded up to whole vectors]; null where no gradient is wanted
    // For the gradient:
    View dy, dx, dDelta, dB, dC;
    float* dA;               // [channels, states]
    float *dLast, *dInitial; // of h_T and of h_0; each may be null
};

namespace {

constexpr i64 Block = 16;

// Some channels of one batch row, with their states.
struct Group : Channels
{
    const ScanParameters& p;
    i64 states;

    Group(const ScanParameters& p, const Channels& channels) : Channels(channels), p(p), states(p.states) {}

    // [.., channels, states] of this batch row, or null.
    float* row(float* all) const { return all == nullptr ? nullptr : all + b * p.channels * states; }

    // The state number n of vector v before a block.
    float* start(i64 block, i64 v, i64 n) const
    {
        i64 blocks = (p.time + Block - 1) / Block, padded = (p.channels + Lanes - 1) / Lanes * Lanes;
        return p.starts + ((b * blocks + block) * states + n) * padded + channel(v);
    }

    // Between [channels, states] in memory and, per vector of channels, states × lanes here. Null: zeros, or nowhere to go.
    void gather(float* to, const float* from) const
    {
        for (i64 v = 0; v < vectors; v++)
            for (i64 n = 0; n < states; n++)
                for (i64 i = 0; i < Lanes; i++) *to++ = from != nullptr && i < lanes(v) ? from[(channel(v) + i) * states + n] : 0;
    }
    void scatter(const float* from, float* to) const
    {
        for (i64 v = 0; to != nullptr && v < vectors; v++)
            for (i64 n = 0; n < states; n++, from += Lanes)
                for (i64 i = 0; i < lanes(v); i++) to[(channel(v) + i) * states + n] = from[i];
    }
};

// Sums over the lanes of `count` vectors.
INLINE void sum_lanes(const float* from, i64 count, float* to)
{
    for (i64 n = 0; n < count; n++, from += Lanes)
    {
        float four[4] = {};
        for (int i = 0; i < Lanes; i += 4)
            for (int j = 0; j < 4; j++) four[j] += from[i + j];
        to[n] = (four[0] + four[1]) + (four[2] + four[3]);
    }
}

void forward(const Group& g)
{
    const ScanParameters& p = g.p;
    i64 size = g.vectors * g.states * Lanes;
    Scratch scratch(2 * size);
    float *rates = scratch.data, *state = rates + size; // [vectors, states, lanes]
    g.gather(rates, p.A);
    g.gather(state, g.row(p.initial));
    for (i64 t = 0; t < p.time; t++)
    {
        if (p.starts != nullptr && t % Block == 0)
            for (i64 v = 0; v < g.vectors; v++)
                for (i64 n = 0; n < g.states; n++) store(g.start(t / Block, v, n), load(state + (v * g.states + n) * Lanes));
        const float *B = p.B.at(g.b, t, 0), *C = p.C.at(g.b, t, 0);
        for (i64 v = 0; v < g.vectors; v++)
        {
            vec delta = load(p.delta.at(g.b, t, 0) + g.channel(v), g.lanes(v)), input = delta * load(p.x.at(g.b, t, 0) + g.channel(v), g.lanes(v)), y = splat(0);
            const float* a = rates + v * g.states * Lanes;
            float* h = state + v * g.states * Lanes;
            for (i64 n = 0; n < g.states; n++)
            {
                vec s = exponential(delta * load(a + n * Lanes)) * load(h + n * Lanes) + input * B[n];
                store(h + n * Lanes, s);
                y += s * C[n];
            }
            store(p.y.at(g.b, t, 0) + g.channel(v), y, g.lanes(v));
        }
    }
    g.scatter(state, g.row(p.last));
}

// dB and dC: what this group gives to them, [time, states] each. dA: what this batch row gives to it, [channels, states].
void backward(const Group& g, float* dB, float* dC, float* dA)
{
    const ScanParameters& p = g.p;
    i64 states = g.states, size = states * Lanes, all = g.vectors * size;
    Scratch scratch(3 * all + (4 * Block + 1) * size);
    float *rates = scratch.data, *later = rates + all, *dRates = later + all;            // A, e^{Δ_{t+1} A} ∘ dh_{t+1}, dA: [vectors, states, lanes]
    float *decay = dRates + all, *h = decay + Block * size;                               // of a block: [steps, states, lanes]; h begins with the state before it
    float *dMaps = h + (Block + 1) * size, *dReads = dMaps + Block * size;                // dB and dC, not yet summed over the lanes
    g.gather(rates, p.A);
    g.gather(later, g.row(p.dLast));
    for (i64 i = 0; i < all; i++) dRates[i] = 0;
    for (i64 block = (p.time - 1) / Block; block >= 0; block--)
    {
        i64 from = block * Block, steps = p.time - from < Block ? p.time - from : Block;
        for (i64 i = 0; i < 2 * Block * size; i++) dMaps[i] = 0;
        for (i64 v = 0; v < g.vectors; v++)
        {
            i64 channel = g.channel(v), lanes = g.lanes(v);
            const float* a = rates + v * size;
            for (i64 n = 0; n < states; n++) store(h + n * Lanes, load(g.start(block, v, n)));
            for (i64 s = 0; s < steps; s++)
            {
                const float* B = p.B.at(g.b, from + s, 0);
                vec delta = load(p.delta.at(g.b, from + s, 0) + channel, lanes), input = delta * load(p.x.at(g.b, from + s, 0) + channel, lanes);
                for (i64 n = 0, i = s * size; n < states; n++, i += Lanes)
                {
                    vec e = exponential(delta * load(a + n * Lanes));
                    store(decay + i, e);
                    store(h + i + size, e * load(h + i) + input * B[n]);
                }
            }
            for (i64 s = steps - 1; s >= 0; s--)
            {
                const float *B = p.B.at(g.b, from + s, 0), *C = p.C.at(g.b, from + s, 0);
                vec delta = load(p.delta.at(g.b, from + s, 0) + channel, lanes), x = load(p.x.at(g.b, from + s, 0) + channel, lanes), dy = load(p.dy.at(g.b, from + s, 0) + channel, lanes);
                vec input = delta * x, dInput = splat(0), dDelta = splat(0);
                for (i64 n = 0, i = s * size, j = v * size; n < states; n++, i += Lanes, j += Lanes)
                {
                    vec dh = load(later + j) + dy * C[n];
                    store(dReads + i, load(dReads + i) + dy * load(h + i + size));
                    store(dMaps + i, load(dMaps + i) + dh * input);
                    dInput += dh * B[n];
                    dh *= load(decay + i);
                    store(later + j, dh);
                    dh *= load(h + i); // what Δ A earns
                    store(dRates + j, load(dRates + j) + dh * delta);
                    dDelta += dh * load(a + n * Lanes);
                }
                store(p.dx.at(g.b, from + s, 0) + channel, dInput * delta, lanes);
                store(p.dDelta.at(g.b, from + s, 0) + channel, dDelta + dInput * x, lanes);
            }
        }
        sum_lanes(dMaps, steps * states, dB + from * states);
        sum_lanes(dReads, steps * states, dC + from * states);
    }
    g.scatter(later, g.row(p.dInitial));
    g.scatter(dRates, dA);
}

}

EXPORT(scan_forward, ScanParameters)
{
    for_channels(p.batch, p.channels, p.threads, [&](const Channels& channels) { forward(Group(p, channels)); });
}

EXPORT(scan_backward, ScanParameters)
{
    i64 groups = Channels::groups(p.batch, p.channels, p.threads), maps = (i64)p.time * p.states, rates = (i64)p.channels * p.states;
    Scratch scratch(p.batch * groups * 2 * maps + p.batch * rates);
    float *shared = scratch.data, *dA = shared + p.batch * groups * 2 * maps; // [batch, groups, dB and dC, time, states] and [batch, channels, states]
    parallel(p.batch * groups, p.threads, [&](i64 item)
    {
        float* dB = shared + item * 2 * maps;
        backward(Group(p, Channels(p.channels, groups, item)), dB, dB + maps, dA + item / groups * rates);
    });
    parallel(p.batch, p.threads, [&](i64 b)
    {
        for (i64 t = 0; t < p.time; t++)
            for (i64 n = 0; n < p.states; n++)
            {
                float dB = 0, dC = 0;
                for (i64 g = 0; g < groups; g++)
                {
                    const float* from = shared + (b * groups + g) * 2 * maps + t * p.states + n;
                    dB += from[0];
                    dC += from[maps];
                }
                p.dB.at(b, t, 0)[n] = dB;
                p.dC.at(b, t, 0)[n] = dC;
            }
    });
    for (i64 i = 0; i < rates; i++)
    {
        p.dA[i] = 0;
        for (i64 b = 0; b < p.batch; b++) p.dA[i] += dA[b * rates + i];
    }
}
