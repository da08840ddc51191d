// Optimal sums: the scale of a PSF stamp that fits the pixels around a source. One warp per source.
//
// flux = sum(P D) / sum(P P), its variance sum(P P V) / sum(P P)^2, with the stamp P, the data D and
// the variance V, over usable pixels up to r from the pixel that the source lies on.
#include "usable.cuh"

// data, err, bad: planes (F, height, width); x, y, frame, valid, bg: (n)
// half: (n), half sizes of the stamps of Gaussians of their own; without `has_half` all stamps have
// those of half_row and half_column
// stamps: (end - begin, core_rows, core_columns), centres of the stamps of the sources from `begin`
// flux, fluxerr, npix, chi2, norm: (n)
extern "C" __global__ void __launch_bounds__(128, 4) optimal_sums(
    const double* data, const double* err, const unsigned char* bad, int height, int width,
    const double* x, const double* y, const int* frame, const unsigned char* valid,
    const double* bg, int has_half, const int* half, int half_row, int half_column, const double* stamps,
    int core_rows, int core_columns, double r, int begin, int end, double* flux, double* fluxerr,
    long long* npix, double* chi2, double* norm) {
    const int lane = threadIdx.x & 31;
    const long long warp = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    const long long source = begin + warp;
    if (source >= end) return;  // whole warps leave together
    if (has_half) half_row = half_column = half[source];
    const double xc = rint(x[source]), yc = rint(y[source]);
    const bool inside = valid[source] && xc >= half_column && xc < width - half_column &&
                        yc >= half_row && yc < height - half_row;
    double power = 0, light = 0, product = 0, noise = 0, misfit = 0, scale = NAN;
    int count = 0;
    if (inside) {
        const int column = (int)xc, row = (int)yc;
        const long long plane = (long long)frame[source] * height * width;
        const double* stamp = stamps + warp * core_rows * core_columns;
        const double level = bg[source];
        for (int pass = 0; pass < 2; ++pass) {
            for (int k = lane; k < core_rows * core_columns; k += 32) {
                const int dy = k / core_columns - core_rows / 2;
                const int dx = k % core_columns - core_columns / 2;
                if (abs(dy) > half_row || abs(dx) > half_column) continue;
                if (!(sqrt((double)(dy * dy + dx * dx)) <= r)) continue;
                const long long pixel = plane + (long long)(row + dy) * width + column + dx;
                const double sigma = err[pixel], weight = stamp[k];
                if (!is_usable(bad[pixel], sigma)) continue;
                const double value = data[pixel] - level;
                if (pass) {
                    const double deviation = (value - scale * weight) / sigma;
                    misfit += deviation * deviation;
                } else {
                    power += weight * weight;
                    light += weight;
                    product += weight * value;
                    noise += (weight * sigma) * (weight * sigma);
                    count += 1;
                }
            }
            if (pass) break;
            power = warp_sum(power);
            scale = warp_sum(product) / (power > 0 ? power : NAN);
        }
        light = warp_sum(light);
        noise = warp_sum(noise);
        misfit = warp_sum(misfit);
        count = (int)warp_sum((double)count);
    }
    if (lane == 0) {
        const bool found = power > 0;
        flux[source] = scale;
        fluxerr[source] = found ? sqrt(noise) / power : NAN;
        npix[source] = found ? count : 0;
        chi2[source] = found && count > 1 ? misfit / (count - 1) : NAN;
        norm[source] = found ? light : NAN;
    }
}
