// Makes a .cu file compile and run on a CPU: g++ includes this header in front of it, unchanged.
// README.md says what a run like this shows and what it cannot show.
#pragma once
#include "emulator/device_math.h"
#include "emulator/runtime.h"

// The file and line as the #line directives of the flattened source give them.
#define HOSTCUDA_HERE (hostcuda::Place{__FILE__, __LINE__})

#include "emulator/atomics.h"
#include "emulator/warp.h"

// ---- keywords -----------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

// All static shared memory lies in one section, which the scheduler poisons before every block.
// `used` keeps the compiler from concluding what it holds. build.py rewrites the dynamic kind,
// extern __shared__ double name[];
#define __shared__ static __attribute__((section("hostcuda_shared"), used))

namespace hostcuda {
template <class T>
inline T* dynamic_shared() {
    return static_cast<T*>(state.dynamic_shared);
}
}  // namespace hostcuda

// ---- built-in variables -------------------------------------------------------------------------

#define threadIdx (static_cast<const uint3&>(hostcuda::state.thread))
#define blockIdx (static_cast<const uint3&>(hostcuda::state.block))
#define blockDim (static_cast<const dim3&>(hostcuda::state.block_size))
#define gridDim (static_cast<const dim3&>(hostcuda::state.grid_size))
#define warpSize 32

// ---- barriers and memory ------------------------------------------------------------------------

#define __syncthreads() ((void)hostcuda::block_barrier(HOSTCUDA_HERE, false))
#define __syncthreads_count(predicate) int(hostcuda::block_barrier(HOSTCUDA_HERE, predicate))
#define __syncthreads_or(predicate) int(hostcuda::block_barrier(HOSTCUDA_HERE, predicate) > 0)
#define __syncthreads_and(predicate) int(hostcuda::block_barrier(HOSTCUDA_HERE, !(predicate)) == 0)
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
inline T __ldg(const T* address) {
    return *address;
}

struct alignas(16) double2 {
    double x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) int2 {
    int x, y;
};
inline double2 make_double2(double x, double y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }

#include "emulator/export.h"
