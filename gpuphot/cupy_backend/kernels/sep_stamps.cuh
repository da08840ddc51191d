// PSF stamps as SEP resamples them: every sum is a running one in single precision.
#pragma once
#include "common.cuh"
#include "sep_lanczos.cuh"

// A PSF made of planes that a polynomial in the position combines.
struct SepPSF {
    const float* planes;  // (n_planes, height, width)
    int n_planes, height, width;
    int degree;             // of the polynomial in (x - x0) / sx and (y - y0) / sy
    float step;             // pixels of the stamp per pixel of the planes
    double x0, y0, sx, sy;  // of the polynomial
    int rows, columns;      // of the stamp; its centre is pixel (rows / 2, columns / 2)
};

// The pixel that a stamp at a position is centred on. What no int holds is far off any image.
__device__ inline int sep_centre(double position) {
    const double rounded = position + 0.5;
    return fabs(rounded) < 2147483647.0 ? (int)rounded : -2147483647 - 1;
}

// Adds a weighted plane to the sum of those before it.
__device__ inline void sep_add_plane(float weight, const float* __restrict__ plane, int size,
                                     bool is_first, float* __restrict__ sum) {
    for (int k = threadIdx.x; k < size; k += blockDim.x)
        sum[k] = is_first ? weight * plane[k] : sum[k] + weight * plane[k];
}

// Sum of the planes weighted with the terms of the polynomial: 1, u, u^2, ..., v, u v, ...
__device__ inline void sep_combine(const SepPSF& psf, double x, double y, float* combined) {
    const double u = psf.sx == 0 ? 0 : (x - psf.x0) / psf.sx;
    const double v = psf.sy == 0 ? 0 : (y - psf.y0) / psf.sy;
    const int size = psf.height * psf.width;
    int k = 0;
    double power = 1;
    for (int q = 0; q <= psf.degree; ++q) {
        double term = power;
        for (int p = 0; p <= psf.degree - q && k < psf.n_planes; ++p, ++k) {
            sep_add_plane((float)term, psf.planes + (long long)k * size, size, k == 0, combined);
            term *= u;
        }
        power *= v;
    }
}

// Where the pixels of a stamp lie on those of the planes, along one axis.
struct SepAxis {
    int n_in;          // pixels of the planes
    int begin, count;  // pixels of the stamp that lie on the planes
    float at;          // coordinate in the planes of the first of these
};

// offset: of the source from the central pixel of the stamp
__device__ inline SepAxis sep_axis(int n_in, int n_out, float step, double offset) {
    const float width = 1 / step;
    float at = (n_in / 2 - (float)offset * width) - n_out / 2 * width;
    if (!(at < n_in)) return {n_in, 0, 0, 0};
    int begin = 0;
    if (at < 0) {
        const float outside = 1 - at / width;
        if (!(outside < n_out)) return {n_in, 0, 0, 0};
        begin = (int)outside;
        at += begin * width;
    }
    const int count = min((int)((n_in - 1 - at) / width + 1), n_out - begin);
    return {n_in, begin, max(count, 0), at};
}

__device__ inline bool sep_covers(const SepAxis& axis, int pixel) {
    return pixel >= axis.begin && pixel < axis.begin + axis.count;
}

// Integral over `width` pixels of the planes, centred at a coordinate.
struct SepIntegral {
    float low, high;
    int first, last;

    __device__ SepIntegral(float at, float width, int n) {
        low = at - 0.5f * width;
        high = at + 0.5f * width;
        const float low_pixel = floorf(low), high_pixel = floorf(high);
        first = max(0, (int)low_pixel + (low - low_pixel >= 0.5f));
        last = min(n - 1, (int)high_pixel + (high - high_pixel > 0.5f));
    }

    __device__ float sum(const float* values, int stride) const {
        float total = 0;
        for (int i = first; i <= last; ++i) {
            const float overlap = fminf(high, i + 0.5f) - fmaxf(low, i - 0.5f);
            total += fmaxf(0.0f, overlap) * values[i * stride];
        }
        return total;
    }
};

#define LANCZOS_TAPS 8

// Interpolation at a coordinate.
struct SepLanczos {
    int first, count;
    float weights[LANCZOS_TAPS];

    __device__ SepLanczos(float at, float, int n) {
        first = (int)at - 3;
        count = LANCZOS_TAPS;
        float distance = ((int)at - at) - 3;
        if (first < 0) {
            count += first;
            distance -= first;
            first = 0;
        }
        count = min(count, n - first);
        float total = 0;
#pragma unroll
        for (int k = 0; k < LANCZOS_TAPS; ++k) {
            weights[k] = k < count ? lanczos(distance) : 0;
            total += weights[k];
            distance += 1;
        }
        const float scale = total > 0 ? 1 / total : 1;
#pragma unroll
        for (int k = 0; k < LANCZOS_TAPS; ++k) weights[k] *= scale;
    }

    __device__ float sum(const float* values, int stride) const {
        float total = 0;
#pragma unroll
        for (int k = 0; k < LANCZOS_TAPS; ++k)
            if (k < count) total += weights[k] * values[(first + k) * stride];
        return total;
    }
};

// The planes at the pixels of the stamp: along their rows first, then along the columns of that.
template <typename Sampler>
__device__ inline void sep_resample(const SepPSF& psf, const SepAxis& vertical,
                                    const SepAxis& horizontal, int first_row, const float* planes,
                                    float* resampled, float* stamp) {
    const float width = 1 / psf.step;
    const int across = min(psf.columns, (int)blockDim.x), abreast = blockDim.x / across;
    const int top = threadIdx.x / across;
    const bool has_work = top < abreast;

    for (int column = threadIdx.x % across; has_work && column < psf.columns; column += across) {
        if (!sep_covers(horizontal, column)) continue;
        float at = horizontal.at;
        for (int k = horizontal.begin; k < column; ++k) at += width;
        const Sampler sampler(at, width, horizontal.n_in);
        for (int row = top; row < vertical.n_in; row += abreast)
            resampled[row * psf.columns + column] =
                sampler.sum(planes + (first_row + row) * psf.width, 1);
    }
    __syncthreads();
    for (int column = threadIdx.x % across; has_work && column < psf.columns; column += across) {
        float at = vertical.at;
        int k = vertical.begin;
        for (int row = top; row < psf.rows; row += abreast) {
            float value = 0;
            if (sep_covers(vertical, row) && sep_covers(horizontal, column)) {
                for (; k < row; ++k) at += width;
                value = Sampler(at, width, vertical.n_in).sum(resampled + column, psf.columns);
            }
            stamp[row * psf.columns + column] = value;
        }
    }
}

// Row of the planes that interpolated stamps need first; makes `axis` one of rows from there on.
__device__ inline int sep_first_row(SepAxis& axis, float step) {
    const int row = max(0, (int)axis.at - 3);
    axis.n_in = min(axis.n_in, (int)(axis.at + axis.count * (1 / step)) + 5) - row;
    axis.at -= row;
    return row;
}

// The stamp of a source at (x, y), which is (dx, dy) from the central pixel, not normalised; by the
// whole block, which may use the stamp afterwards.
//
// combined: (height, width), resampled: (height, columns), both scratch; stamp: (rows, columns)
__device__ inline void sep_stamp(const SepPSF& psf, double x, double y, double dx, double dy,
                                 float* combined, float* resampled, float* stamp) {
    __syncthreads();  // the stamp before is done with
    SepAxis vertical = sep_axis(psf.height, psf.rows, psf.step, dy);
    const SepAxis horizontal = sep_axis(psf.width, psf.columns, psf.step, dx);
    const int size = psf.rows * psf.columns;
    const float* planes = psf.planes;
    if (vertical.count == 0 || horizontal.count == 0) {
        for (int k = threadIdx.x; k < size; k += blockDim.x) stamp[k] = 0;
        __syncthreads();
        return;
    }
    if (psf.n_planes > 1 && psf.degree > 0) {
        sep_combine(psf, x, y, combined);
        __syncthreads();
        planes = combined;
    }
    if (psf.step < 1) {
        sep_resample<SepIntegral>(psf, vertical, horizontal, 0, planes, resampled, stamp);
    } else if (psf.step == 1 && fabs(dx) < 1e-7 && fabs(dy) < 1e-7) {
        for (int k = threadIdx.x; k < size; k += blockDim.x) stamp[k] = planes[k];
    } else {
        const int row = sep_first_row(vertical, psf.step);
        sep_resample<SepLanczos>(psf, vertical, horizontal, row, planes, resampled, stamp);
    }
    __syncthreads();
}

// Sum of a stamp, by the whole block; of_warp: shared, a double for each warp
__device__ inline double sep_stamp_sum(const float* stamp, int size, double* of_warp) {
    double sum = 0;
    for (int k = threadIdx.x; k < size; k += blockDim.x) sum += stamp[k];
    return block_sum(sum, of_warp);
}

// Divides a stamp by its sum, in single precision. By a block; ends with a barrier.
__device__ inline void sep_norm(float* stamp, int size, double sum) {
    if (sum > 0) {
        const float divisor = (float)sum;
        for (int k = threadIdx.x; k < size; k += blockDim.x) stamp[k] /= divisor;
    }
    __syncthreads();
}

// Stamp of a source at (x, y) around a central pixel, of sum 1; memory as for `sep_stamp`.
__device__ inline void sep_normed_stamp(const SepPSF& psf, double x, double y, int column, int row,
                                        float* combined, float* resampled, float* stamp,
                                        double* of_warp) {
    const int size = psf.rows * psf.columns;
    sep_stamp(psf, x, y, x - column, y - row, combined, resampled, stamp);
    sep_norm(stamp, size, sep_stamp_sum(stamp, size, of_warp));
}
