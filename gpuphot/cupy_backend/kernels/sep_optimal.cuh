// Gaussians in SEP's circles. A pixel counts if one of its 5 x 5 sub-pixels has its centre in the
// circle, and weighs as much as the Gaussian, integrated over the pixel.
//
// Both split into what the column and the row of the pixel add: a warp tabulates that once.
#pragma once
#include "sep_coverage.cuh"

#define SEP_FWHM_PER_SIGMA 2.354820045

// What a column, or a row, adds to its pixels.
struct SepLine {
    double light;      // integral of the Gaussian across it, times two
    double distance2;  // of its centre
    double nearest2;   // of the nearest centre of its sub-pixels
};

// offset: of the centre of the column from the source; scale: 1 / (sqrt(2) sigma)
__device__ inline SepLine sep_line(double offset, double scale) {
    const double step = 1.0 / SEP_SUBPIX;
    double sample = offset + 0.5 * (step - 1), nearest2 = sample * sample;
    for (int k = 1; k < SEP_SUBPIX; ++k) {
        sample += step;
        nearest2 = fmin(nearest2, sample * sample);
    }
    return {erf((offset + 0.5) * scale) - erf((offset - 0.5) * scale), offset * offset, nearest2};
}

// Whether a pixel counts.
__device__ inline bool sep_counts(const SepCircle& circle, const SepLine& column,
                                  const SepLine& row) {
    const double d2 = column.distance2 + row.distance2;
    if (!(d2 < circle.surely_outside2)) return false;
    return d2 <= circle.surely_inside2 || column.nearest2 + row.nearest2 < circle.r2;
}

// A source: its Gaussian, its circle and the pixels to look at.
struct SepProfile {
    double x, y, scale;
    SepCircle circle;
    SepBox box;
};

__device__ inline SepProfile sep_profile(double x, double y, double r, double fwhm, int height,
                                         int width) {
    const double sigma = fwhm / SEP_FWHM_PER_SIGMA;
    return {x, y, 1 / (sqrt(2.0) * sigma), sep_circle(r), sep_box(x, y, r, height, width)};
}

// Calls take(number, row, column, light) for each pixel that counts, by a warp; `number` is that
// of the pixel in the box.
//
// lines: shared, 2 max_lines of them a warp; more columns or rows are computed for each pixel
template <typename Take>
__device__ inline void sep_for_each_pixel(const SepProfile& source, SepLine* lines, int max_lines,
                                          Take take) {
    const int lane = threadIdx.x & 31;
    const SepBox& box = source.box;
    const int n_columns = box.n_columns(), n_rows = box.n_rows();
    const bool tabulated = n_columns <= max_lines && n_rows <= max_lines;
    SepLine *columns = lines, *rows = lines + max_lines;
    if (tabulated) {
        for (int k = lane; k < n_columns; k += 32)
            columns[k] = sep_line(box.first_column + k - source.x, source.scale);
        for (int k = lane; k < n_rows; k += 32)
            rows[k] = sep_line(box.first_row + k - source.y, source.scale);
        __syncwarp();
    }
    for (long long k = lane; k < box.n_pixels(); k += 32) {
        const int j = (int)(k / n_columns), i = (int)(k % n_columns);
        const int row = box.first_row + j, column = box.first_column + i;
        const SepLine across = tabulated ? columns[i] : sep_line(column - source.x, source.scale);
        const SepLine along = tabulated ? rows[j] : sep_line(row - source.y, source.scale);
        if (sep_counts(source.circle, across, along))
            take(k, row, column, 0.25 * across.light * along.light);
    }
}
