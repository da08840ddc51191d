// Stamps of a point spread function. One block per source.
#include "stamps.cuh"

// Sum over a block of 128 threads; every thread gets the same bits. partial: 4 shared doubles
__device__ inline double sum_of_block(double value, double* partial) {
    value = warp_sum(value);
    if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = value;
    __syncthreads();
    return (partial[0] + partial[1]) + (partial[2] + partial[3]);
}

// Stamps of a model made of planes: see Model, Tiling and Workshop for what describes them.
//
// x, y: (n); out: (n, out_rows, out_columns), the pixels around the centre of the stamps, which
// are divided by the light of the whole stamp
extern "C" __global__ void __launch_bounds__(128, 6) psf_stamps(
    const double* planes, const double* light, const double* place, int n_planes, int node_rows,
    int node_columns, int degree, int grid_columns, int n_sub, double sampling, int n_rows,
    int n_columns, int tile_rows, int tile_columns, int span_rows, int span_columns,
    const double* x, const double* y, int out_rows, int out_columns, double* out) {
    extern __shared__ double shared[];
    __shared__ double partial[4];
    const double xs = x[blockIdx.x], ys = y[blockIdx.x];
    const int n_out = out_rows * out_columns;
    double* stamp = out + (long long)blockIdx.x * n_out;
    if (!is_finite(xs) || !is_finite(ys)) {  // the whole block leaves
        for (int k = threadIdx.x; k < n_out; k += blockDim.x) stamp[k] = NAN;
        return;
    }

    const Model model = {planes, light,        place, n_planes, node_rows, node_columns,
                         degree, grid_columns, n_sub, sampling};
    const Tiling tiling = {n_rows, n_columns, tile_rows, tile_columns, span_rows, span_columns};
    Workshop work = open_workshop(model, tiling, shared);
    const int top = n_rows / 2 - out_rows / 2, left = n_columns / 2 - out_columns / 2;
    double sum = 0;
    for_each_pixel(model, tiling, work, xs, ys, [&](int row, int column, double value) {
        const int j = row - top, i = column - left;
        if (j >= 0 && j < out_rows && i >= 0 && i < out_columns) stamp[j * out_columns + i] = value;
        sum += value;
    });
    const double total = sum_of_block(sum, partial);  // its barrier shows the pixels, too
    const double divisor = total > 0 && total < INFINITY ? total : 1;
    for (int k = threadIdx.x; k < n_out; k += blockDim.x) {
        // Behind the centre of a side of even length there is a pixel less than before it.
        const bool is_there = top + k / out_columns < n_rows && left + k % out_columns < n_columns;
        stamp[k] = is_there ? stamp[k] / divisor : 0;
    }
}

// Stamps of Gaussians integrated over the pixels.
//
// fwhm: (n), or (1) for all if fwhm_step is 0 instead of 1; x, y: (n)
// out: (n, size, size), the pixels around the centre of the stamps, which are divided by the light
// of the whole stamp
// 2 size doubles of dynamic shared memory
extern "C" __global__ void __launch_bounds__(128, 8) gaussian_stamps(
    const double* fwhm, int fwhm_step, const double* x, const double* y, int size, double* out) {
    extern __shared__ double profiles[];
    const double xs = x[blockIdx.x], ys = y[blockIdx.x];
    const double width = fwhm[(long long)blockIdx.x * fwhm_step];
    double* stamp = out + (long long)blockIdx.x * size * size;
    const bool valid = is_finite(xs) && is_finite(ys);
    const int warp = threadIdx.x >> 5;
    if (warp == 0) gaussian_profile(size / 2, ys - rint(ys), width, profiles);
    if (warp == 1) gaussian_profile(size / 2, xs - rint(xs), width, profiles + size);
    __syncthreads();
    for (int k = threadIdx.x; k < size * size; k += blockDim.x)
        stamp[k] = valid ? profiles[k / size] * profiles[size + k % size] : NAN;
}
