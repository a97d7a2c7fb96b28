// AdamW on flat parameters (Loshchilov and Hutter 2019, algorithm 2): the norm of all gradients in parts, then everything that the step changes in one pass.
// Macro: TYPE (bf16, fp16: of the copy that the network reads and of its gradients; fp32: there is no such copy).

struct AdamW
{
    float* weights;        // [size]
    float* mean;           // [size]: m
    float* square;         // [size]: v
    float* gradients;      // [size]; of the elements from `low` on
    TYPE* lowWeights;      // [low]: rounded weights
    TYPE* lowGradients;    // [low]
    float* parts;          // [blocks of the norm]: sums of squares
    i64 size, low, decayed; // multiples of 64; the first `decayed` elements decay
    int partCount;
    float clipping;        // the largest norm; 0: any
    float gradientScale;   // multiplies the gradients
    float beta1, beta2, epsilon;
    float squareScale;     // 1 / √(1 − β₂ᵗ)
    float rate;            // η / (1 − β₁ᵗ)
    float decay;           // η λ
};

constexpr int THREADS = 256, SIZE = Pack<TYPE>::size; // a thread serves SIZE elements

struct Elements
{
    float x[SIZE];
};

DEVICE Elements load(const float* from)
{
    Elements y;
    for (int n = 0; n < SIZE; n += 4)
    {
        float4 four = *(const float4*)(from + n);
        y.x[n] = four.x; y.x[n + 1] = four.y; y.x[n + 2] = four.z; y.x[n + 3] = four.w;
    }
    return y;
}

DEVICE void store(float* to, const Elements& y)
{
    for (int n = 0; n < SIZE; n += 4) *(float4*)(to + n) = make_float4(y.x[n], y.x[n + 1], y.x[n + 2], y.x[n + 3]);
}

DEVICE Elements load_gradients(const AdamW& p, i64 i)
{
    if (i >= p.low) return load(p.gradients + i);
    Pack<TYPE> pack = load_pack<true>(p.lowGradients + i, SIZE);
    Elements y;
    for (int n = 0; n < SIZE; n++) y.x[n] = pack.x[n];
    return y;
}

// The sum over the block, for all its threads; in the same order always.
DEVICE float block_sum(float x, float* shared)
{
    shared[threadIdx.x] = x;
    for (int half = THREADS / 2; half > 0; half /= 2)
    {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    __syncthreads();
    return shared[0];
}

KERNEL(square_sums, AdamW, THREADS)
{
    SHARED_MEMORY(shared);
    float sum = 0;
#pragma unroll 4
    for (i64 i = ((i64)blockIdx.x * THREADS + threadIdx.x) * SIZE; i < p.size; i += (i64)gridDim.x * THREADS * SIZE)
    {
        Elements g = load_gradients(p, i);
        for (int n = 0; n < SIZE; n++) sum += g.x[n] * g.x[n];
    }
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) p.parts[blockIdx.x] = sum;
}

KERNEL(adamw, AdamW, THREADS)
{
    SHARED_MEMORY(shared);
    float scale = p.gradientScale;
    if (p.clipping > 0)
    {
        float sum = 0;
        for (int i = threadIdx.x; i < p.partCount; i += THREADS) sum += p.parts[i];
        float ratio = p.clipping / (sqrtf(block_sum(sum, (float*)shared)) * p.gradientScale + 1e-6f);
        if (!(ratio >= 1)) scale *= ratio; // also when it is not a number
    }
    i64 i = ((i64)blockIdx.x * THREADS + threadIdx.x) * SIZE;
    if (i >= p.size) return;
    float decay = i < p.decayed ? p.decay : 0;
    Elements g = load_gradients(p, i), w = load(p.weights + i), m = load(p.mean + i), v = load(p.square + i);
    for (int n = 0; n < SIZE; n++)
    {
        float x = g.x[n] * scale;
        m.x[n] = p.beta1 * m.x[n] + (1 - p.beta1) * x;
        v.x[n] = p.beta2 * v.x[n] + (1 - p.beta2) * x * x;
        w.x[n] = w.x[n] * (1 - decay) - p.rate * m.x[n] / (sqrtf(v.x[n]) * p.squareScale + p.epsilon);
        g.x[n] = 0;
    }
    store(p.weights + i, w);
    store(p.mean + i, m);
    store(p.square + i, v);
    if (i >= p.low)
    {
        store(p.gradients + i, g);
        return;
    }
    Pack<TYPE> rounded, zero;
    for (int n = 0; n < SIZE; n++)
    {
        rounded.x[n] = w.x[n];
        zero.x[n] = 0;
    }
    store_pack<true>(p.lowWeights + i, rounded, SIZE);
    store_pack<true>(p.lowGradients + i, zero, SIZE);
}
