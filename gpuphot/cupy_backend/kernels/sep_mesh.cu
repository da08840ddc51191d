// SEP's background: the mode of the pixels in every cell of a mesh, and splines through the cells.
//
// Pixels are rounded to single precision. The sums of a cell run one pixel after the other: on a
// bright sky the variance hangs on how they round. All else in a cell are counts, which are exact
// in any order.
#include "common.cuh"

#define CELLS_PER_BLOCK 4                    // whose pixels are added at the same time
#define TILE 256                             // pixels of each that are added between two barriers
#define LOWEST -9.9999994e29f                // SEP takes -1e30 and less for no value
#define MAX_LEVELS 4096                      // bins of a histogram
#define LEVELS_PER_PIXEL 0.9973557010035817  // sqrt(2 / pi) * 5 / 4

// Every `step`-th pixel of a cell.
struct CellPixels {
    const double* data;  // from the first pixel of the cell on
    const unsigned char* bad;
    int width, n_rows, n_columns, row, column, row_step, column_step;

    __device__ long long count() const { return (long long)n_rows * n_columns; }

    // Whether the pixel is unmasked, and its value; goes on to the next one.
    __device__ bool next(float& value) {
        const long long pixel = (long long)row * width + column;
        value = (float)data[pixel];
        row += row_step;
        column += column_step;
        if (column >= n_columns) {
            column -= n_columns;
            ++row;
        }
        return !bad[pixel];
    }
};

__device__ inline CellPixels pixels_of_cell(const double* data, const unsigned char* bad,
                                            int height, int width, int cell_height,
                                            int cell_width, int cell, int first, int step) {
    const int n_cells_x = (width - 1) / cell_width + 1;
    const int top = cell / n_cells_x * cell_height, left = cell % n_cells_x * cell_width;
    CellPixels pixels;
    pixels.data = data + ((long long)top * width + left);
    pixels.bad = bad + ((long long)top * width + left);
    pixels.width = width;
    pixels.n_rows = min(cell_height, height - top);
    pixels.n_columns = min(cell_width, width - left);
    pixels.row = first / pixels.n_columns;
    pixels.column = first % pixels.n_columns;
    pixels.row_step = step / pixels.n_columns;
    pixels.column_step = step % pixels.n_columns;
    return pixels;
}

struct Moments {
    double n, mean, std;
};

__device__ inline Moments moments(double n, double sum, double sum_of_squares) {
    Moments result;
    result.n = n;
    result.mean = sum / n;
    result.std = sqrt(fmax(sum_of_squares / n - result.mean * result.mean, 0.0));
    return result;
}

// Values and squares, and the sums of both; odd rows for the sake of the memory banks.
struct Sums {
    double added[CELLS_PER_BLOCK][TILE + 1][2], total[CELLS_PER_BLOCK][2];
};

// Of the unmasked pixels in [low, high], up to `size` of them. Each warp has a cell and brings
// its pixels; each of the first threads of the block adds the values of a cell, or the squares.
__device__ inline Moments moments_within(CellPixels pixels, long long size, float low,
                                         float high, Sums& sums) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int of_cell = threadIdx.x >> 1, power = threadIdx.x & 1;
    const long long count = pixels.count();
    double total = 0;
    int n = 0;
    for (long long begin = 0; begin < size; begin += TILE) {
        const int n_pixels = (int)(size - begin < TILE ? size - begin : TILE);
        for (int k = lane; k < n_pixels; k += 32) {
            float pixel;
            const bool kept =
                begin + k < count && pixels.next(pixel) && pixel >= low && pixel <= high;
            const double value = kept ? pixel : 0.0f;  // adding 0 rounds nothing
            sums.added[warp][k][0] = value;
            sums.added[warp][k][1] = value * value;
            n += kept;
        }
        __syncthreads();
        if (of_cell < CELLS_PER_BLOCK) {
#pragma unroll 16
            for (int k = 0; k < n_pixels; ++k) total += sums.added[of_cell][k][power];
        }
        __syncthreads();
    }
    if (of_cell < CELLS_PER_BLOCK) sums.total[of_cell][power] = total;
    __syncthreads();
    return moments(warp_sum(n), sums.total[warp][0], sums.total[warp][1]);
}

// How the histogram of a cell is laid out. One warp per cell.
// data, bad: (height, width); mean, zero, scale, n_levels: (n_cells)
// zero, scale: bin k is centred on zero + k * scale; n_levels: 0 where the cell is bad
extern "C" __global__ void __launch_bounds__(128, 8) sep_cell_levels(
    const double* data, const unsigned char* bad, int height, int width, int cell_height,
    int cell_width, int n_cells, float* mean, float* zero, float* scale, int* n_levels) {
    __shared__ Sums sums;
    const int cell = blockIdx.x * CELLS_PER_BLOCK + (threadIdx.x >> 5);
    const long long size = (long long)cell_height * cell_width;
    // Warps without a cell do the last one once more, and keep it for themselves.
    const CellPixels pixels = pixels_of_cell(data, bad, height, width, cell_height, cell_width,
                                             min(cell, n_cells - 1), threadIdx.x & 31, 32);
    const Moments all = moments_within(pixels, size, LOWEST, INFINITY, sums);
    const bool enough = !((float)all.n < (float)(0.5 * pixels.count()));
    const float low = (float)(all.mean - 2 * all.std), high = (float)(all.mean + 2 * all.std);
    const Moments kept = moments_within(pixels, size, low, high, sums);
    if (cell >= n_cells || (threadIdx.x & 31) != 0) return;
    const int levels = (int)fmin(LEVELS_PER_PIXEL * kept.n + 1, (double)MAX_LEVELS);
    mean[cell] = (float)kept.mean;
    zero[cell] = (float)(kept.mean - 5 * kept.std);
    scale[cell] = kept.std > 0 ? (float)(10 * kept.std / levels) : 1.0f;
    n_levels[cell] = enough ? levels : 0;
}

// Counts of the pixels below each bin of a cell's histogram, and below its end.
struct Histogram {
    int below[MAX_LEVELS + 1], of_warp[32];

    __device__ int count(int bin) const { return below[bin + 1] - below[bin]; }
};

// Sums of what earlier threads of the block have.
__device__ inline int sum_before(int value, int* of_warp) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int sum = value;
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(FULL_WARP, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    for (int w = 0; w < warp; ++w) sum += of_warp[w];
    return sum - value;
}

__device__ inline void fill(CellPixels pixels, float zero, float scale, int n_levels,
                            Histogram& histogram) {
    int* counts = histogram.below + 1;
    for (int bin = threadIdx.x; bin < n_levels; bin += blockDim.x) counts[bin] = 0;
    if (threadIdx.x == 0) histogram.below[0] = 0;
    __syncthreads();
    const float offset = (float)(0.499999 - zero / scale);
    for (long long k = threadIdx.x; k < pixels.count(); k += blockDim.x) {
        float pixel;
        if (!pixels.next(pixel)) continue;
        const float bin = pixel / scale + offset;
        // Truncated, not rounded down: the first bin is wider.
        if (bin > -1 && bin < n_levels) atomicAdd(&counts[(int)bin], 1);
    }
    __syncthreads();
    // Each thread adds up a run of bins, of odd length for the sake of the memory banks.
    const int length = (n_levels / (int)blockDim.x + 1) | 1;
    const int begin = min(n_levels, (int)threadIdx.x * length);
    const int end = min(n_levels, begin + length);
    int sum = 0;
    for (int bin = begin; bin < end; ++bin) sum += counts[bin];
    sum = sum_before(sum, histogram.of_warp);
    for (int bin = begin; bin < end; ++bin) counts[bin] = sum += counts[bin];
    __syncthreads();
}

// The first bin of [first, last] with at least as many counts to its left as to its right.
__device__ inline int middle_bin(const Histogram& histogram, int first, int last) {
    const int before = histogram.below[first], total = histogram.below[last + 1];
    while (first < last) {
        const int bin = first + (last - first) / 2;
        if (histogram.below[bin] - before >= total - histogram.below[bin + 1]) {
            last = bin;
        } else {
            first = bin + 1;
        }
    }
    return first;
}

// Level and standard deviation of each cell, NaN where it is bad: 3-sigma clipping around the
// median of its histogram, then SExtractor's estimate of the mode. One block per cell, of which
// one warp is left when the histogram is complete.
// level, rms: (cells); the others: see sep_cell_levels
extern "C" __global__ void __launch_bounds__(128) sep_cell_mode(
    const double* data, const unsigned char* bad, int height, int width, int cell_height,
    int cell_width, const float* mean, const float* zero, const float* scale,
    const int* n_levels, float* level, float* rms) {
    __shared__ Histogram histogram;
    const int cell = blockIdx.x, end = n_levels[cell] - 1;
    if (end < 0) {
        if (threadIdx.x == 0) level[cell] = rms[cell] = NAN;
        return;
    }
    fill(pixels_of_cell(data, bad, height, width, cell_height, cell_width, cell, threadIdx.x,
                        blockDim.x),
         zero[cell], scale[cell], end + 1, histogram);
    if (threadIdx.x >= 32) return;
    int first = 0, last = end;
    double std = 10.0 * end, before = 1, average = mean[cell], median = mean[cell];
    for (int i = 0; i < 100 && std >= 0.1 && fabs(std / before - 1) > 1e-4; ++i) {
        const int high = middle_bin(histogram, first, last), low = high - 1;
        const int n_low = histogram.below[high] - histogram.below[first];
        const int n_high = histogram.below[last + 1] - histogram.below[high];
        median = 0;
        if (low >= 0) {
            const int peak = max(histogram.count(low), histogram.count(high));
            median = low + 0.5 + ((double)n_high - n_low) / (2.0 * peak);
        }
        long long sum = 0, sum_of_squares = 0;
        for (int bin = first + threadIdx.x; bin <= last; bin += 32) {
            const long long product = (long long)bin * histogram.count(bin);
            sum += product;
            sum_of_squares += bin * product;
        }
        const Moments within =
            moments(max(1, n_low + n_high), warp_sum(sum), warp_sum(sum_of_squares));
        before = std;
        std = within.std;
        average = within.mean;
        const double left = median - 3 * std, right = median + 3 * std;
        first = left > 0 ? (int)(left + 0.5) : 0;
        last = right < end ? (int)round(right) : end;
    }
    if (threadIdx.x != 0) return;
    double mode = median;
    if (std == 0) {
        mode = average;
    } else if (fabs((average - median) / std) < 0.3) {
        mode = 2.5 * median - 1.5 * average;
    }
    level[cell] = (float)(zero[cell] + mode * scale[cell]);
    rms[cell] = (float)(std * scale[cell]);
}

// The splines along y at every row of the image, and their second derivatives along x.
// One thread per row and map: a recursion runs along the row.
// mesh, mesh_derivatives: (2, ny, nx); lower, weight: (height), see models.sep_mesh.row_weights
// factors: (nx), of the recursion; nodes, derivatives: (2, nx, height)
extern "C" __global__ void __launch_bounds__(64) sep_mesh_rows(
    const float* mesh, const float* mesh_derivatives, const int* lower, const float* weight,
    const float* factors, int height, int ny, int nx, float* nodes, float* derivatives) {
    const int thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= 2 * height) return;
    const int map = thread / height, row = thread % height;
    const float* values = mesh + ((long long)map * ny + lower[row]) * nx;
    const float* curvatures = mesh_derivatives + ((long long)map * ny + lower[row]) * nx;
    const long long first = (long long)map * nx * height + row;
    const float t = weight[row], s = 1 - t;
    for (int i = 0; i < nx; ++i) {
        float node = values[i];
        if (ny > 1) {
            node = s * node + t * values[nx + i] + (s * s * s - s) * curvatures[i] +
                   (t * t * t - t) * curvatures[nx + i];
        }
        nodes[first + (long long)i * height] = node;
        derivatives[first + (long long)i * height] = 0;
    }
    if (ny == 1) return;
    float derivative = 0;
    for (int i = 1; i < nx - 1; ++i) {
        const float* node = nodes + (first + (long long)i * height);
        derivative = factors[i] * (derivative - 6 * (node[height] + node[-height] - 2 * *node));
        derivatives[first + (long long)i * height] = derivative;
    }
    derivative = 0;
    for (int i = nx - 2; i > 0; --i) {
        float& here = derivatives[first + (long long)i * height];
        derivative = (float)((double)(factors[i] * derivative + here) / 6);
        here = derivative;
    }
}

// One map at a pixel between node k and the next; d: distance from it, in cells.
__device__ inline float along_row(const float* nodes, const float* derivatives, long long k,
                                  int height, float d) {
    const float c = 1 - d;
    return c * (nodes[k] + (c * c - 1) * derivatives[k]) +
           d * (nodes[k + height] + (d * d - 1) * derivatives[k + height]);
}

// Both maps on every pixel. One thread per pixel.
// nodes, derivatives: (2, nx, height); lower, weight: (width); background, rms: (height, width)
extern "C" __global__ void __launch_bounds__(256) sep_mesh_maps(
    const float* nodes, const float* derivatives, const int* lower, const float* weight,
    int height, int width, int nx, float* background, float* rms) {
    const int blocks_per_row = (width - 1) / (int)blockDim.x + 1;
    const int y = blockIdx.x / blocks_per_row;
    const int x = blockIdx.x % blocks_per_row * blockDim.x + threadIdx.x;
    if (x >= width) return;
    const long long pixel = (long long)y * width + x;
    const long long k = (long long)lower[x] * height + y, other = (long long)nx * height;
    if (nx == 1) {
        background[pixel] = nodes[k];
        rms[pixel] = nodes[k + other];
    } else {
        background[pixel] = along_row(nodes, derivatives, k, height, weight[x]);
        rms[pixel] = along_row(nodes, derivatives, k + other, height, weight[x]);
    }
}
