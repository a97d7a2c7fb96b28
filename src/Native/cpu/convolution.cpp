// z_t = Σ_j w_j ∘ x_{t − reach + j}, reach = taps − 1, and y_t = silu(z_t) = z_t σ(z_t) (src/Modules/Ops/CausalConvolution), and its gradient, which computes z again:
//     dz_t = dy_t ∘ σ(z_t) (1 + z_t (1 − σ(z_t))),   dx_s = Σ_j w_j ∘ dz_{s + reach − j},   dw_j = Σ_t dz_t ∘ x_{t − reach + j}.
#include "abi.h"
#include "channels.h"

struct ConvolutionParameters
{
    i32 batch, time, channels, taps, threads, reserved;
    View x, past, y; // one head; past: what precedes, [batch, reach, channels]; null for zeros
    float* weight;   // [taps, channels]
    // For the gradient:
    View dy, dx, dPast; // dPast may be null
    float* dWeight;     // [batch, taps, channels]: what each batch row gives to it
};

namespace {

struct Row
{
    const ConvolutionParameters& p;
    const Channels& c;
    i64 reach;

    // x_t, also of what precedes.
    vec x(i64 t, i64 v) const
    {
        if (t >= 0) return load(p.x.at(c.b, t, 0) + c.channel(v), c.lanes(v));
        return p.past.data == nullptr ? splat(0) : load(p.past.at(c.b, reach + t, 0) + c.channel(v), c.lanes(v));
    }

    vec z(const float* weight, i64 t, i64 v) const
    {
        vec sum = splat(0);
        for (i64 j = 0; j <= reach; j++) sum += load(weight + (v * p.taps + j) * Lanes) * x(t - reach + j, v);
        return sum;
    }
};

// The weights of some channels: [vectors, taps, lanes].
void gather(const ConvolutionParameters& p, const Channels& c, float* to)
{
    for (i64 v = 0; v < c.vectors; v++)
        for (i64 j = 0; j < p.taps; j++, to += Lanes) store(to, load(p.weight + j * p.channels + c.channel(v), c.lanes(v)));
}

}

EXPORT(convolution_forward, ConvolutionParameters)
{
    for_channels(p.batch, p.channels, p.threads, [&](const Channels& c)
    {
        Row row = { p, c, p.taps - 1 };
        Scratch weight(c.vectors * p.taps * Lanes);
        gather(p, c, weight.data);
        for (i64 t = 0; t < p.time; t++)
            for (i64 v = 0; v < c.vectors; v++)
            {
                vec z = row.z(weight.data, t, v);
                store(p.y.at(c.b, t, 0) + c.channel(v), z * sigmoid(z), c.lanes(v));
            }
    });
}

EXPORT(convolution_backward, ConvolutionParameters)
{
    for_channels(p.batch, p.channels, p.threads, [&](const Channels& c)
    {
        Row row = { p, c, p.taps - 1 };
        i64 reach = p.taps - 1, size = c.vectors * p.taps * Lanes;
        Scratch scratch(3 * size);
        float *weight = scratch.data, *dWeight = weight + size, *dz = dWeight + size; // [vectors, taps, lanes]; dz_{t − j} is at place j
        gather(p, c, weight);
        for (i64 i = 0; i < 2 * size; i++) dWeight[i] = 0;
        for (i64 t = 0; t < p.time + reach; t++)
            for (i64 v = 0; v < c.vectors; v++)
            {
                vec d = splat(0);
                if (t < p.time)
                {
                    vec z = row.z(weight, t, v), s = sigmoid(z);
                    d = load(p.dy.at(c.b, t, 0) + c.channel(v), c.lanes(v)) * s * (z * (1.0f - s) + 1.0f);
                    for (i64 j = 0; j <= reach; j++)
                    {
                        float* to = dWeight + (v * p.taps + j) * Lanes;
                        store(to, load(to) + d * row.x(t - reach + j, v));
                    }
                }
                float* recent = dz + v * p.taps * Lanes;
                for (i64 j = reach; j > 0; j--) store(recent + j * Lanes, load(recent + (j - 1) * Lanes));
                store(recent, d);
                vec dx = splat(0); // of x_{t − reach}, to which dz_t is the last to give
                for (i64 j = 0; j <= reach; j++) dx += load(weight + (v * p.taps + j) * Lanes) * load(recent + j * Lanes);
                if (t >= reach) store(p.dx.at(c.b, t - reach, 0) + c.channel(v), dx, c.lanes(v));
                else if (p.dPast.data != nullptr) store(p.dPast.at(c.b, t, 0) + c.channel(v), dx, c.lanes(v));
            }
        for (i64 v = 0; v < c.vectors; v++)
            for (i64 j = 0; j < p.taps; j++) store(p.dWeight + (c.b * p.taps + j) * p.channels + c.channel(v), load(dWeight + (v * p.taps + j) * Lanes), c.lanes(v));
    });
}
