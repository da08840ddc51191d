// Centres of mass in square boxes. One warp per source.
//
// A step takes the mean pixel coordinate, weighted with the pixels that are not negative, masked
// or without a value, in the box around the pixel that the position lies on.
#include "common.cuh"

// Whether a position keeps half_size pixels from the edges.
__device__ inline bool inside(double x, double y, int height, int width, int half_size) {
    return !(x < half_size || x >= width - half_size || y < half_size || y >= height - half_size);
}

// data, bad: planes (F, height, width); frame, valid: (n); x, y: (n), overwritten
extern "C" __global__ void __launch_bounds__(128, 4) com_centroid(
    const double* data, const unsigned char* bad, int height, int width, const int* frame,
    const unsigned char* valid, int n, int half_size, int n_iter, double max_shift, double* x,
    double* y) {
    const int lane = threadIdx.x & 31;
    const long long source = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (source >= n) return;  // whole warps leave together
    double xc = x[source], yc = y[source];
    if (!valid[source] || !inside(xc, yc, height, width, half_size)) return;

    const long long plane = (long long)frame[source] * height * width;
    const int size = 2 * half_size + 1;
    for (int iteration = 0; iteration < n_iter; ++iteration) {
        if (!inside(rint(xc), rint(yc), height, width, half_size)) break;
        const int column = (int)rint(xc) - half_size, row = (int)rint(yc) - half_size;
        double total = 0, total_x = 0, total_y = 0;
        for (int k = lane; k < size * size; k += 32) {
            const int i = k % size, j = k / size;
            const long long pixel = plane + (long long)(row + j) * width + column + i;
            const double light = data[pixel];
            if (!(light >= 0) || (bad[pixel] & BAD_UNUSABLE)) continue;
            total += light;
            total_x += light * i;
            total_y += light * j;
        }
        total = warp_sum(total);
        if (!(total >= 1e-30)) break;
        const double new_x = column + warp_sum(total_x) / total;
        const double new_y = row + warp_sum(total_y) / total;
        const double shift = hypot(new_x - xc, new_y - yc);
        xc = new_x;
        yc = new_y;
        if (shift < max_shift) break;
    }
    __syncwarp();  // every lane has read the position
    if (lane == 0) {
        x[source] = xc;
        y[source] = yc;
    }
}
