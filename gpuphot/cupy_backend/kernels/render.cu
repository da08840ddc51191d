// Model images: every tile of 16 x 16 pixels gathers its stars in their canonical order. One
// block per tile, one thread per pixel.
//
// Stars are sorted, so that those whose stamps reach a row of tiles follow each other. A block
// looks through them, lists the ones that reach its own tile, in order, and adds them.
#include "common.cuh"

#define TILE 16
#define THREADS (TILE * TILE)

// stamps: (end - begin, n_rows, n_columns), those of the stars from `begin` to `end`
// row, column, flux: (n), first pixel of each stamp, and the star's flux
// first, last: range of the stars that reach each row of tiles
// image: (height, width), added to
extern "C" __global__ void __launch_bounds__(256, 4) render_tiles(
    const double* stamps, int n_rows, int n_columns, const int* row, const int* column,
    const double* flux, const long long* first, const long long* last, long long begin,
    long long end, int height, int width, double* image) {
    __shared__ long long listed[2 * THREADS];
    __shared__ int n_found[THREADS / 32];
    const int n_across = (width + TILE - 1) / TILE;
    const int tile_row = blockIdx.x / n_across, left = (int)(blockIdx.x % n_across) * TILE;
    const long long from = begin > first[tile_row] ? begin : first[tile_row];
    const long long to = end < last[tile_row] ? end : last[tile_row];
    if (from >= to) return;  // the whole block leaves

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int pixel_row = tile_row * TILE + threadIdx.x / TILE;
    const int pixel_column = left + threadIdx.x % TILE;
    const bool in_image = pixel_row < height && pixel_column < width;
    const long long pixel = (long long)pixel_row * width + pixel_column;
    double value = in_image ? image[pixel] : 0;
    int n_listed = 0;
    for (long long base = from; base < to; base += THREADS) {
        const long long star = base + threadIdx.x;
        const bool reaches =
            star < to && column[star] < left + TILE && column[star] + n_columns > left;
        const unsigned found = __ballot_sync(FULL_WARP, reaches);
        if (lane == 0) n_found[warp] = __popc(found);
        __syncthreads();
        int place = n_listed + __popc(found & ((1u << lane) - 1));
        for (int k = 0; k < THREADS / 32; ++k) {
            if (k < warp) place += n_found[k];
            n_listed += n_found[k];
        }
        if (reaches) listed[place] = star;
        __syncthreads();
        if (n_listed <= THREADS && base + THREADS < to) continue;

        for (int k = 0; k < n_listed; ++k) {
            const long long other = listed[k];
            const int j = pixel_row - row[other], i = pixel_column - column[other];
            if (j >= 0 && j < n_rows && i >= 0 && i < n_columns)
                value += flux[other] * stamps[((other - begin) * n_rows + j) * n_columns + i];
        }
        n_listed = 0;
    }
    if (in_image) image[pixel] = value;
}
