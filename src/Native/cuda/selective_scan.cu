// Mamba's selective scan, h_t = e^{Δ_t A} ∘ h_{t−1} + Δ_t x_t B_tᵀ, y_t = h_t C_t (Gu and Dao 2023, algorithm 2), and its gradient.
//
// Every state of every channel is a recurrence of its own, with a decay of its own: no matrix product expresses it, and what counts is how often e^{Δ A} is computed.
// A thread keeps 4 states of CHANNELS neighbouring channels. `lanes` lanes of a warp share a channel's states, the warp's other lanes have further channels. So sums over states (y, dx, dΔ)
// and sums over channels (dB, dC) are both short exchanges within a warp.
//
// Along time a block walks chunk by chunk, the next chunk's elements on their way into shared memory meanwhile. Where batch and channels are too few to fill the device, time is cut into segments
// that are walked side by side: `…_ends` finds what a segment does to an empty state, `selective_scan_link` from this the state before each segment, then `selective_scan_forward` runs as if alone.
// The gradient runs the other way, from h kept at every chunk's start:  dh_t = dy_t C_tᵀ + e^{Δ_{t+1} A} ∘ dh_{t+1}.
//
// Macros: TYPE of x, B, C, y; DELTA, the type of Δ; STATES n (at most 128); CHANNELS per thread; WARPS per block; CHUNK positions; STEPS that the gradient
// holds in registers at once (divides CHUNK); STAGES 2: the gradient fetches a chunk ahead, 1: it does not; BLOCKS of the gradient that a multiprocessor should hold.

constexpr int power_of_two(int least) { int x = 1; while (x < least) x *= 2; return x; }

constexpr int lanes = power_of_two((STATES + 3) / 4), padded = 4 * lanes;   // that share a channel; states, with idle ones
constexpr int groups = 32 / lanes, width = WARPS * groups * CHANNELS;       // of channels in a warp; channels of a block
constexpr int threads = 32 * WARPS, parts = CHUNK / STEPS;
constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

template <class T> struct Sequence { const T* at; i64 batch, time; }; // [b, t, …] and its strides; the last dimension is contiguous

struct Scan
{
    Sequence<TYPE> x; Sequence<DELTA> delta; const float* a; Sequence<TYPE> b, c;   // [b, t, c] twice, [c, n], [b, t, n] twice
    const float* initial; float* final;                                             // [b, c, n]; null: zero, not wanted
    TYPE* y;                                                                        // [b, t, c]
    float* starts;                                                                  // h before every chunk, [b, chunks, c, padded]; null: not kept
    float* links; float* totals;                                                    // of segments: [b, segments, c, padded], null where there is one only; the sum of Δ, [b, segments, c]
    Sequence<TYPE> dy; const float* dfinal;                                         // like y, final (null: zero)
    TYPE* dx; DELTA* ddelta;                                                        // [b, t, c]
    float* da; float* db; float* dc; float* dinitial;                               // to be summed over the first: [b · segments, c, n], [blocks of channels, b, t, n] twice; [b, c, n]
    int time, channels, chunks, segment, aligned;                                   // segment: its chunks; aligned: rows of x, Δ, dy can be copied 16 bytes at a time
};

typedef float States[CHANNELS][4];

struct __align__(16) Tile // a chunk of what a block needs
{
    TYPE x[CHUNK][width];
    DELTA delta[CHUNK][width];
    float b[CHUNK][padded], c[CHUNK][padded];
};

// Where a thread stands.
struct Place
{
    int batch, segment, first, end;     // its chunks: first … end − 1
    int column, channel, state;         // its first channel in the block's tile and in the tensor; its first state
};

DEVICE Place place(const Scan& p)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = (warp * groups + lane / lanes) * CHANNELS;
    int segment = blockIdx.y, first = segment * p.segment;
    return { (int)blockIdx.z, segment, first, min(first + p.segment, p.chunks), column, (int)blockIdx.x * width + column, lane % lanes * 4 };
}

// ---- memory

template <class T, int count> struct __align__(sizeof(T) * count) Pack { T element[count]; };

template <int count, class T> DEVICE void read(float (&to)[count], const T* from)
{
    Pack<T, count> pack = *(const Pack<T, count>*)from;
    #pragma unroll
    for (int i = 0; i < count; i++) to[i] = to_float(pack.element[i]);
}

// States from [c, n] (null: zeros) or, padded, from [c, padded].
DEVICE void read_states(States& h, const float* from, const Scan& p, const Place& own)
{
    #pragma unroll
    for (int k = 0; k < CHANNELS; k++)
        #pragma unroll
        for (int i = 0; i < 4; i++)
            h[k][i] = from && own.channel + k < p.channels && own.state + i < STATES ? from[(i64)(own.channel + k) * STATES + own.state + i] : 0;
}

DEVICE void write_states(float* to, const States& h, const Scan& p, const Place& own)
{
    #pragma unroll
    for (int k = 0; k < CHANNELS; k++)
        #pragma unroll
        for (int i = 0; i < 4; i++)
            if (own.channel + k < p.channels && own.state + i < STATES) to[(i64)(own.channel + k) * STATES + own.state + i] = h[k][i];
}

DEVICE void read_padded(States& h, const float* from, const Scan& p, const Place& own)
{
    #pragma unroll
    for (int k = 0; k < CHANNELS; k++)
        if (own.channel + k < p.channels) read(h[k], from + (i64)(own.channel + k) * padded + own.state);
        else h[k][0] = h[k][1] = h[k][2] = h[k][3] = 0;
}

DEVICE void write_padded(float* to, const States& h, const Scan& p, const Place& own)
{
    #pragma unroll
    for (int k = 0; k < CHANNELS; k++)
        if (own.channel + k < p.channels) *(float4*)(to + (i64)(own.channel + k) * padded + own.state) = make_float4(h[k][0], h[k][1], h[k][2], h[k][3]);
}

// A, scaled for powers of two.
DEVICE void read_rates(States& rates, const Scan& p, const Place& own)
{
    read_states(rates, p.a, p, own);
    #pragma unroll
    for (int k = 0; k < CHANNELS; k++)
        #pragma unroll
        for (int i = 0; i < 4; i++) rates[k][i] *= log2_e;
}

// Starts to bring the block's channels of a chunk; zeros beyond the end: Δ = 0 and x = 0 leave a state as it is.
template <class T> DEVICE void fetch(T (&to)[CHUNK][width], const Sequence<T>& from, const Scan& p, int chunk)
{
    const T* source = from.at + blockIdx.z * from.batch + (i64)chunk * CHUNK * from.time + blockIdx.x * width;
    int rows = p.time - chunk * CHUNK, columns = p.channels - blockIdx.x * width;
    constexpr int vector = 16 / sizeof(T), vectors = width / vector;
    static_assert(width % vector == 0, "a row of the tile consists of 16-byte vectors");
    if (p.aligned)
        for (int i = threadIdx.x; i < CHUNK * vectors; i += threads)
        {
            int row = i / vectors, column = i % vectors * vector;
            copy_async(&to[row][column], source + row * from.time + column, row < rows && column < columns);
        }
    else
        for (int i = threadIdx.x; i < CHUNK * width; i += threads)
        {
            int row = i / width, column = i % width;
            to[row][column] = row < rows && column < columns ? source[row * from.time + column] : from_float<T>(0);
        }
}

// B or C of a chunk.
DEVICE void fetch(float (&to)[CHUNK][padded], const Sequence<TYPE>& from, const Scan& p, int chunk)
{
    const TYPE* source = from.at + blockIdx.z * from.batch + (i64)chunk * CHUNK * from.time;
    int rows = p.time - chunk * CHUNK;
    for (int i = threadIdx.x; i < CHUNK * padded; i += threads)
    {
        int row = i / padded, state = i % padded;
        to[row][state] = row < rows && state < STATES ? to_float(source[row * from.time + state]) : 0;
    }
}

DEVICE void fetch(Tile& tile, const Scan& p, int chunk)
{
    fetch(tile.delta, p.delta, p, chunk);
    fetch(tile.x, p.x, p, chunk);
    fetch(tile.b, p.b, p, chunk);
    fetch(tile.c, p.c, p, chunk);
}

// ---- sums over lanes

// Sums each of `count` values over `reach` lanes that lie `stride` apart. As long as a lane has several values it hands over one half of them and sums the other, so that in the end
// each lane has a share of the sums, `Share<count, reach>::held` of them in the first places.
template <int count, int reach, int stride> DEVICE void sum_over_lanes(float (&value)[count])
{
    int held = count;
    #pragma unroll
    for (int distance = reach / 2; distance > 0; distance /= 2)
    {
        bool upper = threadIdx.x & distance * stride;
        if (held > 1)
        {
            held /= 2;
            #pragma unroll
            for (int i = 0; i < count / 2; i++)
                if (i < held)
                {
                    float kept = upper ? value[i + held] : value[i], given = upper ? value[i] : value[i + held];
                    value[i] = kept + shuffle_xor(given, distance * stride);
                }
        }
        else value[0] += shuffle_xor(value[0], distance * stride);
    }
}

// Which sums the lane with this index among `reach` ends up with: `held` of them from `first` on. Only one of several lanes with the same sum is its owner.
template <int count, int reach> struct Share
{
    static constexpr int held = count > reach ? count / reach : 1;
    int first;
    bool owner;
    __device__ Share(int index) : first(index * count / reach), owner(index * count % reach == 0 || count >= reach) { }
};

// ---- forward

// One position: h becomes the next state.
DEVICE void advance(States& h, const States& rates, const float (&step)[CHANNELS], const float (&x)[CHANNELS], const float (&b)[4])
{
    #pragma unroll
    for (int k = 0; k < CHANNELS; k++)
    {
        float input = step[k] * x[k];
        #pragma unroll
        for (int i = 0; i < 4; i++) h[k][i] = exp2_fast(step[k] * rates[k][i]) * h[k][i] + input * b[i];
    }
}

KERNEL(selective_scan_forward, Scan, threads)
{
    SHARED_MEMORY(memory);
    Tile* tiles = (Tile*)memory; // two, taking turns
    Place own = place(p);
    Share<CHANNELS, lanes> share(own.state / 4);
    States h, rates;
    read_rates(rates, p, own);
    i64 row = (i64)own.batch * gridDim.y + own.segment;
    if (p.links) read_padded(h, p.links + row * p.channels * padded, p, own);
    else read_states(h, p.initial ? p.initial + (i64)own.batch * p.channels * STATES : nullptr, p, own);

    fetch(tiles[0], p, own.first);
    copy_commit();
    for (int chunk = own.first; chunk < own.end; chunk++)
    {
        if (chunk + 1 < own.end) fetch(tiles[(chunk + 1 - own.first) % 2], p, chunk + 1);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        const Tile& tile = tiles[(chunk - own.first) % 2];
        if (p.starts) write_padded(p.starts + ((i64)own.batch * p.chunks + chunk) * p.channels * padded, h, p, own);
        int rows = min(CHUNK, p.time - chunk * CHUNK);
        TYPE* to = p.y + ((i64)own.batch * p.time + (i64)chunk * CHUNK) * p.channels + own.channel;
        #pragma unroll 4
        for (int t = 0; t < CHUNK; t++)
        {
            float step[CHANNELS], x[CHANNELS], b[4], c[4], y[CHANNELS];
            read(step, &tile.delta[t][own.column]);
            read(x, &tile.x[t][own.column]);
            read(b, &tile.b[t][own.state]);
            read(c, &tile.c[t][own.state]);
            advance(h, rates, step, x, b);
            #pragma unroll
            for (int k = 0; k < CHANNELS; k++) y[k] = h[k][0] * c[0] + h[k][1] * c[1] + h[k][2] * c[2] + h[k][3] * c[3];
            sum_over_lanes<CHANNELS, lanes, 1>(y);
            #pragma unroll
            for (int i = 0; i < share.held; i++)
                if (share.owner && t < rows && own.channel + share.first + i < p.channels) to[share.first + i] = from_float<TYPE>(y[i]);
            to += p.channels;
        }
        __syncthreads();
    }
    if (p.final && own.end == p.chunks) write_states(p.final + (i64)own.batch * p.channels * STATES, h, p, own);
}

// What a segment makes of an empty state (reverse: of an empty gradient), and the sum of its Δ: e^{A ΣΔ} of another state would be left.
template <bool reverse> DEVICE void segment_end(const Scan& p, Tile* tiles)
{
    Place own = place(p);
    States h = {}, rates;
    float total[CHANNELS] = {};
    read_rates(rates, p, own);
    auto chunk_at = [&](int i) { return reverse ? own.end - 1 - i : own.first + i; };
    auto bring = [&](int i)
    {
        fetch(tiles[i % 2].delta, p.delta, p, chunk_at(i));
        fetch(tiles[i % 2].x, reverse ? p.dy : p.x, p, chunk_at(i));
        fetch(tiles[i % 2].b, reverse ? p.c : p.b, p, chunk_at(i));
    };
    bring(0);
    copy_commit();
    for (int i = 0; i < own.end - own.first; i++)
    {
        if (i + 1 < own.end - own.first) bring(i + 1);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        const Tile& tile = tiles[i % 2];
        #pragma unroll 4
        for (int s = 0; s < CHUNK; s++)
        {
            int t = reverse ? CHUNK - 1 - s : s;
            float step[CHANNELS], x[CHANNELS], b[4]; // x and B, or dy and C
            read(step, &tile.delta[t][own.column]);
            read(x, &tile.x[t][own.column]);
            read(b, &tile.b[t][own.state]);
            if (!reverse) advance(h, rates, step, x, b);
            #pragma unroll
            for (int k = 0; k < CHANNELS; k++)
            {
                total[k] += step[k];
                #pragma unroll
                for (int j = 0; j < 4; j++)
                    if (reverse) h[k][j] = exp2_fast(step[k] * rates[k][j]) * (h[k][j] + x[k] * b[j]);
            }
        }
        __syncthreads();
    }
    i64 row = (i64)own.batch * gridDim.y + own.segment;
    write_padded(p.links + row * p.channels * padded, h, p, own);
    #pragma unroll
    for (int k = 0; k < CHANNELS; k++)
        if (own.state == 0 && own.channel + k < p.channels) p.totals[row * p.channels + own.channel + k] = total[k];
}

KERNEL(selective_scan_forward_ends, Scan, threads)
{
    SHARED_MEMORY(memory);
    segment_end<false>(p, (Tile*)memory);
}

KERNEL(selective_scan_backward_ends, Scan, threads)
{
    SHARED_MEMORY(memory);
    segment_end<true>(p, (Tile*)memory);
}

// Puts in place of every segment's end what comes into it: from the segment before, or, of a gradient, from the one after. One thread per batch, channel and state; grid (parts of c · padded, 1, b).
template <bool reverse> DEVICE void link(const Scan& p)
{
    int i = blockIdx.x * 256 + threadIdx.x, channel = i / padded, state = i % padded, segments = (p.chunks + p.segment - 1) / p.segment;
    if (channel >= p.channels) return;
    i64 batch = blockIdx.z, own = (batch * p.channels + channel) * STATES + state;
    const float* edge = reverse ? p.dfinal : p.initial;
    float state_here = edge && state < STATES ? edge[own] : 0, rate = state < STATES ? p.a[(i64)channel * STATES + state] * log2_e : 0;
    for (int s = 0; s < segments; s++)
    {
        i64 row = batch * segments + (reverse ? segments - 1 - s : s);
        float& link = p.links[row * p.channels * padded + i];
        float next = exp2_fast(p.totals[row * p.channels + channel] * rate) * state_here + link;
        link = state_here;
        state_here = next;
    }
}

KERNEL(selective_scan_link_forward, Scan, 256) { link<false>(p); }
KERNEL(selective_scan_link_backward, Scan, 256) { link<true>(p); }

// ---- gradient

// What the gradient has in shared memory.
struct Workspace
{
    Tile tile[STAGES];
    TYPE dy[STAGES][CHUNK][width];
    float kept[parts][CHANNELS][threads][4];    // h before every part of the chunk
    float sums[CHUNK][WARPS][2][padded];        // dB and dC over a warp's channels
};

KERNEL_MIN_BLOCKS(selective_scan_backward, Scan, threads, BLOCKS)
{
    SHARED_MEMORY(memory);
    Workspace& work = *(Workspace*)memory;
    Place own = place(p);
    int warp = threadIdx.x / 32;
    Share<2 * CHANNELS, lanes> share(own.state / 4);
    Share<8, groups> channel_share(threadIdx.x % 32 / lanes);
    States rates, dh, da = {};  // dh: what comes from later positions, e^{Δ_{t+1} A} ∘ dh_{t+1}
    read_rates(rates, p, own);
    i64 row = (i64)own.batch * gridDim.y + own.segment;
    if (p.links) read_padded(dh, p.links + row * p.channels * padded, p, own);
    else read_states(dh, p.dfinal ? p.dfinal + (i64)own.batch * p.channels * STATES : nullptr, p, own);

    auto bring = [&](int chunk)
    {
        int stage = (own.end - 1 - chunk) % STAGES;
        fetch(work.tile[stage], p, chunk);
        fetch(work.dy[stage], p.dy, p, chunk);
    };
    if (STAGES == 2) bring(own.end - 1);
    copy_commit();
    for (int chunk = own.end - 1; chunk >= own.first; chunk--)
    {
        int next = chunk - (STAGES - 1);
        if (next >= own.first) bring(next);
        copy_commit();
        copy_wait<STAGES - 1>();
        __syncthreads();
        int stage = (own.end - 1 - chunk) % STAGES;
        const Tile& tile = work.tile[stage];
        int rows = min(CHUNK, p.time - chunk * CHUNK);
        i64 position = (i64)own.batch * p.time + (i64)chunk * CHUNK; // of the chunk's first element, over the batch

        // Forward again, keeping h now and then …
        States h;
        read_padded(h, p.starts + ((i64)own.batch * p.chunks + chunk) * p.channels * padded, p, own);
        #pragma unroll 1
        for (int part = 0; ; part++)
        {
            #pragma unroll
            for (int k = 0; k < CHANNELS; k++) *(float4*)work.kept[part][k][threadIdx.x] = make_float4(h[k][0], h[k][1], h[k][2], h[k][3]);
            if (part == parts - 1) break;
            #pragma unroll
            for (int l = 0; l < STEPS; l++)
            {
                int t = part * STEPS + l;
                float step[CHANNELS], x[CHANNELS], b[4];
                read(step, &tile.delta[t][own.column]);
                read(x, &tile.x[t][own.column]);
                read(b, &tile.b[t][own.state]);
                advance(h, rates, step, x, b);
            }
        }
        // … then back, part by part, all of a part's h and e^{Δ A} in registers.
        #pragma unroll 1
        for (int part = parts - 1; part >= 0; part--)
        {
            States states[STEPS + 1], decays[STEPS];
            #pragma unroll
            for (int k = 0; k < CHANNELS; k++) read(states[0][k], work.kept[part][k][threadIdx.x]);
            #pragma unroll
            for (int l = 0; l < STEPS; l++)
            {
                int t = part * STEPS + l;
                float step[CHANNELS], x[CHANNELS], b[4];
                read(step, &tile.delta[t][own.column]);
                read(x, &tile.x[t][own.column]);
                read(b, &tile.b[t][own.state]);
                #pragma unroll
                for (int k = 0; k < CHANNELS; k++)
                {
                    float input = step[k] * x[k];
                    #pragma unroll
                    for (int i = 0; i < 4; i++)
                    {
                        decays[l][k][i] = exp2_fast(step[k] * rates[k][i]);
                        states[l + 1][k][i] = decays[l][k][i] * states[l][k][i] + input * b[i];
                    }
                }
            }
            #pragma unroll
            for (int l = STEPS - 1; l >= 0; l--)
            {
                int t = part * STEPS + l;
                float step[CHANNELS], x[CHANNELS], dy[CHANNELS], b[4], c[4];
                read(step, &tile.delta[t][own.column]);
                read(x, &tile.x[t][own.column]);
                read(dy, &work.dy[stage][t][own.column]);
                read(b, &tile.b[t][own.state]);
                read(c, &tile.c[t][own.state]);
                float over_states[2 * CHANNELS], over_channels[8] = {}; // dx, dΔ; dB, dC
                #pragma unroll
                for (int k = 0; k < CHANNELS; k++)
                {
                    float input = step[k] * x[k], dinput = 0, drate = 0; // dinput: of Δ x; drate: Σ dlog(e^{Δ A}) A, in units of log 2
                    #pragma unroll
                    for (int i = 0; i < 4; i++)
                    {
                        float d = dh[k][i] + dy[k] * c[i];
                        over_channels[i] += d * input;
                        over_channels[4 + i] += dy[k] * states[l + 1][k][i];
                        dinput += d * b[i];
                        dh[k][i] = d * decays[l][k][i];
                        float dexponent = dh[k][i] * states[l][k][i]; // of Δ A
                        drate += dexponent * rates[k][i];
                        da[k][i] += dexponent * step[k];
                    }
                    over_states[k] = dinput * step[k];
                    over_states[CHANNELS + k] = dinput * x[k] + drate * ln_2;
                }
                sum_over_lanes<2 * CHANNELS, lanes, 1>(over_states);
                #pragma unroll
                for (int i = 0; i < share.held; i++)
                {
                    int which = share.first + i, channel = own.channel + which % CHANNELS;
                    if (!share.owner || t >= rows || channel >= p.channels) continue;
                    if (which < CHANNELS) p.dx[(position + t) * p.channels + channel] = from_float<TYPE>(over_states[i]);
                    else p.ddelta[(position + t) * p.channels + channel] = from_float<DELTA>(over_states[i]);
                }
                sum_over_lanes<8, groups, lanes>(over_channels);
                #pragma unroll
                for (int i = 0; i < channel_share.held; i++)
                {
                    int which = channel_share.first + i;
                    if (channel_share.owner) work.sums[t][warp][which / 4][own.state + which % 4] = over_channels[i];
                }
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < rows * 2 * padded; i += threads)
        {
            int t = i / (2 * padded), which = i / padded % 2, state = i % padded;
            float sum = 0;
            for (int w = 0; w < WARPS; w++) sum += work.sums[t][w][which][state];
            if (state < STATES) (which ? p.dc : p.db)[(((i64)blockIdx.x * gridDim.z) * p.time + position + t) * STATES + state] = sum;
        }
    }
    write_states(p.da + row * p.channels * STATES, da, p, own);
    if (p.dinitial && own.first == 0) write_states(p.dinitial + (i64)own.batch * p.channels * STATES, dh, p, own);
}
