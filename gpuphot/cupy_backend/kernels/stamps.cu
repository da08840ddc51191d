// Stamps of a point spread function. One block per source.
#include "common.cuh"

// Nodes of a cubic spline before the first and after the last pixel of a plane.
#define SPLINE_BEFORE 1
#define SPLINE_AFTER 2

// How the pixels of a stamp lie on those of the model, along one axis.
struct Grid {
    int n_pixels;     // of the stamp
    int n_nodes;      // of the spline: pixels of the model and SPLINE_BEFORE + SPLINE_AFTER
    int n_sub;        // points of the model that are summed in a pixel
    double sampling;  // pixels of the stamp per pixel of the model
    double phase;     // of the star in its pixel, in [-0.5, 0.5]
};

__device__ inline int last_pixel(const Grid& grid) {
    return grid.n_nodes - SPLINE_BEFORE - SPLINE_AFTER - 1;
}

// Nodes that a pixel needs.
__device__ inline int n_taps(const Grid& grid) { return min(grid.n_sub + 3, grid.n_nodes); }

// Coordinate in the model of a point of a pixel.
__device__ inline double point_at(const Grid& grid, int pixel, int sub) {
    if (grid.n_sub > 1) return (pixel * grid.n_sub + sub) - grid.phase / grid.sampling;
    return last_pixel(grid) * 0.5 + (pixel - (grid.n_pixels / 2 + grid.phase)) / grid.sampling;
}

__device__ inline int first_node(const Grid& grid, int pixel) {
    const int node = (int)floor(point_at(grid, pixel, 0)) - 1 + SPLINE_BEFORE;
    return max(0, min(node, grid.n_nodes - n_taps(grid)));
}

__device__ inline double cubic_spline(double distance) {
    const double outer = fmax(2 - distance, 0.0), inner = fmax(1 - distance, 0.0);
    return (outer * outer * outer - 4 * (inner * inner * inner)) / 6;
}

// Weight of a node in a pixel; points outside the model have none.
__device__ inline double node_weight(const Grid& grid, int pixel, int node) {
    double weight = 0;
    for (int sub = 0; sub < grid.n_sub; ++sub) {
        const double point = point_at(grid, pixel, sub);
        if (point >= 0 && point <= last_pixel(grid))
            weight += cubic_spline(fabs(point - (node - SPLINE_BEFORE)));
    }
    return weight;
}

// First nodes and weights of n_pixels pixels from `begin` on, by the whole block.
__device__ inline void tabulate(const Grid& grid, int begin, int n_pixels, int* first,
                                double* weights) {
    const int taps = n_taps(grid);
    for (int k = threadIdx.x; k < n_pixels * taps; k += blockDim.x) {
        const int node = first_node(grid, begin + k / taps);
        weights[k] = node_weight(grid, begin + k / taps, node + k % taps);
        if (k % taps == 0) first[k / taps] = node;
    }
}

// Terms of the polynomial in (u, v), divided by the light of the model, by one thread.
__device__ inline void plane_weights(double u, double v, int degree, const double* light,
                                     double area, double* weights) {
    double total = 0, power = 1;
    int k = 0;
    for (int q = 0; q <= degree; ++q) {
        double term = power;
        for (int p = 0; p <= degree - q; ++p) {
            weights[k] = term;
            total += term * light[k];
            term *= u;
            ++k;
        }
        power *= v;
    }
    const double divisor = total > 0 && total < INFINITY ? total : 1;
    while (k-- > 0) weights[k] = weights[k] / divisor / area;
}

__device__ inline bool is_finite(double value) { return fabs(value) < INFINITY; }

// Sum over a block of 128 threads; every thread gets the same bits. partial: 4 shared doubles
__device__ inline double sum_of_block(double value, double* partial) {
    value = warp_sum(value);
    if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = value;
    __syncthreads();
    return (partial[0] + partial[1]) + (partial[2] + partial[3]);
}

// Stamps of a model made of planes: the planes' combination, resampled by a cubic spline first
// along the columns of the model, then along its rows.
//
// planes: spline coefficients (n_planes, node_rows, node_columns); light: sums of the planes
// x0, y0, sx, sy, degree: the polynomial of the planes' weights; x, y: (n)
// The stamp is made in tiles, which need at most span_rows x span_columns nodes. Dynamic shared
// memory, in doubles: n_planes + tile_rows * (taps + span_columns) + tile_columns * taps
// + span_rows * span_columns; in ints after them: tile_rows + tile_columns
// stamps: (n, n_rows, n_columns)
extern "C" __global__ void __launch_bounds__(128, 6) psf_stamps(
    const double* planes, const double* light, int n_planes, int node_rows, int node_columns,
    int degree, double x0, double y0, double sx, double sy, double sampling, int n_sub,
    const double* x, const double* y, int n_rows, int n_columns, int tile_rows, int tile_columns,
    int span_rows, int span_columns, double* stamps) {
    extern __shared__ double shared[];
    __shared__ double partial[4];
    const double xs = x[blockIdx.x], ys = y[blockIdx.x];
    const int n_pixels = n_rows * n_columns;
    double* stamp = stamps + (long long)blockIdx.x * n_pixels;
    if (!is_finite(xs) || !is_finite(ys)) {  // the whole block leaves
        for (int k = threadIdx.x; k < n_pixels; k += blockDim.x) stamp[k] = NAN;
        return;
    }

    const Grid rows = {n_rows, node_rows, n_sub, sampling, ys - rint(ys)};
    const Grid columns = {n_columns, node_columns, n_sub, sampling, xs - rint(xs)};
    const int taps_y = n_taps(rows), taps_x = n_taps(columns);
    double* weights = shared;
    double* weights_y = weights + n_planes;
    double* weights_x = weights_y + tile_rows * taps_y;
    double* model = weights_x + tile_columns * taps_x;
    double* strips = model + span_rows * span_columns;
    int* first_y = (int*)(strips + tile_rows * span_columns);
    int* first_x = first_y + tile_rows;
    if (threadIdx.x == 0)
        plane_weights((xs - x0) / sx, (ys - y0) / sy, degree, light,
                      n_sub > 1 ? 1 : sampling * sampling, weights);

    double sum = 0;
    for (int top = 0; top < n_rows; top += tile_rows) {
        const int height = min(tile_rows, n_rows - top);
        for (int left = 0; left < n_columns; left += tile_columns) {
            const int width = min(tile_columns, n_columns - left);
            __syncthreads();
            tabulate(rows, top, height, first_y, weights_y);
            tabulate(columns, left, width, first_x, weights_x);
            __syncthreads();
            const int low = first_y[0], n_low = first_y[height - 1] + taps_y - low;
            const int near = first_x[0], n_near = first_x[width - 1] + taps_x - near;

            for (int k = threadIdx.x; k < n_low * n_near; k += blockDim.x) {
                const int node = (low + k / n_near) * node_columns + near + k % n_near;
                double value = 0;
                for (int b = 0; b < n_planes; ++b)
                    value += weights[b] * planes[(long long)b * node_rows * node_columns + node];
                model[k] = value;
            }
            __syncthreads();
            for (int k = threadIdx.x; k < height * n_near; k += blockDim.x) {
                const int j = k / n_near, i = k % n_near;
                const double* nodes = model + (first_y[j] - low) * n_near + i;
                double value = 0;
                for (int t = 0; t < taps_y; ++t) value += weights_y[j * taps_y + t] * nodes[t * n_near];
                strips[k] = value;
            }
            __syncthreads();
            for (int k = threadIdx.x; k < height * width; k += blockDim.x) {
                const int j = k / width, i = k % width;
                const double* nodes = strips + j * n_near + first_x[i] - near;
                double value = 0;
                for (int t = 0; t < taps_x; ++t) value += weights_x[i * taps_x + t] * nodes[t];
                stamp[(top + j) * n_columns + left + i] = value;
                sum += value;
            }
        }
    }
    const double total = sum_of_block(sum, partial);  // its barrier shows the pixels, too
    if (!(total > 0 && total < INFINITY)) return;
    for (int k = threadIdx.x; k < n_pixels; k += blockDim.x) stamp[k] /= total;
}

// Integral of a Gaussian around pixel `centre + phase` over a pixel.
__device__ inline double pixel_integral(int pixel, int centre, double phase, double width) {
    const double edge = pixel - 0.5 - (centre + phase);
    return 0.5 * (1 + erf((edge + 1) / width)) - 0.5 * (1 + erf(edge / width));
}

// Integrals over the pixels of a row, divided by their sum, by one warp.
__device__ inline void gaussian_profile(int size, double phase, double width, double* profile) {
    const int lane = threadIdx.x & 31;
    double sum = 0;
    for (int k = lane; k < size; k += 32) sum += profile[k] = pixel_integral(k, size / 2, phase, width);
    sum = warp_sum(sum);
    for (int k = lane; k < size; k += 32) profile[k] /= sum;
}

// Stamps of a Gaussian integrated over the pixels.
//
// width: sqrt(2) sigma; x, y: (n); stamps: (n, size, size)
// 2 size doubles of dynamic shared memory
extern "C" __global__ void __launch_bounds__(128, 8) gaussian_stamps(
    double width, const double* x, const double* y, int size, double* stamps) {
    extern __shared__ double profiles[];
    const double xs = x[blockIdx.x], ys = y[blockIdx.x];
    double* stamp = stamps + (long long)blockIdx.x * size * size;
    const bool valid = is_finite(xs) && is_finite(ys);
    const int warp = threadIdx.x >> 5;
    if (warp == 0) gaussian_profile(size, ys - rint(ys), width, profiles);
    if (warp == 1) gaussian_profile(size, xs - rint(xs), width, profiles + size);
    __syncthreads();
    for (int k = threadIdx.x; k < size * size; k += blockDim.x)
        stamp[k] = valid ? profiles[k / size] * profiles[size + k % size] : NAN;
}
