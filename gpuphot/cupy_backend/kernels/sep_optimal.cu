// SEP's optimal sums of single sources. One warp per source.
//
// Over the pixels that count: P the Gaussian, D the data and V the variance, which is rounded to
// single precision. A pixel is usable if it is not masked and V is positive.
#include "sep_optimal.cuh"

// data, err, bad: planes (F, height, width); x, y, frame, r, fwhm: (n)
// measured: (n), whether a source has a position, a radius and a width
// max_lines: columns and rows tabulated in dynamic shared memory, 2 max_lines SepLines a warp
// product, power, light: (n), sums of P D / V, P P / V and P / V over the usable pixels
// n_pixels: (n), pixels of the box around the circle
// undefined: (n), whether V is NaN in a pixel that is not masked; flag: (n)
extern "C" __global__ void __launch_bounds__(128, 5) sep_optimal_sums(
    const float* data, const float* err, const unsigned char* bad, int height, int width,
    const double* x, const double* y, const int* frame, const double* r, const double* fwhm,
    const unsigned char* measured, int n, int max_lines, double* product, double* power,
    double* light, long long* n_pixels, unsigned char* undefined, long long* flag) {
    extern __shared__ double shared[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const long long source = (long long)blockIdx.x * (blockDim.x >> 5) + warp;
    if (source >= n) return;  // whole warps leave together
    if (!measured[source]) {
        if (lane == 0) {
            product[source] = power[source] = light[source] = NAN;
            n_pixels[source] = flag[source] = undefined[source] = 0;
        }
        return;
    }
    const SepProfile profile =
        sep_profile(x[source], y[source], r[source], fwhm[source], height, width);
    const long long plane = (long long)frame[source] * height * width;
    double sum_product = 0, sum_power = 0, sum_light = 0;
    int any_unusable = 0, any_undefined = 0;
    sep_for_each_pixel(
        profile, (SepLine*)shared + 2LL * max_lines * warp, max_lines,
        [&](long long, int row, int column, double p) {
            const long long pixel = plane + (long long)row * width + column;
            const float sigma = err[pixel];
            const double variance = sigma * sigma;
            const bool masked = bad[pixel] & BAD_MASKED;
            if (masked || !(variance > 0)) {
                any_unusable = 1;
                any_undefined |= !masked && variance != variance;
                return;
            }
            const double weight = p / variance;
            sum_product += weight * data[pixel];
            sum_power += weight * p;
            sum_light += weight;
        });
    sum_product = warp_sum(sum_product);
    sum_power = warp_sum(sum_power);
    sum_light = warp_sum(sum_light);
    any_unusable = __any_sync(FULL_WARP, any_unusable);
    any_undefined = __any_sync(FULL_WARP, any_undefined);
    if (lane == 0) {
        product[source] = sum_product;
        power[source] = sum_power;
        light[source] = sum_light;
        n_pixels[source] = profile.box.n_pixels();
        undefined[source] = any_undefined;
        flag[source] = (profile.box.truncated ? SEP_TRUNCATED : 0) |
                       (any_unusable ? SEP_HAS_MASKED : 0) |
                       (sum_power > 0 ? 0 : SEP_ALL_MASKED);
    }
}
