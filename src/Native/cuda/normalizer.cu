// Linear attention's queries and keys from their projection (Katharopoulos et al. 2020, equations 16 to 20): with φ(x) = elu(x) + 1, z_t = Σ_{s ≤ t} φ(k_s), w_t = φ(q_t) · z_t and R_t the rotation
// of position t,
//   q̂_t = R_t φ(q_t) / w_t,  k̂_t = R_t φ(k_t),
// so that reading the memory of k̂ and v with q̂ is already normalized. Time is cut into pieces of PIECE positions: sums of the pieces, sums over pieces, then every piece by itself. LANES lanes hold
// a head: 16 bytes of each of its halves (which turn together) PACKS times. All sums are float32.
// Macros: TYPE (bf16, fp16, fp32); WIDTH of a head (even); LANES (a power of 2, at most 32); ALIGNED (1: half a head is a multiple of 16 bytes, and all heads begin at such); PIECE.

constexpr int THREADS = 128, SIZE = Pack<TYPE>::size, HALF = WIDTH / 2, PACKS = (HALF + LANES * SIZE - 1) / (LANES * SIZE), GROUPS = THREADS / LANES;

#define EACH_PACK _Pragma("unroll") for (int n = 0; n < PACKS; n++)
#define EACH_ELEMENT EACH_PACK _Pragma("unroll") for (int i = 0; i < SIZE; i++)

// Heads of a part: where they begin, and the strides of batch, time and head.
struct Part
{
    TYPE* at;
    i64 batch, time, head;
};

struct Normalizer
{
    const TYPE* x; // [batch, time, 3 (q, k, v), heads, WIDTH], xStride from position to position
    Part q, k, v;  // forward: q̂ and k̂; backward: the gradients of q̂, k̂ and v, null where there is none
    float* z;      // [batch, heads, pieces, WIDTH]: Σ φ(k) before each piece
    float* w;      // [batch, heads, time]
    float* g;      // backward, like z: Σ dw φ(q) from each piece on
    float* dw;     // backward, like w
    TYPE* dx;      // backward: like x, without gaps
    i64 xStride;
    int batch, time, heads, pieces, rotated;
};

// A head's halves.
struct Head
{
    Pack<TYPE> first[PACKS], second[PACKS];
};

// What a group of lanes works on: one piece of one head.
struct Place
{
    i64 batch, position; // of the first element
    int head, length;    // 0: nothing
    i64 piece;           // among all
};

DEVICE Place place(const Normalizer& p)
{
    Place at;
    at.piece = (i64)blockIdx.x * GROUPS + threadIdx.x / LANES;
    i64 line = at.piece / p.pieces;
    at.position = (at.piece - line * p.pieces) * PIECE;
    at.batch = line / p.heads;
    at.head = (int)(line - at.batch * p.heads);
    at.length = at.batch < p.batch ? (int)(p.time - at.position < PIECE ? p.time - at.position : PIECE) : 0;
    return at;
}

DEVICE int column(int n) { return (n * LANES + (int)threadIdx.x % LANES) * SIZE; }

DEVICE Head load_head(const TYPE* from, bool valid)
{
    Head head;
    EACH_PACK
    {
        head.first[n] = load_pack<ALIGNED>(from + column(n), valid ? HALF - column(n) : 0);
        head.second[n] = load_pack<ALIGNED>(from + HALF + column(n), valid ? HALF - column(n) : 0);
    }
    return head;
}

DEVICE void store_head(TYPE* to, const Head& head, bool valid)
{
    EACH_PACK
    {
        store_pack<ALIGNED>(to + column(n), head.first[n], valid ? HALF - column(n) : 0);
        store_pack<ALIGNED>(to + HALF + column(n), head.second[n], valid ? HALF - column(n) : 0);
    }
}

DEVICE Head load_part(const Part& part, const Place& at, int t)
{
    return load_head(part.at + at.batch * part.batch + (at.position + t) * part.time + at.head * part.head, t < at.length && part.at != 0);
}

// Part number `part` of x.
DEVICE Head load_x(const Normalizer& p, const Place& at, int t, int part)
{
    return load_head(p.x + (at.batch * p.time + at.position + t) * p.xStride + (part * p.heads + at.head) * WIDTH, t < at.length);
}

DEVICE void load_sums(Head& head, const float* from, bool valid)
{
    EACH_ELEMENT
    {
        bool there = valid && column(n) + i < HALF;
        head.first[n].x[i] = there ? from[column(n) + i] : 0;
        head.second[n].x[i] = there ? from[HALF + column(n) + i] : 0;
    }
}

DEVICE void store_sums(float* to, const Head& head, bool valid)
{
    EACH_ELEMENT if (valid && column(n) + i < HALF)
    {
        to[column(n) + i] = head.first[n].x[i];
        to[HALF + column(n) + i] = head.second[n].x[i];
    }
}

DEVICE float feature(float x) { return x > 0 ? x + 1 : exp2_fast(1.44269504f * x); }

// φ of a head; 0 where there is none.
DEVICE Head features(const Head& x, bool valid)
{
    Head y;
    EACH_ELEMENT
    {
        bool there = valid && column(n) + i < HALF;
        y.first[n].x[i] = there ? feature(x.first[n].x[i]) : 0;
        y.second[n].x[i] = there ? feature(x.second[n].x[i]) : 0;
    }
    return y;
}

// φ'(x) g, given φ(x).
DEVICE Head feature_gradient(const Head& x, const Head& y, const Head& g)
{
    Head d;
    EACH_ELEMENT
    {
        d.first[n].x[i] = g.first[n].x[i] * (x.first[n].x[i] > 0 ? 1 : y.first[n].x[i]);
        d.second[n].x[i] = g.second[n].x[i] * (x.second[n].x[i] > 0 ? 1 : y.second[n].x[i]);
    }
    return d;
}

// sum += x y
DEVICE void add_product(Head& sum, const Head& x, float y)
{
    EACH_ELEMENT
    {
        sum.first[n].x[i] += x.first[n].x[i] * y;
        sum.second[n].x[i] += x.second[n].x[i] * y;
    }
}

DEVICE float dot(const Head& x, const Head& y)
{
    float sum = 0;
    EACH_ELEMENT sum += x.first[n].x[i] * y.first[n].x[i] + x.second[n].x[i] * y.second[n].x[i];
    for (int mask = LANES / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    return sum;
}

// The rotation of one position, and that from a position to the next.
struct Rotation
{
    float cos[PACKS][SIZE], sin[PACKS][SIZE], cosStep[PACKS][SIZE], sinStep[PACKS][SIZE];
};

DEVICE Rotation rotation(i64 position, bool rotated)
{
    Rotation r;
    EACH_ELEMENT
    {
        float frequency = rotated ? exp2f((column(n) + i) * (-2.0f * 13.28771238f / WIDTH)) : 0; // 10000^(−2i/WIDTH)
        sincosf((float)position * frequency, &r.sin[n][i], &r.cos[n][i]);
        sincosf(frequency, &r.sinStep[n][i], &r.cosStep[n][i]);
    }
    return r;
}

DEVICE void advance(Rotation& r)
{
    EACH_ELEMENT
    {
        float c = r.cos[n][i] * r.cosStep[n][i] - r.sin[n][i] * r.sinStep[n][i];
        r.sin[n][i] = r.sin[n][i] * r.cosStep[n][i] + r.cos[n][i] * r.sinStep[n][i];
        r.cos[n][i] = c;
    }
}

// R x (sign 1) or Rᵀ x (sign −1), times a scale.
DEVICE Head turn(const Head& x, const Rotation& r, float sign, float scale)
{
    Head y;
    EACH_ELEMENT
    {
        float c = r.cos[n][i] * scale, s = r.sin[n][i] * scale * sign;
        y.first[n].x[i] = x.first[n].x[i] * c - x.second[n].x[i] * s;
        y.second[n].x[i] = x.second[n].x[i] * c + x.first[n].x[i] * s;
    }
    return y;
}

// ---- forward

// z: of each piece, Σ φ(k).
KERNEL(normalizer_sums, Normalizer, THREADS)
{
    Place at = place(p);
    Head sum = {};
#pragma unroll 4
    for (int t = 0; t < PIECE; t++) add_product(sum, features(load_x(p, at, t, 1), t < at.length), 1);
    store_sums(p.z + at.piece * WIDTH, sum, at.length > 0);
}

KERNEL(normalizer_forward, Normalizer, THREADS)
{
    Place at = place(p);
    Head z;
    load_sums(z, p.z + at.piece * WIDTH, at.length > 0);
    Rotation r = rotation(at.position, p.rotated != 0);
    float* w = p.w + (at.batch * p.heads + at.head) * p.time + at.position;
#pragma unroll 2
    for (int t = 0; t < PIECE; t++)
    {
        bool valid = t < at.length;
        Head q = features(load_x(p, at, t, 0), valid), k = features(load_x(p, at, t, 1), valid);
        add_product(z, k, 1);
        float weight = valid ? dot(q, z) : dot(q, z) + 1;
        if (valid && threadIdx.x % LANES == 0) w[t] = weight;
        store_head(p.q.at + at.batch * p.q.batch + (at.position + t) * p.q.time + at.head * p.q.head, turn(q, r, 1, 1 / weight), valid);
        store_head(p.k.at + at.batch * p.k.batch + (at.position + t) * p.k.time + at.head * p.k.head, turn(k, r, 1, 1), valid);
        advance(r);
    }
}

// ---- backward. With u_t = R_tᵀ dq̂_t: dw_t = −(u_t · φ(q_t)) / w_t², dφ(q_t) = u_t / w_t + dw_t z_t, dφ(k_s) = R_sᵀ dk̂_s + Σ_{t ≥ s} dw_t φ(q_t).

// dw; g: of each piece, Σ dw φ(q).
KERNEL(normalizer_gradient_sums, Normalizer, THREADS)
{
    Place at = place(p);
    Head sum = {};
    Rotation r = rotation(at.position, p.rotated != 0);
    i64 line = (at.batch * p.heads + at.head) * p.time + at.position;
#pragma unroll 2
    for (int t = 0; t < PIECE; t++)
    {
        bool valid = t < at.length;
        Head q = features(load_x(p, at, t, 0), valid);
        float w = valid ? p.w[line + t] : 1, dw = -dot(turn(load_part(p.q, at, t), r, -1, 1), q) / (w * w);
        if (valid && threadIdx.x % LANES == 0) p.dw[line + t] = dw;
        add_product(sum, q, dw);
        advance(r);
    }
    store_sums(p.g + at.piece * WIDTH, sum, at.length > 0);
}

KERNEL(normalizer_backward, Normalizer, THREADS)
{
    Place at = place(p);
    Head z, g;
    load_sums(z, p.z + at.piece * WIDTH, at.length > 0);
    load_sums(g, p.g + at.piece * WIDTH, at.length > 0);
    Rotation r = rotation(at.position, p.rotated != 0);
    i64 line = (at.batch * p.heads + at.head) * p.time + at.position;
    TYPE* dx = p.dx + ((at.batch * p.time + at.position) * 3 * p.heads + at.head) * WIDTH;
    for (int t = 0; t < PIECE; t++, dx += 3 * p.heads * WIDTH)
    {
        bool valid = t < at.length;
        Head q = load_x(p, at, t, 0), k = load_x(p, at, t, 1), fq = features(q, valid), fk = features(k, valid);
        float w = valid ? p.w[line + t] : 1, dw = valid ? p.dw[line + t] : 0;
        add_product(z, fk, 1);
        Head dq = turn(load_part(p.q, at, t), r, -1, 1 / w), dk = turn(load_part(p.k, at, t), r, -1, 1);
        add_product(dq, z, dw);
        add_product(dk, g, 1);
        add_product(g, fq, -dw);
        store_head(dx, feature_gradient(q, fq, dq), valid);
        store_head(dx + p.heads * WIDTH, feature_gradient(k, fk, dk), valid);
        store_head(dx + 2 * p.heads * WIDTH, load_part(p.v, at, t), valid);
        advance(r);
    }
}

// ---- sums over pieces

struct Scan
{
    float* x; // [lines, pieces, WIDTH]
    int pieces, reverse;
};

// In place: each piece gets the sum of those before it, or (reverse) of itself and those after it. A block serves 32 columns of a line; its warps share the pieces.
KERNEL(scan_pieces, Scan, 256)
{
    SHARED_MEMORY(memory);
    float* totals = (float*)memory; // [8 warps, 32 columns]
    int c = (int)blockIdx.y * 32 + threadIdx.x % 32, warp = threadIdx.x / 32, each = (p.pieces + 7) / 8;
    int begin = warp * each < p.pieces ? warp * each : p.pieces, end = begin + each < p.pieces ? begin + each : p.pieces;
    float* x = p.x + (i64)blockIdx.x * p.pieces * WIDTH + c;
    bool valid = c < WIDTH;
    float sum = 0;
#pragma unroll 8
    for (int n = begin; n < end; n++) sum += valid ? x[(i64)n * WIDTH] : 0;
    totals[threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    for (int other = 0; other < 8; other++) sum += (p.reverse ? other > warp : other < warp) ? totals[other * 32 + threadIdx.x % 32] : 0;
    if (!valid) return;
#pragma unroll 8
    for (int i = begin; i < end; i++)
    {
        int n = p.reverse ? end - 1 - (i - begin) : i;
        float own = x[(i64)n * WIDTH];
        x[(i64)n * WIDTH] = p.reverse ? sum + own : sum;
        sum += own;
    }
}
