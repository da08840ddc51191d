// Least-squares fits of PSFs by SEP's rules: what all of them share, and those of sources on their
// own. Functions that take a SepWork, or memory for sums, are for a whole block of whole warps.
//
//   const SepImage image = sep_image(data, err, bad, height, width, frame, gain);
//   image.variance(pixel)       with the noise of the pixel's own light; 0 if it is not used
//   image.weighted(pixel)       datum p and weight q, whose product is what SEP fits
//   const SepWork work = sep_work(psf, sums, memory);
//   sep_norm_stamp(...)         work.stamp: a stamp divided by its sum in single precision
//   sep_fit_position(...)       position and flux of a source on its own; thread 0 gets them
//   sep_fit_flux(...)           its flux where it is said to be; thread 0 gets it
#pragma once
#include "sep_stamps.cuh"

#define SEP_TRUNCATED 16
#define SEP_HAS_MASKED 32
#define SEP_ALL_MASKED 64

// A datum and 1 / its standard deviation: 0 for pixels that are not used, the datum as well if that
// is because they are masked.
struct SepDatum {
    float value;
    double weight;
};

// A plane of a frame.
struct SepImage {
    const float* data;
    const float* err;
    const unsigned char* bad;
    int height, width;
    double gain;  // 0 for none

    __device__ bool holds(int row, int column) const {
        return row >= 0 && row < height && column >= 0 && column < width;
    }
    __device__ long long index(int row, int column) const {
        return (long long)row * width + column;
    }
    __device__ bool is_masked(long long pixel) const { return bad[pixel] & BAD_MASKED; }

    __device__ double variance(long long pixel) const {
        const double sigma = err[pixel], noise = sigma * sigma, light = data[pixel];
        if (is_masked(pixel) || !(noise > 0)) return 0;
        return gain > 0 && light > 0 ? noise + light / gain : noise;
    }
    __device__ SepDatum weighted(long long pixel) const {
        const double total = variance(pixel);
        return {is_masked(pixel) ? 0 : data[pixel], total > 0 ? 1 / sqrt(total) : 0};
    }
    // Variance of a flux from its own light.
    __device__ double photon_noise(double flux) const {
        return gain > 0 && flux > 0 ? flux / gain : 0;
    }
};

__device__ inline SepImage sep_image(const float* data, const float* err, const unsigned char* bad,
                                     int height, int width, int frame, double gain) {
    const long long plane = (long long)frame * height * width;
    return {data + plane, err + plane, bad + plane, height, width, gain};
}

struct SepRules {
    int max_iter;
    double fit_radius;  // of the pixels that are used; 0 for all
    double tolerance;   // a step that is not longer is the last, in pixels
    double max_drift;   // how far a position may move, in pixels
    double damping;     // of the steps of a source with a flux of 1; 0 for none

    __device__ bool reaches(double dx, double dy) const {
        return !(fit_radius > 0 && dx * dx + dy * dy > fit_radius * fit_radius);
    }
};

// Most sums that are made at the same time.
#define SEP_SUMS 9

// Scratch of a block.
struct SepWork {
    double* sums;      // shared, SEP_SUMS for each warp
    double* weight;    // of the pixels of a stamp; negative at its border
    float* value;      // of these pixels
    float* combined;   // for sep_stamp
    float* resampled;  // for sep_stamp
    float* stamp;      // (rows, columns)
};

// memory: shared or global, doubles for the weights and then floats for everything else
__device__ inline SepWork sep_work(const SepPSF& psf, double* sums, double* memory) {
    const int size = psf.rows * psf.columns;
    float* value = (float*)(memory + size);
    float* combined = value + size;
    float* resampled = combined + psf.height * psf.width;
    return {sums, memory, value, combined, resampled, resampled + psf.height * psf.columns};
}

// Sums of N values each over a block; thread 0 gets them. partial: shared, N doubles for each warp
template <int N>
__device__ inline void sep_block_sums(double (&values)[N], double* partial) {
    __syncthreads();  // what is there has been read
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const double of_warp = warp_sum(values[i]);
        if ((threadIdx.x & 31) == 0) partial[(threadIdx.x >> 5) * N + i] = of_warp;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        values[i] = 0;
        for (int warp = 0; warp < (int)(blockDim.x >> 5); ++warp) values[i] += partial[warp * N + i];
    }
}

// The flags of a source, from those that each thread of a block has raised.
__device__ inline int sep_block_flag(int flag) {
    const int truncated = __syncthreads_or(flag & SEP_TRUNCATED) ? SEP_TRUNCATED : 0;
    return truncated | (__syncthreads_or(flag & SEP_HAS_MASKED) ? SEP_HAS_MASKED : 0);
}

// First row or column of the stamp around a central pixel; some that is off the image as well if
// the pixel is so far off that no int might hold it.
__device__ inline int sep_first(int centre, int length) {
    const int far = 1 << 30;
    return max(-far, min(centre, far)) - length / 2;
}

// Stamp of a source at (x, y) around a central pixel, divided by its sum in single precision, and
// that sum.
__device__ inline double sep_norm_stamp(const SepPSF& psf, double x, double y, int column, int row,
                                        const SepWork& work) {
    const int size = psf.rows * psf.columns;
    sep_stamp(psf, x, y, x - column, y - row, work.combined, work.resampled, work.stamp);
    const double light = sep_stamp_sum(work.stamp, size, work.sums);
    if (light > 0) {
        const float divisor = (float)light;
        for (int k = threadIdx.x; k < size; k += blockDim.x) work.stamp[k] /= divisor;
    }
    __syncthreads();
    return light;
}

__device__ inline bool sep_is_border(const SepPSF& psf, int k) {
    const int i = k % psf.columns, j = k / psf.columns;
    return i == 0 || i == psf.columns - 1 || j == 0 || j == psf.rows - 1;
}

// Weights of the pixels of the stamp around a central pixel, and the flags of a source at (x, y).
__device__ inline int sep_weigh(const SepImage& image, const SepPSF& psf, const SepRules& rules,
                                double x, double y, int column, int row, const SepWork& work) {
    const int left = sep_first(column, psf.columns), top = sep_first(row, psf.rows);
    int flag = 0;
    for (int k = threadIdx.x; k < psf.rows * psf.columns; k += blockDim.x) {
        const int i = left + k % psf.columns, j = top + k / psf.columns;
        SepDatum datum = {0, 0};
        if (!image.holds(j, i)) {
            flag |= SEP_TRUNCATED;
        } else if (rules.reaches(i - x, j - y)) {
            datum = image.weighted(image.index(j, i));
            if (image.is_masked(image.index(j, i))) flag |= SEP_HAS_MASKED;
        }
        work.value[k] = datum.value;
        work.weight[k] = sep_is_border(psf, k) ? -datum.weight : datum.weight;
    }
    return sep_block_flag(flag);
}

// Datum times weight, for a pixel of the stamp.
__device__ inline double sep_weighted(const SepWork& work, int k) {
    return work.value[k] * fabs(work.weight[k]);
}

// Of the parameters of a fit: the flux, and the flux times the shifts along x and y.
struct SepVector {
    double flux, x, y;
};

__device__ inline double sep_dot(const SepVector& a, const SepVector& b) {
    return a.flux * b.flux + a.x * b.x + a.y * b.y;
}

// Weighted derivatives of the model of a pixel; 0 at the border of the stamp.
__device__ inline SepVector sep_derivatives(const SepPSF& psf, const SepWork& work, int k) {
    const double weight = work.weight[k];
    if (!(weight > 0)) return {0, 0, 0};
    const float* pixel = work.stamp + k;
    return {pixel[0] * weight, (double)(pixel[1] - pixel[-1]) * weight * 0.5,
            (double)(pixel[psf.columns] - pixel[-psf.columns]) * weight * 0.5};
}

// Normal equations.
struct SepEquations {
    double ff, fx, fy, xx, xy, yy;
    SepVector right;
};

// The normal equations of a source on its own; thread 0 gets them.
__device__ inline SepEquations sep_equations(const SepPSF& psf, const SepWork& work) {
    double sums[SEP_SUMS] = {0, 0, 0, 0, 0, 0, 0, 0, 0};
    for (int k = threadIdx.x; k < psf.rows * psf.columns; k += blockDim.x) {
        const SepVector a = sep_derivatives(psf, work, k);
        const double datum = sep_weighted(work, k);
        sums[0] += a.flux * a.flux;
        sums[1] += a.flux * a.x;
        sums[2] += a.flux * a.y;
        sums[3] += a.x * a.x;
        sums[4] += a.x * a.y;
        sums[5] += a.y * a.y;
        sums[6] += a.flux * datum;
        sums[7] += a.x * datum;
        sums[8] += a.y * datum;
    }
    sep_block_sums(sums, work.sums);
    return {sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], {sums[6], sums[7], sums[8]}};
}

__device__ inline bool sep_is_pivot(double value) { return value > 0 && value < INFINITY; }

// Cholesky decomposition of a normal matrix: its lower triangle.
struct SepCholesky {
    double ff, fx, fy, xx, xy, yy;
    bool exists;

    __device__ SepCholesky(const SepEquations& normal) {
        ff = sqrt(normal.ff);
        fx = normal.fx / ff;
        fy = normal.fy / ff;
        const double pivot_x = normal.xx - fx * fx;
        xx = sqrt(pivot_x);
        xy = (normal.xy - fy * fx) / xx;
        const double pivot_y = normal.yy - fy * fy - xy * xy;
        yy = sqrt(pivot_y);
        exists = sep_is_pivot(normal.ff) && sep_is_pivot(pivot_x) && sep_is_pivot(pivot_y);
    }
    __device__ SepVector solve(const SepVector& right) const {
        const double f = right.flux / ff, x = (right.x - fx * f) / xx;
        SepVector solution;
        solution.y = (right.y - fy * f - xy * x) / yy / yy;
        solution.x = (x - xy * solution.y) / xx;
        solution.flux = (f - fx * solution.x - fy * solution.y) / ff;
        return solution;
    }
};

// Singular values that are smaller than this part of the largest are 0.
#define SEP_MIN_SINGULAR 1e-11
#define SEP_SWEEPS 12

// Turns two directions in their plane so that the model changes along them in orthogonal ways;
// false if it did already.
__device__ inline bool sep_orthogonalise(const SepPSF& psf, const SepWork& work, SepVector& u,
                                         SepVector& v) {
    double uu = 0, vv = 0, uv = 0;
    for (int k = threadIdx.x; k < psf.rows * psf.columns; k += blockDim.x) {
        const SepVector a = sep_derivatives(psf, work, k);
        const double along_u = sep_dot(a, u), along_v = sep_dot(a, v);
        uu += along_u * along_u;
        vv += along_v * along_v;
        uv += along_u * along_v;
    }
    uu = block_sum(uu, work.sums);
    vv = block_sum(vv, work.sums);
    uv = block_sum(uv, work.sums);
    if (!(fabs(uv) > 1e-15 * sqrt(uu) * sqrt(vv))) return false;
    const double ratio = (vv - uu) / (2 * uv), length = fabs(ratio) + sqrt(1 + ratio * ratio);
    const double tangent = (ratio < 0 ? -1 : 1) / length;
    const double cosine = 1 / sqrt(1 + tangent * tangent), sine = cosine * tangent;
    const SepVector old = u;
    u = {cosine * old.flux - sine * v.flux, cosine * old.x - sine * v.x, cosine * old.y - sine * v.y};
    v = {sine * old.flux + cosine * v.flux, sine * old.x + cosine * v.x, sine * old.y + cosine * v.y};
    return true;
}

// Square of the singular value of a direction, and how far along it the solution lies, times that.
struct SepAlong {
    double square, product;
};

__device__ inline SepAlong sep_along(const SepPSF& psf, const SepWork& work, const SepVector& u) {
    SepAlong sum = {0, 0};
    for (int k = threadIdx.x; k < psf.rows * psf.columns; k += blockDim.x) {
        const double along = sep_dot(sep_derivatives(psf, work, k), u);
        sum.square += along * along;
        sum.product += along * sep_weighted(work, k);
    }
    return {block_sum(sum.square, work.sums), block_sum(sum.product, work.sums)};
}

// The least-squares solution of smallest norm, by Jacobi rotations; every thread gets it.
__device__ inline SepVector sep_smallest_solution(const SepPSF& psf, const SepWork& work) {
    SepVector axes[3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
    bool turned = true;
    for (int sweep = 0; turned && sweep < SEP_SWEEPS; ++sweep) {
        turned = sep_orthogonalise(psf, work, axes[0], axes[1]);
        turned |= sep_orthogonalise(psf, work, axes[0], axes[2]);
        turned |= sep_orthogonalise(psf, work, axes[1], axes[2]);
    }
    const SepAlong along[3] = {sep_along(psf, work, axes[0]), sep_along(psf, work, axes[1]),
                               sep_along(psf, work, axes[2])};
    const double largest = fmax(fmax(along[0].square, along[1].square), along[2].square);
    SepVector solution = {0, 0, 0};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        if (!(along[i].square > SEP_MIN_SINGULAR * SEP_MIN_SINGULAR * largest)) continue;
        const double length = along[i].product / along[i].square;
        solution.flux += length * axes[i].flux;
        solution.x += length * axes[i].x;
        solution.y += length * axes[i].y;
    }
    return solution;
}

// What SEP takes for the solution of a damped step if all derivatives are 0: its decomposition
// leaves unit vectors in their place.
__device__ inline SepVector sep_unit_solution(const SepPSF& psf, const SepWork& work,
                                              double damping, const SepVector& shift) {
    const auto datum = [&](int k) {
        return k < psf.rows * psf.columns ? sep_weighted(work, k) : 0;
    };
    return {datum(0), (datum(1) + damping * shift.x) / (1 + damping),
            (datum(2) + damping * shift.y) / (1 + damping)};
}

// The normal equations with steps damped towards the shift 0.
__device__ inline SepEquations sep_damped(SepEquations normal, double damping,
                                          const SepVector& shift) {
    normal.xx += damping;
    normal.yy += damping;
    normal.right.x += damping * shift.x;
    normal.right.y += damping * shift.y;
    return normal;
}

// Solution of the normal equations that thread 0 has, for every thread; false if there is none.
__device__ inline bool sep_solve(const SepEquations& normal, double* shared, SepVector& solution) {
    if (threadIdx.x == 0) {
        const SepCholesky root(normal);
        solution = root.solve(normal.right);
        shared[0] = solution.flux;
        shared[1] = solution.x;
        shared[2] = solution.y;
        shared[3] = root.exists;
    }
    __syncthreads();
    solution = {shared[0], shared[1], shared[2]};
    return shared[3] != 0;
}

// Flux of a source at (x, y), where its pixels have been weighed: the first that damping goes by.
__device__ inline double sep_first_flux(const SepPSF& psf, double x, double y, int column, int row,
                                        const SepWork& work) {
    const int size = psf.rows * psf.columns;
    sep_stamp(psf, x, y, x - column, y - row, work.combined, work.resampled, work.stamp);
    const double light = sep_stamp_sum(work.stamp, size, work.sums);
    double product = 0, power = 0;
    for (int k = threadIdx.x; k < size; k += blockDim.x) {
        const double model = work.stamp[k] / light * fabs(work.weight[k]);
        product += model * sep_weighted(work, k);
        power += model * model;
    }
    product = block_sum(product, work.sums);
    return product / block_sum(power, work.sums);
}

// Reduced chi-squared of a flux, given the stamp of sum 1 and the weights; thread 0 gets it.
__device__ inline double sep_chi2(const SepPSF& psf, double flux, const SepWork& work) {
    double sums[2] = {0, 0};
    for (int k = threadIdx.x; k < psf.rows * psf.columns; k += blockDim.x) {
        const double weight = fabs(work.weight[k]);
        if (!(weight > 0)) continue;
        const double misfit = sep_weighted(work, k) - flux * work.stamp[k] * weight;
        sums[0] += misfit * misfit;
        sums[1] += 1;
    }
    sep_block_sums(sums, work.sums);
    return sums[1] > 3 ? sums[0] / (sums[1] - 3) : 0;
}

struct SepFit {
    double flux, fluxerr, x, y, chi2;
    int flag, n_iter;
};

// Position and flux of a source; thread 0 gets them. The pixels are those of the stamp at (x, y).
__device__ inline SepFit sep_fit_position(const SepImage& image, const SepPSF& psf,
                                          const SepRules& rules, double x, double y,
                                          const SepWork& work) {
    const int column = sep_centre(x), row = sep_centre(y);
    const int flag = sep_weigh(image, psf, rules, x, y, column, row, work);
    double flux = rules.damping > 0 ? sep_first_flux(psf, x, y, column, row, work) : 0;
    double dx = 0, dy = 0;
    SepEquations normal = {};
    bool is_damped = false, is_regular = false;
    int n_iter = 0;
    for (bool moves = true; moves && n_iter < rules.max_iter; ++n_iter) {
        sep_norm_stamp(psf, x + dx, y + dy, column, row, work);
        normal = sep_equations(psf, work);
        is_damped = rules.damping > 0 && fabs(flux) > 1e-30;
        const double damping = is_damped ? rules.damping / (flux * flux) : 0;
        SepVector solution;
        const SepVector shift = {0, flux * dx, flux * dy};
        is_regular = sep_solve(sep_damped(normal, damping, shift), work.sums, solution);
        if (!is_regular)
            solution = is_damped ? sep_unit_solution(psf, work, damping, shift)
                                 : sep_smallest_solution(psf, work);
        flux = solution.flux;
        const bool has_flux = flux < 0 || flux > 0;
        const double step_x = has_flux ? -solution.x / flux : 0;
        const double step_y = has_flux ? -solution.y / flux : 0;
        dx += step_x;
        dy += step_y;
        moves = !(step_x * step_x + step_y * step_y <= rules.tolerance * rules.tolerance);
        if (dx * dx + dy * dy > rules.max_drift * rules.max_drift) {
            dx = dy = 0;
            moves = false;
        }
    }
    sep_norm_stamp(psf, x + dx, y + dy, column, row, work);
    const double chi2 = sep_chi2(psf, flux, work);
    double variance = 1;
    if (threadIdx.x == 0 && is_regular) {
        const double damping = is_damped ? rules.damping / (flux * flux) : 0;
        variance = SepCholesky(sep_damped(normal, damping, {0, 0, 0})).solve({1, 0, 0}).flux;
    }
    const double fluxerr = sqrt(variance + image.photon_noise(flux));
    return {flux, fluxerr, x + dx, y + dy, chi2, flag, n_iter};
}

// Flux of a source at (x, y); thread 0 gets it.
__device__ inline SepFit sep_fit_flux(const SepImage& image, const SepPSF& psf,
                                      const SepRules& rules, double x, double y,
                                      const SepWork& work) {
    const int column = sep_centre(x), row = sep_centre(y);
    const int left = sep_first(column, psf.columns), top = sep_first(row, psf.rows);
    sep_norm_stamp(psf, x, y, column, row, work);
    double sums[2] = {0, 0};
    int flag = 0;
    for (int k = threadIdx.x; k < psf.rows * psf.columns; k += blockDim.x) {
        const int i = left + k % psf.columns, j = top + k / psf.columns;
        if (!image.holds(j, i)) {
            flag |= SEP_TRUNCATED;
            continue;
        }
        const double light = work.stamp[k];
        if (!rules.reaches(i - x, j - y) || light == 0) continue;
        const double variance = image.variance(image.index(j, i));
        if (variance > 0) {
            sums[0] += light * image.data[image.index(j, i)] / variance;
            sums[1] += light * light / variance;
        } else {
            flag |= SEP_HAS_MASKED;
        }
    }
    flag = sep_block_flag(flag);
    sep_block_sums(sums, work.sums);
    if (!(sums[1] > 0)) return {0, 0, x, y, NAN, flag | SEP_ALL_MASKED, 0};
    const double flux = sums[0] / sums[1];
    return {flux, sqrt(1 / sums[1] + image.photon_noise(flux)), x, y, NAN, flag, 0};
}
