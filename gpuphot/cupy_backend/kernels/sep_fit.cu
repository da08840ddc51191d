// Fits of PSFs by SEP's rules, each source on its own. One block per source.
//
// Functions that take a SepWork, or memory for sums, are for a whole block of whole warps.
#include "sep_fit.cuh"
#include "sep_stamps.cuh"

// Of the parameters of a fit: the flux, and the flux times the shifts along x and y.
struct SepVector {
    double flux, x, y;
};

__device__ inline double sep_dot(const SepVector& a, const SepVector& b) {
    return a.flux * b.flux + a.x * b.x + a.y * b.y;
}

// Elements of the normal equations of a source.
#define SEP_NORMAL 9

// Scratch of a block.
struct SepWork {
    double* sums;      // shared, SEP_NORMAL for each warp
    double* normal;    // shared, the normal equations
    SepVector* axes;   // shared, 3 orthogonal directions
    double* weight;    // of the pixels of a stamp; negative at its border
    float* value;      // of these pixels
    float* combined;   // for sep_stamp
    float* resampled;  // for sep_stamp
    float* stamp;      // (rows, columns)
};

// sums: shared, SEP_NORMAL for each warp and twice as many more; memory: shared or global, doubles
// for the weights and then floats for everything else
__device__ inline SepWork sep_work(const SepPSF& psf, double* sums, double* memory) {
    const int size = psf.rows * psf.columns;
    double* normal = sums + (blockDim.x >> 5) * SEP_NORMAL;
    float* value = (float*)(memory + size);
    float* combined = value + size;
    float* resampled = combined + psf.height * psf.width;
    return {sums,
            normal,
            (SepVector*)(normal + SEP_NORMAL),
            memory,
            value,
            combined,
            resampled,
            resampled + psf.height * psf.columns};
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

// Makes the normal equations of a source on its own.
__device__ inline void sep_make_equations(const SepPSF& psf, const SepWork& work) {
    double sums[SEP_NORMAL] = {0, 0, 0, 0, 0, 0, 0, 0, 0};
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
#pragma unroll
    for (int i = 0; i < SEP_NORMAL; ++i) {
        const double of_warp = warp_sum(sums[i]);
        if ((threadIdx.x & 31) == 0) work.sums[(threadIdx.x >> 5) * SEP_NORMAL + i] = of_warp;
    }
    __syncthreads();
    if (threadIdx.x < SEP_NORMAL) {
        double total = 0;
        for (int warp = 0; warp < (int)(blockDim.x >> 5); ++warp)
            total += work.sums[warp * SEP_NORMAL + threadIdx.x];
        work.normal[threadIdx.x] = total;
    }
    __syncthreads();
}

// The normal equations with steps damped towards the shift 0.
__device__ inline SepEquations sep_damped(const double* normal, double damping,
                                          const SepVector& shift) {
    return {normal[0],
            normal[1],
            normal[2],
            normal[3] + damping,
            normal[4],
            normal[5] + damping,
            {normal[6], normal[7] + damping * shift.x, normal[8] + damping * shift.y}};
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

// Turns two axes in their plane so that the model changes along them in orthogonal ways; false if
// it did already.
__device__ inline bool sep_orthogonalise(const SepPSF& psf, const SepWork& work, int a, int b) {
    const SepVector u = work.axes[a], v = work.axes[b];
    double uu = 0, vv = 0, uv = 0;
    for (int k = threadIdx.x; k < psf.rows * psf.columns; k += blockDim.x) {
        const SepVector change = sep_derivatives(psf, work, k);
        const double along_u = sep_dot(change, u), along_v = sep_dot(change, v);
        uu += along_u * along_u;
        vv += along_v * along_v;
        uv += along_u * along_v;
    }
    uu = block_sum(uu, work.sums);
    vv = block_sum(vv, work.sums);
    uv = block_sum(uv, work.sums);
    if (!(fabs(uv) > 1e-15 * sqrt(uu) * sqrt(vv))) return false;
    if (threadIdx.x == 0) {
        const double ratio = (vv - uu) / (2 * uv), length = fabs(ratio) + sqrt(1 + ratio * ratio);
        const double tangent = (ratio < 0 ? -1 : 1) / length;
        const double cosine = 1 / sqrt(1 + tangent * tangent), sine = cosine * tangent;
        work.axes[a] = {cosine * u.flux - sine * v.flux, cosine * u.x - sine * v.x,
                        cosine * u.y - sine * v.y};
        work.axes[b] = {sine * u.flux + cosine * v.flux, sine * u.x + cosine * v.x,
                        sine * u.y + cosine * v.y};
    }
    __syncthreads();
    return true;
}

// Square of the singular value of an axis, and how far along it the solution lies, times that.
struct SepAlong {
    double square, product;
};

__device__ inline SepAlong sep_along(const SepPSF& psf, const SepWork& work, int axis) {
    double square = 0, product = 0;
    for (int k = threadIdx.x; k < psf.rows * psf.columns; k += blockDim.x) {
        const double along = sep_dot(sep_derivatives(psf, work, k), work.axes[axis]);
        square += along * along;
        product += along * sep_weighted(work, k);
    }
    square = block_sum(square, work.sums);
    return {square, block_sum(product, work.sums)};
}

// The least-squares solution of smallest norm, by Jacobi rotations.
__device__ inline SepVector sep_smallest_solution(const SepPSF& psf, const SepWork& work) {
    if (threadIdx.x == 0) {
        work.axes[0] = {1, 0, 0};
        work.axes[1] = {0, 1, 0};
        work.axes[2] = {0, 0, 1};
    }
    __syncthreads();
    bool turned = true;
    for (int sweep = 0; turned && sweep < SEP_SWEEPS; ++sweep) {
        turned = false;
        for (int pair = 0; pair < 3; ++pair)
            turned |= sep_orthogonalise(psf, work, pair == 2, pair == 0 ? 1 : 2);
    }
    double largest = 0;
    for (int axis = 0; axis < 3; ++axis) largest = fmax(largest, sep_along(psf, work, axis).square);
    SepVector solution = {0, 0, 0};
    for (int axis = 0; axis < 3; ++axis) {
        const SepAlong along = sep_along(psf, work, axis);
        if (!(along.square > SEP_MIN_SINGULAR * SEP_MIN_SINGULAR * largest)) continue;
        const double length = along.product / along.square;
        solution.flux += length * work.axes[axis].flux;
        solution.x += length * work.axes[axis].x;
        solution.y += length * work.axes[axis].y;
    }
    return solution;
}

// What SEP takes for the solution of a damped step where the flux changes no pixel: its
// decomposition leaves unit vectors in place of the derivatives.
__device__ inline SepVector sep_unit_solution(const SepPSF& psf, const SepWork& work,
                                              double damping, const SepVector& shift) {
    const auto along = [&](int k, double square, double product) {
        if (square > 0) return -product / sqrt(square);
        return k < psf.rows * psf.columns ? sep_weighted(work, k) : 0;
    };
    const double x = along(1, work.normal[3], work.normal[7]) + damping * shift.x;
    const double y = along(2, work.normal[5], work.normal[8]) + damping * shift.y;
    return {along(0, work.normal[0], work.normal[6]), x / (1 + damping), y / (1 + damping)};
}

// Solution of the damped equations; false if there is none.
__device__ inline bool sep_solve(const SepWork& work, double damping, const SepVector& shift,
                                 SepVector& solution) {
    if (threadIdx.x == 0) {
        const SepEquations equations = sep_damped(work.normal, damping, shift);
        const SepCholesky root(equations);
        solution = root.solve(equations.right);
        work.sums[0] = solution.flux;
        work.sums[1] = solution.x;
        work.sums[2] = solution.y;
        work.sums[3] = root.exists;
    }
    __syncthreads();
    solution = {work.sums[0], work.sums[1], work.sums[2]};
    return work.sums[3] != 0;
}

// Variance of the flux of a source on its own, without the noise of its light; by one thread.
__device__ inline double sep_flux_variance(const SepWork& work, double damping) {
    const SepVector unit = {1, 0, 0};
    return SepCholesky(sep_damped(work.normal, damping, {0, 0, 0})).solve(unit).flux;
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

// Reduced chi-squared of a flux, given the stamp of sum 1 and the weights.
__device__ inline double sep_chi2(const SepPSF& psf, double flux, const SepWork& work) {
    double sum = 0, n_pixels = 0;
    for (int k = threadIdx.x; k < psf.rows * psf.columns; k += blockDim.x) {
        const double weight = fabs(work.weight[k]);
        if (!(weight > 0)) continue;
        const double misfit = sep_weighted(work, k) - flux * work.stamp[k] * weight;
        sum += misfit * misfit;
        n_pixels += 1;
    }
    sum = block_sum(sum, work.sums);
    n_pixels = block_sum(n_pixels, work.sums);
    return n_pixels > 3 ? sum / (n_pixels - 3) : 0;
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
    bool moves = true, is_damped = false, is_regular = false;
    int n_iter = 0;
    for (;; ++n_iter) {
        sep_normed_stamp(psf, x + dx, y + dy, column, row, work.combined, work.resampled,
                         work.stamp, work.sums);
        if (!moves || n_iter == rules.max_iter) break;
        sep_make_equations(psf, work);
        is_damped = rules.damping > 0 && fabs(flux) > 1e-30;
        const double damping = is_damped ? rules.damping / (flux * flux) : 0;
        SepVector solution;
        const SepVector shift = {0, flux * dx, flux * dy};
        is_regular = sep_solve(work, damping, shift, solution);
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
    const double chi2 = sep_chi2(psf, flux, work);
    const double damping = is_damped ? rules.damping / (flux * flux) : 0;
    const double variance = is_regular && threadIdx.x == 0 ? sep_flux_variance(work, damping) : 1;
    const double fluxerr = sqrt(variance + image.photon_noise(flux));
    return {flux, fluxerr, x + dx, y + dy, chi2, flag, n_iter};
}

// Flux of a source at (x, y).
__device__ inline SepFit sep_fit_flux(const SepImage& image, const SepPSF& psf,
                                      const SepRules& rules, double x, double y,
                                      const SepWork& work) {
    const int column = sep_centre(x), row = sep_centre(y);
    const int left = sep_first(column, psf.columns), top = sep_first(row, psf.rows);
    sep_normed_stamp(psf, x, y, column, row, work.combined, work.resampled, work.stamp, work.sums);
    double product = 0, power = 0;
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
            product += light * image.data[image.index(j, i)] / variance;
            power += light * light / variance;
        } else {
            flag |= SEP_HAS_MASKED;
        }
    }
    flag = sep_block_flag(flag);
    product = block_sum(product, work.sums);
    power = block_sum(power, work.sums);
    if (!(power > 0)) return {0, 0, x, y, NAN, flag | SEP_ALL_MASKED, 0};
    const double flux = product / power;
    return {flux, sqrt(1 / power + image.photon_noise(flux)), x, y, NAN, flag, 0};
}

// data, err, bad: planes (F, height, width); x, y, frame, valid: (n)
// For what describes the PSF, see SepPSF; for what describes the fit, SepRules. Without
// fit_positions it is one of fluxes.
// n_work: doubles of scratch of a block, in shared memory or, without in_shared, in `workspace`
// flux, fluxerr, x_fit, y_fit, chi2, flag, n_iter: (n), written from `begin` on
extern "C" __global__ void __launch_bounds__(128, 4) sep_fit_sources(
    const float* data, const float* err, const unsigned char* bad, int height, int width,
    double gain, const double* x, const double* y, const int* frame, const unsigned char* valid,
    const float* planes, int n_planes, int plane_rows, int plane_columns, int degree, float step,
    double x0, double y0, double sx, double sy, int rows, int columns, int max_iter,
    double fit_radius, double tolerance, double max_drift, double damping, int begin,
    double* workspace, int n_work, int in_shared, int fit_positions, double* flux, double* fluxerr,
    double* x_fit, double* y_fit, double* chi2, long long* flag, long long* n_iter) {
    extern __shared__ double shared[];
    __shared__ double sums[SEP_NORMAL * 6];
    const int source = begin + blockIdx.x;
    SepFit fit = {NAN, NAN, NAN, NAN, NAN, 0, 0};
    if (valid[source]) {  // the same for the whole block
        const SepImage image = sep_image(data, err, bad, height, width, frame[source], gain);
        const SepPSF psf = {planes, n_planes, plane_rows, plane_columns, degree, step,
                            x0,     y0,       sx,         sy,            rows,   columns};
        const SepRules rules = {max_iter, fit_radius, tolerance, max_drift, damping};
        double* memory = in_shared ? shared : workspace + (long long)blockIdx.x * n_work;
        const SepWork work = sep_work(psf, sums, memory);
        fit = fit_positions ? sep_fit_position(image, psf, rules, x[source], y[source], work)
                            : sep_fit_flux(image, psf, rules, x[source], y[source], work);
    }
    if (threadIdx.x > 0) return;
    flux[source] = fit.flux;
    fluxerr[source] = fit.fluxerr;
    x_fit[source] = fit.x;
    y_fit[source] = fit.y;
    chi2[source] = fit.chi2;
    flag[source] = fit.flag;
    n_iter[source] = fit.n_iter;
}
