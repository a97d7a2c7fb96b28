// The gated linear recurrence with one decay per step and key dimension (gated linear attention, Yang et al. 2023, equation 3), forwards and backwards:
//   S_t = diag(a_t) S_{t−1} + k_t v_tᵀ,   o_t = S_tᵀ q_t.
//
// Time is cut into chunks of 64 positions and these into 4 blocks of 16. Within a chunk, G_t is the cumulated log-decay and m_i its value in the middle of block i. Every position is measured from
// the middle of its own block, q_t e^{G_t − m_i} and k_s e^{m_j − G_s}: exponents of at most eight steps, which the floor of a step keeps within what bf16 and float hold. From one middle to a later
// one there is only decay, so that all the rest are factors of at most one per key dimension:
//   o_t  = (q_t e^{G_t})ᵀ S + Σ_{s ≤ t} P_ts v_s,                     P_ts = (q_t e^{G_t − m_i})ᵀ e^{m_i − m_j} (k_s e^{m_j − G_s}),
//   S'   = e^{G_L} S + Σ_s (k_s e^{G_L − G_s}) v_sᵀ,
//   dq_t = e^{G_t − m_i} (e^{m_i} S do_t + Σ_{s ≤ t} dP_ts e^{m_i − m_j} (k_s e^{m_j − G_s})),          dP_ts = do_tᵀ v_s,
//   dk_s = e^{m_j − G_s} (e^{G_L − m_j} dS' v_s + Σ_{t ≥ s} dP_ts e^{m_i − m_j} (q_t e^{G_t − m_i})),
//   dv_s = dS'ᵀ (k_s e^{G_L − G_s}) + Σ_{t ≥ s} P_ts do_t,
//   dG_t = q_t ∘ dq_t − k_t ∘ dk_t, and at the chunk's end Σ_v S' ∘ dS'; the gradient of a step's log-decay is the sum of dG from there to the chunk's end.
// The sums of dq and dk go from block to block: what was gathered fades from one middle to the next, like a state, and the next block's part is added.
//
// vector_states runs over time and leaves the state at each chunk's edge (forwards S, backwards dS); vector_output and vector_gradient then serve all chunks at once.
// A decay of zero (log-decay −∞) forgets all: exactly so between chunks, where decays only multiply. Within a chunk they are subtracted, and a step's counts as 2^−14 at least: 6e-5 of what was before it remains until the
// chunk's end, less than bf16 rounds off; such a decay gets no gradient.
// Exponents are in base 2. Elements of type TYPE; gated factors, states between chunks and all operands of products are bf16, sums float.
//
// Macros: TYPE; K, V: key and value dimensions (multiples of 32, filled up with zeros beyond those of the tensors); STATE_K, STATE_V: the tile of the state that a block of vector_states keeps;
// OUTPUT_WARPS, GRADIENT_WARPS: warps of a block, between which the columns are shared out (16 columns per warp at least); OUTPUT_BLOCKS, GRADIENT_BLOCKS: blocks per multiprocessor to compile for.

typedef TYPE Element;

constexpr int Chunk = 64, Block = 16, Blocks = Chunk / Block, Half = Block / 2, Pairs = Blocks * (Blocks + 1) / 2;
constexpr int KeyStride = K + 8, ValueStride = V + 8, FactorStride = K / 2 + 4; // of rows in shared memory: no two rows that are read together share banks
constexpr float Log2E = 1.4426950408889634f;
constexpr float Floor = -14; // of a step's log-decay in base 2: eight steps stay within the range of bf16

// A tensor [b, t, h, d]: strides in elements; d is contiguous.
struct Rows { void* start; i64 batch, time, head; };

// Where a chunk begins; its row t is t * step further.
template <class T> struct ChunkRows { T* start; int step; };
template <class T> DEVICE ChunkRows<T> rows_of(const Rows& x, i64 b, i64 t, i64 h) { return { (T*)x.start + b * x.batch + t * x.time + h * x.head, (int)x.time }; }

// ---- tiles of 16 x 16 in fragments: registers 0 … 3 hold (rows 0–7, columns 0–7), (8–15, 0–7), (0–7, 8–15), (8–15, 8–15), which is the first operand of mma and the packed form of its sums

// As it lies in shared memory. As second operand of a product with the rows as columns: registers (0, 2) and (1, 3).
DEVICE void load_tile(u32 (&r)[4], const bf16* corner, int stride)
{
    int lane = threadIdx.x % 32;
    load_matrices(r, corner + lane % 16 * stride + lane / 16 * 8);
}

// Each 8 x 8 part transposed: second operand of a product with rows as rows: registers (0, 1) and (2, 3).
DEVICE void load_tile_transposed(u32 (&r)[4], const bf16* corner, int stride)
{
    int lane = threadIdx.x % 32;
    load_matrices_transposed(r, corner + lane % 16 * stride + lane / 16 * 8);
}

DEVICE void pack_tile(u32 (&r)[4], const float (&left)[4], const float (&right)[4])
{
    r[0] = pack2<bf16>(left[0], left[1]);
    r[1] = pack2<bf16>(left[2], left[3]);
    r[2] = pack2<bf16>(right[0], right[1]);
    r[3] = pack2<bf16>(right[2], right[3]);
}

// The transpose of the whole tile.
DEVICE void transpose_tile(u32 (&r)[4])
{
    u32 upper = transpose_matrix(r[2]);
    r[0] = transpose_matrix(r[0]);
    r[2] = transpose_matrix(r[1]);
    r[1] = upper;
    r[3] = transpose_matrix(r[3]);
}

DEVICE void load_fragments(u32 (&r)[4], const uint4* tile)
{
    uint4 x = tile[threadIdx.x % 32];
    r[0] = x.x; r[1] = x.y; r[2] = x.z; r[3] = x.w;
}

DEVICE void store_fragments(uint4* tile, const u32 (&r)[4]) { tile[threadIdx.x % 32] = make_uint4(r[0], r[1], r[2], r[3]); }

// States between chunks: [b h, edges, K / 16, V / 16] tiles.
DEVICE i64 state_tile(i64 edge, int k, int v) { return ((edge * (K / 16) + k) * (V / 16) + v) * 32; }

// ---- from global memory

// The chunk's rows of `Width` columns to shared memory, in the background; zeros from row `count` and column `dimension` on.
template <int Width, int Threads> DEVICE void copy_rows(bf16* to, ChunkRows<const Element> x, int column, int count, int dimension)
{
    constexpr int Pieces = Width / 8;
    int c = threadIdx.x % Pieces * 8;
    bool inside = column + c < dimension;
#pragma unroll
    for (int t = threadIdx.x / Pieces; t < Chunk; t += Threads / Pieces)
    {
        bool valid = inside && t < count;
        copy_async(to + t * (Width + 8) + c, valid ? x.start + t * x.step + column + c : x.start, valid);
    }
}

template <class T> constexpr bool IsBf16 = false;
template <> constexpr bool IsBf16<bf16> = true;

// Brings what this thread has copied, and waited for, to bf16.
template <int Width, int Threads> DEVICE void finish_rows(bf16* to)
{
    if constexpr (!IsBf16<Element>)
        for (int piece = threadIdx.x; piece < Chunk * Width / 8; piece += Threads)
        {
            u32* x = (u32*)(to + piece / (Width / 8) * (Width + 8) + piece % (Width / 8) * 8);
            for (int i = 0; i < 4; i++)
            {
                float2 y = unpack2<Element>(x[i]);
                x[i] = pack2<bf16>(y.x, y.y);
            }
        }
}

DEVICE float floored(float x) { return x < Floor ? Floor : x; } // keeps NaN

// Two neighbouring columns of 16 rows; zeros (no decay, no key) from row `count` and column `dimension` on.
template <class T, class Pair> DEVICE void load_pairs(Pair (&y)[Block], ChunkRows<const T> x, int first, int column, int count, int dimension)
{
    const T* at = x.start + first * x.step + column;
    if (column >= dimension) count = 0;
#pragma unroll
    for (int r = 0; r < Block; r++, at += x.step) y[r] = first + r < count ? *(const Pair*)at : Pair();
}

// ---- the states between chunks

struct StatesParams
{
    Rows keys, values, decays;  // [b, t, h, K], [b, t, h, V], [b, t, h, K] in float. Backwards: the queries and the gradients of the outputs
    const float* initial;       // [b h, segments, K, V]: the state in which each segment begins; null: zero
    float* last;                // [b h, segments, K, V] when `whole` is given, else [b h, K, V]: the state in which it ends
    float* whole;               // [b h, segments, K]: how much remains of a segment's beginning at its end; null: not wanted
    uint4* states;              // [b h, edges] states in tiles: the state in which each chunk is entered (and, if there is one edge more than chunks, the last); null: not wanted
    int time, heads, keyDimension, valueDimension, chunks, segments, segmentChunks, edges, backwards;
};

// A block carries a tile of the state through a segment of time. A warp owns 16 rows (key dimensions).
KERNEL(vector_states, StatesParams, 2 * STATE_K)
{
    constexpr int Threads = 2 * STATE_K, KeyStep = STATE_K + 8, ValueStep = STATE_V + 8, TilesK = K / STATE_K, TilesV = V / STATE_V, Columns = STATE_V / 8;
    SHARED_MEMORY(memory);
    bf16* values = (bf16*)memory;                        // [2, 64, STATE_V]
    bf16* keys = values + 2 * Chunk * ValueStep;         // [64, STATE_K], as they remain at the far edge of the chunk
    float* sums = (float*)(keys + Chunk * KeyStep);      // [blocks, STATE_K] log-decays
    float* chunkDecay = sums + Blocks * STATE_K;         // [STATE_K]

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, i = lane % 4;
    int tile = blockIdx.x % (TilesK * TilesV), sequence = blockIdx.x / (TilesK * TilesV), segment = blockIdx.y;
    int k0 = tile / TilesV * STATE_K, v0 = tile % TilesV * STATE_V, h = sequence % p.heads;
    i64 b = sequence / p.heads;
    int first = segment * p.segmentChunks, count = min(p.segmentChunks, p.chunks - first);
    int part = threadIdx.x / (STATE_K / 2), column = threadIdx.x % (STATE_K / 2) * 2; // what this thread gates: 16 positions of two key dimensions

    int kRow = k0 + warp * 16 + g;
    float state[Columns][4], remains[2] = { 1, 1 };
    i64 matrix = (i64)p.keyDimension * p.valueDimension;
#pragma unroll
    for (int n = 0; n < Columns; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
        {
            int k = kRow + e / 2 * 8, v = v0 + n * 8 + 2 * i + e % 2;
            state[n][e] = p.initial && k < p.keyDimension && v < p.valueDimension ? p.initial[((i64)sequence * p.segments + segment) * matrix + (i64)k * p.valueDimension + v] : 0;
        }

    float2 decay[Block];
    u32 key[Block];
    int n = p.backwards ? first + count - 1 : first;
    auto load = [&](int n, bf16* to)
    {
        int start = n * Chunk, rest = p.time - start;
        load_pairs(decay, rows_of<const float>(p.decays, b, start, h), part * Block, k0 + column, rest, p.keyDimension);
        load_pairs(key, rows_of<const Element>(p.keys, b, start, h), part * Block, k0 + column, rest, p.keyDimension);
        copy_rows<STATE_V, Threads>(to, rows_of<const Element>(p.values, b, start, h), v0, rest, p.valueDimension);
    };
    load(n, values);
    copy_commit();

    for (int c = 0; c < count; c++)
    {
        n = p.backwards ? first + count - 1 - c : first + c;
        bf16* current = values + c % 2 * Chunk * ValueStep;

        // The log-decay between each position and the edge ahead: forwards of the later positions, backwards of the earlier ones and its own. (No floor: nothing is subtracted here.)
        float2 sum = make_float2(0, 0);
        if (p.backwards)
        {
#pragma unroll
            for (int r = 0; r < Block; r++)
            {
                sum.x += decay[r].x * Log2E;
                sum.y += decay[r].y * Log2E;
                decay[r] = sum;
            }
        }
        else
        {
#pragma unroll
            for (int r = Block - 1; r >= 0; r--)
            {
                float2 later = sum;
                sum.x += decay[r].x * Log2E;
                sum.y += decay[r].y * Log2E;
                decay[r] = later;
            }
        }
        *(float2*)(sums + part * STATE_K + column) = sum;
        __syncthreads(); // also: the products of the chunk before are done with keys and values
        float2 ahead = make_float2(0, 0), total = make_float2(0, 0);
#pragma unroll
        for (int other = 0; other < Blocks; other++)
        {
            float2 x = *(const float2*)(sums + other * STATE_K + column);
            total.x += x.x;
            total.y += x.y;
            if (p.backwards ? other < part : other > part) { ahead.x += x.x; ahead.y += x.y; }
        }
        if (part == 0) *(float2*)(chunkDecay + column) = make_float2(exp2_fast(total.x), exp2_fast(total.y));
#pragma unroll
        for (int r = 0; r < Block; r++)
        {
            float2 x = unpack2<Element>(key[r]);
            *(u32*)(keys + (part * Block + r) * KeyStep + column) = pack2<bf16>(x.x * exp2_fast(decay[r].x + ahead.x), x.y * exp2_fast(decay[r].y + ahead.y));
        }
        if (c + 1 < count) load(p.backwards ? n - 1 : n + 1, values + (c + 1) % 2 * Chunk * ValueStep);
        copy_commit();
        copy_wait<1>();
        finish_rows<STATE_V, Threads>(current);
        __syncthreads();

        if (p.states)
#pragma unroll
            for (int x = 0; x < Columns / 2; x++)
            {
                u32 r[4];
                pack_tile(r, state[2 * x], state[2 * x + 1]);
                store_fragments(p.states + state_tile((i64)sequence * p.edges + n, k0 / 16 + warp, v0 / 16 + x), r);
            }
        float low = chunkDecay[warp * 16 + g], high = chunkDecay[warp * 16 + g + 8];
        remains[0] *= low;
        remains[1] *= high;
#pragma unroll
        for (int x = 0; x < Columns; x++) { state[x][0] *= low; state[x][1] *= low; state[x][2] *= high; state[x][3] *= high; }
#pragma unroll
        for (int s = 0; s < Chunk; s += 16)
        {
            u32 y[4], z[4];
            load_tile_transposed(y, keys + s * KeyStep + warp * 16, KeyStep);
            u32 a[4] = { y[0], y[2], y[1], y[3] };
#pragma unroll
            for (int x = 0; x < Columns / 2; x++)
            {
                load_tile_transposed(z, current + s * ValueStep + x * 16, ValueStep);
                mma<bf16>(state[2 * x], a, z[0], z[1]);
                mma<bf16>(state[2 * x + 1], a, z[2], z[3]);
            }
        }
    }

    bool final = segment == (p.backwards ? 0 : p.segments - 1);
    if (p.states && final && p.edges > p.chunks)
#pragma unroll
        for (int x = 0; x < Columns / 2; x++)
        {
            u32 r[4];
            pack_tile(r, state[2 * x], state[2 * x + 1]);
            store_fragments(p.states + state_tile((i64)sequence * p.edges + p.chunks, k0 / 16 + warp, v0 / 16 + x), r);
        }
    if (p.whole && v0 == 0 && i == 0)
    {
        float* to = p.whole + ((i64)sequence * p.segments + segment) * p.keyDimension;
        if (kRow < p.keyDimension) to[kRow] = remains[0];
        if (kRow + 8 < p.keyDimension) to[kRow + 8] = remains[1];
    }
    if (!p.last || !(final || p.whole)) return;
    float* to = p.last + (p.whole ? (i64)sequence * p.segments + segment : sequence) * matrix;
#pragma unroll
    for (int x = 0; x < Columns; x++)
#pragma unroll
        for (int e = 0; e < 4; e++)
        {
            int k = kRow + e / 2 * 8, v = v0 + x * 8 + 2 * i + e % 2;
            if (k < p.keyDimension && v < p.valueDimension) to[(i64)k * p.valueDimension + v] = state[x][e];
        }
}

struct JoinParams
{
    const float* local;   // [b h, segments, K, V]: where each segment ends when it begins with zero
    const float* whole;   // [b h, segments, K]: how much remains of its beginning
    const float* initial; // [b h, K, V]; null: zero
    float* starts;        // [b h, segments, K, V]: the state in which each segment begins
    i64 elements;         // b h K V
    int keyDimension, valueDimension, segments, backwards;
};

// From segments that began with zero to the states in which they begin. A thread per element of the state.
KERNEL(vector_join, JoinParams, 256)
{
    i64 element = (i64)blockIdx.x * 256 + threadIdx.x;
    if (element >= p.elements) return;
    i64 matrix = (i64)p.keyDimension * p.valueDimension, sequence = element / matrix, within = element % matrix;
    float state = p.initial ? p.initial[element] : 0;
    for (int c = 0; c < p.segments; c++)
    {
        i64 segment = sequence * p.segments + (p.backwards ? p.segments - 1 - c : c);
        p.starts[segment * matrix + within] = state;
        state = p.whole[segment * p.keyDimension + within / p.valueDimension] * state + p.local[segment * matrix + within];
    }
}

// ---- within a chunk

// Queries and keys of a chunk measured from the middles of their blocks, and (for the gradient) e^{G_t − m_i}, to shared memory; `sums`: [half-blocks, K] log-decays.
template <int Threads, bool WithFactors> DEVICE void gate(bf16* queries, bf16* keys, u32* factors, float* sums, ChunkRows<const Element> q, ChunkRows<const Element> k, ChunkRows<const float> decays, int count, int dimension)
{
    for (int item = threadIdx.x; item < Blocks * K / 2; item += Threads)
    {
        int block = item / (K / 2), column = item % (K / 2) * 2;
        float2 g[Block];
        u32 query[Block], key[Block];
        load_pairs(g, decays, block * Block, column, count, dimension);
        load_pairs(query, q, block * Block, column, count, dimension);
        load_pairs(key, k, block * Block, column, count, dimension);
        float2 sum = make_float2(0, 0);
#pragma unroll
        for (int r = 0; r < Block; r++)
        {
            sum.x += floored(g[r].x * Log2E);
            sum.y += floored(g[r].y * Log2E);
            g[r] = sum;
        }
        float2 middle = g[Half - 1];
        *(float2*)(sums + 2 * block * K + column) = middle;
        *(float2*)(sums + (2 * block + 1) * K + column) = make_float2(sum.x - middle.x, sum.y - middle.y);
#pragma unroll
        for (int r = 0; r < Block; r++)
        {
            int t = block * Block + r;
            float2 x = make_float2(g[r].x - middle.x, g[r].y - middle.y), factor = make_float2(exp2_fast(x.x), exp2_fast(x.y)), y = unpack2<Element>(query[r]), z = unpack2<Element>(key[r]);
            *(u32*)(queries + t * KeyStride + column) = pack2<bf16>(y.x * factor.x, y.y * factor.y);
            *(u32*)(keys + t * KeyStride + column) = pack2<bf16>(z.x * exp2_fast(-x.x), z.y * exp2_fast(-x.y));
            if (WithFactors) factors[t * FactorStride + column / 2] = pack2<bf16>(factor.x, factor.y);
        }
    }
}

// middles [blocks + 2, K]: G at the chunk's start (0), at the middles, at its end. fromEdge [blocks, K / 2] pairs: between the chunk's start (or its end) and each middle.
template <int Threads, bool FromEnd> DEVICE void measure(float* middles, u32* fromEdge, const float* sums)
{
    for (int item = threadIdx.x; item < Blocks * K / 2; item += Threads)
    {
        int block = item / (K / 2), column = item % (K / 2) * 2;
        float2 before = make_float2(0, 0), total = make_float2(0, 0);
#pragma unroll
        for (int half = 0; half < 2 * Blocks; half++)
        {
            float2 x = *(const float2*)(sums + half * K + column);
            total.x += x.x;
            total.y += x.y;
            if (half <= 2 * block) before = total;
        }
        *(float2*)(middles + (block + 1) * K + column) = before;
        if (block == 0) *(float2*)(middles + column) = make_float2(0, 0);
        if (block == 0) *(float2*)(middles + (Blocks + 1) * K + column) = total;
        float2 x = FromEnd ? make_float2(total.x - before.x, total.y - before.y) : before;
        fromEdge[block * (K / 2) + column / 2] = pack2<bf16>(exp2_fast(x.x), exp2_fast(x.y));
    }
}

// The remains of two neighbouring key dimensions between two entries of `middles`.
DEVICE float2 between(const float* middles, int later, int earlier, int column)
{
    float2 x = *(const float2*)(middles + later * K + column), y = *(const float2*)(middles + earlier * K + column);
    return make_float2(exp2_fast(x.x - y.x), exp2_fast(x.y - y.y));
}

// Multiplies the columns of a tile, 2 i, 2 i + 1 and those 8 further, by pairs of factors.
DEVICE void scale_tile(u32 (&r)[4], u32 left, u32 right)
{
    r[0] = multiply2<bf16>(r[0], left);
    r[1] = multiply2<bf16>(r[1], left);
    r[2] = multiply2<bf16>(r[2], right);
    r[3] = multiply2<bf16>(r[3], right);
}

// c += a bᵀ of 16 rows each, `Width` columns.
template <int Width> DEVICE void multiply_blocks(float (&c)[2][4], const bf16* a, const bf16* b)
{
#pragma unroll
    for (int x = 0; x < Width; x += 16)
    {
        u32 y[4], z[4];
        load_tile(y, a + x, Width + 8);
        load_tile(z, b + x, Width + 8);
        mma<bf16>(c[0], y, z[0], z[2]);
        mma<bf16>(c[1], y, z[1], z[3]);
    }
}

// P of two blocks: c += a diag(decay from middle j to middle i) bᵀ.
DEVICE void multiply_blocks(float (&c)[2][4], const bf16* a, const bf16* b, const float* middles, int block, int earlier)
{
    if (block == earlier) return multiply_blocks<K>(c, a, b);
    int i = threadIdx.x % 4;
#pragma unroll
    for (int x = 0; x < K; x += 16)
    {
        u32 y[4], z[4];
        load_tile(y, a + x, KeyStride);
        float2 left = between(middles, block + 1, earlier + 1, x + 2 * i), right = between(middles, block + 1, earlier + 1, x + 8 + 2 * i);
        scale_tile(y, pack2<bf16>(left.x, left.y), pack2<bf16>(right.x, right.y));
        load_tile(z, b + x, KeyStride);
        mma<bf16>(c[0], y, z[0], z[2]);
        mma<bf16>(c[1], y, z[1], z[3]);
    }
}

// Zeros above the diagonal of a block: there, factors may have overflowed.
DEVICE void keep_causal(float (&c)[2][4])
{
    int lane = threadIdx.x % 32, g = lane / 4, i = lane % 4;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (8 * n + 2 * i + e % 2 > g + e / 2 * 8) c[n][e] = 0;
}

// Pairs of blocks j ≤ i are numbered by rows.
DEVICE int pair_of(int i, int j) { return i * (i + 1) / 2 + j; }
DEVICE int row_of(int pair) { return pair < 1 ? 0 : pair < 3 ? 1 : pair < 6 ? 2 : 3; }

// Writes a row block's sums, columns [column, column + 16 Tiles). Neighbouring lanes exchange halves, so that four of them write 32 bytes in one go.
template <int Tiles> DEVICE void store_rows(ChunkRows<Element> to, const float (&x)[2 * Tiles][4], int first, int column, int count, int dimension)
{
    int lane = threadIdx.x % 32, g = lane / 4, i = lane % 4;
    bool odd = i % 2 != 0;
#pragma unroll
    for (int tile = 0; tile < Tiles; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++)
        {
            u32 left = pack2<Element>(x[2 * tile][2 * half], x[2 * tile][2 * half + 1]), right = pack2<Element>(x[2 * tile + 1][2 * half], x[2 * tile + 1][2 * half + 1]);
            u32 other = shuffle_xor(odd ? left : right, 1);
            int t = first + g + 8 * half, c = column + 16 * tile + (odd ? 8 + 2 * (i - 1) : 2 * i); // the left lane of the two writes to the left half, the right one to the right half
            if (t < count && c < dimension) *(uint2*)(to.start + t * to.step + c) = odd ? make_uint2(other, right) : make_uint2(left, other);
        }
}

// ---- the outputs

struct OutputParams
{
    Rows queries, keys, values, decays, output; // [b, t, h, K], [b, t, h, K], [b, t, h, V], [b, t, h, K] in float, [b, t, h, V]
    const uint4* states;                        // [b h, edges] states in tiles: in which each chunk is entered
    int time, heads, keyDimension, valueDimension, chunks, edges;
};

// A block per chunk. Its warps share out the pairs of blocks for P, then the columns of the output.
KERNEL_MIN_BLOCKS(vector_output, OutputParams, 32 * OUTPUT_WARPS, OUTPUT_BLOCKS)
{
    constexpr int Threads = 32 * OUTPUT_WARPS, Tiles = V / 16 / OUTPUT_WARPS;
    SHARED_MEMORY(memory);
    uint4* scores = (uint4*)memory;                        // [pairs] tiles of P
    bf16* queries = (bf16*)(scores + Pairs * 32);          // [64, K]
    bf16* keys = queries + Chunk * KeyStride;              // [64, K]
    bf16* values = keys + Chunk * KeyStride;               // [64, V]
    float* sums = (float*)(values + Chunk * ValueStride);  // [half-blocks, K]
    float* middles = sums + 2 * Blocks * K;                // [blocks + 2, K]
    u32* fromStart = (u32*)(middles + (Blocks + 2) * K);   // [blocks, K / 2]

    int warp = threadIdx.x / 32, i = threadIdx.x % 4;
    int n = blockIdx.x % p.chunks, sequence = blockIdx.x / p.chunks, h = sequence % p.heads, start = n * Chunk, count = p.time - start;
    i64 b = sequence / p.heads;
    copy_rows<V, Threads>(values, rows_of<const Element>(p.values, b, start, h), 0, count, p.valueDimension);
    copy_commit();
    gate<Threads, false>(queries, keys, nullptr, sums, rows_of<const Element>(p.queries, b, start, h), rows_of<const Element>(p.keys, b, start, h), rows_of<const float>(p.decays, b, start, h), count, p.keyDimension);
    __syncthreads();
    measure<Threads, false>(middles, fromStart, sums);
    copy_wait<0>();
    finish_rows<V, Threads>(values);
    __syncthreads();

    u32 state[Tiles][K / 16][4];
#pragma unroll
    for (int x = 0; x < Tiles; x++)
#pragma unroll
        for (int k = 0; k < K / 16; k++) load_fragments(state[x][k], p.states + state_tile((i64)sequence * p.edges + n, k, warp * Tiles + x));

    for (int pair = warp; pair < Pairs; pair += OUTPUT_WARPS)
    {
        int block = row_of(pair), earlier = pair - pair_of(block, 0);
        float c[2][4] = {};
        multiply_blocks(c, queries + block * Block * KeyStride, keys + earlier * Block * KeyStride, middles, block, earlier);
        if (block == earlier) keep_causal(c);
        u32 r[4];
        pack_tile(r, c[0], c[1]);
        store_fragments(scores + pair * 32, r);
    }
    __syncthreads();

    float out[Blocks][2 * Tiles][4] = {};
#pragma unroll
    for (int k = 0; k < K / 16; k++)
    {
#pragma unroll
        for (int x = 0; x < Tiles; x++)
#pragma unroll
            for (int e = 0; e < 4; e++) state[x][k][e] = transpose_matrix(state[x][k][e]);
#pragma unroll
        for (int block = 0; block < Blocks; block++)
        {
            u32 a[4];
            load_tile(a, queries + block * Block * KeyStride + k * 16, KeyStride);
            scale_tile(a, fromStart[block * (K / 2) + k * 8 + i], fromStart[block * (K / 2) + k * 8 + 4 + i]);
#pragma unroll
            for (int x = 0; x < Tiles; x++)
            {
                mma<bf16>(out[block][2 * x], a, state[x][k][0], state[x][k][1]);
                mma<bf16>(out[block][2 * x + 1], a, state[x][k][2], state[x][k][3]);
            }
        }
    }
#pragma unroll
    for (int earlier = 0; earlier < Blocks; earlier++)
#pragma unroll
        for (int x = 0; x < Tiles; x++)
        {
            u32 z[4];
            load_tile_transposed(z, values + earlier * Block * ValueStride + (warp * Tiles + x) * 16, ValueStride);
#pragma unroll
            for (int block = earlier; block < Blocks; block++)
            {
                u32 a[4];
                load_fragments(a, scores + pair_of(block, earlier) * 32);
                mma<bf16>(out[block][2 * x], a, z[0], z[1]);
                mma<bf16>(out[block][2 * x + 1], a, z[2], z[3]);
            }
        }
#pragma unroll
    for (int block = 0; block < Blocks; block++) store_rows<Tiles>(rows_of<Element>(p.output, b, start, h), out[block], block * Block, warp * Tiles * 16, count, p.valueDimension);
}

// ---- the gradients

struct GradientParams
{
    Rows queries, keys, values, decays, dOutput; // as given
    Rows dQueries, dKeys, dValues, dDecays;      // contiguous or not; dDecays in float
    const uint4* states;                         // [b h, chunks + 1]: in which each chunk is entered, and the last
    const uint4* dStates;                        // [b h, chunks]: the gradient of the state that each chunk leaves
    int time, heads, keyDimension, valueDimension, chunks;
};

// A block per chunk. Its warps share out the pairs of blocks for P and dP, then the columns of dv, and of dq, dk and the decay's gradient.
KERNEL_MIN_BLOCKS(vector_gradient, GradientParams, 32 * GRADIENT_WARPS, GRADIENT_BLOCKS)
{
    constexpr int Threads = 32 * GRADIENT_WARPS, TilesK = K / 16 / GRADIENT_WARPS, TilesV = V / 16 / GRADIENT_WARPS;
    SHARED_MEMORY(memory);
    uint4* scoresT = (uint4*)memory;                       // [pairs] tiles of Pᵀ
    uint4* dScores = scoresT + Pairs * 32;                 // of dP
    uint4* dScoresT = dScores + Pairs * 32;                // of dPᵀ
    bf16* queries = (bf16*)(dScoresT + Pairs * 32);        // [64, K]
    bf16* keys = queries + Chunk * KeyStride;              // [64, K]
    bf16* values = keys + Chunk * KeyStride;               // [64, V]
    bf16* dOutput = values + Chunk * ValueStride;          // [64, V]
    u32* factors = (u32*)(dOutput + Chunk * ValueStride);  // [64, K / 2]
    float* middles = (float*)(factors + Chunk * FactorStride); // [blocks + 2, K]
    u32* toEnd = (u32*)(middles + (Blocks + 2) * K);       // [blocks, K / 2]
    float* sums = (float*)memory;                          // [half-blocks, K], before the scores

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, i = lane % 4;
    int n = blockIdx.x % p.chunks, sequence = blockIdx.x / p.chunks, h = sequence % p.heads, start = n * Chunk, count = p.time - start;
    i64 b = sequence / p.heads;
    const uint4* entered = p.states + state_tile((i64)sequence * (p.chunks + 1) + n, 0, 0);
    const uint4* left = p.states + state_tile((i64)sequence * (p.chunks + 1) + n + 1, 0, 0);
    const uint4* dLeft = p.dStates + state_tile((i64)sequence * p.chunks + n, 0, 0);

    copy_rows<V, Threads>(values, rows_of<const Element>(p.values, b, start, h), 0, count, p.valueDimension);
    copy_rows<V, Threads>(dOutput, rows_of<const Element>(p.dOutput, b, start, h), 0, count, p.valueDimension);
    copy_commit();
    gate<Threads, true>(queries, keys, factors, sums, rows_of<const Element>(p.queries, b, start, h), rows_of<const Element>(p.keys, b, start, h), rows_of<const float>(p.decays, b, start, h), count, p.keyDimension);
    __syncthreads();
    measure<Threads, true>(middles, toEnd, sums);
    copy_wait<0>();
    finish_rows<V, Threads>(values);
    finish_rows<V, Threads>(dOutput);
    __syncthreads();

    u32 state[TilesV > TilesK ? TilesV : TilesK][(K > V ? K : V) / 16][4]; // loaded ahead of its use: first dS' of this warp's values
#pragma unroll
    for (int x = 0; x < TilesV; x++)
#pragma unroll
        for (int k = 0; k < K / 16; k++) load_fragments(state[x][k], dLeft + state_tile(0, k, warp * TilesV + x));

    for (int task = warp; task < 2 * Pairs; task += GRADIENT_WARPS)
    {
        int pair = task % Pairs, block = row_of(pair), earlier = pair - pair_of(block, 0);
        float c[2][4] = {};
        if (task < Pairs) multiply_blocks(c, queries + block * Block * KeyStride, keys + earlier * Block * KeyStride, middles, block, earlier);
        else multiply_blocks<V>(c, dOutput + block * Block * ValueStride, values + earlier * Block * ValueStride);
        if (block == earlier) keep_causal(c);
        u32 r[4];
        pack_tile(r, c[0], c[1]);
        if (task >= Pairs) store_fragments(dScores + pair * 32, r);
        transpose_tile(r);
        store_fragments((task < Pairs ? scoresT : dScoresT) + pair * 32, r);
    }
    __syncthreads();

    // dv
    {
        float dv[Blocks][2 * TilesV][4] = {};
#pragma unroll
        for (int k = 0; k < K / 16; k++)
        {
#pragma unroll
            for (int x = 0; x < TilesV; x++)
#pragma unroll
                for (int e = 0; e < 4; e++) state[x][k][e] = transpose_matrix(state[x][k][e]);
#pragma unroll
            for (int block = 0; block < Blocks; block++)
            {
                u32 a[4];
                load_tile(a, keys + block * Block * KeyStride + k * 16, KeyStride);
                scale_tile(a, toEnd[block * (K / 2) + k * 8 + i], toEnd[block * (K / 2) + k * 8 + 4 + i]);
#pragma unroll
                for (int x = 0; x < TilesV; x++)
                {
                    mma<bf16>(dv[block][2 * x], a, state[x][k][0], state[x][k][1]);
                    mma<bf16>(dv[block][2 * x + 1], a, state[x][k][2], state[x][k][3]);
                }
            }
        }
#pragma unroll
        for (int x = 0; x < TilesK; x++)
#pragma unroll
            for (int v = 0; v < V / 16; v++) load_fragments(state[x][v], entered + state_tile(0, warp * TilesK + x, v));
#pragma unroll
        for (int later = 0; later < Blocks; later++)
#pragma unroll
            for (int x = 0; x < TilesV; x++)
            {
                u32 z[4];
                load_tile_transposed(z, dOutput + later * Block * ValueStride + (warp * TilesV + x) * 16, ValueStride);
#pragma unroll
                for (int block = 0; block <= later; block++)
                {
                    u32 a[4];
                    load_fragments(a, scoresT + pair_of(later, block) * 32);
                    mma<bf16>(dv[block][2 * x], a, z[0], z[1]);
                    mma<bf16>(dv[block][2 * x + 1], a, z[2], z[3]);
                }
            }
#pragma unroll
        for (int block = 0; block < Blocks; block++) store_rows<TilesV>(rows_of<Element>(p.dValues, b, start, h), dv[block], block * Block, warp * TilesV * 16, count, p.valueDimension);
    }

    // dq, measured from the chunk's start, then from one middle after the other
    int column = warp * TilesK * 16;
    float dq[Blocks][2 * TilesK][4] = {}, dk[Blocks][2 * TilesK][4] = {};
#pragma unroll
    for (int v = 0; v < V / 16; v++)
#pragma unroll
        for (int block = 0; block < Blocks; block++)
        {
            u32 a[4];
            load_tile(a, dOutput + block * Block * ValueStride + v * 16, ValueStride);
#pragma unroll
            for (int x = 0; x < TilesK; x++)
            {
                mma<bf16>(dq[block][2 * x], a, state[x][v][0], state[x][v][2]);
                mma<bf16>(dq[block][2 * x + 1], a, state[x][v][1], state[x][v][3]);
            }
        }
    float atEnd[2 * TilesK] = {}; // Σ_v S' ∘ dS' of key dimensions g of each 8
#pragma unroll
    for (int x = 0; x < TilesK; x++)
#pragma unroll
        for (int v = 0; v < V / 16; v++)
        {
            u32 s[4];
            load_fragments(state[x][v], dLeft + state_tile(0, warp * TilesK + x, v));
            load_fragments(s, left + state_tile(0, warp * TilesK + x, v));
#pragma unroll
            for (int e = 0; e < 4; e++)
            {
                float2 y = unpack2<bf16>(s[e]), z = unpack2<bf16>(state[x][v][e]);
                atEnd[2 * x + e % 2] += y.x * z.x + y.y * z.y;
            }
        }
#pragma unroll
    for (int earlier = 0; earlier < Blocks; earlier++)
#pragma unroll
        for (int x = 0; x < TilesK; x++)
        {
            u32 z[4];
            load_tile_transposed(z, keys + earlier * Block * KeyStride + column + x * 16, KeyStride);
            float2 fade[2] = { between(middles, earlier + 1, earlier, column + x * 16 + 2 * i), between(middles, earlier + 1, earlier, column + x * 16 + 8 + 2 * i) };
#pragma unroll
            for (int block = earlier; block < Blocks; block++)
            {
#pragma unroll
                for (int e = 0; e < 4; e++) { dq[block][2 * x][e] *= e % 2 ? fade[0].y : fade[0].x; dq[block][2 * x + 1][e] *= e % 2 ? fade[1].y : fade[1].x; }
                u32 a[4];
                load_fragments(a, dScores + pair_of(block, earlier) * 32);
                mma<bf16>(dq[block][2 * x], a, z[0], z[1]);
                mma<bf16>(dq[block][2 * x + 1], a, z[2], z[3]);
            }
        }

    // dk, measured from the chunk's end, then from one middle before the other
#pragma unroll
    for (int v = 0; v < V / 16; v++)
#pragma unroll
        for (int block = 0; block < Blocks; block++)
        {
            u32 a[4];
            load_tile(a, values + block * Block * ValueStride + v * 16, ValueStride);
#pragma unroll
            for (int x = 0; x < TilesK; x++)
            {
                mma<bf16>(dk[block][2 * x], a, state[x][v][0], state[x][v][2]);
                mma<bf16>(dk[block][2 * x + 1], a, state[x][v][1], state[x][v][3]);
            }
        }
#pragma unroll
    for (int later = Blocks - 1; later >= 0; later--)
#pragma unroll
        for (int x = 0; x < TilesK; x++)
        {
            u32 z[4];
            load_tile_transposed(z, queries + later * Block * KeyStride + column + x * 16, KeyStride);
            float2 fade[2] = { between(middles, later + 2, later + 1, column + x * 16 + 2 * i), between(middles, later + 2, later + 1, column + x * 16 + 8 + 2 * i) };
#pragma unroll
            for (int block = 0; block <= later; block++)
            {
#pragma unroll
                for (int e = 0; e < 4; e++) { dk[block][2 * x][e] *= e % 2 ? fade[0].y : fade[0].x; dk[block][2 * x + 1][e] *= e % 2 ? fade[1].y : fade[1].x; }
                u32 a[4];
                load_fragments(a, dScoresT + pair_of(later, block) * 32);
                mma<bf16>(dk[block][2 * x], a, z[0], z[1]);
                mma<bf16>(dk[block][2 * x + 1], a, z[2], z[3]);
            }
        }

    // To each position itself: dq and dk are complete, and q ∘ dq − k ∘ dk (in place of dq) takes the gated q and k with the sums as they were.
#pragma unroll
    for (int block = 0; block < Blocks; block++)
    {
        float dqRows[2 * TilesK][4], dkRows[2 * TilesK][4];
#pragma unroll
        for (int x = 0; x < 2 * TilesK; x++)
#pragma unroll
            for (int half = 0; half < 2; half++)
            {
                int t = block * Block + g + 8 * half, c = column + 8 * x + 2 * i;
                float2 factor = unpack2<bf16>(factors[t * FactorStride + c / 2]);
                float2 q = unpack2<bf16>(*(const u32*)(queries + t * KeyStride + c)), k = unpack2<bf16>(*(const u32*)(keys + t * KeyStride + c));
                float &dq0 = dq[block][x][2 * half], &dq1 = dq[block][x][2 * half + 1], dk0 = dk[block][x][2 * half], dk1 = dk[block][x][2 * half + 1];
                dqRows[x][2 * half] = dq0 * factor.x;
                dqRows[x][2 * half + 1] = dq1 * factor.y;
                dkRows[x][2 * half] = dk0 * reciprocal_fast(factor.x);
                dkRows[x][2 * half + 1] = dk1 * reciprocal_fast(factor.y);
                dq0 = q.x * dq0 - k.x * dk0;
                dq1 = q.y * dq1 - k.y * dk1;
            }
        store_rows<TilesK>(rows_of<Element>(p.dQueries, b, start, h), dqRows, block * Block, column, count, p.keyDimension);
        store_rows<TilesK>(rows_of<Element>(p.dKeys, b, start, h), dkRows, block * Block, column, count, p.keyDimension);
    }

    // The sums from each position to the chunk's end, eight rows at a time from the last.
    ChunkRows<const float> decays = rows_of<const float>(p.decays, b, start, h);
    ChunkRows<float> dDecays = rows_of<float>(p.dDecays, b, start, h);
#pragma unroll
    for (int x = 0; x < 2 * TilesK; x++)
    {
        float total = atEnd[x] + shuffle_xor(atEnd[x], 1);
        total += shuffle_xor(total, 2); // of key dimension g
        float after[2] = { shuffle_from(total, 8 * i), shuffle_from(total, 8 * i + 4) };
        int c = column + 8 * x + 2 * i;
#pragma unroll
        for (int eight = 2 * Blocks - 1; eight >= 0; eight--)
        {
            float sum[2];
#pragma unroll
            for (int e = 0; e < 2; e++)
            {
                float y = dq[eight / 2][x][eight % 2 * 2 + e];
#pragma unroll
                for (int distance = 1; distance < 8; distance *= 2)
                {
                    float z = shuffle_down(y, 4 * distance);
                    if (g + distance < 8) y += z;
                }
                sum[e] = y + after[e];
                after[e] += shuffle_from(y, i);
            }
            int t = eight * 8 + g;
            if (t < count && c < p.keyDimension)
            {
                float2 decay = *(const float2*)(decays.start + t * decays.step + c); // no gradient where the floor was
                *(float2*)(dDecays.start + t * dDecays.step + c) = make_float2(decay.x * Log2E < Floor ? 0 : sum[0], decay.y * Log2E < Floor ? 0 : sum[1]);
            }
        }
    }
}
