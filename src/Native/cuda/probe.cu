// The smallest kernel with a result: y = scale x. Compiling and loading it shows whether kernels can be used at all.

struct Params { const float* x; float* y; float scale; int n; };

KERNEL(probe, Params, 256)
{
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < p.n) p.y[i] = p.scale * p.x[i];
}
