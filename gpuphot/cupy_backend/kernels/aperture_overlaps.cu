// Light of stars in apertures: their stamps, weighted with the share of every pixel's sub-pixels
// that lie in the circle. One warp per aperture.
//
// The sub-pixels in a circle are counted once if shared memory holds its box, else for every star.
#include "common.cuh"

// A circle around a position, which is `phase` off the centre of its pixel.
struct Circle {
    double phase_x, phase_y, r2;
    const double* centre;  // (subpix), centres of the sub-pixels of a pixel
    int subpix;
};

// Distance along an axis from the position to a sub-pixel of a pixel counted from its own.
__device__ inline double distance_to(int pixel, double centre, double phase) {
    return (pixel + centre) - phase;
}

// The shorter and the longer one of the distances from the position to the ends of a pixel; no
// sub-pixel is nearer than the first or farther than the second.
__device__ inline void extremes(int pixel, const Circle& circle, double phase, double* nearest,
                                double* farthest) {
    const double first = distance_to(pixel, circle.centre[0], phase);
    const double last = distance_to(pixel, circle.centre[circle.subpix - 1], phase);
    *nearest = fmax(fmax(first, -last), 0.0);
    *farthest = fmax(-first, last);
}

// How many sub-pixels of a pixel lie in a circle.
__device__ inline double count_inside(int row, int column, const Circle& circle) {
    double near_y, far_y, near_x, far_x;
    extremes(row, circle, circle.phase_y, &near_y, &far_y);
    extremes(column, circle, circle.phase_x, &near_x, &far_x);
    if (near_y * near_y + near_x * near_x > circle.r2) return 0;
    if (far_y * far_y + far_x * far_x <= circle.r2) return (double)circle.subpix * circle.subpix;
    double count = 0;
    for (int a = 0; a < circle.subpix; ++a) {
        const double dy = distance_to(row, circle.centre[a], circle.phase_y);
        for (int b = 0; b < circle.subpix; ++b) {
            const double dx = distance_to(column, circle.centre[b], circle.phase_x);
            if (dy * dy + dx * dx <= circle.r2) ++count;
        }
    }
    return count;
}

// Adds the light of the stars from `begin` to `end` to the sums of the apertures from `from` to
// `to`, in the order of the stars.
//
// stamps: (end - begin, n_rows, n_columns), of these stars
// star_x, star_y, flux, error, star_row: (n), positions of all stars, their light, its standard
//   deviation, and the rows that they come from
// x, y, row: (n_apertures), positions of the apertures, and the rows that these come from
// first, last: (3, n_apertures), ranges of the stars that may be near each aperture
// distance: up to which a star is near; half_size: of the box around a circle
// tabulated: whether there is shared memory, (2 half_size + 1)^2 doubles for each warp
// enclosed, light, variance: (n_apertures)
extern "C" __global__ void __launch_bounds__(128, 5) aperture_overlaps(
    const double* stamps, int n_rows, int n_columns, int begin, int end, const double* star_x,
    const double* star_y, const double* flux, const double* error, const int* star_row,
    const double* x, const double* y, const int* row, const int* first, const int* last,
    int n_apertures, int from, int to, double distance, double r, const double* centre, int subpix,
    int half_size, int tabulated, double* enclosed, double* light, double* variance) {
    extern __shared__ double tables[];
    const int lane = threadIdx.x & 31;
    const long long warp = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (warp >= to - from) return;  // whole warps leave together
    const int i = from + (int)warp;
    const double pixel_x = rint(x[i]), pixel_y = rint(y[i]);
    const Circle circle = {x[i] - pixel_x, y[i] - pixel_y, r * r, centre, subpix};

    // A window of pixels, counted from the central one: the box around the circle, or the stamp.
    const int height = tabulated ? 2 * half_size + 1 : n_rows;
    const int width = tabulated ? 2 * half_size + 1 : n_columns;
    const int n_pixels = height * width, down = 32 / width, aside = 32 % width;
    double* counts = tables + (tabulated ? (threadIdx.x >> 5) * n_pixels : 0);
    if (tabulated) {
        for (int p = lane; p < n_pixels; p += 32)
            counts[p] = count_inside(p / width - half_size, p % width - half_size, circle);
        __syncwarp();
    }

    double own_share = 0, sum = 0, sum_of_squares = 0;
    if (lane == 0) {
        own_share = enclosed[i];
        sum = light[i];
        sum_of_squares = variance[i];
    }
    for (int band = 0; band < 3; ++band) {
        const long long place = (long long)band * n_apertures + i;
        const int start = max(first[place], begin), stop = min(last[place], end);
        for (int base = start; base < stop; base += 32) {
            const int candidate = base + lane;
            int top = 0, left = 0;  // first pixel of the stamp
            bool touches = false;
            if (candidate < stop) {
                const double dx = star_x[candidate] - x[i], dy = star_y[candidate] - y[i];
                if (dx * dx + dy * dy <= distance * distance) {
                    top = (int)(rint(star_y[candidate]) - pixel_y) - n_rows / 2;
                    left = (int)(rint(star_x[candidate]) - pixel_x) - n_columns / 2;
                    touches = top <= half_size && top + n_rows > -half_size &&
                              left <= half_size && left + n_columns > -half_size;
                }
            }
            unsigned found = __ballot_sync(FULL_WARP, touches);
            for (; found; found &= found - 1) {
                const int k = __ffs(found) - 1, star = base + k;
                const int stamp_top = __shfl_sync(FULL_WARP, top, k);
                const int stamp_left = __shfl_sync(FULL_WARP, left, k);
                const double* stamp = stamps + (long long)(star - begin) * n_rows * n_columns;
                const double star_flux = flux[star], star_error = error[star];
                const bool own = star_row[star] == row[i];
                const int window_left = tabulated ? -half_size : stamp_left;
                int pixel_row = (tabulated ? -half_size : stamp_top) + lane / width;
                int across = lane % width;
                double share = 0;
                for (int p = lane; p < n_pixels; p += 32) {
                    const int j = pixel_row - stamp_top, c = window_left + across - stamp_left;
                    if (j >= 0 && j < n_rows && c >= 0 && c < n_columns) {
                        const double count =
                            tabulated ? counts[p]
                                      : count_inside(pixel_row, window_left + across, circle);
                        share += stamp[j * n_columns + c] * count;
                    }
                    pixel_row += down;
                    across += aside;
                    if (across >= width) {
                        across -= width;
                        ++pixel_row;
                    }
                }
                share = warp_sum(share) / ((double)subpix * subpix);
                sum += star_flux * share;
                if (own) {
                    own_share = share;
                } else {
                    sum_of_squares += (star_error * share) * (star_error * share);
                }
            }
        }
    }
    if (lane == 0) {
        enclosed[i] = own_share;
        light[i] = sum;
        variance[i] = sum_of_squares;
    }
}
