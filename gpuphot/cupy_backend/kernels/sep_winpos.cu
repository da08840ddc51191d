// Windowed centroids as SEP iterates them: one warp per source with a Gaussian window, one block
// per source with a PSF as window.
#include "sep_coverage.cuh"
#include "sep_stamps.cuh"

#define MAX_ITER 16
#define MIN_STEP2 1e-8  // square of the shortest step that is followed by another

// Sums over the pixels of a window, which count with their coverage and have a weight in it.
struct WindowSums {
    double weight, x, y;                        // of weighted values, and of these times offsets
    double masked_weight, masked_x, masked_y;  // the same with values of 1, of masked pixels
    double light, area, masked_area;            // of unmasked values; of all and of masked pixels
    bool has_masked;

    __device__ void add(double value, bool is_masked, double coverage, double window, double dx,
                        double dy) {
        area += coverage;
        if (is_masked) {
            const double q = coverage * window;
            masked_weight += q;
            masked_x += q * dx;
            masked_y += q * dy;
            masked_area += coverage;
            has_masked = true;
        } else {
            const double q = value * coverage * window;
            weight += q;
            x += q * dx;
            y += q * dy;
            light += value * coverage;
        }
    }

    // Adds up what the threads have. Only masked pixels need all of it.
    // any_masked: whether a thread has a masked pixel; sum: adds up a double
    template <typename Sum>
    __device__ void reduce(bool any_masked, Sum sum) {
        has_masked = any_masked;
        weight = sum(weight);
        x = sum(x);
        y = sum(y);
        if (!has_masked) return;
        masked_weight = sum(masked_weight);
        masked_x = sum(masked_x);
        masked_y = sum(masked_y);
        light = sum(light);
        area = sum(area);
        masked_area = sum(masked_area);
    }

    __device__ bool all_masked() const { return has_masked && area > 0 && masked_area >= area; }

    // Gives masked pixels the mean of the others.
    __device__ void fill_masked() {
        const double level = light / (area - masked_area);
        weight += level * masked_weight;
        x += level * masked_x;
        y += level * masked_y;
    }
};

// A position on its way to the centroid.
struct Walk {
    double x, y, max_step;  // no limit if max_step is not positive
    int flag;

    // Moves by `gain` times the offset of the centroid; whether another step shall follow.
    // no_signal: flag for pixels without a centroid
    __device__ bool step(WindowSums sums, double gain, int no_signal) {
        if (sums.has_masked) flag |= SEP_HAS_MASKED;
        if (sums.all_masked()) {
            flag |= SEP_ALL_MASKED;
            return false;
        }
        if (sums.has_masked) sums.fill_masked();
        // Where nothing is masked, SEP adds 0 times the mean: NaN for an infinite one.
        if (!(sums.weight > 0 && (sums.has_masked || sums.weight < INFINITY))) {
            flag |= no_signal;
            return false;
        }
        double dx = gain * sums.x / sums.weight, dy = gain * sums.y / sums.weight;
        const double length = sqrt(dx * dx + dy * dy);
        if (max_step > 0 && length > max_step) {
            dx *= max_step / length;
            dy *= max_step / length;
        }
        x += dx;
        y += dy;
        return !(dx * dx + dy * dy < MIN_STEP2);
    }
};

#define SUBPIX 11
#define N_SAMPLES (SUBPIX * SUBPIX)

// Sums of equal shares of a pixel, added one by one: shares[k] of k samples. By the whole block.
__device__ inline void tabulate_shares(double* shares) {
    const double step = 1.0 / SUBPIX;
    for (int n = threadIdx.x; n <= N_SAMPLES; n += blockDim.x) {
        double sum = 0;
        for (int k = 0; k < n; ++k) sum += step * step;
        shares[n] = sum;
    }
    __syncthreads();
}

// Samples of the pixel at (dx, dy) inside a circle around the origin.
__device__ inline int samples_inside(double dx, double dy, double r2) {
    const double step = 1.0 / SUBPIX, offset = 0.5 * (step - 1);
    double x2[SUBPIX], sample_x = dx + offset, sample_y = dy + offset;
#pragma unroll
    for (int i = 0; i < SUBPIX; ++i, sample_x += step) x2[i] = sample_x * sample_x;
    int n = 0;
    for (int j = 0; j < SUBPIX; ++j, sample_y += step) {
        const double y2 = sample_y * sample_y;
#pragma unroll
        for (int i = 0; i < SUBPIX; ++i) n += x2[i] + y2 < r2;
    }
    return n;
}

// Pixels of a plane around a position, numbered row by row.
struct Window {
    const float* data;
    const unsigned char* bad;
    int image_width;
    SepBox box;
    double x, y, exponent;  // the window is exp(exponent d^2) at a distance d

    __device__ int column(int k) const { return box.first_column + k % box.n_columns(); }
    __device__ int row(int k) const { return box.first_row + k / box.n_columns(); }

    __device__ void add(int k, double coverage, WindowSums& sums) const {
        const long long pixel = (long long)row(k) * image_width + column(k);
        const double dx = column(k) - x, dy = row(k) - y;
        const double weight = exp((dx * dx + dy * dy) * exponent);
        sums.add(data[pixel], bad[pixel] & BAD_MASKED, coverage, weight, dx, dy);
    }
};

#define RIM 64  // pixels on the rim that wait for the warp: fewer than two to each lane

// Sums over a circle, by one warp. Its rim is what takes time: lanes share it evenly.
// rim: shared, RIM ints
__device__ inline WindowSums gaussian_sums(const Window& window, const SepCircle& circle,
                                           const double* shares, int* rim) {
    const int lane = threadIdx.x & 31, n_pixels = (int)window.box.n_pixels();
    WindowSums sums = {};
    int n_found = 0, n_added = 0;
    for (int begin = 0; begin < n_pixels || n_added < n_found; begin += 32) {
        const int k = begin + lane;
        bool on_rim = false;
        if (k < n_pixels) {
            const double dx = window.column(k) - window.x, dy = window.row(k) - window.y;
            const double d2 = dx * dx + dy * dy;
            on_rim = d2 < circle.surely_outside2 && d2 > circle.surely_inside2;
            if (d2 <= circle.surely_inside2) window.add(k, 1, sums);
        }
        const unsigned found = __ballot_sync(FULL_WARP, on_rim);
        if (on_rim) rim[(n_found + __popc(found & ((1u << lane) - 1))) % RIM] = k;
        n_found += __popc(found);
        __syncwarp();
        if (n_found - n_added >= 32 || begin + 32 >= n_pixels) {
            if (n_added + lane < n_found) {
                const int pixel = rim[(n_added + lane) % RIM];
                const double dx = window.column(pixel) - window.x;
                const double dy = window.row(pixel) - window.y;
                const int n = samples_inside(dx, dy, circle.r2);
                window.add(pixel, shares[n], sums);
            }
            n_added = min(n_added + 32, n_found);
        }
        __syncwarp();
    }
    const bool any_masked = __any_sync(FULL_WARP, sums.has_masked);
    sums.reduce(any_masked, [](double value) { return warp_sum(value); });
    return sums;
}

// data, bad: planes (F, height, width); x, y, frame, valid: (n); sigma: of the window
// x_out, y_out, flag: (n)
extern "C" __global__ void __launch_bounds__(128, 4) sep_winpos(
    const float* data, const unsigned char* bad, int height, int width, const double* x,
    const double* y, const int* frame, const unsigned char* valid, int n, double sigma,
    double max_step, double* x_out, double* y_out, long long* flag) {
    __shared__ double shares[N_SAMPLES + 1];
    __shared__ int rims[4 * RIM];
    const int warp = threadIdx.x >> 5;
    const long long source = (long long)blockIdx.x * (blockDim.x >> 5) + warp;
    tabulate_shares(shares);
    if (source >= n) return;  // whole warps leave together

    Walk walk = {NAN, NAN, max_step, 0};
    if (valid[source]) {
        const long long plane = (long long)frame[source] * height * width;
        const double r = 4 * sigma, exponent = -0.5 / (sigma * sigma);
        const SepCircle circle = sep_circle(r);
        walk.x = x[source];
        walk.y = y[source];
        bool is_moving = true;
        for (int pass = 0; is_moving && pass < MAX_ITER; ++pass) {
            const SepBox box = sep_box(walk.x, walk.y, r, height, width);
            if (box.truncated) walk.flag |= SEP_TRUNCATED;
            const Window window = {data + plane, bad + plane, width,   box,
                                   walk.x,       walk.y,      exponent};
            is_moving = walk.step(gaussian_sums(window, circle, shares, rims + warp * RIM), 2, 0);
        }
    }
    if ((threadIdx.x & 31) == 0) {
        x_out[source] = walk.x;
        y_out[source] = walk.y;
        flag[source] = walk.flag;
    }
}

// Sums over the pixels under a stamp, which is centred on the pixel (column, row), by the whole
// block. of_warp: shared, a double for each warp
__device__ inline WindowSums stamp_sums(const SepPSF& psf, const float* stamp, const float* data,
                                        const unsigned char* bad, int height, int width, int column,
                                        int row, Walk& walk, double* of_warp) {
    const long long left = (long long)column - psf.columns / 2;
    const long long low = (long long)row - psf.rows / 2;
    if (left < 0 || left + psf.columns > width || low < 0 || low + psf.rows > height)
        walk.flag |= SEP_TRUNCATED;
    WindowSums sums = {};
    for (int k = threadIdx.x; k < psf.rows * psf.columns; k += blockDim.x) {
        const long long i = left + k % psf.columns, j = low + k / psf.columns;
        if (i < 0 || i >= width || j < 0 || j >= height || stamp[k] == 0) continue;
        const long long pixel = j * width + i;
        sums.add(data[pixel], bad[pixel] & BAD_MASKED, 1, stamp[k], i - walk.x, j - walk.y);
    }
    const bool any_masked = __syncthreads_or(sums.has_masked);
    sums.reduce(any_masked, [&](double value) { return block_sum(value, of_warp); });
    return sums;
}

// See SepPSF for what describes the model, sep_winpos for the rest; sources from `begin` on.
//
// n_scratch: floats of dynamic shared memory or, without in_shared, of the workspace for each block
extern "C" __global__ void __launch_bounds__(128, 4) sep_psf_winpos(
    const float* planes, int n_planes, int psf_height, int psf_width, int degree, float step,
    double x0, double y0, double sx, double sy, int rows, int columns, const float* data,
    const unsigned char* bad, int height, int width, const double* x, const double* y,
    const int* frame, const unsigned char* valid, int begin, double max_step, float* workspace,
    int n_scratch, int in_shared, double* x_out, double* y_out, long long* flag) {
    extern __shared__ float shared[];
    __shared__ double of_warp[4];
    const SepPSF psf = {planes, n_planes, psf_height, psf_width, degree, step,
                        x0,     y0,       sx,         sy,        rows,   columns};
    float* combined = in_shared ? shared : workspace + (long long)blockIdx.x * n_scratch;
    float* resampled = combined + psf_height * psf_width;
    float* stamp = resampled + psf_height * columns;
    const int source = begin + blockIdx.x;

    Walk walk = {NAN, NAN, max_step, 0};
    if (valid[source]) {
        const long long plane = (long long)frame[source] * height * width;
        walk.x = x[source];
        walk.y = y[source];
        bool is_moving = true;
        for (int pass = 0; is_moving && pass < MAX_ITER; ++pass) {
            const int column = sep_centre(walk.x), row = sep_centre(walk.y);
            sep_stamp(psf, walk.x, walk.y, walk.x - column, walk.y - row, combined, resampled,
                      stamp);
            const WindowSums sums = stamp_sums(psf, stamp, data + plane, bad + plane, height, width,
                                               column, row, walk, of_warp);
            is_moving = walk.step(sums, 1, SEP_NON_POSITIVE);
        }
    }
    if (threadIdx.x == 0) {
        x_out[source] = walk.x;
        y_out[source] = walk.y;
        flag[source] = walk.flag;
    }
}
