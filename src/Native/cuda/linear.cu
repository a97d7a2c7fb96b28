// The gated linear recurrence with one decay per head and step (or a constant one, or none), and its gradients. Dao and Gu 2024, "Transformers are SSMs", section 6; Yang et al. 2023,
// "Gated linear attention transformers with hardware-efficient training", section 4.
//
// With g_t <= 0 the logarithm of the decay and G_t its sum up to t, D_ts = e^(G_t − G_s) for t >= s is what remains at t of what was written at s. The kernel `linear` computes
//     forwards   o_t = Σ_{s <= t} D_ts (q_t·k_s) v_s + e^(G_t) S_0ᵀ q_t,         final state  S_T = e^(G_T) S_0 + Σ_s D_Ts k_s v_sᵀ
//     reverse    o_s = Σ_{t >= s} D_ts (q_s·k_t) v_t + e^(G_T − G_s) S_Tᵀ q_s,   final state  S_0 = e^(G_T) S_T + Σ_t e^(G_t) k_t v_tᵀ
// (strict: without t = s). The decay g_t always lies between t − 1 and t, in both directions: the reverse form is the transpose of the forward one. All gradients are this function again:
//     dq = F(dO, v, k) forwards from S_0ᵀ,   dv = F(k, q, dO) reverse from dS_T,   dk = F(v, dO, q) reverse from dS_Tᵀ,
// and the reverse ones end at dS_0. Because G_t enters with q_t and leaves with k_t, dG_t = q_t·dq_t − k_t·dk_t and dg_t = Σ_{j >= t} dG_j; so that this sum does not gather rounding, it begins
// anew at edges in time, where what crosses is S ∘ dS summed over all elements (gate_gradient.cu).
//
// A block serves one head and V columns of the values; its warps share the columns out, M x 16 each. It walks over chunks of 64 positions with the state in the accumulators of its tensor-core
// products, as Sᵀ [V, K]: rounded and packed in pairs these are the second operand of Q S as they are. Per chunk, with G counted from the chunk's start and L its end:
//     P_ts = D_ts q_t·k_s (s <= t; shared out among the warps, exchanged through shared memory),   O = e^G ∘ (Q S) + P V,   Sᵀ <- e^(G_L) Sᵀ + (e^(G_L − G) ∘ V)ᵀ K.
// Long sequences of few heads are cut into segments: `segment_states` finds what each adds to the state, `join_segments` the state at which each begins, and then all run side by side.
//
// Macros: TYPE (bf16, fp16); K: keys, 16 to 256, a power of two; V: columns of a block, WARPS x 16 x M; WARPS: 1, 2, 4 or 8; BLOCKS: at least so many per multiprocessor;
// GATE, REVERSE, STRICT: 0 or 1; DOTS: 1 multiplies the rows of the output by those of another tensor; EDGES: 1 writes the state at the edges, 2 multiplies by what was written;
// SEGMENTS: 1 compiles `segment_states` and `join_segments`, 0 `linear`.

#define CHUNK 64
#define THREADS (32 * WARPS)
#define M (V / (16 * WARPS))
#define FLOOR (-20.0f)              // smaller logarithms of a decay count as zero
#define LOG2_E 1.4426950408889634f  // decays are powers of two here

struct View { char* data; i64 batch, time, head; };                            // [b, t, h, d]: strides in elements, d contiguous
struct States { float* data; i64 batch, head, segment, value, key; };          // [b, h, segments, V, K]

struct Linear
{
    View q, k, v, o, other, gate; // the gate is float32 [b, t, h]
    States start, end;            // null: zero, not wanted
    float* totals;                // [b, h, segments]: of the segments' log2-decays
    float* dots;                  // [tiles, b, h, t]: rows of o times rows of other
    uint4* edges;                 // states at the edges
    float* crossings;             // [b, h, edges, tiles, WARPS]
    int time, keys, values, segments, segment_chunks, edge_chunks;
};

struct Decays // of a chunk
{
    float cumulated[CHUNK];                  // G, in powers of two
    float reading[CHUNK];                    // of the state before the chunk: e^G (reverse: e^(G_L − G))
    u32 writing[CHUNK / 2];                  // into the state after it: e^(G_L − G) (reverse: e^G), pairs of TYPE
    float coming[CHUNK];                     // the gates of the chunk after this one
    float whole, unused[3];                  // e^(G_L)
};

// Tiles of 64 positions in shared memory: rows of UNITS x 16 bytes. A unit lies where the row's number turns it, so that the same unit of eight rows falls into different banks.
template <int UNITS> DEVICE int turn(int row) { return UNITS >= 8 ? row & 7 : row / (8 / UNITS) & (UNITS - 1); }
template <int UNITS> DEVICE int place(int row, int unit) { return (row * UNITS + (unit ^ turn<UNITS>(row))) * 16; }

// Where lane l reads its row of four 8 x 8 matrices that make 16 rows and 2 units; matrices 0, 1 are the two units of rows 0 to 7 (by_unit), or rows 0 to 7 and 8 to 15 of one unit.
// Further units by XOR with 16 x units, further rows (of multiples of 8) by addition.
template <int UNITS> DEVICE int matrices_by_unit(int lane) { return place<UNITS>(lane % 8 + lane / 16 * 8, lane / 8 & 1); }
template <int UNITS> DEVICE int matrices_by_row(int lane) { return place<UNITS>(lane % 16, lane / 16); }

// Starts to copy 64 rows, the first at `from`; rows and columns that are not there become zero.
template <int UNITS> DEVICE void load_tile(char* tile, const char* from, i64 stride, int rows, int columns)
{
#pragma unroll
    for (int j = 0; j < CHUNK * UNITS / THREADS; j++)
    {
        int index = j * THREADS + threadIdx.x, row = index / UNITS, unit = index % UNITS;
        copy_async(tile + place<UNITS>(row, unit), from + (row * stride + unit * 8) * 2, row < rows && unit * 8 < columns);
    }
}

DEVICE char* at(const View& view, int batch, int time, int head) { return view.data + (batch * view.batch + time * view.time + head * view.head) * 2; }

#if GATE
// Starts to copy the gates of a chunk.
DEVICE void load_gates(float (&to)[CHUNK], const View& gate, int batch, int time, int head, int rows)
{
    const float* from = (const float*)gate.data + batch * gate.batch + time * gate.time + head * gate.head;
    for (int row = threadIdx.x; row < CHUNK; row += THREADS) copy_async_4(&to[row], from + row * gate.time, row < rows);
}

// By one warp, lane l for positions 2l and 2l + 1; returns G_L.
DEVICE float cumulate(Decays& decays, const float (&gates)[CHUNK])
{
    int lane = threadIdx.x % 32;
    float2 g = ((const float2*)gates)[lane];
    g.x = fmaxf(g.x, FLOOR) * LOG2_E, g.y = fmaxf(g.y, FLOOR) * LOG2_E;
    float sum = g.x + g.y;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2)
    {
        float before = shuffle_up(sum, distance);
        if (lane >= distance) sum += before;
    }
    float before = shuffle_up(sum, 1), whole = shuffle_from(sum, 31);
    float first = (lane > 0 ? before : 0) + g.x, second = first + g.y;
    float2 start = make_float2(exp2_fast(first), exp2_fast(second)), end = make_float2(exp2_fast(fminf(whole - first, 0)), exp2_fast(fminf(whole - second, 0)));
    ((float2*)decays.cumulated)[lane] = make_float2(first, second);
    ((float2*)decays.reading)[lane] = REVERSE ? end : start;
    decays.writing[lane] = REVERSE ? pack2<TYPE>(start.x, start.y) : pack2<TYPE>(end.x, end.y);
    if (lane == 0) decays.whole = exp2_fast(whole);
    return whole;
}
#endif

// Sᵀ of this thread: rows 16 m + g (+ 8) of the warp's, columns 8 n + 2 i (+ 1).
typedef float State[M][K / 8][4];

// f(element of Sᵀ and the next one, row, column)
template <class F> DEVICE void each_pair(State& state, F f)
{
    int lane = threadIdx.x % 32, row = blockIdx.x * V + threadIdx.x / 32 * 16 * M + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < K / 8; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) f(state[m][n][2 * r], state[m][n][2 * r + 1], row + 16 * m + 8 * r, column + 8 * n);
}

DEVICE void read_state(State& state, const States& from, int batch, int head, int segment, int values, int keys)
{
    const float* data = from.data + batch * from.batch + head * from.head + segment * from.segment;
    each_pair(state, [&](float& a, float& b, int row, int column)
    {
        bool there = from.data && row < values;
        a = there && column < keys ? data[row * from.value + column * from.key] : 0;
        b = there && column + 1 < keys ? data[row * from.value + (column + 1) * from.key] : 0;
    });
}

DEVICE void write_state(State& state, const States& to, int batch, int head, int segment, int values, int keys)
{
    float* data = to.data + batch * to.batch + head * to.head + segment * to.segment;
    each_pair(state, [&](float& a, float& b, int row, int column)
    {
        if (row < values && column < keys) data[row * to.value + column * to.key] = a;
        if (row < values && column + 1 < keys) data[row * to.value + (column + 1) * to.key] = b;
    });
}

// Sᵀ += Vᵀ K over 16 positions: `values` holds Vᵀ [16 M, 16], `keys` says where the lane finds K [16, K] (by row).
DEVICE void update(State& state, const u32 (&values)[M][4], const char* tile, int keys)
{
#pragma unroll
    for (int n = 0; n < K / 8; n += 2)
    {
        u32 b[4];
        load_matrices_transposed(b, tile + (keys ^ n * 16));
#pragma unroll
        for (int m = 0; m < M; m++) mma<TYPE>(state[m][n], values[m], b[0], b[1]), mma<TYPE>(state[m][n + 1], values[m], b[2], b[3]);
    }
}

// Vᵀ [16 M, 16] of the warp's columns, at 16 positions.
DEVICE void load_values(u32 (&values)[M][4], const char* tile, int value)
{
#pragma unroll
    for (int m = 0; m < M; m++) load_matrices_transposed(values[m], tile + (value ^ m * 32));
}

#if GATE
DEVICE void weigh(u32 (&values)[M][4], const u32* writing)
{
    u32 first = writing[threadIdx.x % 4], second = writing[threadIdx.x % 4 + 4];
#pragma unroll
    for (int m = 0; m < M; m++)
    {
        values[m][0] = multiply2<TYPE>(values[m][0], first), values[m][1] = multiply2<TYPE>(values[m][1], first);
        values[m][2] = multiply2<TYPE>(values[m][2], second), values[m][3] = multiply2<TYPE>(values[m][3], second);
    }
}

DEVICE void fade(State& state, float decay)
{
    each_pair(state, [&](float& a, float& b, int, int) { a *= decay, b *= decay; });
}
#endif

#define KEY_BYTES (CHUNK * K * 2)
#define VALUE_BYTES (CHUNK * V * 2)
#if !SEGMENTS
#define QUERY_BYTES (DOTS && VALUE_BYTES > KEY_BYTES ? VALUE_BYTES : KEY_BYTES) // later the tile of the other tensor
#define STAGE_BYTES (QUERY_BYTES + KEY_BYTES + VALUE_BYTES)
#define SCORE_BLOCKS 10             // of 16 x 16, on and below the diagonal of 64 x 64
#define SCORE_OFFSET (2 * STAGE_BYTES)
#define DECAY_OFFSET (SCORE_OFFSET + SCORE_BLOCKS * 512)
#define DOT_OFFSET (DECAY_OFFSET + GATE * 2 * (int)sizeof(Decays)) // float [WARPS, 64]; in all: DOT_OFFSET + DOTS * WARPS * 256 bytes

// The block of scores of query rows 16 r.. and key rows 16 c..
DEVICE int score_block(int r, int c) { return REVERSE ? (3 - r) * (4 - r) / 2 + 3 - c : r * (r + 1) / 2 + c; }

// P for query rows 16 r.. and key rows 32 half.., into shared memory as the fragments in which P V takes them.
DEVICE void scores(uint4* to, const char* queries, const char* keys, const Decays* decays, int r, int half)
{
    constexpr int UNITS = K / 8;
    int lane = threadIdx.x % 32;
    float p[4][4] = {};
    int query = matrices_by_row<UNITS>(lane) + r * 16 * UNITS * 16, key = matrices_by_unit<UNITS>(lane) + half * 32 * UNITS * 16;
#pragma unroll
    for (int n = 0; n < K / 8; n += 2)
    {
        u32 a[4], b[4], c[4];
        load_matrices(a, queries + (query ^ n * 16));
        load_matrices(b, keys + (key ^ n * 16));
        load_matrices(c, keys + (key ^ n * 16) + 16 * UNITS * 16);
        mma<TYPE>(p[0], a, b[0], b[1]), mma<TYPE>(p[1], a, b[2], b[3]), mma<TYPE>(p[2], a, c[0], c[1]), mma<TYPE>(p[3], a, c[2], c[3]);
    }
    int row = 16 * r + lane / 4, column = 32 * half + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
        {
            int t = row + e / 2 * 8, s = column + 8 * n + e % 2;
            float weight = 1;
#if GATE
            weight = exp2_fast(-fabsf(decays->cumulated[t] - decays->cumulated[s]));
#endif
            p[n][e] = (REVERSE ? s - t : t - s) >= STRICT ? p[n][e] * weight : 0;
        }
#pragma unroll
    for (int j = 0; j < 2; j++)
    {
        int c = 2 * half + j;
        if (REVERSE ? c >= r : c <= r)
            to[score_block(r, c) * 32 + lane] = make_uint4(pack2<TYPE>(p[2 * j][0], p[2 * j][1]), pack2<TYPE>(p[2 * j][2], p[2 * j][3]), pack2<TYPE>(p[2 * j + 1][0], p[2 * j + 1][1]), pack2<TYPE>(p[2 * j + 1][2], p[2 * j + 1][3]));
    }
}

// O += P V and Sᵀ <- e^(G_L) Sᵀ + (e^(G_L − G) ∘ V)ᵀ K, both of which take V 16 positions at a time.
DEVICE void values_in(float (&o)[4][2 * M][4], State& state, const uint4* score, const char* keys, const char* values, const Decays* decay)
{
    int lane = threadIdx.x % 32, key = matrices_by_row<K / 8>(lane), value = matrices_by_unit<V / 8>(lane) ^ threadIdx.x / 32 * M * 32;
#pragma unroll
    for (int c = 0; c < 4; c++)
    {
        u32 v[M][4];
        load_values(v, values + c * 16 * V * 2, value);
#pragma unroll
        for (int r = REVERSE ? 0 : c; r < (REVERSE ? c + 1 : 4); r++)
        {
            uint4 p = score[score_block(r, c) * 32 + lane];
            u32 a[4] = { p.x, p.y, p.z, p.w };
#pragma unroll
            for (int m = 0; m < M; m++) mma<TYPE>(o[r][2 * m], a, v[m][0], v[m][2]), mma<TYPE>(o[r][2 * m + 1], a, v[m][1], v[m][3]);
        }
#if GATE
        weigh(v, decay->writing + 8 * c);
#endif
        update(state, v, keys + c * 16 * K * 2, key);
    }
}

// O = e^G ∘ (Q S)
DEVICE void read(float (&o)[4][2 * M][4], const State& state, const char* queries, const Decays* decay)
{
    int lane = threadIdx.x % 32, query = matrices_by_row<K / 8>(lane);
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int n = 0; n < 2 * M; n++) o[r][n][0] = o[r][n][1] = o[r][n][2] = o[r][n][3] = 0;
#pragma unroll
    for (int n = 0; n < K / 8; n += 2)
    {
        u32 b[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int e = 0; e < 4; e++) b[m][e] = pack2<TYPE>(state[m][n + e % 2][e / 2 * 2], state[m][n + e % 2][e / 2 * 2 + 1]);
#pragma unroll
        for (int r = 0; r < 4; r++)
        {
            u32 a[4];
            load_matrices(a, queries + r * 16 * K * 2 + (query ^ n * 16));
#pragma unroll
            for (int m = 0; m < M; m++) mma<TYPE>(o[r][2 * m], a, b[m][0], b[m][1]), mma<TYPE>(o[r][2 * m + 1], a, b[m][2], b[m][3]);
        }
    }
#if GATE
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int e = 0; e < 2; e++)
        {
            float left = decay->reading[16 * r + 8 * e + lane / 4];
#pragma unroll
            for (int n = 0; n < 2 * M; n++) o[r][n][2 * e] *= left, o[r][n][2 * e + 1] *= left;
        }
#endif
}

// Rows and columns in which a warp's lanes take the 64 x 16 M outputs of the warp, 16 bytes each, j = 0 .. 4 M - 1: whole sectors of global memory, different banks of shared memory.
DEVICE int output_row(int j)
{
    int q = threadIdx.x % 32 / (2 * M), together = 4 / M; // rows that eight lanes make
    return j * 16 / M + q % together * 2 * M + q / together % (2 * M) + q / 8 * 8;
}
DEVICE int output_unit() { return threadIdx.x / 32 * 2 * M + threadIdx.x % (2 * M); }

// Where the states at an edge lie, of this thread the first elements.
DEVICE uint4* edge_at(const Linear& p, i64 edge) { return p.edges + (edge * gridDim.x + blockIdx.x) * (M * K / 16) * THREADS + threadIdx.x; }

// What the block does at an edge of time: the state into p.edges, or its product with what lies there.
DEVICE void at_edge(const State& state, const Linear& p, i64 edge)
{
    uint4* to = edge_at(p, edge);
    float sum = 0;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < K / 8; n += 2)
        {
            const float (&a)[4] = state[m][n];
            const float (&b)[4] = state[m][n + 1];
            uint4& there = to[(m * (K / 16) + n / 2) * THREADS];
#if EDGES == 1
            there = make_uint4(pack2<bf16>(a[0], a[1]), pack2<bf16>(a[2], a[3]), pack2<bf16>(b[0], b[1]), pack2<bf16>(b[2], b[3]));
#else
            uint4 other = there;
            float2 x = unpack2<bf16>(other.x), y = unpack2<bf16>(other.y), z = unpack2<bf16>(other.z), w = unpack2<bf16>(other.w);
            sum += a[0] * x.x + a[1] * x.y + a[2] * y.x + a[3] * y.y + b[0] * z.x + b[1] * z.y + b[2] * w.x + b[3] * w.y;
#endif
        }
#if EDGES == 2
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
    if (threadIdx.x % 32 == 0) p.crossings[(edge * gridDim.x + blockIdx.x) * WARPS + threadIdx.x / 32] = sum;
#endif
}

// Grid: tiles of V, heads, segments x batch.
KERNEL_MIN_BLOCKS(linear, Linear, THREADS, BLOCKS)
{
    SHARED_MEMORY(smem);
    constexpr int VALUE_UNITS = V / 8;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tile = blockIdx.x, head = blockIdx.y, batch = blockIdx.z / p.segments, segment = blockIdx.z % p.segments;
    const int columns = min(V, p.values - tile * V); // that are there
    const int chunks = (p.time + CHUNK - 1) / CHUNK, first = segment * p.segment_chunks, count = min(p.segment_chunks, chunks - first);
    const i64 sequence = (i64)batch * gridDim.y + head;
    uint4* const score = (uint4*)(smem + SCORE_OFFSET);
    Decays* const decays = (Decays*)(smem + DECAY_OFFSET);

    auto chunk_at = [&](int step) { return REVERSE ? first + count - 1 - step : first + step; };
    auto load = [&](int step)
    {
        int time = chunk_at(step) * CHUNK, rows = p.time - time;
        char* stage = smem + step % 2 * STAGE_BYTES;
        load_tile<K / 8>(stage, at(p.q, batch, time, head), p.q.time, rows, p.keys);
        load_tile<K / 8>(stage + QUERY_BYTES, at(p.k, batch, time, head), p.k.time, rows, p.keys);
        load_tile<VALUE_UNITS>(stage + QUERY_BYTES + KEY_BYTES, at(p.v, batch, time, head) + tile * V * 2, p.v.time, rows, columns);
#if GATE
        if (step + 1 < count) load_gates(decays[step % 2].coming, p.gate, batch, chunk_at(step + 1) * CHUNK, head, p.time - chunk_at(step + 1) * CHUNK);
#endif
    };
#if DOTS
    float* const dots = (float*)(smem + DOT_OFFSET);
    auto write_dots = [&](int time) // by one warp
    {
        float* to = p.dots + (tile * (i64)(gridDim.z / p.segments * gridDim.y) + sequence) * p.time;
        for (int row = lane; row < CHUNK; row += 32)
        {
            float sum = 0;
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += dots[w * CHUNK + row];
            if (time + row < p.time) to[time + row] = sum;
        }
    };
#endif
#if EDGES
    const int edges = (chunks + p.edge_chunks - 1) / p.edge_chunks;
    auto edge_after = [&](int chunk) { return (chunk + 1) % p.edge_chunks == 0 || chunk + 1 == chunks; };
#endif

    load(0);
#if GATE
    load_gates(decays[1].coming, p.gate, batch, chunk_at(0) * CHUNK, head, p.time - chunk_at(0) * CHUNK);
#endif
    copy_commit();
    State state;
    read_state(state, p.start, batch, head, segment, p.values, p.keys);
#if GATE
    copy_wait<0>();
    __syncthreads();
    if (warp == 0) cumulate(decays[0], decays[1].coming);
#endif

    for (int step = 0; step < count; step++)
    {
        const int chunk = chunk_at(step), time = chunk * CHUNK;
        char* const queries = smem + step % 2 * STAGE_BYTES;
        char* const keys = queries + QUERY_BYTES;
        char* const values = keys + KEY_BYTES;
        const Decays* const decay = decays + step % 2;
        copy_wait<0>();
        __syncthreads(); // this chunk has come, and the last one is done with
        if (step + 1 < count) load(step + 1);
        copy_commit();
#if EDGES == 2
        if (edge_after(chunk)) at_edge(state, p, sequence * edges + chunk / p.edge_chunks);
#endif

#pragma unroll 1
        for (int unit = warp; unit < 8; unit += WARPS) // of 16 queries and 32 keys; which queries changes from chunk to chunk, since some have fewer keys
        {
            int r = (unit + chunk) & 3, half = unit >> 2;
            if (REVERSE ? r <= 2 * half + 1 : r >= 2 * half) scores(score, queries, keys, decay, r, half);
#if GATE
            else if (r % 2 == 0 && step + 1 < count) cumulate(decays[(step + 1) % 2], decay->coming);
#endif
#if DOTS
            else if (r % 2 == 1 && step > 0) write_dots(chunk_at(step - 1) * CHUNK);
#endif
        }
        float o[4][2 * M][4];
        read(o, state, queries, decay);
        __syncthreads(); // the scores are there, and the queries are done with

#if DOTS
        char* const other = queries; // the other tensor takes their place
#pragma unroll
        for (int j = 0; j < 4 * M; j++)
        {
            int row = output_row(j), unit = output_unit();
            copy_async(other + place<VALUE_UNITS>(row, unit), at(p.other, batch, time + row, head) + (tile * V + unit * 8) * 2, time + row < p.time && unit * 8 < columns);
        }
        copy_commit();
#endif
#if GATE
        fade(state, decay->whole);
#endif
        values_in(o, state, score, keys, values, decay);
#if EDGES == 1
        if (edge_after(chunk)) at_edge(state, p, sequence * edges + chunk / p.edge_chunks);
#endif

#if DOTS
        copy_wait<0>();
        __syncwarp();
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int e = 0; e < 2; e++)
            {
                int row = 16 * r + 8 * e + lane / 4;
                float sum = 0;
#pragma unroll
                for (int n = 0; n < 2 * M; n++)
                {
                    float2 x = unpack2<TYPE>(*(const u32*)(other + place<VALUE_UNITS>(row, warp * 2 * M + n) + lane % 4 * 4));
                    sum += o[r][n][2 * e] * x.x + o[r][n][2 * e + 1] * x.y;
                }
                sum += shuffle_xor(sum, 1);
                sum += shuffle_xor(sum, 2);
                if (lane % 4 == 0) dots[warp * CHUNK + row] = sum;
            }
#endif
        // A warp alone reads its columns of the values; the output takes their place on its way.
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int n = 0; n < 2 * M; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    *(u32*)(values + place<VALUE_UNITS>(16 * r + 8 * e + lane / 4, warp * 2 * M + n) + lane % 4 * 4) = pack2<TYPE>(o[r][n][2 * e], o[r][n][2 * e + 1]);
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 4 * M; j++)
        {
            int row = output_row(j), unit = output_unit();
            uint4 x = *(const uint4*)(values + place<VALUE_UNITS>(row, unit));
            if (time + row < p.time && unit * 8 < columns) *(uint4*)(at(p.o, batch, time + row, head) + (tile * V + unit * 8) * 2) = x;
        }
    }
#if DOTS
    __syncthreads();
    if (warp == 0) write_dots(chunk_at(count - 1) * CHUNK);
#endif
    if (p.end.data && segment == (REVERSE ? 0 : p.segments - 1)) write_state(state, p.end, batch, head, 0, p.values, p.keys);
}

#else
// What each segment but the last (in the direction of the recurrence) adds to the state, p.end, and its log-decay, p.totals. Grid as above.
KERNEL(segment_states, Linear, THREADS)
{
    SHARED_MEMORY(smem);
    const int tile = blockIdx.x, head = blockIdx.y, batch = blockIdx.z / p.segments, segment = blockIdx.z % p.segments;
    if (segment == (REVERSE ? 0 : p.segments - 1)) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, columns = min(V, p.values - tile * V);
    const int chunks = (p.time + CHUNK - 1) / CHUNK, first = segment * p.segment_chunks, count = min(p.segment_chunks, chunks - first);
    constexpr int STAGE = KEY_BYTES + VALUE_BYTES;
    Decays* const decays = (Decays*)(smem + 2 * STAGE);

    auto chunk_at = [&](int step) { return REVERSE ? first + count - 1 - step : first + step; };
    auto load = [&](int step)
    {
        int time = chunk_at(step) * CHUNK, rows = p.time - time;
        load_tile<K / 8>(smem + step % 2 * STAGE, at(p.k, batch, time, head), p.k.time, rows, p.keys);
        load_tile<V / 8>(smem + step % 2 * STAGE + KEY_BYTES, at(p.v, batch, time, head) + tile * V * 2, p.v.time, rows, columns);
#if GATE
        if (step + 1 < count) load_gates(decays[step % 2].coming, p.gate, batch, chunk_at(step + 1) * CHUNK, head, p.time - chunk_at(step + 1) * CHUNK);
#endif
    };

    load(0);
#if GATE
    load_gates(decays[1].coming, p.gate, batch, chunk_at(0) * CHUNK, head, p.time - chunk_at(0) * CHUNK);
#endif
    copy_commit();
    State state;
    each_pair(state, [](float& a, float& b, int, int) { a = b = 0; });
#if GATE
    float total = 0;
    copy_wait<0>();
    __syncthreads();
    if (warp == 0) total = cumulate(decays[0], decays[1].coming);
#endif
    const int key = matrices_by_row<K / 8>(lane), value = matrices_by_unit<V / 8>(lane) ^ warp * M * 32;
    for (int step = 0; step < count; step++)
    {
        const char* const keys = smem + step % 2 * STAGE;
        const char* const values = keys + KEY_BYTES;
        copy_wait<0>();
        __syncthreads();
        if (step + 1 < count) load(step + 1);
        copy_commit();
#if GATE
        fade(state, decays[step % 2].whole);
#endif
#pragma unroll
        for (int c = 0; c < 4; c++)
        {
            u32 v[M][4];
            load_values(v, values + c * 16 * V * 2, value);
#if GATE
            weigh(v, decays[step % 2].writing + 8 * c);
#endif
            update(state, v, keys + c * 16 * K * 2, key);
        }
#if GATE
        if (warp == 0 && step + 1 < count) total += cumulate(decays[(step + 1) % 2], decays[step % 2].coming);
#endif
    }
    write_state(state, p.end, batch, head, segment, p.values, p.keys);
#if GATE
    if (threadIdx.x == 0 && tile == 0) p.totals[((i64)batch * gridDim.y + head) * p.segments + segment] = total;
#endif
}

// From what each segment adds to the state at which each begins, in place: p.end, contiguous; p.start is that of the whole, [b, h, 1, V, K]. Grid: V K / 256 (rounded up), heads, batch.
KERNEL(join_segments, Linear, 256)
{
    const int element = blockIdx.x * 256 + threadIdx.x, size = p.values * p.keys, row = element / p.keys, column = element % p.keys;
    if (element >= size) return;
    const i64 sequence = (i64)blockIdx.z * gridDim.y + blockIdx.y;
    float* data = p.end.data + sequence * p.segments * size + element;
    float state = p.start.data ? p.start.data[blockIdx.z * p.start.batch + blockIdx.y * p.start.head + row * p.start.value + column * p.start.key] : 0;
#pragma unroll 8
    for (int step = 0; step < p.segments; step++)
    {
        int segment = REVERSE ? p.segments - 1 - step : step;
        float added = step + 1 < p.segments ? data[(i64)segment * size] : 0, decay = 1;
#if GATE
        if (step + 1 < p.segments) decay = exp2_fast(p.totals[sequence * p.segments + segment]);
#endif
        data[(i64)segment * size] = state;
        state = decay * state + added;
    }
}
#endif
