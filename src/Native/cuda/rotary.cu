// Rotary positions (Su et al. 2021, equation 34): the halves x₁, x₂ of a head of WIDTH elements become x₁ cos θ − x₂ sin θ, x₂ cos θ + x₁ sin θ with θ = t · 10000^(−2i/WIDTH). Rows are
// [parts, heads, WIDTH]; the first parts, queries and keys, are turned. A thread turns 16 bytes of each half, in all heads of a position: it computes its angles once.
// Macros: TYPE (bf16, fp16, fp32); WIDTH (even); ALIGNED (1: half a head is a multiple of 16 bytes, and all heads begin at such).

// Heads of a part: where they begin, and the strides of batch, time and head.
struct Part
{
    TYPE* at;
    i64 batch, time, head;
};

struct Rotary
{
    const TYPE* x; // [rows, parts, heads, WIDTH], xStride apart
    TYPE* dx;      // backward, without gaps
    Part part[4];  // forward: what becomes of the first parts; backward: the gradients of all parts, null where there is none
    i64 rows, time, xStride, start; // start: the position of the first element
    int heads, parts;
    float scale[4];
    int turned;    // how many parts are turned; the others are given on as they are
};

constexpr int THREADS = 256, SIZE = Pack<TYPE>::size, HALF = WIDTH / 2, PACKS = (HALF + SIZE - 1) / SIZE;

struct Angles
{
    float cos[SIZE], sin[SIZE];
};

DEVICE Angles angles(i64 position, int column)
{
    Angles a;
    for (int i = 0; i < SIZE; i++) sincosf((float)position * exp2f((column + i) * (-2.0f * 13.28771238f / WIDTH)), &a.sin[i], &a.cos[i]); // log₂ 10000
    return a;
}

DEVICE void turn(Pack<TYPE>& x1, Pack<TYPE>& x2, const Angles& a, float sign, float scale)
{
    for (int i = 0; i < SIZE; i++)
    {
        float c = a.cos[i] * scale, s = a.sin[i] * scale * sign, y = x1.x[i] * c - x2.x[i] * s;
        x2.x[i] = x2.x[i] * c + x1.x[i] * s;
        x1.x[i] = y;
    }
}

KERNEL(rotary_forward, Rotary, THREADS)
{
    i64 index = (i64)blockIdx.x * THREADS + threadIdx.x, token = index / PACKS, batch = token / p.time, t = token - batch * p.time;
    int column = (int)(index - token * PACKS) * SIZE, count = HALF - column;
    if (token >= p.rows) return;
    Angles a = angles(p.start + t, column);
    const TYPE* x = p.x + token * p.xStride + column;
    for (int part = 0; part < p.turned; part++)
    {
        const Part& to = p.part[part];
        TYPE* y = to.at + batch * to.batch + t * to.time + column;
#pragma unroll 4
        for (int head = 0; head < p.heads; head++, x += WIDTH, y += to.head)
        {
            Pack<TYPE> x1 = load_pack<ALIGNED>(x, count), x2 = load_pack<ALIGNED>(x + HALF, count);
            turn(x1, x2, a, 1, p.scale[part]);
            store_pack<ALIGNED>(y, x1, count);
            store_pack<ALIGNED>(y + HALF, x2, count);
        }
    }
}

// The gradient turns back.
KERNEL(rotary_backward, Rotary, THREADS)
{
    i64 index = (i64)blockIdx.x * THREADS + threadIdx.x, token = index / PACKS, batch = token / p.time, t = token - batch * p.time;
    int column = (int)(index - token * PACKS) * SIZE, count = HALF - column;
    if (token >= p.rows) return;
    Angles a = angles(p.start + t, column);
    TYPE* dx = p.dx + token * p.parts * p.heads * WIDTH + column;
    for (int part = 0; part < p.parts; part++)
    {
        const Part& from = p.part[part];
        const TYPE* y = from.at + batch * from.batch + t * from.time + column;
#pragma unroll 4
        for (int head = 0; head < p.heads; head++, dx += WIDTH, y += from.head)
        {
            Pack<TYPE> x1 = load_pack<ALIGNED>(y, from.at != 0 ? count : 0), x2 = load_pack<ALIGNED>(y + HALF, from.at != 0 ? count : 0);
            if (part < p.turned) turn(x1, x2, a, -1, p.scale[part]);
            store_pack<ALIGNED>(dx, x1, count);
            store_pack<ALIGNED>(dx + HALF, x2, count);
        }
    }
}
