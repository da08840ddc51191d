// Without a fault: every tool must let it pass. It uses everything that the package's kernels use.
__device__ inline double warp_sum(double value) {
    for (int step = 16; step > 0; step >>= 1)
        value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// out[block] = sum over the block's values of sqrt((r - u)(r + u)) for |u| <= r; above[0] counts
// the values beyond; last[i] is 1 where a value is the last of its 32.
extern "C" __global__ void __launch_bounds__(128) chords(
    const double* values, long long n, double r, double* out, int* above, unsigned char* last) {
    extern __shared__ double staged[];
    __shared__ double sums[4];
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    staged[threadIdx.x] = i < n ? values[i] : 0.0;
    __syncthreads();
    const double u = staged[blockDim.x - 1 - threadIdx.x];  // a neighbour wrote it
    if (fabs(u) > r) atomicAdd(above, 1);
    const double chord = fabs(u) > r ? 0.0 : sqrt((r - u) * (r + u));
    const double sum = warp_sum(chord);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) out[blockIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
    if (i < n) last[i] = lane == 31;
    staged[threadIdx.x] = u;
    __syncwarp();
    const double next = staged[threadIdx.x ^ 1];
    if (__any_sync(0xffffffffu, isnan(next)) && lane == 0) out[blockIdx.x] = next;
}
