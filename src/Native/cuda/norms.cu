// Norms of rows, each in one pass with what stands before and behind it in a network: LayerNorm of a sum (Ba et al. 2016), RMSNorm with a gate (Zhang and Sennrich 2019), rows of length 1.
//
// LANES lanes of a warp hold a row of WIDTH elements in registers, 16 bytes at a time: pack n of lane l begins at column (n LANES + l) SIZE. The gradient of a weight is summed over the rows of
// a group of lanes, over the groups of a block and over blocks (column_sums), always in the same order.
// Macros: TYPE (bf16, fp16, fp32); WIDTH; LANES (a power of 2, at most 32); ALIGNED (1: all rows begin and end at multiples of 16 bytes); the kind of norm: ADD, HEADS, SKIP (with HEAD) or UNIT.

constexpr int THREADS = 256, SIZE = Pack<TYPE>::size, PACKS = (WIDTH + LANES * SIZE - 1) / (LANES * SIZE), GROUPS = THREADS / LANES;
constexpr int MIN_BLOCKS = PACKS * SIZE <= 16 ? 2 : 1; // per multiprocessor: wide rows need the registers

#define EACH_PACK _Pragma("unroll") for (int n = 0; n < PACKS; n++)
#define EACH_ELEMENT EACH_PACK _Pragma("unroll") for (int i = 0; i < SIZE; i++)

// A row's elements, or sums over rows.
struct Row
{
    Pack<TYPE> pack[PACKS];
};

DEVICE int column(int n) { return (n * LANES + (int)threadIdx.x % LANES) * SIZE; }
DEVICE bool is_column(int n, int i) { return WIDTH % (LANES * SIZE) == 0 || column(n) + i < WIDTH; }

// Zeros where there is no row.
DEVICE Row load_row(const TYPE* from, bool valid = true)
{
    Row row;
    EACH_PACK row.pack[n] = load_pack<ALIGNED>(from + column(n), valid ? WIDTH - column(n) : 0);
    return row;
}

DEVICE void store_row(TYPE* to, const Row& row, bool valid)
{
    EACH_PACK store_pack<ALIGNED>(to + column(n), row.pack[n], valid ? WIDTH - column(n) : 0);
}

DEVICE void clear(Row& row)
{
    EACH_ELEMENT row.pack[n].x[i] = 0;
}

// Over the lanes of a row.
DEVICE float sum_lanes(float x)
{
    for (int mask = LANES / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

// Adds what all groups of the block summed, and writes [WIDTH] numbers.
DEVICE void write_sums(float* to, const Row& sums, float* shared)
{
    constexpr int COLUMNS = PACKS * LANES * SIZE;
    __syncthreads();
    EACH_ELEMENT shared[(int)threadIdx.x / LANES * COLUMNS + column(n) + i] = sums.pack[n].x[i];
    __syncthreads();
    for (int c = threadIdx.x; c < WIDTH; c += THREADS)
    {
        float sum = 0;
        for (int group = 0; group < GROUPS; group++) sum += shared[group * COLUMNS + c];
        to[c] = sum;
    }
}

// The rows of this thread: the same number of rounds for all threads of a block.
#define EACH_ROW(row, rows) \
    for (i64 first = (i64)blockIdx.x * GROUPS, row = first + threadIdx.x / LANES; first < rows; first += (i64)gridDim.x * GROUPS, row = first + threadIdx.x / LANES)

DEVICE float sigmoid(float x) { return reciprocal_fast(1 + exp2_fast(-1.44269504f * x)); }

// o / √(mean(o²) + ε)
DEVICE void normalize(Row& o, float epsilon)
{
    float squares = 0;
    EACH_ELEMENT squares += o.pack[n].x[i] * o.pack[n].x[i];
    float r = rsqrtf(sum_lanes(squares) / WIDTH + epsilon);
    EACH_ELEMENT o.pack[n].x[i] *= r;
}

// ---- s = x + u, y = LayerNorm(s) = (s − mean) / √(variance + ε) ∘ w + b

#ifdef ADD

struct AddNorm
{
    const TYPE* x;      // [rows, WIDTH]; backward: s
    const TYPE* u;      // the same, or null
    const TYPE* weight; // [WIDTH]
    const TYPE* bias;   // [WIDTH]
    TYPE* s;            // [rows, WIDTH]; null where there is no u
    TYPE* y;            // [rows, WIDTH]
    const TYPE* dy;     // backward
    const TYPE* ds;     // of s, or null
    TYPE* dx;           // of x and of u
    float* sums;        // [blocks, 2, WIDTH]: dw, db
    i64 rows;
    float epsilon;
};

DEVICE void subtract_mean(Row& s)
{
    float sum = 0;
    EACH_ELEMENT sum += s.pack[n].x[i];
    float mean = sum_lanes(sum) / WIDTH;
    EACH_ELEMENT s.pack[n].x[i] = is_column(n, i) ? s.pack[n].x[i] - mean : 0;
}

KERNEL(add_norm_forward, AddNorm, THREADS)
{
    Row w = load_row(p.weight), b = load_row(p.bias);
    EACH_ROW(row, p.rows)
    {
        bool valid = row < p.rows;
        i64 at = row * WIDTH;
        Row s = load_row(p.x + at, valid);
        if (p.u != 0)
        {
            Row u = load_row(p.u + at, valid);
            EACH_ELEMENT s.pack[n].x[i] = to_float(from_float<TYPE>(s.pack[n].x[i] + u.pack[n].x[i])); // the norm sees what the next block sees
            store_row(p.s + at, s, valid);
        }
        subtract_mean(s);
        float squares = 0;
        EACH_ELEMENT squares += s.pack[n].x[i] * s.pack[n].x[i];
        float r = rsqrtf(sum_lanes(squares) / WIDTH + p.epsilon);
        EACH_ELEMENT s.pack[n].x[i] = s.pack[n].x[i] * r * w.pack[n].x[i] + b.pack[n].x[i];
        store_row(p.y + at, s, valid);
    }
}

// dx = ds + r (dŝ − mean(dŝ) − ŝ mean(dŝ ∘ ŝ)) with ŝ the normalized row and dŝ = dy ∘ w.
KERNEL_MIN_BLOCKS(add_norm_backward, AddNorm, THREADS, MIN_BLOCKS)
{
    SHARED_MEMORY(shared);
    Row w = load_row(p.weight), dw, db;
    clear(dw);
    clear(db);
    EACH_ROW(row, p.rows)
    {
        bool valid = row < p.rows;
        i64 at = row * WIDTH;
        Row s = load_row(p.x + at, valid), dy = load_row(p.dy + at, valid), ds;
        if (p.ds != 0) ds = load_row(p.ds + at, valid);
        else clear(ds);
        subtract_mean(s);
        float squares = 0, sum = 0, dot = 0;
        EACH_ELEMENT
        {
            float g = dy.pack[n].x[i] * w.pack[n].x[i];
            squares += s.pack[n].x[i] * s.pack[n].x[i];
            sum += g;
            dot += g * s.pack[n].x[i];
        }
        float r = rsqrtf(sum_lanes(squares) / WIDTH + p.epsilon);
        sum = sum_lanes(sum) / WIDTH;
        dot = sum_lanes(dot) / WIDTH * r;
        EACH_ELEMENT
        {
            float x = s.pack[n].x[i] * r;
            dw.pack[n].x[i] += dy.pack[n].x[i] * x;
            db.pack[n].x[i] += dy.pack[n].x[i];
            ds.pack[n].x[i] += r * (dy.pack[n].x[i] * w.pack[n].x[i] - sum - x * dot);
        }
        store_row(p.dx + at, ds, valid);
    }
    write_sums(p.sums + (i64)blockIdx.x * 2 * WIDTH, dw, (float*)shared);
    write_sums(p.sums + ((i64)blockIdx.x * 2 + 1) * WIDTH, db, (float*)shared);
}
#endif

// ---- y = RMSNorm(o) ∘ w ∘ silu(g) for each head

#ifdef HEADS

struct HeadNorm
{
    const TYPE* o;      // [rows, heads, WIDTH]
    const TYPE* gate;   // [rows, heads WIDTH], gateStride apart; or null
    const TYPE* weight; // [WIDTH]
    TYPE* y;            // [rows, heads, WIDTH]
    const TYPE* dy;     // backward
    TYPE* dO;
    TYPE* dGate;        // [rows, heads, WIDTH]
    float* sums;        // [blocks, WIDTH]: dw
    i64 rows, gateStride;
    int heads;
    float epsilon;
};

KERNEL(head_norm_forward, HeadNorm, THREADS)
{
    Row w = load_row(p.weight);
    EACH_ROW(row, p.rows * p.heads)
    {
        bool valid = row < p.rows * p.heads;
        i64 at = row * WIDTH, token = row / p.heads;
        Row o = load_row(p.o + at, valid), gate;
        if (p.gate != 0) gate = load_row(p.gate + token * p.gateStride + (row - token * p.heads) * WIDTH, valid);
        normalize(o, p.epsilon);
        EACH_ELEMENT o.pack[n].x[i] *= w.pack[n].x[i];
        if (p.gate != 0) EACH_ELEMENT o.pack[n].x[i] *= gate.pack[n].x[i] * sigmoid(gate.pack[n].x[i]);
        store_row(p.y + at, o, valid);
    }
}

// do = r (dô − ô mean(dô ∘ ô)) with ô the normalized row and dô = dy ∘ w ∘ silu(g).
KERNEL_MIN_BLOCKS(head_norm_backward, HeadNorm, THREADS, MIN_BLOCKS)
{
    SHARED_MEMORY(shared);
    Row w = load_row(p.weight), dw;
    clear(dw);
    EACH_ROW(row, p.rows * p.heads)
    {
        bool valid = row < p.rows * p.heads;
        i64 at = row * WIDTH, token = row / p.heads;
        Row o = load_row(p.o + at, valid), dy = load_row(p.dy + at, valid), gate;
        if (p.gate != 0) gate = load_row(p.gate + token * p.gateStride + (row - token * p.heads) * WIDTH, valid);
        float squares = 0, dot = 0;
        EACH_ELEMENT squares += o.pack[n].x[i] * o.pack[n].x[i];
        float r = rsqrtf(sum_lanes(squares) / WIDTH + p.epsilon);
        EACH_ELEMENT
        {
            float x = o.pack[n].x[i] * r;
            if (p.gate != 0)
            {
                float z = gate.pack[n].x[i], sigma = sigmoid(z);
                gate.pack[n].x[i] = dy.pack[n].x[i] * x * w.pack[n].x[i] * sigma * (1 + z * (1 - sigma));
                dy.pack[n].x[i] *= z * sigma;
            }
            dw.pack[n].x[i] += dy.pack[n].x[i] * x;
            dot += dy.pack[n].x[i] * w.pack[n].x[i] * x;
        }
        dot = sum_lanes(dot) / WIDTH;
        EACH_ELEMENT o.pack[n].x[i] = r * (dy.pack[n].x[i] * w.pack[n].x[i] - o.pack[n].x[i] * r * dot);
        store_row(p.dO + at, o, valid);
        if (p.gate != 0) store_row(p.dGate + at, gate, valid);
    }
    write_sums(p.sums + (i64)blockIdx.x * WIDTH, dw, (float*)shared);
}
#endif

// ---- y = RMSNorm((o + d u) ∘ silu(z)) ∘ w: how Mamba-2 ends. A row is all heads, of HEAD elements; d is one number per head.

#ifdef SKIP

struct SkipNorm
{
    const TYPE* o;      // [rows, WIDTH]
    const TYPE* u;      // [rows, WIDTH], uStride apart
    const TYPE* z;      // [rows, WIDTH], zStride apart
    const TYPE* weight; // [WIDTH]
    const TYPE* skip;   // [WIDTH / HEAD]: d
    TYPE* y;            // [rows, WIDTH]
    const TYPE* dy;     // backward
    TYPE* dO;           // [rows, WIDTH]
    TYPE* du;           // [rows, WIDTH]
    TYPE* dz;           // [rows, WIDTH]
    float* sums;        // [blocks, 2, WIDTH]: dw, dd (of each column)
    i64 rows, uStride, zStride;
    float epsilon;
};

// d of an element (a pack within a head needs to look once).
DEVICE float skip(const SkipNorm& p, int n, int i) { return is_column(n, i) ? to_float(p.skip[(column(n) + (HEAD % SIZE == 0 ? 0 : i)) / HEAD]) : 0; }

KERNEL(skip_norm_forward, SkipNorm, THREADS)
{
    Row w = load_row(p.weight);
    EACH_ROW(row, p.rows)
    {
        bool valid = row < p.rows;
        Row o = load_row(p.o + row * WIDTH, valid), u = load_row(p.u + row * p.uStride, valid), z = load_row(p.z + row * p.zStride, valid);
        EACH_ELEMENT o.pack[n].x[i] = (o.pack[n].x[i] + skip(p, n, i) * u.pack[n].x[i]) * z.pack[n].x[i] * sigmoid(z.pack[n].x[i]);
        normalize(o, p.epsilon);
        EACH_ELEMENT o.pack[n].x[i] *= w.pack[n].x[i];
        store_row(p.y + row * WIDTH, o, valid);
    }
}

// With s = c ∘ silu(z), c = o + d u: ds as in head_norm_backward; do = ds ∘ silu(z), dz = ds ∘ c ∘ silu'(z).
KERNEL_MIN_BLOCKS(skip_norm_backward, SkipNorm, THREADS, MIN_BLOCKS)
{
    SHARED_MEMORY(shared);
    Row w = load_row(p.weight), dw, dd;
    clear(dw);
    clear(dd);
    EACH_ROW(row, p.rows)
    {
        bool valid = row < p.rows;
        Row c = load_row(p.o + row * WIDTH, valid), u = load_row(p.u + row * p.uStride, valid), z = load_row(p.z + row * p.zStride, valid), dy = load_row(p.dy + row * WIDTH, valid);
        float squares = 0, dot = 0;
        EACH_ELEMENT
        {
            c.pack[n].x[i] += skip(p, n, i) * u.pack[n].x[i];
            float s = c.pack[n].x[i] * z.pack[n].x[i] * sigmoid(z.pack[n].x[i]);
            squares += s * s;
            dot += dy.pack[n].x[i] * w.pack[n].x[i] * s;
        }
        float r = rsqrtf(sum_lanes(squares) / WIDTH + p.epsilon);
        dot = sum_lanes(dot) / WIDTH * r;
        EACH_ELEMENT
        {
            float gate = z.pack[n].x[i], sigma = sigmoid(gate), s = c.pack[n].x[i] * gate * sigma * r;
            float ds = r * (dy.pack[n].x[i] * w.pack[n].x[i] - s * dot), dc = ds * gate * sigma;
            dw.pack[n].x[i] += dy.pack[n].x[i] * s;
            dd.pack[n].x[i] += dc * u.pack[n].x[i];
            z.pack[n].x[i] = ds * c.pack[n].x[i] * sigma * (1 + gate * (1 - sigma));
            u.pack[n].x[i] = dc * skip(p, n, i);
            c.pack[n].x[i] = dc;
        }
        store_row(p.dO + row * WIDTH, c, valid);
        store_row(p.du + row * WIDTH, u, valid);
        store_row(p.dz + row * WIDTH, z, valid);
    }
    write_sums(p.sums + (i64)blockIdx.x * 2 * WIDTH, dw, (float*)shared);
    write_sums(p.sums + ((i64)blockIdx.x * 2 + 1) * WIDTH, dd, (float*)shared);
}
#endif

// ---- heads of length 1 (times a scale): the first parts, queries and keys, of rows [parts, heads, WIDTH]

#ifdef UNIT

// Heads of a part: where they begin, and the strides of batch, time and head.
struct Part
{
    TYPE* at;
    i64 batch, time, head;
};

struct UnitHeads
{
    const TYPE* x; // [rows, parts, heads, WIDTH], xStride apart
    TYPE* dx;      // backward, without gaps
    Part part[4];  // forward: what becomes of the first parts; backward: the gradients of all parts, null where there is none
    i64 rows, time, xStride;
    int heads, parts;
    float scale[4];
    int unit;      // how many parts get length 1; the others are given on as they are
};

// Grid: y is the part.
KERNEL(unit_forward, UnitHeads, THREADS)
{
    int part = blockIdx.y;
    EACH_ROW(row, p.rows * p.heads)
    {
        bool valid = row < p.rows * p.heads;
        i64 token = row / p.heads, head = row - token * p.heads, batch = token / p.time;
        Row x = load_row(p.x + token * p.xStride + (part * p.heads + head) * WIDTH, valid);
        float squares = 0;
        EACH_ELEMENT squares += x.pack[n].x[i] * x.pack[n].x[i];
        float r = p.scale[part] / fmaxf(sqrtf(sum_lanes(squares)), 1e-6f);
        EACH_ELEMENT x.pack[n].x[i] *= r;
        const Part& to = p.part[part];
        store_row(to.at + batch * to.batch + (token - batch * p.time) * to.time + head * to.head, x, valid);
    }
}

// dx = (g − x̂ (x̂ · g)) / |x|
KERNEL(unit_backward, UnitHeads, THREADS)
{
    int part = blockIdx.y;
    const Part& from = p.part[part];
    EACH_ROW(row, p.rows * p.heads)
    {
        i64 token = row / p.heads, head = row - token * p.heads, batch = token / p.time;
        bool valid = row < p.rows * p.heads;
        Row g = load_row(from.at + batch * from.batch + (token - batch * p.time) * from.time + head * from.head, valid && from.at != 0);
        if (part < p.unit)
        {
            Row x = load_row(p.x + token * p.xStride + (part * p.heads + head) * WIDTH, valid);
            float squares = 0, dot = 0;
            EACH_ELEMENT squares += x.pack[n].x[i] * x.pack[n].x[i];
            EACH_ELEMENT dot += x.pack[n].x[i] * g.pack[n].x[i];
            float length = sqrtf(sum_lanes(squares)), r = 1 / fmaxf(length, 1e-6f);
            dot = sum_lanes(dot) * (length < 1e-6f ? 0 : r * r);
            EACH_ELEMENT g.pack[n].x[i] = p.scale[part] * r * (g.pack[n].x[i] - x.pack[n].x[i] * dot);
        }
        store_row(p.dx + ((token * p.parts + part) * p.heads + head) * WIDTH, g, valid);
    }
}
#endif

// ---- sums of columns: the last stage of every weight's gradient

struct ColumnSums
{
    const float* x; // [rows, columns]
    TYPE* y;        // [columns]
    int rows, columns;
};

// A block sums 32 columns.
KERNEL(column_sums, ColumnSums, THREADS)
{
    SHARED_MEMORY(memory);
    float* shared = (float*)memory;
    int c = blockIdx.x * 32 + threadIdx.x % 32;
    float sum = 0;
    if (c < p.columns)
        for (int row = threadIdx.x / 32; row < p.rows; row += THREADS / 32) sum += p.x[(i64)row * p.columns + c];
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= 32 || c >= p.columns) return;
    sum = 0;
    for (int i = threadIdx.x; i < THREADS; i += 32) sum += shared[i];
    p.y[c] = from_float<TYPE>(sum);
}
