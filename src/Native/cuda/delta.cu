// The delta recurrence S_t = a_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ, o_t = S_tᵀ q_t, forward and backward.
//
// Macros: K, V head sizes (multiples of 16 up to 128); TYPE bf16 or fp16; GATED 0 or 1 (whether there is a decay a); BETA, DECAY the element types of β and log a. All sums are in float32.
//
// Time is cut into chunks of 64. With e_t = v_t − a_t S_{t−1}ᵀ k_t, the error that step t corrects, S_t = a_t S_{t−1} + k_t (β_t e_t)ᵀ. Within a chunk that starts at state S, with G the sums of log a from
// the chunk's start and D_ts = e^{G_t − G_s} for s ≤ t (0 above), the errors solve one triangular system, (I + A) E = R, with A_ts = D_ts k_tᵀk_s β_s for s < t and R = V − e^G∘K S. Then
//     T = (I + A)⁻¹,  E = T R,  U = β∘E,  O = e^G∘Q S + P U with P = Q Kᵀ∘D,  S' = e^{G_L} S + K̂ᵀ U with K̂ = e^{G_L − G}∘K.
// Backward, with dS' given: dU = Pᵀ dO + K̂ dS',  X = Tᵀ (β∘dU) = dR = dV,  dS = e^{G_L} dS' + (e^G∘Q)ᵀ dO − (e^G∘K)ᵀ X. With N = dO Eᵀ∘D and M = X Eᵀ∘D (strictly below the diagonal)
//     dQ = e^G∘dO Sᵀ + N (β∘K),   dK = −e^G∘X Sᵀ − M (β∘K) + β∘Y,   Y = e^{G_L − G}∘E dS'ᵀ + Nᵀ Q − Mᵀ K,   dβ_t = k_t·y_t = e_t·x_t / β_t;
// G_t enters with the rows (q_t; k_t where it reads) and leaves with the columns (β_t k_t where it writes). (Yang et al., "Parallelizing linear transformers with the delta rule over sequence length", 2024,
// and "Gated delta networks", 2024, have T to the right of β; to its left β may be 0.)
//
// Kernels: delta_inverse (every chunk by itself: T), delta_forward and delta_reverse (chunk after chunk; the state stays in registers), delta_gradients (every chunk by itself: dQ, dK, dβ, d log a).
// Few heads over a long time would leave most of a GPU idle. Then time is cut into segments: the start of a segment acts on its end by a matrix (delta_transfer), all segments run from zero side by side,
// delta_join finds where each truly starts, and they run again from there.
//
// States are kept transposed, [V, K]: a warp owns 16 columns of S. What a product leaves in a warp's registers is, rounded, the left factor of its next product, so no state passes through shared memory.

#define CHUNK 64
#define GATES (GATED ? 4 : 1)    // per position: β, and with a decay G, e^G, e^{G_L − G}
#define STRIDE(width) (2 * (width) + 16) // bytes from row to row of a tile in shared memory: rows of 16 bytes, an odd number of them, reach all banks
#define STATE_WARPS (V / 16)

#ifndef STAGES
#define STAGES 2                 // chunks in shared memory: with 2 the next one arrives while one is worked on
#endif
#ifndef SEQUENTIAL_BLOCKS
#define SEQUENTIAL_BLOCKS 1      // blocks of 2 V threads per multiprocessor that registers must suffice for
#endif
#ifndef K_TILE
#define K_TILE (K < 64 ? K : K % 64 == 0 ? 64 : K) // keys per block of delta_gradients
#endif
#ifndef GRADIENT_BLOCKS
#define GRADIENT_BLOCKS 2
#endif
#ifndef INVERSE_BLOCKS
#define INVERSE_BLOCKS 4
#endif

struct Rows { TYPE* data; i64 batch, time, head; };         // [b, t, h, size], strides in elements; the last dimension is contiguous
struct Numbers { void* data; i64 batch, time, head; };      // [b, t, h]
struct States { float* data; i64 head, segment, row, column; }; // [b h, segments, K, V], any strides; null for zero or for none

struct Delta
{
    Rows q, k, v, output;
    Rows dOutput, dq, dk, dv;
    Numbers beta, logDecay;
    float* dBeta;      // [K / K_TILE, b, t, h]: to be summed over the first dimension
    float* dLogDecay;  // likewise
    float* gates;      // [b h, chunks, GATES, 64]
    TYPE* inverse;     // Tᵀ, [b h, chunks, 64, 64]: the blocks of 16 x 16 below the diagonal (which are zero) are not written
    TYPE* errors;      // E, [b h, chunks, 64, V]; null when no gradient is wanted
    TYPE* states;      // the chunks' starts S, [b h, chunks, V, K]; null likewise
    TYPE* dStates;     // dS' of every chunk, [b h, chunks, V, K]
    bf16* transfer;    // of a segment's start to its end, transposed: [b h, segments, 2, K, K], a sum of two roundings
    States start, end; // of segments. delta_reverse: their gradients
    int time, heads, chunks, segments, segmentChunks;
};

// ---- tiles of 16-bit elements in shared memory, row-major; factors of products in registers

DEVICE int lane_id() { return threadIdx.x % 32; }

// The address that a lane gives for a 16 x 16 block at (row, column): straight or with its 8 x 8 quarters in crossed order.
template <int WIDTH> DEVICE const char* straight(const char* tile, int row, int column)
{
    return tile + (row + lane_id() % 16) * STRIDE(WIDTH) + 2 * column + lane_id() / 16 * 16;
}
template <int WIDTH> DEVICE const char* crossed(const char* tile, int row, int column)
{
    return tile + (row + lane_id() % 8 + lane_id() / 16 * 8) * STRIDE(WIDTH) + 2 * column + lane_id() / 8 % 2 * 16;
}

// A block (m, k) of the left factor, which is the tile [m][k] or its transpose, tile [k][m].
template <int WIDTH> DEVICE void load_left(u32 (&a)[4], const char* tile, int m, int k) { load_matrices(a, straight<WIDTH>(tile, m, k)); }
template <int WIDTH> DEVICE void load_left_transposed(u32 (&a)[4], const char* tile, int m, int k) { load_matrices_transposed(a, crossed<WIDTH>(tile, k, m)); }
// A block (k, n) of the right factor: tile [k][n], or tile [n][k].
template <int WIDTH> DEVICE void load_right(u32 (&b)[4], const char* tile, int k, int n) { load_matrices_transposed(b, straight<WIDTH>(tile, k, n)); }
template <int WIDTH> DEVICE void load_right_transposed(u32 (&b)[4], const char* tile, int k, int n) { load_matrices(b, crossed<WIDTH>(tile, n, k)); }

// 16 x 16 += 16 x 16 times 16 x 16; a sum is two neighbouring fragments c[2 n], c[2 n + 1].
template <class T, int N> DEVICE void multiply(float (&c)[N][4], int n, const u32 (&a)[4], const u32 (&b)[4])
{
    mma<T>(c[2 * n], a, b[0], b[1]);
    mma<T>(c[2 * n + 1], a, b[2], b[3]);
}

// A sum as a left factor.
template <class T, int N> DEVICE void as_left(u32 (&a)[4], const float (&c)[N][4], int n)
{
    a[0] = pack2<T>(c[2 * n][0], c[2 * n][1]);
    a[1] = pack2<T>(c[2 * n][2], c[2 * n][3]);
    a[2] = pack2<T>(c[2 * n + 1][0], c[2 * n + 1][1]);
    a[3] = pack2<T>(c[2 * n + 1][2], c[2 * n + 1][3]);
}

// As the sum of two roundings: nearly as exact as float32 where bf16 has 8 bits.
template <class T, int N> DEVICE void as_left_split(u32 (&high)[4], u32 (&low)[4], const float (&c)[N][4], int n)
{
    float rest[2][4];
    as_left<T>(high, c, n);
#pragma unroll
    for (int j = 0; j < 4; j++)
    {
        float2 h = unpack2<T>(high[j]);
        int m = 2 * n + j / 2, i = j % 2 * 2; // high[j] holds the elements i, i + 1 of fragment m
        rest[j / 2][i] = c[m][i] - h.x;
        rest[j / 2][i + 1] = c[m][i + 1] - h.y;
    }
    as_left<T>(low, rest, 0);
}

template <int N> DEVICE void clear(float (&c)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
}

// Multiplies the columns of all fragments by numbers in shared memory, or their rows by two numbers.
template <int N> DEVICE void scale_columns(float (&c)[N][4], const float* factors)
{
#pragma unroll
    for (int n = 0; n < N; n++)
    {
        float2 f = *(const float2*)(factors + 8 * n + lane_id() % 4 * 2);
        c[n][0] *= f.x; c[n][1] *= f.y; c[n][2] *= f.x; c[n][3] *= f.y;
    }
}
template <int N> DEVICE void scale_rows(float (&c)[N][4], float upper, float lower)
{
#pragma unroll
    for (int n = 0; n < N; n++) { c[n][0] *= upper; c[n][1] *= upper; c[n][2] *= lower; c[n][3] *= lower; }
}

// ---- memory

template <int ROWS, int WIDTH, int THREADS> DEVICE void load_tile(char* tile, const TYPE* from, i64 stride, int valid_rows)
{
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * WIDTH / 8; i += THREADS)
    {
        int row = i / (WIDTH / 8), part = i % (WIDTH / 8);
        copy_async(tile + row * STRIDE(WIDTH) + part * 16, from + row * stride + part * 8, row < valid_rows);
    }
}
// Tᵀ: only what is above the diagonal of blocks.
template <int THREADS> DEVICE void load_inverse(char* tile, const TYPE* from)
{
#pragma unroll
    for (int i = threadIdx.x; i < CHUNK * CHUNK / 8; i += THREADS)
        copy_async(tile + i / 8 * STRIDE(CHUNK) + i % 8 * 16, from + i * 8, i % 8 / 2 >= i / 8 / 16);
}
template <int THREADS> DEVICE void load_gates(float* gates, const float* from)
{
    for (int i = threadIdx.x; i < GATES * 16; i += THREADS) copy_async(gates + 4 * i, from + 4 * i, true);
}

// The four lanes of a row hold 16 elements: lane i those at 2i, 2i+1 (first) and 8+2i, 9+2i (second). Written in pieces of 8 bytes, so that a row's 32 bytes go out at once.
DEVICE void store_row(TYPE* row, u32 first, u32 second, bool valid)
{
    int i = lane_id() % 4;
    bool odd = i % 2 == 1;
    u32 other = shuffle_xor(odd ? first : second, 1);
    if (valid) *(uint2*)(row + (odd ? 6 + 2 * i : 2 * i)) = odd ? make_uint2(other, second) : make_uint2(first, other);
}

// A sum [16 v, 64 t] to rows [t][v].
DEVICE void store_transposed(TYPE* to, i64 stride, const float (&c)[8][4], int valid_rows)
{
#pragma unroll
    for (int n = 0; n < 8; n++)
    {
        int t = 8 * n + lane_id() / 4;
        store_row(to + t * stride, transpose_matrix(pack2<TYPE>(c[n][0], c[n][1])), transpose_matrix(pack2<TYPE>(c[n][2], c[n][3])), t < valid_rows);
    }
}

DEVICE TYPE* row_at(const Rows& x, int b, int t, int h) { return x.data + b * x.batch + t * x.time + h * x.head; }
template <class T> DEVICE T* number_at(const Numbers& x, int b, int t, int h) { return (T*)x.data + b * x.batch + t * x.time + h * x.head; }

// A warp's 16 columns of S, from and to float32.
DEVICE float* state_at(const States& x, int bh, int segment, int row, int column) { return x.data + bh * x.head + segment * x.segment + row * x.row + column * x.column; }

template <int N> DEVICE void load_state(float (&s)[N][4], const States& x, int bh, int segment, int column)
{
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) s[n][j] = x.data ? *state_at(x, bh, segment, 8 * n + lane_id() % 4 * 2 + j % 2, column + lane_id() / 4 + j / 2 * 8) : 0;
}
template <int N> DEVICE void store_state(const float (&s)[N][4], const States& x, int bh, int segment, int column)
{
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) *state_at(x, bh, segment, 8 * n + lane_id() % 4 * 2 + j % 2, column + lane_id() / 4 + j / 2 * 8) = s[n][j];
}

// The same, rounded, to [V][K]; `to` is the first of the warp's 16 rows.
DEVICE void store_rounded(TYPE* to, const u32 (&s)[K / 16][4])
{
#pragma unroll
    for (int n = 0; n < K / 16; n++)
    {
        TYPE* row = to + lane_id() / 4 * K + 16 * n;
        store_row(row, s[n][0], s[n][2], true);
        store_row(row + 8 * K, s[n][1], s[n][3], true);
    }
}

// e^{G_t − G_s} for s ≤ t (strict: s < t), else 0.
DEVICE float decay_between(const float* gates, int t, int s, bool strict)
{
    if (strict ? s >= t : s > t) return 0;
    return GATED ? exp2_fast(gates[CHUNK + t] - gates[CHUNK + s]) : 1;
}

// ---- T = (I + A)⁻¹ of every chunk, and what the other kernels need of β and the decay. Block: a chunk. A warp inverts a 16 x 16 block of the diagonal by substitution; then it owns 16 columns of T, whose
// blocks follow one from another: T_ij = −T_ii Σ_m A_im T_mj. As products of transposes these stay in registers; factors are sums of two bf16, so that the error is near that of float32.

#define DIAGONAL_STRIDE 20
#define INVERSE_BYTES (CHUNK * STRIDE(K) + 2 * CHUNK * STRIDE(CHUNK) + (4 * CHUNK + 64 * DIAGONAL_STRIDE) * 4)

// c += (ah + al)(bh + bl), with right factors from tiles [n][k]
template <int WIDTH, int N> DEVICE void multiply_split(float (&c)[N][4], int n, const u32 (&ah)[4], const u32 (&al)[4], const char* high, const char* low, int k, int column, bool transposed)
{
    u32 b[4];
    if (transposed) load_right_transposed<WIDTH>(b, high, k, column); else load_right<WIDTH>(b, high, k, column);
    multiply<bf16>(c, n, ah, b);
    multiply<bf16>(c, n, al, b);
    if (transposed) load_right_transposed<WIDTH>(b, low, k, column); else load_right<WIDTH>(b, low, k, column);
    multiply<bf16>(c, n, ah, b);
}

KERNEL_MIN_BLOCKS(delta_inverse, Delta, 128, INVERSE_BLOCKS)
{
    SHARED_MEMORY(memory);
    char* keys = memory;
    char* high = keys + CHUNK * STRIDE(K);
    char* low = high + CHUNK * STRIDE(CHUNK);
    float* gates = (float*)(low + CHUNK * STRIDE(CHUNK)); // [4][64]
    float* diagonal = gates + 4 * CHUNK;                  // [4 blocks][16][DIAGONAL_STRIDE]

    int bh = blockIdx.x / p.chunks, chunk = blockIdx.x % p.chunks, b = bh / p.heads, h = bh % p.heads, first = chunk * CHUNK, valid = min(CHUNK, p.time - first);
    int warp = threadIdx.x / 32, lane = lane_id(), g = lane / 4, i = lane % 4;
    load_tile<CHUNK, K, 128>(keys, row_at(p.k, b, first, h), p.k.time, valid);
    copy_commit();

    if (warp == 0)
    {
        float sum[2];
#pragma unroll
        for (int j = 0; j < 2; j++)
        {
            int t = 2 * lane + j;
            gates[t] = t < valid ? to_float(*number_at<BETA>(p.beta, b, first + t, h)) : 0;
            float decay = GATED && t < valid ? to_float(*number_at<DECAY>(p.logDecay, b, first + t, h)) : 0;
            sum[j] = (decay < -20 ? -20 : decay) * 1.44269504f + (j ? sum[0] : 0); // below e^−20 a state is lost in rounding; differences of the sums stay exact
        }
        if (GATED)
        {
            float before = sum[1];
#pragma unroll
            for (int d = 1; d < 32; d *= 2)
            {
                float x = shuffle_up(before, d);
                before += lane >= d ? x : 0;
            }
            float whole = shuffle_from(before, 31);
            before -= sum[1];
#pragma unroll
            for (int j = 0; j < 2; j++)
            {
                float x = before + sum[j];
                gates[CHUNK + 2 * lane + j] = x;
                gates[2 * CHUNK + 2 * lane + j] = exp2_fast(x);
                gates[3 * CHUNK + 2 * lane + j] = exp2_fast(whole - x);
            }
        }
    }
    copy_wait<0>();
    __syncthreads();
    for (int j = threadIdx.x; j < GATES * CHUNK; j += 128) p.gates[(i64)blockIdx.x * GATES * CHUNK + j] = gates[j];

    // A: warp w has rows 16 w, ...
    float a[8][4];
    clear(a);
#pragma unroll
    for (int kk = 0; kk < K; kk += 16)
    {
        u32 left[4], right[4];
        load_left<K>(left, keys, 16 * warp, kk);
#pragma unroll
        for (int n = 0; n < 4; n++)
            if (n <= warp)
            {
                load_right_transposed<K>(right, keys, kk, 16 * n);
                multiply<TYPE>(a, n, left, right);
            }
    }
#pragma unroll
    for (int n = 0; n < 8; n++)
        if (n / 2 <= warp)
#pragma unroll
            for (int j = 0; j < 2; j++)
            {
                int t = 16 * warp + g + 8 * j, s = 8 * n + 2 * i;
                float x = a[n][2 * j] * decay_between(gates, t, s, true) * gates[s], y = a[n][2 * j + 1] * decay_between(gates, t, s + 1, true) * gates[s + 1];
                if (n / 2 == warp) *(float2*)(diagonal + t * DIAGONAL_STRIDE + s % 16) = make_float2(x, y);
                else
                {
                    u32 rounded = pack2<bf16>(x, y);
                    float2 back = unpack2<bf16>(rounded);
                    *(u32*)(high + t * STRIDE(CHUNK) + 2 * s) = rounded;
                    *(u32*)(low + t * STRIDE(CHUNK) + 2 * s) = pack2<bf16>(x - back.x, y - back.y);
                }
            }
    __syncwarp();

    // The diagonal's inverse, column by column: x_t = [t = column] − Σ_{s < t} A_ts x_s.
    {
        float x[16];
        int column = lane % 16;
#pragma unroll
        for (int t = 0; t < 16; t++)
        {
            x[t] = t == column;
#pragma unroll
            for (int s = 0; s < t; s += 4)
            {
                float4 row = *(const float4*)(diagonal + (16 * warp + t) * DIAGONAL_STRIDE + s); // beyond t: not used
                x[t] -= row.x * x[s];
                if (s + 1 < t) x[t] -= row.y * x[s + 1];
                if (s + 2 < t) x[t] -= row.z * x[s + 2];
                if (s + 3 < t) x[t] -= row.w * x[s + 3];
            }
            bf16 rounded = from_float<bf16>(x[t]);
            *(bf16*)((lane < 16 ? high : low) + (16 * warp + t) * STRIDE(CHUNK) + 2 * (16 * warp + column)) = lane < 16 ? rounded : from_float<bf16>(x[t] - to_float(rounded));
        }
    }
    __syncthreads();

    // Tᵀ: warp w has rows 16 w, ...; block n of them is X_n = −(Σ_m X_m A_nmᵀ) T_nnᵀ.
    u32 left_high[4][4], left_low[4][4];
    TYPE* inverse = p.inverse + (i64)blockIdx.x * CHUNK * CHUNK + (16 * warp + g) * CHUNK;
#pragma unroll
    for (int n = 0; n < 4; n++)
    {
        if (n < warp) continue;
        if (n == warp)
        {
            load_left_transposed<CHUNK>(left_high[n], high, 16 * n, 16 * n);
            load_left_transposed<CHUNK>(left_low[n], low, 16 * n, 16 * n);
        }
        else
        {
            float sum[2][4], block[2][4];
            u32 sum_high[4], sum_low[4];
            clear(sum);
            clear(block);
#pragma unroll
            for (int m = 0; m < n; m++)
                if (m >= warp) multiply_split<CHUNK>(sum, 0, left_high[m], left_low[m], high, low, 16 * m, 16 * n, true);
            scale_rows(sum, -1, -1);
            as_left_split<bf16>(sum_high, sum_low, sum, 0);
            multiply_split<CHUNK>(block, 0, sum_high, sum_low, high, low, 16 * n, 16 * n, true);
            as_left_split<bf16>(left_high[n], left_low[n], block, 0);
        }
        u32 rounded[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
        {
            float2 x = unpack2<bf16>(left_high[n][j]), y = unpack2<bf16>(left_low[n][j]);
            rounded[j] = pack2<TYPE>(x.x + y.x, x.y + y.y);
        }
        store_row(inverse + 16 * n, rounded[0], rounded[2], true);
        store_row(inverse + 8 * CHUNK + 16 * n, rounded[1], rounded[3], true);
    }
}

// ---- chunk after chunk

// P = Q Kᵀ∘D on and below the diagonal, in blocks of 16 x 16 shared out among the warps.
template <int WARPS> DEVICE void scores(char* to, const char* queries, const char* keys, const float* gates, int warp)
{
    int g = lane_id() / 4, i = lane_id() % 4;
#pragma unroll 1
    for (int block = warp; block < 10; block += WARPS)
    {
        int row = block < 1 ? 0 : block < 3 ? 1 : block < 6 ? 2 : 3, column = block - row * (row + 1) / 2;
        float c[2][4];
        clear(c);
#pragma unroll
        for (int kk = 0; kk < K; kk += 16)
        {
            u32 left[4], right[4];
            load_left<K>(left, queries, 16 * row, kk);
            load_right_transposed<K>(right, keys, kk, 16 * column);
            multiply<TYPE>(c, 0, left, right);
        }
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int j = 0; j < 2; j++)
            {
                int t = 16 * row + g + 8 * j, s = 16 * column + 8 * n + 2 * i;
                *(u32*)(to + t * STRIDE(CHUNK) + 2 * s) = pack2<TYPE>(c[n][2 * j] * decay_between(gates, t, s, false), c[n][2 * j + 1] * decay_between(gates, t, s + 1, false));
            }
    }
}

#define TILE_K (CHUNK * STRIDE(K))
#define TILE_V (CHUNK * STRIDE(V))
#define TILE_T (CHUNK * STRIDE(CHUNK))
#define STAGE_BYTES (2 * TILE_K + TILE_V + TILE_T + GATES * CHUNK * 4)
#define SEQUENTIAL_BYTES (STAGES * STAGE_BYTES + TILE_T)

// A chunk in shared memory: keys, queries, rows of V (values, or gradients of the output), Tᵀ, gates.
struct Stage { char* keys; char* queries; char* rows; char* inverse; float* gates; };
DEVICE Stage stage_at(char* memory, int number)
{
    char* at = memory + number % STAGES * STAGE_BYTES;
    return { at, at + TILE_K, at + 2 * TILE_K, at + 2 * TILE_K + TILE_V, (float*)(at + 2 * TILE_K + TILE_V + TILE_T) };
}
template <int THREADS> DEVICE void load_stage(const Stage& to, const Delta& p, const Rows* rows, bool queries, int bh, int chunk)
{
    int b = bh / p.heads, h = bh % p.heads, first = chunk * CHUNK, valid = p.time - first;
    i64 number = (i64)bh * p.chunks + chunk;
    load_tile<CHUNK, K, THREADS>(to.keys, row_at(p.k, b, first, h), p.k.time, valid);
    load_inverse<THREADS>(to.inverse, p.inverse + number * CHUNK * CHUNK);
    load_gates<THREADS>(to.gates, p.gates + number * GATES * CHUNK);
    if (rows) load_tile<CHUNK, V, THREADS>(to.rows, row_at(*rows, b, first, h), rows->time, valid);
    if (queries) load_tile<CHUNK, K, THREADS>(to.queries, row_at(p.q, b, first, h), p.q.time, valid);
    copy_commit();
}

// COLUMNS of S over the chunks of a segment; 32 threads per 16 of them. Transfer: S begins as the identity and no values come in, so it ends as the matrix by which the segment's start acts on its end.
template <int COLUMNS, bool TRANSFER> DEVICE void run_forward(const Delta& p, char* memory)
{
    const int THREADS = 2 * COLUMNS;
    char* score_tile = memory + STAGES * STAGE_BYTES;
    int bh = blockIdx.x / p.segments, segment = blockIdx.x % p.segments, b = bh / p.heads, h = bh % p.heads;
    int from = segment * p.segmentChunks, to = min(from + p.segmentChunks, p.chunks);
    int warp = threadIdx.x / 32, column = 16 * warp, g = lane_id() / 4, i = lane_id() % 4;
    bool output = !TRANSFER && p.output.data;

    float s[K / 8][4];
    if (TRANSFER)
    {
#pragma unroll
        for (int n = 0; n < K / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) s[n][j] = 8 * n + 2 * i + j % 2 == column + g + j / 2 * 8;
    }
    else load_state(s, p.start, bh, segment, column);

    load_stage<THREADS>(stage_at(memory, 0), p, TRANSFER ? nullptr : &p.v, output, bh, from);
#pragma unroll 1
    for (int chunk = from; chunk < to; chunk++)
    {
        Stage x = stage_at(memory, chunk - from);
        int first = chunk * CHUNK;
        i64 number = (i64)bh * p.chunks + chunk;
        copy_wait<0>();
        __syncthreads();
        if (STAGES == 2 && chunk + 1 < to) load_stage<THREADS>(stage_at(memory, chunk + 1 - from), p, TRANSFER ? nullptr : &p.v, output, bh, chunk + 1);
        if (output) scores<COLUMNS / 16>(score_tile, x.queries, x.keys, x.gates, warp);

        u32 start[K / 16][4], left[4][4], right[4];
        float c[8][4];
#pragma unroll
        for (int n = 0; n < K / 16; n++) as_left<TYPE>(start[n], s, n);
        if (!TRANSFER && p.states) store_rounded(p.states + (number * V + column) * K, start);

        // R = V − e^G∘K S
        clear(c);
#pragma unroll
        for (int kk = 0; kk < K / 16; kk++)
#pragma unroll
            for (int n = 0; n < 4; n++)
            {
                load_right_transposed<K>(right, x.keys, 16 * kk, 16 * n);
                multiply<TYPE>(c, n, start[kk], right);
            }
        if (GATED) scale_columns(c, x.gates + 2 * CHUNK);
#pragma unroll
        for (int n = 0; n < 4; n++)
        {
            u32 values[4] = { 0, 0, 0, 0 };
            if (!TRANSFER) load_left_transposed<V>(values, x.rows, column, 16 * n);
#pragma unroll
            for (int j = 0; j < 4; j++)
            {
                float2 value = unpack2<TYPE>(values[j]);
                left[n][j] = pack2<TYPE>(value.x - c[2 * n + j / 2][j % 2 * 2], value.y - c[2 * n + j / 2][j % 2 * 2 + 1]);
            }
        }

        // E = T R, U = β∘E
        clear(c);
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int m = 0; m <= n; m++)
            {
                load_right<CHUNK>(right, x.inverse, 16 * m, 16 * n);
                multiply<TYPE>(c, n, left[m], right);
            }
        if (!TRANSFER && p.errors) store_transposed(p.errors + number * CHUNK * V + column, V, c, CHUNK);
        scale_columns(c, x.gates);
        if (output)
        {
#pragma unroll
            for (int n = 0; n < 4; n++) as_left<TYPE>(left[n], c, n);
        }
        u32 write[4][4];
        if (GATED) scale_columns(c, x.gates + 3 * CHUNK);
#pragma unroll
        for (int n = 0; n < 4; n++) as_left<TYPE>(write[n], c, n);

        // O = e^G∘Q S + P U
        if (output)
        {
            __syncthreads(); // P is there
            clear(c);
#pragma unroll
            for (int kk = 0; kk < K / 16; kk++)
#pragma unroll
                for (int n = 0; n < 4; n++)
                {
                    load_right_transposed<K>(right, x.queries, 16 * kk, 16 * n);
                    multiply<TYPE>(c, n, start[kk], right);
                }
            if (GATED) scale_columns(c, x.gates + 2 * CHUNK);
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int m = 0; m <= n; m++)
                {
                    load_right_transposed<CHUNK>(right, score_tile, 16 * m, 16 * n);
                    multiply<TYPE>(c, n, left[m], right);
                }
            store_transposed(row_at(p.output, b, first, h) + column, p.output.time, c, p.time - first);
        }

        // S' = e^{G_L} S + K̂ᵀ U
        if (GATED)
        {
            float whole = x.gates[2 * CHUNK + CHUNK - 1];
            scale_rows(s, whole, whole);
        }
#pragma unroll
        for (int m = 0; m < 4; m++)
#pragma unroll
            for (int n = 0; n < K / 16; n++)
            {
                load_right<K>(right, x.keys, 16 * m, 16 * n);
                multiply<TYPE>(s, n, write[m], right);
            }
        if (STAGES == 1)
        {
            __syncthreads();
            if (chunk + 1 < to) load_stage<THREADS>(x, p, TRANSFER ? nullptr : &p.v, output, bh, chunk + 1);
        }
    }
    if (TRANSFER)
    {
        bf16* matrix = p.transfer + ((i64)blockIdx.x * 2 * K + column + g) * K;
#pragma unroll
        for (int n = 0; n < K / 8; n++)
#pragma unroll
            for (int j = 0; j < 2; j++)
            {
                u32 rounded = pack2<bf16>(s[n][2 * j], s[n][2 * j + 1]);
                float2 back = unpack2<bf16>(rounded);
                *(u32*)(matrix + 8 * j * K + 8 * n + 2 * i) = rounded;
                *(u32*)(matrix + (K + 8 * j) * K + 8 * n + 2 * i) = pack2<bf16>(s[n][2 * j] - back.x, s[n][2 * j + 1] - back.y);
            }
    }
    else if (p.end.data && (p.end.segment != 0 || segment == p.segments - 1)) store_state(s, p.end, bh, segment, column);
}

KERNEL_MIN_BLOCKS(delta_forward, Delta, 2 * V, SEQUENTIAL_BLOCKS)
{
    SHARED_MEMORY(memory);
    run_forward<V, false>(p, memory);
}

KERNEL_MIN_BLOCKS(delta_transfer, Delta, 2 * K, (SEQUENTIAL_BLOCKS * V + K - 1) / K)
{
    SHARED_MEMORY(memory);
    run_forward<K, true>(p, memory);
}

// Backwards over the chunks of a segment: X = dV, and the gradients of the states.
KERNEL_MIN_BLOCKS(delta_reverse, Delta, 2 * V, SEQUENTIAL_BLOCKS)
{
    SHARED_MEMORY(memory);
    char* score_tile = memory + STAGES * STAGE_BYTES;
    int bh = blockIdx.x / p.segments, segment = blockIdx.x % p.segments, b = bh / p.heads, h = bh % p.heads;
    int from = segment * p.segmentChunks, to = min(from + p.segmentChunks, p.chunks);
    int warp = threadIdx.x / 32, column = 16 * warp;

    float s[K / 8][4];
    load_state(s, p.end, bh, segment, column);
    load_stage<2 * V>(stage_at(memory, 0), p, &p.dOutput, true, bh, to - 1);
#pragma unroll 1
    for (int chunk = to - 1; chunk >= from; chunk--)
    {
        Stage x = stage_at(memory, to - 1 - chunk);
        int first = chunk * CHUNK;
        copy_wait<0>();
        __syncthreads();
        if (STAGES == 2 && chunk > from) load_stage<2 * V>(stage_at(memory, to - chunk), p, &p.dOutput, true, bh, chunk - 1);
        scores<STATE_WARPS>(score_tile, x.queries, x.keys, x.gates, warp);

        // dU = K̂ dS' + Pᵀ dO
        float c[8][4];
        u32 right[4], left[4][4], rows[4][4];
        clear(c);
        {
            u32 next[K / 16][4];
#pragma unroll
            for (int n = 0; n < K / 16; n++) as_left<TYPE>(next[n], s, n);
            if (p.dStates) store_rounded(p.dStates + (((i64)bh * p.chunks + chunk) * V + column) * K, next);
#pragma unroll
            for (int kk = 0; kk < K / 16; kk++)
#pragma unroll
                for (int n = 0; n < 4; n++)
                {
                    load_right_transposed<K>(right, x.keys, 16 * kk, 16 * n);
                    multiply<TYPE>(c, n, next[kk], right);
                }
        }
        if (GATED) scale_columns(c, x.gates + 3 * CHUNK);
        __syncthreads(); // P is there
#pragma unroll
        for (int m = 0; m < 4; m++)
        {
            load_left_transposed<V>(rows[m], x.rows, column, 16 * m);
#pragma unroll
            for (int n = 0; n <= m; n++)
            {
                load_right<CHUNK>(right, score_tile, 16 * m, 16 * n);
                multiply<TYPE>(c, n, rows[m], right);
            }
        }

        // X = Tᵀ (β∘dU). Keys that are nearly equal make it a difference of neighbours in which most cancels: β∘dU is not rounded.
        scale_columns(c, x.gates);
        float dr[8][4];
        clear(dr);
#pragma unroll
        for (int m = 0; m < 4; m++)
        {
            u32 high[4], low[4];
            as_left_split<TYPE>(high, low, c, m);
#pragma unroll
            for (int n = 0; n <= m; n++)
            {
                load_right_transposed<CHUNK>(right, x.inverse, 16 * m, 16 * n);
                multiply<TYPE>(dr, n, high, right);
                multiply<TYPE>(dr, n, low, right);
            }
        }
        if (p.dv.data) store_transposed(row_at(p.dv, b, first, h) + column, p.dv.time, dr, p.time - first);

        // dS = e^{G_L} dS' + (e^G∘Q)ᵀ dO − (e^G∘K)ᵀ X
        scale_rows(dr, -1, -1);
        if (GATED)
        {
            float whole = x.gates[2 * CHUNK + CHUNK - 1];
            scale_rows(s, whole, whole);
            scale_columns(dr, x.gates + 2 * CHUNK);
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                {
                    float2 y = unpack2<TYPE>(rows[m][j]), f = *(const float2*)(x.gates + 2 * CHUNK + 16 * m + j / 2 * 8 + lane_id() % 4 * 2);
                    rows[m][j] = pack2<TYPE>(y.x * f.x, y.y * f.y);
                }
        }
#pragma unroll
        for (int n = 0; n < 4; n++) as_left<TYPE>(left[n], dr, n);
#pragma unroll
        for (int m = 0; m < 4; m++)
#pragma unroll
            for (int n = 0; n < K / 16; n++)
            {
                load_right<K>(right, x.queries, 16 * m, 16 * n);
                multiply<TYPE>(s, n, rows[m], right);
                load_right<K>(right, x.keys, 16 * m, 16 * n);
                multiply<TYPE>(s, n, left[m], right);
            }
        if (STAGES == 1)
        {
            __syncthreads();
            if (chunk > from) load_stage<2 * V>(x, p, &p.dOutput, true, bh, chunk - 1);
        }
    }
    if (p.start.data && (p.start.segment != 0 || segment == 0)) store_state(s, p.start, bh, segment, column);
}

// ---- where segments start: S_{n+1} = M_n S_n + (what segment n reaches from zero), from `initial` on; reverse: their ends' gradients, through M_nᵀ. Block: a head; a warp owns 16 columns of S.

struct Join
{
    const bf16* transfer; // M_nᵀ, [b h, segments, 2, K, K]
    const float* local;   // [b h, segments, V, K]: what segment n leads to by itself
    float* found;         // [b h, segments, V, K]
    States initial;       // S_0; reverse: the gradient of the last state
    int segments, reverse;
};

#define JOIN_TILE (K * STRIDE(K))
#define JOIN_BYTES (4 * JOIN_TILE)

KERNEL(delta_join, Join, 2 * V)
{
    SHARED_MEMORY(memory);
    int bh = blockIdx.x, column = threadIdx.x / 32 * 16, g = lane_id() / 4, i = lane_id() % 4;
    float s[K / 8][4];
    load_state(s, p.initial, bh, 0, column);
    auto load = [&](int step)
    {
        int n = p.reverse ? p.segments - 1 - step : step;
        for (int part = 0; part < 2; part++)
            for (int j = threadIdx.x; j < K * K / 8; j += 2 * V)
                copy_async(memory + (step % 2 * 2 + part) * JOIN_TILE + j / (K / 8) * STRIDE(K) + j % (K / 8) * 16, p.transfer + (((i64)bh * p.segments + n) * 2 + part) * K * K + j * 8, true);
        copy_commit();
    };
    if (p.segments > 1) load(0);
#pragma unroll 1
    for (int step = 0; step < p.segments; step++)
    {
        int n = p.reverse ? p.segments - 1 - step : step;
        i64 at = (((i64)bh * p.segments + n) * V + column + g) * K + 2 * i;
        bool last = step + 1 == p.segments;
#pragma unroll
        for (int m = 0; m < K / 8; m++)
#pragma unroll
            for (int j = 0; j < 2; j++) *(float2*)(p.found + at + 8 * j * K + 8 * m) = make_float2(s[m][2 * j], s[m][2 * j + 1]);
        if (last) break;
        u32 high[K / 16][4], low[K / 16][4];
#pragma unroll
        for (int m = 0; m < K / 16; m++) as_left_split<bf16>(high[m], low[m], s, m);
#pragma unroll
        for (int m = 0; m < K / 8; m++)
#pragma unroll
            for (int j = 0; j < 2; j++)
            {
                float2 x = *(const float2*)(p.local + at + 8 * j * K + 8 * m);
                s[m][2 * j] = x.x;
                s[m][2 * j + 1] = x.y;
            }
        copy_wait<0>();
        __syncthreads();
        if (step + 2 < p.segments) load(step + 1);
        const char* matrix = memory + step % 2 * 2 * JOIN_TILE;
#pragma unroll
        for (int m = 0; m < K / 16; m++)
#pragma unroll
            for (int j = 0; j < K / 16; j++) multiply_split<K>(s, j, high[m], low[m], matrix, matrix + JOIN_TILE, 16 * m, 16 * j, p.reverse);
    }
}

// ---- gradients of q, k, β and log a: every chunk by itself, given E, X and the chunk's start S and gradient dS' of its end. Block: a chunk and K_TILE columns of q and k; warps 0 to 3 have the rows of
// queries, warps 4 to 7 those of keys, 16 each. Then both share in Y.

#define TILE_KT (CHUNK * STRIDE(K_TILE))
#define STATE_KT (V * STRIDE(K_TILE))
#define SUM_BYTES (CHUNK * K_TILE * 4)
#define SCORE_KT (TILE_V > TILE_T ? TILE_V : TILE_T)                // N and M take the place of dO and X
#define STATE_OR_SUM (STATE_KT > SUM_BYTES ? STATE_KT : SUM_BYTES) // half of Y takes the place of S
#define GRADIENT_BYTES (2 * SCORE_KT + TILE_V + 2 * TILE_KT + STATE_OR_SUM + STATE_KT + (GATES + 2) * CHUNK * 4 + 32)

#define LEAST_DIVISOR (1 / 64.f) // from this β on dβ_t = e_t·x_t / β_t, which does not suffer where keys are nearly equal and nearly all of k_t·y_t cancels

// Σ_columns f x c of rows g and g + 8: x a tile [64][K_TILE], f a factor per row (a rounded pair of equals), rounded products f x.
DEVICE float2 row_products(const char* tile, int row, const float (&c)[K_TILE / 8][4], u32 upper, u32 lower)
{
    float2 sum = make_float2(0, 0);
    const char* at = tile + (row + lane_id() / 4) * STRIDE(K_TILE) + lane_id() % 4 * 4;
#pragma unroll
    for (int n = 0; n < K_TILE / 8; n++)
    {
        float2 x = unpack2<TYPE>(multiply2<TYPE>(*(const u32*)(at + 16 * n), upper)), y = unpack2<TYPE>(multiply2<TYPE>(*(const u32*)(at + 8 * STRIDE(K_TILE) + 16 * n), lower));
        sum.x += x.x * c[n][0] + x.y * c[n][1];
        sum.y += y.x * c[n][2] + y.y * c[n][3];
    }
#pragma unroll
    for (int d = 1; d < 4; d *= 2)
    {
        sum.x += shuffle_xor(sum.x, d);
        sum.y += shuffle_xor(sum.y, d);
    }
    return sum;
}

DEVICE void store_rows(TYPE* to, i64 stride, const float (&c)[K_TILE / 8][4], int row, int valid)
{
    row += lane_id() / 4;
#pragma unroll
    for (int n = 0; n < K_TILE / 16; n++)
    {
        u32 x[4];
        as_left<TYPE>(x, c, n);
        store_row(to + row * stride + 16 * n, x[0], x[2], row < valid);
        store_row(to + (row + 8) * stride + 16 * n, x[1], x[3], row + 8 < valid);
    }
}

KERNEL_MIN_BLOCKS(delta_gradients, Delta, 256, GRADIENT_BLOCKS)
{
    SHARED_MEMORY(memory);
    char* rows = memory;                        // dO and X; later N and −M
    char* errors = rows + 2 * SCORE_KT;
    char* queries = errors + TILE_V;
    char* keys = queries + TILE_KT;
    char* states = keys + TILE_KT;              // S, later half of Y
    char* dNext = states + STATE_OR_SUM;        // dS'
    float* gates = (float*)(dNext + STATE_KT);  // [GATES][64]
    float* from_rows = gates + GATES * CHUNK;   // q·dq, then what is cumulated to the gradient of log a
    float* from_end = from_rows + CHUNK;        // [8 warps]
    float* products = from_end + 8;             // e_t·x_t

    const int TILES = K / K_TILE;
    int tile = blockIdx.x % TILES;
    i64 number = blockIdx.x / TILES;
    int bh = number / p.chunks, chunk = number % p.chunks, b = bh / p.heads, h = bh % p.heads, first = chunk * CHUNK, valid = p.time - first;
    int warp = threadIdx.x / 32, block = warp % 4, row = 16 * block, lane = lane_id(), g = lane / 4, i = lane % 4;
    bool of_keys = warp >= 4;

    load_tile<CHUNK, V, 256>(rows, row_at(p.dOutput, b, first, h), p.dOutput.time, valid);
    load_tile<CHUNK, V, 256>(rows + SCORE_KT, row_at(p.dv, b, first, h), p.dv.time, valid);
    load_tile<CHUNK, V, 256>(errors, p.errors + number * CHUNK * V, V, CHUNK);
    load_tile<V, K_TILE, 256>(states, p.states + number * V * K + tile * K_TILE, K, V);
    load_gates<256>(gates, p.gates + number * GATES * CHUNK);
    copy_commit();
    load_tile<CHUNK, K_TILE, 256>(queries, row_at(p.q, b, first, h) + tile * K_TILE, p.q.time, valid);
    load_tile<CHUNK, K_TILE, 256>(keys, row_at(p.k, b, first, h) + tile * K_TILE, p.k.time, valid);
    load_tile<V, K_TILE, 256>(dNext, p.dStates + number * V * K + tile * K_TILE, K, V);
    copy_commit();
    copy_wait<1>();
    __syncthreads();

    // Rows of dO Sᵀ and N (queries), of X Sᵀ and M (keys).
    float c[K_TILE / 8][4], scores[8][4];
    u32 left[4], right[4];
    clear(c);
    clear(scores);
#pragma unroll
    for (int v = 0; v < V; v += 16)
    {
        load_left<V>(left, rows + of_keys * SCORE_KT, row, v);
#pragma unroll
        for (int n = 0; n < K_TILE / 16; n++)
        {
            load_right<K_TILE>(right, states, v, 16 * n);
            multiply<TYPE>(c, n, left, right);
        }
#pragma unroll
        for (int n = 0; n < 4; n++)
            if (n <= block)
            {
                load_right_transposed<V>(right, errors, v, 16 * n);
                multiply<TYPE>(scores, n, left, right);
            }
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
        if (of_keys && n == block && i == g / 2)
        {
            products[row + g] = g % 2 ? scores[2 * n][1] : scores[2 * n][0];
            products[row + g + 8] = g % 2 ? scores[2 * n + 1][3] : scores[2 * n + 1][2];
        }
    float sign = of_keys ? -1 : 1;
    scale_rows(c, sign * (GATED ? gates[2 * CHUNK + row + g] : 1), sign * (GATED ? gates[2 * CHUNK + row + g + 8] : 1));
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) scores[n][j] *= sign * decay_between(gates, row + g + j / 2 * 8, 8 * n + 2 * i + j % 2, of_keys);

    copy_wait<0>();
    __syncthreads();

#pragma unroll
    for (int n = 0; n < 4; n++)
        if (n <= block)
        {
            char* at = rows + of_keys * SCORE_KT + (row + g) * STRIDE(CHUNK) + 32 * n + 4 * i;
            as_left<TYPE>(left, scores, n);
            *(u32*)at = left[0];
            *(u32*)(at + 8 * STRIDE(CHUNK)) = left[1];
            *(u32*)(at + 16) = left[2];
            *(u32*)(at + 8 * STRIDE(CHUNK) + 16) = left[3];
        }
    // The gradient of log a is a difference in which nearly all cancels: N and β∘K must be rounded alike where they enter and where they leave.
    u32 one = pack2<TYPE>(1, 1), upper = pack2<TYPE>(gates[row + g], gates[row + g]), lower = pack2<TYPE>(gates[row + g + 8], gates[row + g + 8]);
#pragma unroll
    for (int m = 0; m < 4; m++)
        if (m <= block)
        {
            float2 beta = *(const float2*)(gates + 16 * m + 2 * i), beta_8 = *(const float2*)(gates + 16 * m + 2 * i + 8);
            u32 factor = pack2<TYPE>(beta.x, beta.y), factor_8 = pack2<TYPE>(beta_8.x, beta_8.y);
            as_left<TYPE>(left, scores, m);
#pragma unroll
            for (int n = 0; n < K_TILE / 16; n++)
            {
                load_right<K_TILE>(right, keys, 16 * m, 16 * n);
#pragma unroll
                for (int j = 0; j < 4; j++) right[j] = multiply2<TYPE>(right[j], j % 2 ? factor_8 : factor);
                multiply<TYPE>(c, n, left, right);
            }
        }
    if (!of_keys)
    {
        store_rows(row_at(p.dq, b, first, h) + tile * K_TILE, p.dq.time, c, row, valid);
        if (GATED)
        {
            float2 x = row_products(queries, row, c, one, one);
            if (i == 0) { from_rows[row + g] = x.x; from_rows[row + g + 8] = x.y; }
        }
    }

    // Y, half of its terms each: E dS'ᵀ is parted by columns of V
    float y[K_TILE / 8][4], end = 0;
    clear(y);
    const int HALF = (V / 16 + 1) / 2;
#pragma unroll
    for (int v = 0; v < HALF; v++)
    {
        int column = 16 * (of_keys ? v + HALF : v);
        if (column >= V) break;
        load_left<V>(left, errors, row, column);
#pragma unroll
        for (int n = 0; n < K_TILE / 16; n++)
        {
            load_right<K_TILE>(right, dNext, column, 16 * n);
            multiply<TYPE>(y, n, left, right);
        }
    }
    if (GATED)
    {
        // Σ S'∘dS', of the state that follows: what every log a of the chunk gets from its end.
        scale_rows(y, gates[3 * CHUNK + row + g], gates[3 * CHUNK + row + g + 8]);
        float2 x = row_products(keys, row, y, upper, lower);
        if (i == 0) end = x.x + x.y;
        float both = 0;
        for (int j = threadIdx.x; j < V * K_TILE / 8; j += 256)
        {
            int at = j / (K_TILE / 8) * STRIDE(K_TILE) + j % (K_TILE / 8) * 16;
            uint4 s = *(const uint4*)(states + at), d = *(const uint4*)(dNext + at);
            u32 sx[4] = { s.x, s.y, s.z, s.w }, dx[4] = { d.x, d.y, d.z, d.w };
#pragma unroll
            for (int n = 0; n < 4; n++)
            {
                float2 a = unpack2<TYPE>(sx[n]), c = unpack2<TYPE>(dx[n]);
                both += a.x * c.x + a.y * c.y;
            }
        }
        end += gates[2 * CHUNK + CHUNK - 1] * both;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) end += shuffle_xor(end, d);
        if (lane == 0) from_end[warp] = end;
    }
    __syncthreads(); // N and M are there; S has been read

#pragma unroll
    for (int m = 0; m < 4; m++)
        if (m >= block)
        {
            load_left_transposed<CHUNK>(left, rows + of_keys * SCORE_KT, row, 16 * m);
#pragma unroll
            for (int n = 0; n < K_TILE / 16; n++)
            {
                load_right<K_TILE>(right, of_keys ? keys : queries, 16 * m, 16 * n);
                multiply<TYPE>(y, n, left, right);
            }
        }
    float4* half = (float4*)states + block * (K_TILE / 8) * 32 + lane;
    if (!of_keys)
#pragma unroll
        for (int n = 0; n < K_TILE / 8; n++) half[32 * n] = make_float4(y[n][0], y[n][1], y[n][2], y[n][3]);
    __syncthreads();

    i64 numbers = (i64)gridDim.x / TILES / p.chunks * p.time * tile; // b h time numbers per tile
    if (of_keys)
    {
#pragma unroll
        for (int n = 0; n < K_TILE / 8; n++)
        {
            float4 x = half[32 * n];
            y[n][0] += x.x; y[n][1] += x.y; y[n][2] += x.z; y[n][3] += x.w;
        }
        float2 dbeta = row_products(keys, row, y, one, one);
        if (GATED)
        {
            float2 reads = row_products(keys, row, c, one, one), writes = row_products(keys, row, y, upper, lower);
            if (i == 0) { from_rows[row + g] += reads.x - writes.x; from_rows[row + g + 8] += reads.y - writes.y; }
        }
        float beta = gates[row + g], beta_8 = gates[row + g + 8];
#pragma unroll
        for (int n = 0; n < K_TILE / 8; n++)
        {
            c[n][0] += beta * y[n][0];
            c[n][1] += beta * y[n][1];
            c[n][2] += beta_8 * y[n][2];
            c[n][3] += beta_8 * y[n][3];
        }
        store_rows(row_at(p.dk, b, first, h) + tile * K_TILE, p.dk.time, c, row, valid);
        if (i < 2)
        {
            int t = row + g + 8 * i;
            float strength = i ? beta_8 : beta, direct = tile == 0 ? products[t] / strength : 0;
            if (t < valid) p.dBeta[numbers + ((i64)b * p.time + first + t) * p.heads + h] = strength > LEAST_DIVISOR ? direct : i ? dbeta.y : dbeta.x;
        }
    }
    if (GATED)
    {
        __syncthreads();
        if (warp == 0)
        {
            float x = from_rows[2 * lane], z = from_rows[2 * lane + 1], after = x + z;
#pragma unroll
            for (int d = 1; d < 32; d *= 2)
            {
                float other = shuffle_down(after, d);
                after += lane + d < 32 ? other : 0;
            }
            float whole = 0;
#pragma unroll
            for (int n = 0; n < 8; n++) whole += from_end[n];
#pragma unroll
            for (int j = 0; j < 2; j++)
            {
                int t = 2 * lane + j;
                if (t >= valid) continue;
                bool floored = to_float(*number_at<DECAY>(p.logDecay, b, first + t, h)) < -20;
                p.dLogDecay[numbers + ((i64)b * p.time + first + t) * p.heads + h] = floored ? 0 : after - (j ? x : 0) + whole;
            }
        }
    }
}
