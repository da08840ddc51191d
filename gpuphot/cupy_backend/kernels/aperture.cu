// Exact-overlap sums over circular apertures. One warp per aperture.
//
// The warp tabulates what the overlap needs of the edges of its columns and rows once. Pixels inside
// weigh 1, pixels beyond the rim 0.
#include "overlap.cuh"

// data, err, bkg_rms, bad: planes (F, height, width); bkg_rms is read if has_rms
// x, y, frame, valid: (n); r and the results: (n, n_radii)
// max_edges: edges of the largest window along one axis, tabulated in 2 max_edges Edges of
// dynamic shared memory a warp; 0 if that is too much, then they are computed for each pixel
extern "C" __global__ void __launch_bounds__(128, 4) aperture_sums(
    const double* data, const double* err, const double* bkg_rms, int has_rms,
    const unsigned char* bad, int height, int width, const double* x, const double* y,
    const int* frame, const unsigned char* valid, const double* r, int n, int n_radii,
    int max_edges, double* flux, double* var, double* area, double* bkg_var,
    unsigned char* masked) {
    extern __shared__ double tables[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const long long aperture = (long long)blockIdx.x * (blockDim.x >> 5) + warp;
    if (aperture >= (long long)n * n_radii) return;  // whole warps leave together

    const int source = (int)(aperture / n_radii);
    const double xc = x[source], yc = y[source], radius = r[aperture];
    const double off_x = xc - fmin(fmax(xc, -0.5), width - 0.5);
    const double off_y = yc - fmin(fmax(yc, -0.5), height - 0.5);
    if (!valid[source] || !(hypot(off_x, off_y) < radius)) {
        if (lane == 0) {
            flux[aperture] = var[aperture] = area[aperture] = bkg_var[aperture] = NAN;
            masked[aperture] = 0;
        }
        return;
    }

    const int first_column = (int)fmax(0.0, floor(xc - radius + 0.5));
    const int first_row = (int)fmax(0.0, floor(yc - radius + 0.5));
    const int n_columns = (int)fmin(width - 1.0, ceil(xc + radius + 0.5) - 1) - first_column + 1;
    const int n_rows = (int)fmin(height - 1.0, ceil(yc + radius + 0.5) - 1) - first_row + 1;
    const double left_edge = first_column - 0.5 - xc, low_edge = first_row - 0.5 - yc;
    const double quarter_circle = 0.25 * PI * radius * radius, r2 = radius * radius;

    Edge* columns = (Edge*)tables + 2LL * max_edges * warp;
    Edge* rows = columns + max_edges;
    if (max_edges) {
        for (int k = lane; k <= n_columns; k += 32) columns[k] = edge_at(left_edge + k, radius);
        for (int k = lane; k <= n_rows; k += 32) rows[k] = edge_at(low_edge + k, radius);
        __syncwarp();
    }

    const double* plane_data = data + (long long)frame[source] * height * width;
    const double* plane_err = err + (long long)frame[source] * height * width;
    const double* plane_rms = bkg_rms + (long long)frame[source] * height * width;
    const unsigned char* plane_bad = bad + (long long)frame[source] * height * width;
    double sum = 0, sum_var = 0, sum_area = 0, sum_rms = 0;
    int any_masked = 0, any_overlap = 0;
    for (long long k = lane; k < (long long)n_columns * n_rows; k += 32) {
        const int i = (int)(k % n_columns), j = (int)(k / n_columns);
        const double left = left_edge + i, right = left + 1, low = low_edge + j, high = low + 1;
        const double near_x = fmax(fmax(left, -right), 0.0), near_y = fmax(fmax(low, -high), 0.0);
        if (!(near_y * near_y + near_x * near_x < r2)) continue;
        const double far_x = fmax(-left, right), far_y = fmax(-low, high);
        double weight = 1;
        if (far_x * far_x + far_y * far_y > r2) {
            weight = max_edges ? overlap(columns[i], columns[i + 1], rows[j], rows[j + 1],
                                         quarter_circle)
                               : overlap(edge_at(left, radius), edge_at(right, radius),
                                         edge_at(low, radius), edge_at(high, radius),
                                         quarter_circle);
        }
        any_overlap |= weight != 0;
        const long long pixel = (long long)(first_row + j) * width + first_column + i;
        const int bits = plane_bad[pixel];
        const double centre_x = left + 0.5, centre_y = low + 0.5;
        if ((bits & BAD_MASKED) && centre_y * centre_y + centre_x * centre_x < r2) any_masked = 1;
        if (has_rms) sum_rms += weight * (plane_rms[pixel] * plane_rms[pixel]);
        if ((bits & BAD_IMAGE) || !(weight > 0)) continue;
        sum += weight * plane_data[pixel];
        sum_var += weight * (plane_err[pixel] * plane_err[pixel]);
        sum_area += weight;
    }
    sum = warp_sum(sum);
    sum_var = warp_sum(sum_var);
    sum_area = warp_sum(sum_area);
    sum_rms = warp_sum(sum_rms);
    any_masked = __any_sync(FULL_WARP, any_masked);
    any_overlap = __any_sync(FULL_WARP, any_overlap);
    if (lane == 0) {
        flux[aperture] = any_overlap ? sum : NAN;
        var[aperture] = any_overlap ? sum_var : NAN;
        area[aperture] = any_overlap ? sum_area : NAN;
        bkg_var[aperture] = any_overlap ? sum_rms : NAN;
        masked[aperture] = any_masked != 0;
    }
}
