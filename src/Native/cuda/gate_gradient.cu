// The gradient of a scalar gate from what the kernel `linear` leaves behind (see linear.cu): with edges every edge_chunks x 64 positions,
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
    int time, tiles, parts, edge_chunks;
};

// A warp for each stretch between edges. Grid: edges, heads, batch.
KERNEL(gate_gradient, GateGradient, 32)
{
    const int lane = threadIdx.x, edge = blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
    const i64 sequence = (i64)batch * gridDim.y + head, sequences = (i64)gridDim.z * gridDim.y;
    const float* crossing = p.crossings + (sequence * gridDim.x + edge) * p.parts;
    float after = 0;
    for (int part = 0; part < p.parts; part++) after += crossing[part];
    for (int chunk = p.edge_chunks - 1; chunk >= 0; chunk--)
    {
        int time = (edge * p.edge_chunks + chunk) * CHUNK + 2 * lane;
        float x[2] = { 0, 0 };
        for (int n = 0; n < p.tiles; n++)
            for (int e = 0; e < 2; e++)
                if (time + e < p.time)
                {
                    i64 index = (n * sequences + sequence) * p.time + time + e;
                    x[e] += p.queries[index] - p.keys[index];
                }
        float sum = x[0] + x[1];
        for (int distance = 1; distance < 32; distance *= 2)
        {
            float later = shuffle_down(sum, distance);
            if (lane + distance < 32) sum += later;
        }
        float later = shuffle_down(sum, 1);
        x[1] += after + (lane < 31 ? later : 0);
        x[0] += x[1];
        after += shuffle_from(sum, 0);
        for (int e = 0; e < 2; e++)
            if (time + e < p.time)
            {
                float g = ((const float*)p.gate.data)[batch * p.gate.batch + (time + e) * p.gate.time + head * p.gate.head];
                ((float*)p.gradient.data)[batch * p.gradient.batch + (time + e) * p.gradient.time + head * p.gradient.head] = g < FLOOR ? 0 : x[e];
            }
    }
}
