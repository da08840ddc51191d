// Barriers and warp functions that not everybody reaches.

extern "C" __global__ void __launch_bounds__(64) two_barriers(double* out) {
    if (threadIdx.x < 40) {
        out[threadIdx.x] = 1.0;
        __syncthreads();
    } else {
        out[threadIdx.x] = 2.0;
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(64) barrier_after_return(double* out) {
    if (threadIdx.x >= 40) return;
    __syncthreads();
    out[threadIdx.x] = 1.0;
}

extern "C" __global__ void __launch_bounds__(64) barrier_for_some(double* out) {
    if (threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = 1.0;
}

extern "C" __global__ void __launch_bounds__(64) shuffle_after_return(double* out) {
    if (threadIdx.x >= 40) return;
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, (double)threadIdx.x, 1);
}

extern "C" __global__ void __launch_bounds__(64) shuffle_for_some(double* out) {
    double value = threadIdx.x;
    if (threadIdx.x < 40) value = __shfl_xor_sync(0xffffffffu, value, 1);
    out[threadIdx.x] = value;
}

extern "C" __global__ void __launch_bounds__(64) shuffle_against_barrier(double* out) {
    double value = threadIdx.x;
    if ((threadIdx.x & 31) < 20)
        value = __shfl_xor_sync(0xffffffffu, value, 1);
    else
        __syncthreads();
    out[threadIdx.x] = value;
}

extern "C" __global__ void __launch_bounds__(64) two_votes(double* out) {
    const bool low = (threadIdx.x & 31) < 10;
    if (low)
        out[threadIdx.x] = __any_sync(0xffffffffu, low);
    else
        out[threadIdx.x] = __all_sync(0xffffffffu, low);
}

extern "C" __global__ void __launch_bounds__(64) not_in_own_mask(double* out) {
    out[threadIdx.x] = __ballot_sync(0x0000ffffu, 1);
}

// Defined by nobody: the source is not in the mask. The answer is NaN.
extern "C" __global__ void __launch_bounds__(64) shuffle_from_outside(double* out) {
    const unsigned half = (threadIdx.x & 16) ? 0xffff0000u : 0x0000ffffu;
    out[threadIdx.x] = __shfl_xor_sync(half, (double)threadIdx.x, 16);
}
