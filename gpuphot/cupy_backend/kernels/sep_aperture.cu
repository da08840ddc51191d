// Sums over circular apertures in SEP's way. One warp per source.
//
// A pixel weighs as much as the circle covers of it; masked ones get the mean of the others.
#include "sep_coverage.cuh"

// data, err, bad: planes (F, height, width); x, y, frame, valid, r and the results: (n)
// gain: electrons per count, 0 for no Poisson noise; subpix: 0 for the exact coverage
extern "C" __global__ void __launch_bounds__(128, 4) sep_aperture_sums(
    const float* data, const float* err, const unsigned char* bad, int height, int width,
    const double* x, const double* y, const int* frame, const unsigned char* valid,
    const double* r, int n, double gain, int subpix, double* flux, double* fluxerr,
    long long* flag) {
    const int lane = threadIdx.x & 31;
    const long long source = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (source >= n) return;  // whole warps leave together
    if (!valid[source]) {
        if (lane == 0) {
            flux[source] = fluxerr[source] = NAN;
            flag[source] = 0;
        }
        return;
    }
    const double xc = x[source], yc = y[source];
    const SepBox box = sep_box(xc, yc, r[source], height, width);
    const SepCircle circle = sep_circle(r[source]);
    const long long plane = (long long)frame[source] * height * width;
    double sum = 0, variance = 0, area = 0, masked_area = 0;
    int any_masked = 0;
    for (long long k = lane; k < box.n_pixels(); k += 32) {
        const int column = box.first_column + (int)(k % box.n_columns());
        const int row = box.first_row + (int)(k / box.n_columns());
        const double covered = circle.coverage(column - xc, row - yc, subpix);
        if (covered < 0) continue;
        area += covered;
        const long long pixel = plane + (long long)row * width + column;
        if (bad[pixel] & BAD_MASKED) {
            any_masked = 1;
            masked_area += covered;
            continue;
        }
        const float sigma = err[pixel];
        sum += data[pixel] * covered;
        variance += (double)(sigma * sigma) * covered;  // squared in single precision
    }
    sum = warp_sum(sum);
    variance = warp_sum(variance);
    area = warp_sum(area);
    masked_area = warp_sum(masked_area);
    any_masked = __any_sync(FULL_WARP, any_masked);
    if (lane == 0) {
        const bool all_masked = area > 0 && masked_area >= area;
        const double scale = area / (area - masked_area);  // NaN without any area
        sum = all_masked ? 0 : sum * scale;
        variance = all_masked ? 0 : variance * scale;
        if (gain > 0 && sum > 0) variance += sum / gain;
        flux[source] = sum;
        fluxerr[source] = sqrt(variance);
        flag[source] = (box.truncated ? SEP_TRUNCATED : 0) | (any_masked ? SEP_HAS_MASKED : 0) |
                       (all_masked ? SEP_ALL_MASKED : 0);
    }
}
