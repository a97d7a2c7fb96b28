// The gate of SwiGLU, h = silu(a) ∘ b for rows [a, b] of 2 WIDTH elements (Shazeer 2020, equation 6), and its gradient. A thread computes 16 bytes of h.
// Macros: TYPE (bf16, fp16, fp32); WIDTH; ALIGNED (1: WIDTH elements are a multiple of 16 bytes).

struct Gate
{
    const TYPE* x;  // [rows, 2 WIDTH]: a, b
    const TYPE* dh; // [rows, WIDTH]; backward
    TYPE* out;      // forward: h; backward: da, db like x
    i64 rows;
};

constexpr int THREADS = 256, SIZE = Pack<TYPE>::size, PACKS = (WIDTH + SIZE - 1) / SIZE;

DEVICE float sigmoid(float x) { return reciprocal_fast(1 + exp2_fast(-1.44269504f * x)); }

// The pack that is this thread's: row and first column; false past the end.
DEVICE bool place(const Gate& p, i64& row, int& column)
{
    i64 pack = (i64)blockIdx.x * THREADS + threadIdx.x;
    row = pack / PACKS;
    column = (int)(pack - row * PACKS) * SIZE;
    return row < p.rows;
}

KERNEL(swiglu_forward, Gate, THREADS)
{
    i64 row;
    int column;
    if (!place(p, row, column)) return;
    const TYPE* x = p.x + row * 2 * WIDTH + column;
    Pack<TYPE> a = load_pack<ALIGNED>(x, WIDTH - column), b = load_pack<ALIGNED>(x + WIDTH, WIDTH - column), h;
    for (int i = 0; i < SIZE; i++) h.x[i] = a.x[i] * sigmoid(a.x[i]) * b.x[i];
    store_pack<ALIGNED>(p.out + row * WIDTH + column, h, WIDTH - column);
}

KERNEL(swiglu_backward, Gate, THREADS)
{
    i64 row;
    int column;
    if (!place(p, row, column)) return;
    const TYPE* x = p.x + row * 2 * WIDTH + column;
    Pack<TYPE> a = load_pack<ALIGNED>(x, WIDTH - column), b = load_pack<ALIGNED>(x + WIDTH, WIDTH - column);
    Pack<TYPE> dh = load_pack<ALIGNED>(p.dh + row * WIDTH + column, WIDTH - column);
    for (int i = 0; i < SIZE; i++)
    {
        float s = sigmoid(a.x[i]), db = dh.x[i] * a.x[i] * s;
        a.x[i] = dh.x[i] * b.x[i] * s * (1 + a.x[i] * (1 - s));
        b.x[i] = db;
    }
    TYPE* dx = p.out + row * 2 * WIDTH + column;
    store_pack<ALIGNED>(dx, a, WIDTH - column);
    store_pack<ALIGNED>(dx + WIDTH, b, WIDTH - column);
}
