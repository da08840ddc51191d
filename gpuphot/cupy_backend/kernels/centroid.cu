// Centroids. One warp per source, one block if the PSF is made of planes.
#include "stamps.cuh"

// Whether a position keeps half_size pixels from the edges.
__device__ inline bool inside(double x, double y, int height, int width, int half_size) {
    return !(x < half_size || x >= width - half_size || y < half_size || y >= height - half_size);
}

// Centres of mass in square boxes: a step takes the mean pixel coordinate, weighted with the pixels
// that are not negative, masked or without a value, in the box around the pixel that the position
// lies on.
//
// data, bad: planes (F, height, width); frame, valid: (n); x, y: (n), overwritten
extern "C" __global__ void __launch_bounds__(128, 4) com_centroid(
    const double* data, const unsigned char* bad, int height, int width, const int* frame,
    const unsigned char* valid, int n, int half_size, int n_iter, double max_shift, double* x,
    double* y) {
    const int lane = threadIdx.x & 31;
    const long long source = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (source >= n) return;  // whole warps leave together
    double xc = x[source], yc = y[source];
    if (!valid[source] || !inside(xc, yc, height, width, half_size)) return;

    const long long plane = (long long)frame[source] * height * width;
    const int size = 2 * half_size + 1;
    for (int iteration = 0; iteration < n_iter; ++iteration) {
        if (!inside(rint(xc), rint(yc), height, width, half_size)) break;
        const int column = (int)rint(xc) - half_size, row = (int)rint(yc) - half_size;
        double total = 0, total_x = 0, total_y = 0;
        for (int k = lane; k < size * size; k += 32) {
            const int i = k % size, j = k / size;
            const long long pixel = plane + (long long)(row + j) * width + column + i;
            const double light = data[pixel];
            if (!(light >= 0) || (bad[pixel] & BAD_UNUSABLE)) continue;
            total += light;
            total_x += light * i;
            total_y += light * j;
        }
        total = warp_sum(total);
        if (!(total >= 1e-30)) break;
        const double new_x = column + warp_sum(total_x) / total;
        const double new_y = row + warp_sum(total_y) / total;
        const double shift = hypot(new_x - xc, new_y - yc);
        xc = new_x;
        yc = new_y;
        if (shift < max_shift) break;
    }
    __syncwarp();  // every lane has read the position
    if (lane == 0) {
        x[source] = xc;
        y[source] = yc;
    }
}

// A step with a PSF is a series of at most PSF_STEPS small ones, which ends with a shorter one than
// PSF_MAX_SHIFT, in pixels.
#define PSF_STEPS 16
#define PSF_MAX_SHIFT 1e-4
#define MIN_PIXELS 3

struct Image {
    const double* data;
    const unsigned char* bad;
    int height, width;
};

__device__ inline Image image_of(const double* data, const unsigned char* bad, int height,
                                 int width, int frame) {
    const long long plane = (long long)frame * height * width;
    return {data + plane, bad + plane, height, width};
}

__device__ inline bool is_usable(const Image& image, int row, int column) {
    return !(image.bad[(long long)row * image.width + column] & BAD_UNUSABLE);
}

// Whether a box lies in the image and has enough usable pixels; every warp counts for itself.
__device__ inline bool can_be_weighed(const Image& image, double row, double column, int half_size) {
    if (!inside(column, row, image.height, image.width, half_size)) return false;
    const int size = 2 * half_size + 1, top = (int)row - half_size, left = (int)column - half_size;
    double n_usable = 0;
    for (int k = threadIdx.x & 31; k < size * size; k += 32)
        n_usable += is_usable(image, top + k / size, left + k % size);
    return warp_sum(n_usable) >= MIN_PIXELS;
}

// Light times PSF, and its moments about a position.
struct Moments {
    double light, x, y;
};

// Position of a source.
struct Point {
    double x, y;
};

__device__ inline void add_pixel(Moments& sum, const Image& image, int row, int column,
                                 const Point& at, double weight) {
    if (!is_usable(image, row, column)) return;
    const double light = image.data[(long long)row * image.width + column] * weight;
    sum.light += light;
    sum.x += light * (column - at.x);
    sum.y += light * (row - at.y);
}

// One step with a PSF; false if one of the small ones fails. weigh(position): Moments, for whoever
// works on the source together
template <typename Weigh>
__device__ inline bool converge(const Image& image, int half_box, Weigh weigh, Point& at) {
    double column = INFINITY, row = INFINITY;
    for (int step = 0; step < PSF_STEPS; ++step) {
        if (rint(at.x) != column || rint(at.y) != row) {
            column = rint(at.x);
            row = rint(at.y);
            if (!can_be_weighed(image, row, column, half_box)) return false;
        }
        const Moments sum = weigh(at);
        if (!(sum.light > 0)) return false;
        const double dx = sum.x / sum.light, dy = sum.y / sum.light;
        at.x += dx;
        at.y += dy;
        if (!(dx * dx + dy * dy >= PSF_MAX_SHIFT * PSF_MAX_SHIFT)) break;
    }
    return is_finite(at.x) && is_finite(at.y);
}

// The position after at most n_iter steps with a PSF, the last of which was shorter than max_shift.
template <typename Weigh>
__device__ inline Point recentre(const Image& image, int half_box, int n_iter, double max_shift,
                                 Weigh weigh, Point at) {
    for (int iteration = 0; iteration < n_iter; ++iteration) {
        Point next = at;
        if (!converge(image, half_box, weigh, next)) break;
        const double shift = hypot(next.x - at.x, next.y - at.y);
        at = next;
        if (shift < max_shift) break;
    }
    return at;
}

// Centres of mass of the pixels times a Gaussian, which moves with them.
//
// data, bad: planes (F, height, width); frame, valid: (n); x, y: (n), overwritten
// half_size: what a position must keep from the edges at the start; half_box: what it must keep
// from them later, at least half_stamp; half_stamp: half size of the stamps
// 2 (2 half_stamp + 1) doubles of dynamic shared memory per warp
extern "C" __global__ void __launch_bounds__(128, 4) gaussian_centroid(
    const double* data, const unsigned char* bad, int height, int width, const int* frame,
    const unsigned char* valid, int n, int half_size, int half_box, int n_iter, double max_shift,
    double fwhm, int half_stamp, double* x, double* y) {
    extern __shared__ double shared[];
    const int lane = threadIdx.x & 31;
    const long long source = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (source >= n) return;  // whole warps leave together
    const Point start = {x[source], y[source]};
    if (!valid[source] || !inside(start.x, start.y, height, width, half_size)) return;

    const Image image = image_of(data, bad, height, width, frame[source]);
    const int size = 2 * half_stamp + 1;
    double* rows = shared + (threadIdx.x >> 5) * 2 * size;
    double* columns = rows + size;
    const auto weigh = [&](const Point& at) {
        const int row = (int)rint(at.y), column = (int)rint(at.x);
        __syncwarp();  // the profiles of the step before are done with
        gaussian_profile(half_stamp, at.y - row, fwhm, rows);
        gaussian_profile(half_stamp, at.x - column, fwhm, columns);
        __syncwarp();
        Moments sum = {0, 0, 0};
        for (int k = lane; k < size * size; k += 32) {
            const int j = k / size, i = k % size;
            add_pixel(sum, image, row - half_stamp + j, column - half_stamp + i, at,
                      rows[j] * columns[i]);
        }
        return Moments{warp_sum(sum.light), warp_sum(sum.x), warp_sum(sum.y)};
    };
    const Point end = recentre(image, half_box, n_iter, max_shift, weigh, start);
    __syncwarp();  // every lane has read the position
    if (lane == 0) {
        x[source] = end.x;
        y[source] = end.y;
    }
}

// Sums over a block of 128 threads; every thread gets the same bits. partial: 4 shared doubles
// for each of three sums
__device__ inline Moments sum_of_block(const Moments& sum, double (*partial)[4]) {
    const Moments of_warp = {warp_sum(sum.light), warp_sum(sum.x), warp_sum(sum.y)};
    if ((threadIdx.x & 31) == 0) {
        const int warp = threadIdx.x >> 5;
        partial[0][warp] = of_warp.light;
        partial[1][warp] = of_warp.x;
        partial[2][warp] = of_warp.y;
    }
    __syncthreads();
    return {(partial[0][0] + partial[0][1]) + (partial[0][2] + partial[0][3]),
            (partial[1][0] + partial[1][1]) + (partial[1][2] + partial[1][3]),
            (partial[2][0] + partial[2][1]) + (partial[2][2] + partial[2][3])};
}

// The same with a PSF made of planes: see Model, Tiling and Workshop for what describes it.
extern "C" __global__ void __launch_bounds__(128, 4) psf_centroid(
    const double* data, const unsigned char* bad, int height, int width, const int* frame,
    const unsigned char* valid, int half_size, int half_box, int n_iter, double max_shift,
    const double* planes, const double* light, const double* place, int n_planes, int node_rows,
    int node_columns, int degree, int grid_columns, int n_sub, double sampling, int n_rows,
    int n_columns, int tile_rows, int tile_columns, int span_rows, int span_columns, double* x,
    double* y) {
    extern __shared__ double shared[];
    __shared__ double partial[3][4];
    const Point start = {x[blockIdx.x], y[blockIdx.x]};
    // The whole block leaves.
    if (!valid[blockIdx.x] || !inside(start.x, start.y, height, width, half_size)) return;

    const Image image = image_of(data, bad, height, width, frame[blockIdx.x]);
    const Model model = {planes, light,        place, n_planes, node_rows, node_columns,
                         degree, grid_columns, n_sub, sampling};
    const Tiling tiling = {n_rows, n_columns, tile_rows, tile_columns, span_rows, span_columns};
    Workshop work = open_workshop(model, tiling, shared);
    const auto weigh = [&](const Point& at) {
        const int top = (int)rint(at.y) - n_rows / 2, left = (int)rint(at.x) - n_columns / 2;
        Moments sum = {0, 0, 0};
        for_each_pixel(model, tiling, work, at.x, at.y, [&](int row, int column, double weight) {
            add_pixel(sum, image, top + row, left + column, at, weight);
        });
        return sum_of_block(sum, partial);
    };
    const Point end = recentre(image, half_box, n_iter, max_shift, weigh, start);
    __syncthreads();  // every thread has read the position
    if (threadIdx.x == 0) {
        x[blockIdx.x] = end.x;
        y[blockIdx.x] = end.y;
    }
}
