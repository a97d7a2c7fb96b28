// The gradient of a scalar gate from what the kernel `linear` leaves behind (see linear.cu): with edges every EDGE_CHUNKS x 64 positions,
//     dg_t = Σ_{j >= t} (q_j·dq_j − k_j·dk_j) up to the next edge, + S ∘ dS there.

#define CHUNK 64
#define FLOOR (-20.0f) // as in linear.cu

struct View { char* data; i64 batch, time, head; }; // float32 [b, t, h]: strides in elements

struct GateGradient
{
    const float* queries;   // q_t·dq_t, [tiles, b, h, t]
    const float* keys;      // k_t·dk_t
    const float* crossings; // [b, h, edges, parts]
    View gate, gradient;
    int time, tiles, parts;
};

// A warp for each stretch between edges; all that it reads is asked for before the first of it is used. Grid: edges, heads, batch.
KERNEL(gate_gradient, GateGradient, 32)
{
    const int lane = threadIdx.x, edge = blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
    const i64 sequence = (i64)batch * gridDim.y + head, sequences = (i64)gridDim.z * gridDim.y;
    const float* crossing = p.crossings + (sequence * gridDim.x + edge) * p.parts;
    const float* gate = (const float*)p.gate.data + batch * p.gate.batch + head * p.gate.head;
    float* gradient = (float*)p.gradient.data + batch * p.gradient.batch + head * p.gradient.head;
    auto time_at = [&](int chunk) { return (edge * EDGE_CHUNKS + chunk) * CHUNK + 2 * lane; };
    float x[EDGE_CHUNKS][2], g[EDGE_CHUNKS][2], after = 0;
    for (int part = lane; part < p.parts; part += 32) after += crossing[part];
#pragma unroll
    for (int chunk = 0; chunk < EDGE_CHUNKS; chunk++)
#pragma unroll
        for (int e = 0; e < 2; e++)
        {
            int time = time_at(chunk) + e;
            x[chunk][e] = g[chunk][e] = 0;
            if (time < p.time) g[chunk][e] = gate[time * p.gate.time];
            for (int n = 0; n < p.tiles; n++)
                if (time < p.time) x[chunk][e] += p.queries[(n * sequences + sequence) * p.time + time] - p.keys[(n * sequences + sequence) * p.time + time];
        }
    for (int mask = 1; mask < 32; mask *= 2) after += shuffle_xor(after, mask);
#pragma unroll
    for (int chunk = EDGE_CHUNKS - 1; chunk >= 0; chunk--)
    {
        float sum = x[chunk][0] + x[chunk][1];
        for (int distance = 1; distance < 32; distance *= 2)
        {
            float later = shuffle_down(sum, distance);
            if (lane + distance < 32) sum += later;
        }
        float later = shuffle_down(sum, 1);
        float second = x[chunk][1] + after + (lane < 31 ? later : 0), first = x[chunk][0] + second;
        after += shuffle_from(sum, 0);
        int time = time_at(chunk);
        if (time < p.time) gradient[time * p.gradient.time] = g[chunk][0] < FLOOR ? 0 : first;
        if (time + 1 < p.time) gradient[(time + 1) * p.gradient.time] = g[chunk][1] < FLOOR ? 0 : second;
    }
}
