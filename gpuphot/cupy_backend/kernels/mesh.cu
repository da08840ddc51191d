// Sigma-clipped level and standard deviation of the background mesh cells. One block per cell.
#include "sample.cuh"

struct CellPixels {
    const double* data;
    const unsigned char* bad;
    long long first;  // index of the cell's first pixel
    int width, n_rows, n_columns;

    __device__ long long count() const { return (long long)n_rows * n_columns; }
    __device__ bool value(long long k, double& value) const {
        const long long pixel = first + k / n_columns * width + k % n_columns;
        value = data[pixel];
        return !(bad[pixel] & BAD_MASKED);
    }
};

__device__ inline CellPixels cell_of_block(const double* data, const unsigned char* bad,
                                           int height, int width, int cell_height,
                                           int cell_width) {
    const int n_cells_x = (width + cell_width - 1) / cell_width;
    const int top = blockIdx.x / n_cells_x * cell_height;
    const int left = blockIdx.x % n_cells_x * cell_width;
    CellPixels cell;
    cell.data = data;
    cell.bad = bad;
    cell.first = (long long)top * width + left;
    cell.width = width;
    cell.n_rows = min(cell_height, height - top);
    cell.n_columns = min(cell_width, width - left);
    return cell;
}

// Median where the sample is skewed, else SExtractor's estimate of the mode.
__device__ inline void store_level(const Statistics& left, double min_good, double* level,
                                   double* rms) {
    if (threadIdx.x != 0) return;
    double value = left.mean;
    if (left.std != 0) {
        const bool skewed = fabs(left.mean - left.median) / left.std >= 0.3;
        value = skewed ? left.median : 2.5 * left.median - 1.5 * left.mean;
    }
    const bool enough = left.count > min_good;
    level[blockIdx.x] = enough ? left.reference + value : NAN;
    rms[blockIdx.x] = enough ? left.std : NAN;
}

// data, bad: (height, width); level, rms: (cells), NaN where min_good pixels or fewer are left
// Dynamic shared memory: a double for each pixel of a full cell, up to the next power of two.
extern "C" __global__ void __launch_bounds__(256, 2) mesh_statistics(
    const double* data, const unsigned char* bad, int height, int width, int cell_height,
    int cell_width, double min_good, double* level, double* rms) {
    extern __shared__ double sample[];
    __shared__ Scratch scratch;
    const CellPixels cell = cell_of_block(data, bad, height, width, cell_height, cell_width);
    store_level(clip_in_shared(cell, true, sample, scratch), min_good, level, rms);
}

// The same for cells that shared memory does not hold.
extern "C" __global__ void __launch_bounds__(256, 2) mesh_statistics_streaming(
    const double* data, const unsigned char* bad, int height, int width, int cell_height,
    int cell_width, double min_good, double* level, double* rms) {
    __shared__ Scratch scratch;
    const CellPixels cell = cell_of_block(data, bad, height, width, cell_height, cell_width);
    store_level(clip_streaming(cell, true, scratch), min_good, level, rms);
}
