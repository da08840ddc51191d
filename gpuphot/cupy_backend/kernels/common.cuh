// What all kernels share: constants, the bits of bad pixels, reductions in a fixed order.
#pragma once

#ifndef INFINITY  // NVRTC knows neither
#define INFINITY __longlong_as_double(0x7ff0000000000000LL)
#endif
#ifndef NAN
#define NAN __longlong_as_double(0x7ff8000000000000LL)
#endif

#define FULL_WARP 0xffffffffu
#define PI 3.14159265358979323846

// gpuphot.models.frame.Bad
#define BAD_IMAGE 1
#define BAD_MASK 2
#define BAD_BACKGROUND 4
#define BAD_NOISE 8
#define BAD_MASKED (BAD_IMAGE | BAD_MASK)
#define BAD_UNUSABLE (BAD_IMAGE | BAD_MASK | BAD_BACKGROUND)

// Sum over a warp; every lane gets the same bits.
__device__ inline double warp_sum(double value) {
    for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(FULL_WARP, value, step);
    return value;
}

// Sum over a block of whole warps, in a fixed order; every thread gets the same bits.
// of_warp: shared, a double for each warp
__device__ inline double block_sum(double value, double* of_warp) {
    value = warp_sum(value);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x >> 5] = value;
    __syncthreads();
    double total = 0;
    for (int warp = 0; warp < (int)(blockDim.x >> 5); ++warp) total += of_warp[warp];
    return total;
}
