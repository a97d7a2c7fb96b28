// Depthwise causal convolution over a few elements, then SiLU: z_t = Σ_j w_j ∘ x_{t − reach + j}, y_t = z_t σ(z_t), and its gradient. reach = TAPS − 1; before the first element lies the past, or zeros.
//
// A thread has VECTOR neighbouring channels and walks along a strip of the time, GROUP elements at once, so that every element is read from memory once (the strip's edges twice) and nothing but y, dx is
// written. The gradient computes z again instead of having kept it:  dz_t = dy_t silu'(z_t), dx_t = Σ_j w_j ∘ dz_{t + reach − j}, dw_j = Σ_t dz_t ∘ x_{t − reach + j}.
//
// Macros: TYPE; TAPS; VECTOR channels per thread (divides the channels; rows are aligned to it); STRIP elements per thread; GROUP.

constexpr int reach = TAPS - 1, threads = 128;

template <class T> struct Sequence { const T* at; i64 batch, time; }; // [b, t, c] and its strides; the last dimension is contiguous

struct Convolution
{
    Sequence<TYPE> x, past;                 // [b, t, c]; [b, reach, c], null for zeros
    const TYPE* weight;                     // [TAPS, c]; the last tap belongs to the present
    TYPE* y;                                // [b, t, c]
    Sequence<TYPE> dy;
    TYPE* dx; TYPE* dpast; float* dweight;  // [b, t, c]; [b, reach, c] or null; to be summed over the first, [b · strips, TAPS, c]
    int batch, time, channels, strips;
};

struct __align__(sizeof(TYPE) * VECTOR) Pack { TYPE element[VECTOR]; };

typedef float Row[VECTOR];

DEVICE Pack zeros()
{
    Pack pack;
    #pragma unroll
    for (int k = 0; k < VECTOR; k++) pack.element[k] = from_float<TYPE>(0);
    return pack;
}

DEVICE void unpack(Row& to, const Pack& pack)
{
    #pragma unroll
    for (int k = 0; k < VECTOR; k++) to[k] = to_float(pack.element[k]);
}

DEVICE void write(TYPE* to, const Row& row)
{
    Pack pack;
    #pragma unroll
    for (int k = 0; k < VECTOR; k++) pack.element[k] = from_float<TYPE>(row[k]);
    *(Pack*)to = pack;
}

// Where a thread stands: its first channel, batch and strip.
struct Place { int channel, batch, strip; bool exists; };

DEVICE Place place(const Convolution& p)
{
    int vectors = p.channels / VECTOR, i = blockIdx.x * threads + threadIdx.x, row = i / vectors;
    return { i % vectors * VECTOR, row / p.strips, row % p.strips, row < p.batch * p.strips };
}

// x_t, from the past for t < 0; zeros where there is none.
DEVICE Pack input(const Convolution& p, const Place& own, int t)
{
    if (t >= p.time) return zeros();
    if (t >= 0) return *(const Pack*)(p.x.at + own.batch * p.x.batch + t * p.x.time + own.channel);
    return p.past.at && t >= -reach ? *(const Pack*)(p.past.at + own.batch * p.past.batch + (t + reach) * p.past.time + own.channel) : zeros();
}

DEVICE void read_weight(Row (&weight)[TAPS], const Convolution& p, const Place& own)
{
    #pragma unroll
    for (int j = 0; j < TAPS; j++) unpack(weight[j], *(const Pack*)(p.weight + (i64)j * p.channels + own.channel));
}

DEVICE float sigmoid(float z) { return reciprocal_fast(1 + exp2_fast(-1.4426950408889634f * z)); }

KERNEL(short_convolution_forward, Convolution, threads)
{
    Place own = place(p);
    if (!own.exists) return;
    Row weight[TAPS], x[reach + GROUP]; // x: elements t − reach … t + GROUP − 1
    read_weight(weight, p, own);
    int begin = own.strip * STRIP, end = min(begin + STRIP, p.time);
    #pragma unroll
    for (int j = 0; j < reach; j++) unpack(x[j], input(p, own, begin - reach + j));
    TYPE* y = p.y + (i64)own.batch * p.time * p.channels + own.channel;
    #pragma unroll 1
    for (int t = begin; t < end; t += GROUP)
    {
        Pack fetched[GROUP];
        #pragma unroll
        for (int i = 0; i < GROUP; i++) fetched[i] = input(p, own, t + i);
        #pragma unroll
        for (int i = 0; i < GROUP; i++) unpack(x[reach + i], fetched[i]);
        #pragma unroll
        for (int i = 0; i < GROUP; i++)
        {
            Row z = {};
            #pragma unroll
            for (int k = 0; k < VECTOR; k++)
            {
                #pragma unroll
                for (int j = 0; j < TAPS; j++) z[k] += weight[j][k] * x[i + j][k];
                z[k] *= sigmoid(z[k]);
            }
            if (t + i < end) write(y + (i64)(t + i) * p.channels, z);
        }
        #pragma unroll
        for (int j = 0; j < reach; j++)
            #pragma unroll
            for (int k = 0; k < VECTOR; k++) x[j][k] = x[GROUP + j][k];
    }
}

// A strip's dx needs dz of `reach` elements more. So that whole groups remain, a thread walks over STRIP elements and owns the first STRIP − reach of them.
KERNEL(short_convolution_backward, Convolution, threads)
{
    Place own = place(p);
    if (!own.exists) return;
    Row weight[TAPS], dweight[TAPS] = {}, x[reach + GROUP], dz[reach + GROUP] = {}; // elements t − reach … t + GROUP − 1
    read_weight(weight, p, own);
    int begin = own.strip * (STRIP - reach), end = min(begin + STRIP - reach, p.time);
    #pragma unroll
    for (int j = 0; j < reach; j++) unpack(x[j], input(p, own, begin - reach + j));
    const TYPE* dy = p.dy.at + own.batch * p.dy.batch + own.channel;
    TYPE* dx = p.dx + (i64)own.batch * p.time * p.channels + own.channel;
    #pragma unroll 1
    for (int t = begin; t < end + reach; t += GROUP)
    {
        Pack fetched[GROUP], fetched_dy[GROUP];
        #pragma unroll
        for (int i = 0; i < GROUP; i++)
        {
            fetched[i] = input(p, own, t + i);
            fetched_dy[i] = t + i < p.time ? *(const Pack*)(dy + (t + i) * p.dy.time) : zeros();
        }
        #pragma unroll
        for (int i = 0; i < GROUP; i++)
        {
            unpack(x[reach + i], fetched[i]);
            unpack(dz[reach + i], fetched_dy[i]);
        }
        #pragma unroll
        for (int i = 0; i < GROUP; i++)
        {
            Row out = {}; // dx of element t + i − reach
            #pragma unroll
            for (int k = 0; k < VECTOR; k++)
            {
                float z = 0;
                #pragma unroll
                for (int j = 0; j < TAPS; j++) z += weight[j][k] * x[i + j][k];
                float s = sigmoid(z), d = dz[reach + i][k] *= s * (1 + z * (1 - s));
                if (t + i < end)
                    #pragma unroll
                    for (int j = 0; j < TAPS; j++) dweight[j][k] += d * x[i + j][k];
                #pragma unroll
                for (int j = 0; j < TAPS; j++) out[k] += weight[j][k] * dz[i + reach - j][k];
            }
            int u = t + i - reach;
            if (u >= begin && u < end) write(dx + (i64)u * p.channels, out);
            else if (u < 0 && p.dpast) write(p.dpast + ((i64)own.batch * reach + u + reach) * p.channels + own.channel, out);
        }
        #pragma unroll
        for (int j = 0; j < reach; j++)
            #pragma unroll
            for (int k = 0; k < VECTOR; k++)
            {
                x[j][k] = x[GROUP + j][k];
                dz[j][k] = dz[GROUP + j][k];
            }
    }
    #pragma unroll
    for (int j = 0; j < TAPS; j++)
        #pragma unroll
        for (int k = 0; k < VECTOR; k++)
            p.dweight[(((i64)own.batch * p.strips + own.strip) * TAPS + j) * p.channels + own.channel + k] = dweight[j][k];
}
