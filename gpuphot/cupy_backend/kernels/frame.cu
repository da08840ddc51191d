// From an image to a frame: bad pixels, background, noise. One thread per pixel.
#include "common.cuh"
#include "surface.cuh"

// data: (n_pixels) image as float64, its pixels without a finite value set to 0
// mask: (n_pixels), read if has_mask; bad: (n_pixels) result
extern "C" __global__ void __launch_bounds__(256, 2) mark_bad_pixels(
    double* data, const unsigned char* mask, int has_mask, long long n_pixels,
    unsigned char* bad) {
    const long long pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= n_pixels) return;
    int bits = 0;
    if (!isfinite(data[pixel])) {
        data[pixel] = 0;
        bits |= BAD_IMAGE;
    }
    if (has_mask && mask[pixel]) bits |= BAD_MASK;
    bad[pixel] = (unsigned char)bits;
}

// data, bad: (height, width) of mark_bad_pixels, overwritten
// level: (height, width) background, if it is no surface
// given_err: (height, width), read if has_err; else err is written, of the same shape: the rms with
// the Poisson noise of gain > 0
// bkg_rms: (height, width) result if has_rms
extern "C" __global__ void __launch_bounds__(256, 2) subtract_background(
    double* data, unsigned char* bad, int height, int width, const double* level,
    int level_is_surface, const double* level_nodes, int level_columns, double level_low,
    double level_high, int has_rms, const double* rms_nodes, int rms_columns, double rms_low,
    double rms_high, int cell_height, int cell_width, double gain, int has_err,
    const double* given_err, double* err, double* bkg_rms) {
    const long long pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= (long long)height * width) return;
    const int row = (int)(pixel / width), column = (int)(pixel % width);
    int bits = bad[pixel];
    double value = data[pixel];
    if (level_is_surface) {
        const Surface surface = {level_nodes, level_columns, cell_height,
                                 cell_width,  level_low,     level_high};
        value -= surface_at(surface, row, column);
    } else {
        value -= level[pixel];
        if (!isfinite(value)) bits |= BAD_BACKGROUND;
    }
    if (bits & BAD_IMAGE) {
        value = 0;
        bits &= ~BAD_BACKGROUND;
    }
    data[pixel] = value;
    if (has_rms) {
        const Surface surface = {rms_nodes, rms_columns, cell_height, cell_width, rms_low, rms_high};
        const double rms = surface_at(surface, row, column);
        bkg_rms[pixel] = rms;
        if (!has_err) {
            err[pixel] = gain > 0 ? sqrt(rms * rms + fmax(value / gain, 0.0)) : rms;
        }
    }
    if (has_err && !isfinite(given_err[pixel])) bits |= BAD_NOISE;
    bad[pixel] = (unsigned char)bits;
}

// values: (height, width) result
extern "C" __global__ void __launch_bounds__(256, 2) evaluate_surface(
    const double* nodes, int n_columns, int cell_height, int cell_width, double low, double high,
    int height, int width, double* values) {
    const long long pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= (long long)height * width) return;
    const Surface surface = {nodes, n_columns, cell_height, cell_width, low, high};
    values[pixel] = surface_at(surface, (int)(pixel / width), (int)(pixel % width));
}
