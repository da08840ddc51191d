// Faults that only a compiler for GPUs can tell.

// An array with indices known only at run time lies in local memory: no spills, but a frame.
extern "C" __global__ void __launch_bounds__(128) indexed_array(
    const double* values, const int* where, double* out) {
    double kept[16];
    for (int k = 0; k < 16; ++k) kept[k] = values[16 * threadIdx.x + k];
    out[threadIdx.x] = kept[where[threadIdx.x] & 15];
}

__device__ __noinline__ double pick(const double* values, int where) {
    double kept[16];
    for (int k = 0; k < 16; ++k) kept[k] = values[k] * k;
    return kept[where & 15];
}

// The same behind calls: the frame counts with the kernel.
extern "C" __global__ void __launch_bounds__(128) indexed_array_in_a_function(
    const double* values, const int* where, double* out) {
    out[threadIdx.x] = pick(values, where[threadIdx.x]) + pick(values + 1, where[threadIdx.x] + 1);
}

// Blocks of 1024 leave 64 registers to a thread; 48 doubles alone take 96.
extern "C" __global__ void __launch_bounds__(1024) spilling(const double* values, double* out) {
    double kept[48];
#pragma unroll
    for (int k = 0; k < 48; ++k) kept[k] = values[1024 * k + threadIdx.x];
    double sum = 0.0;
#pragma unroll
    for (int pass = 1; pass < 4; ++pass) {
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 48; ++k) {
            kept[k] = kept[k] * kept[(k + pass) % 48] + sum;
            sum += kept[k];
        }
    }
#pragma unroll
    for (int k = 0; k < 48; ++k) out[1024 * k + threadIdx.x] = kept[k];
}

// No spills, but more registers than most kernels may have.
extern "C" __global__ void __launch_bounds__(128) many_registers(
    const double* values, double* out) {
    double kept[48];
#pragma unroll
    for (int k = 0; k < 48; ++k) kept[k] = values[128 * k + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 48; ++k) out[128 * k + threadIdx.x] = kept[k] * kept[47 - k];
}
