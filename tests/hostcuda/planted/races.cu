// Missing synchronisation: each kernel lacks a barrier or an atomic operation.

// Reads a neighbour's value before it can know that it is there.
extern "C" __global__ void __launch_bounds__(64) missing_barrier(double* out) {
    __shared__ double staged[64];
    staged[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = staged[63 - threadIdx.x];
}

// The second round overwrites what others may not have read yet.
extern "C" __global__ void __launch_bounds__(64) barrier_missing_before_overwriting(double* out) {
    __shared__ double staged[64];
    double sum = 0.0;
    for (int round = 0; round < 2; ++round) {
        staged[threadIdx.x] = threadIdx.x + 100.0 * round;
        __syncthreads();
        sum += staged[63 - threadIdx.x];
    }
    out[threadIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(64) shared_update(double* out) {
    __shared__ double sum;
    if (threadIdx.x == 0) sum = 0.0;
    __syncthreads();
    sum += 1.0;
    __syncthreads();
    out[threadIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(64) global_update(double* out) { out[0] += 1.0; }

// Shuffles and votes order no memory accesses; __syncwarp does.
extern "C" __global__ void __launch_bounds__(64) vote_instead_of_syncwarp(double* out) {
    __shared__ double staged[64];
    staged[threadIdx.x] = threadIdx.x;
    if (__any_sync(0xffffffffu, threadIdx.x == 3)) out[threadIdx.x] = staged[threadIdx.x ^ 1];
}

// Partners of another warp are not reached by __syncwarp.
extern "C" __global__ void __launch_bounds__(64) syncwarp_instead_of_barrier(double* out) {
    __shared__ double staged[64];
    staged[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = staged[63 - threadIdx.x];
}

// No barrier reaches another block.
extern "C" __global__ void __launch_bounds__(64) between_blocks(double* out) {
    out[blockIdx.x] = blockIdx.x;
    __syncthreads();
    if (blockIdx.x > 0 && threadIdx.x == 0) out[blockIdx.x - 1] += 1.0;
}

// Atomic, hence no race, but the order of the additions decides the last bits.
extern "C" __global__ void __launch_bounds__(64) floating_point_atomic(double* out) {
    atomicAdd(out, 1.0 / (1.0 + threadIdx.x));
}

// Half of the warp exchanges with itself behind a barrier of its own: no race.
extern "C" __global__ void __launch_bounds__(64) half_warp(double* out) {
    __shared__ double staged[64];
    const unsigned half = (threadIdx.x & 16) ? 0xffff0000u : 0x0000ffffu;
    staged[threadIdx.x] = threadIdx.x;
    __syncwarp(half);
    out[threadIdx.x] = staged[threadIdx.x ^ 1];
}

// Half of the warp exchanges with the other half behind barriers of the halves.
extern "C" __global__ void __launch_bounds__(64) half_warp_too_small(double* out) {
    __shared__ double staged[64];
    const unsigned half = (threadIdx.x & 16) ? 0xffff0000u : 0x0000ffffu;
    staged[threadIdx.x] = threadIdx.x;
    __syncwarp(half);
    out[threadIdx.x] = staged[threadIdx.x ^ 16];
}
