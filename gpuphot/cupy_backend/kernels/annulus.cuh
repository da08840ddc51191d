// The pixels of an annulus around a source.
#pragma once
#include "common.cuh"

struct AnnulusPixels {
    const double* data;  // the source's plane
    const unsigned char* bad;
    int width, first_row, first_column, n_rows, n_columns;
    double x, y, r_in, r_out;
    bool of_mode;  // the outer rim does not belong to it, and distances round as in photutils

    // The mode's is summed from the lower edge of the box around r_out.
    __device__ double distance(int pixel, double position) const {
        if (!of_mode) return pixel - position;
        const double first = floor(position - r_out + 0.5);
        return ((pixel - first) + (first - 0.5 - position)) + 0.5;
    }
    __device__ long long count() const { return (long long)n_rows * n_columns; }
    __device__ bool value(long long k, double& value) const {
        const int row = first_row + (int)(k / n_columns);
        const int column = first_column + (int)(k % n_columns);
        const double dx = distance(column, x), dy = distance(row, y), d2 = dx * dx + dy * dy;
        if (of_mode) {
            if (!(d2 >= r_in * r_in && d2 < r_out * r_out)) return false;
        } else {
            const double d = sqrt(d2);
            if (!(d >= r_in && d <= r_out)) return false;
        }
        const long long pixel = (long long)row * width + column;
        value = data[pixel];
        return !(bad[pixel] & BAD_UNUSABLE);
    }
};

// Without candidates if the position is not valid or the annulus does not reach the image.
__device__ inline AnnulusPixels annulus_around(const double* data, const unsigned char* bad,
                                               int height, int width, double x, double y,
                                               int frame, bool valid, double r_in, double r_out,
                                               bool of_mode) {
    AnnulusPixels pixels;
    pixels.data = data + (long long)frame * height * width;
    pixels.bad = bad + (long long)frame * height * width;
    pixels.width = width;
    pixels.x = x;
    pixels.y = y;
    pixels.r_in = r_in;
    pixels.r_out = r_out;
    pixels.of_mode = of_mode;
    pixels.n_rows = pixels.n_columns = pixels.first_row = pixels.first_column = 0;
    const double off_x = x - fmin(fmax(x, -0.5), width - 0.5);
    const double off_y = y - fmin(fmax(y, -0.5), height - 0.5);
    if (valid && hypot(off_x, off_y) < r_out) {
        // A pixel more on every side, for those that rounding puts on the rim.
        pixels.first_row = (int)fmax(0.0, ceil(y - r_out) - 1);
        pixels.first_column = (int)fmax(0.0, ceil(x - r_out) - 1);
        pixels.n_rows =
            max(0, (int)fmin(height - 1.0, floor(y + r_out) + 1) - pixels.first_row + 1);
        pixels.n_columns =
            max(0, (int)fmin(width - 1.0, floor(x + r_out) + 1) - pixels.first_column + 1);
    }
    return pixels;
}
