// PSF stamps as SEP resamples them. One block per source.
#include "sep_stamps.cuh"

// Stamps of sum 1, of sources `begin` and those after it. Stamps of no positive sum are 0, and so
// are pixels at negative coordinates; NaN where a position is not finite.
//
// See SepPSF for what describes the model. x, y: (n); out: (n, rows, columns)
// n_scratch: floats of dynamic shared memory or, without in_shared, of the workspace for each block
extern "C" __global__ void __launch_bounds__(128, 8) sep_psf_stamps(
    const float* planes, int n_planes, int height, int width, int degree, float step, double x0,
    double y0, double sx, double sy, int rows, int columns, const double* x, const double* y,
    int begin, float* workspace, int n_scratch, int in_shared, double* out) {
    extern __shared__ float shared[];
    __shared__ double of_warp[4];
    const SepPSF psf = {planes, n_planes, height, width, degree, step,
                        x0,     y0,       sx,     sy,    rows,   columns};
    float* combined = in_shared ? shared : workspace + (long long)blockIdx.x * n_scratch;
    float* resampled = combined + height * width;
    float* stamp = resampled + height * columns;
    const int source = begin + blockIdx.x, size = rows * columns;
    const double xs = x[source], ys = y[source];
    const int column = sep_centre(xs), row = sep_centre(ys);

    sep_stamp(psf, xs, ys, xs - column, ys - row, combined, resampled, stamp);
    const double sum = sep_stamp_sum(stamp, size, of_warp);
    const bool is_finite = fabs(xs) < INFINITY && fabs(ys) < INFINITY;
    const double scale = is_finite ? (sum > 0 ? 1 / sum : 0) : NAN;
    const long long low = (long long)row - rows / 2, left = (long long)column - columns / 2;
    for (int k = threadIdx.x; k < size; k += blockDim.x) {
        const bool exists = low + k / columns >= 0 && left + k % columns >= 0;
        out[(long long)source * size + k] = exists || !is_finite ? scale * stamp[k] : 0;
    }
}
