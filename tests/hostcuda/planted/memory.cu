// Faults in memory accesses. `shift` = 0 makes each kernel correct, 1 makes it step too far.

extern "C" __global__ void __launch_bounds__(64) global_write(double* out, int shift) {
    out[threadIdx.x + shift] = 1.0;
}

extern "C" __global__ void __launch_bounds__(64) global_read(
    const double* values, double* out, int shift) {
    out[threadIdx.x] = values[threadIdx.x + shift];
}

extern "C" __global__ void __launch_bounds__(64) dynamic_shared(double* out, int shift) {
    extern __shared__ double staged[];
    staged[threadIdx.x + shift] = 1.0;
    __syncthreads();
    out[threadIdx.x] = staged[threadIdx.x + shift];
}

extern "C" __global__ void __launch_bounds__(64) static_shared(double* out, int shift) {
    __shared__ double staged[64];
    double* there = staged + shift;  // the compiler does not see the array's size in there[i]
    there[threadIdx.x] = 1.0;
    __syncthreads();
    out[threadIdx.x] = there[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(64) integer_overflow(double* out, int shift) {
    const int offset = shift * 65536 * 65535;  // image planes need 64-bit offsets
    out[threadIdx.x] = offset;
}

extern "C" __global__ void __launch_bounds__(64) nan_to_integer(double* out, int shift) {
    out[threadIdx.x] = (int)(threadIdx.x / (double)(1 - shift) - threadIdx.x / (double)(1 - shift));
}

// Only a part of shared memory is filled, all of it is read.
extern "C" __global__ void __launch_bounds__(64) uninitialised_shared(double* out, int shift) {
    __shared__ double filled[64];
    extern __shared__ double dynamic[];
    if (threadIdx.x >= shift) filled[threadIdx.x] = dynamic[threadIdx.x] = 1.0;
    __syncthreads();
    out[threadIdx.x] = filled[threadIdx.x] + dynamic[threadIdx.x];
}
