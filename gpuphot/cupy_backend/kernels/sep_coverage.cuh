// Which pixels SEP's circles and annuli hold, and how much of each.
//
//   const SepBox box = sep_box(x, y, r, height, width);    pixels to look at, as half-open ranges
//   const SepCircle circle = sep_circle(r);                what depends on the radius alone
//   const double c = circle.coverage(column - x, row - y, subpix);
//   if (c < 0) continue;                                   SEP does not visit this pixel
//
// An annulus has sep_annulus(r_in, r_out) instead, and the box of r_out. A pixel that is visited
// may have a coverage of 0, which counts for some of SEP's rules and not for others. NaN and huge
// numbers are allowed anywhere: the box is then empty and truncated, as it is on x86.
#pragma once
#include "overlap.cuh"
#include "sep_flags.cuh"

#define SEP_MARGIN 0.7072  // a little more than half the diagonal of a pixel
#define SEP_NOT_VISITED (-1.0)
#define SEP_SUBPIX 5  // sub-pixels along the side of a pixel, unless said otherwise

// A C cast to a 64-bit integer, with x86's answer for what does not fit.
__device__ inline long long sep_trunc(double value) {
    const bool fits = value >= -9223372036854775808.0 && value < 9223372036854775808.0;
    return fits ? (long long)value : (long long)0x8000000000000000ULL;
}

// Columns [first_column, end_column) and rows [first_row, end_row), all in the image.
struct SepBox {
    int first_column, end_column, first_row, end_row;
    bool truncated;  // cut by the border of the image

    __device__ int n_columns() const { return max(0, end_column - first_column); }
    __device__ int n_rows() const { return max(0, end_row - first_row); }
    __device__ long long n_pixels() const { return (long long)n_columns() * n_rows(); }
};

__device__ inline SepBox sep_box(double x, double y, double r, int height, int width) {
    const long long left = sep_trunc(x - r + 0.5), right = sep_trunc(x + r + 1.4999999);
    const long long low = sep_trunc(y - r + 0.5), high = sep_trunc(y + r + 1.4999999);
    SepBox box;
    box.truncated = left < 0 || right > width || low < 0 || high > height;
    box.first_column = (int)min(max(left, 0LL), (long long)width);
    box.end_column = (int)max(min(right, (long long)width), 0LL);
    box.first_row = (int)min(max(low, 0LL), (long long)height);
    box.end_row = (int)max(min(high, (long long)height), 0LL);
    return box;
}

// Share of the subpix x subpix samples of a pixel at (dx, dy) that lie between two circles, given
// the squares of their radii. Steps and shares are added one by one: their sums round.
__device__ inline double sep_sampled(double dx, double dy, double inner2, double outer2,
                                     int subpix) {
    const double step = 1.0 / subpix, share = step * step, offset = 0.5 * (step - 1);
    double covered = 0, sample_y = dy + offset;
    for (int j = 0; j < subpix; ++j, sample_y += step) {
        const double y2 = sample_y * sample_y;
        double sample_x = dx + offset;
        for (int i = 0; i < subpix; ++i, sample_x += step) {
            const double d2 = sample_x * sample_x + y2;
            if (d2 > inner2 && d2 < outer2) covered += share;
        }
    }
    return covered;
}

// Area that a pixel at (dx, dy) and a disc have in common; 0 if they are apart.
__device__ inline double sep_overlap(double dx, double dy, double r) {
    const double left = dx - 0.5, right = dx + 0.5, low = dy - 0.5, high = dy + 0.5;
    const double near_x = fmax(fmax(left, -right), 0.0), near_y = fmax(fmax(low, -high), 0.0);
    if (near_x * near_x + near_y * near_y > r * r) return 0;
    const double area = overlap(edge_at(left, r), edge_at(right, r), edge_at(low, r),
                                edge_at(high, r), 0.25 * PI * r * r);
    return fmax(area, 0.0);
}

struct SepCircle {
    double r, r2, surely_inside2, surely_outside2;

    // Coverage of the pixel at (dx, dy); subpix 0 for the exact one.
    __device__ double coverage(double dx, double dy, int subpix) const {
        const double d2 = dx * dx + dy * dy;
        if (!(d2 < surely_outside2)) return SEP_NOT_VISITED;
        if (d2 <= surely_inside2) return 1;
        return subpix ? sep_sampled(dx, dy, -1, r2, subpix) : sep_overlap(dx, dy, r);
    }
};

__device__ inline SepCircle sep_circle(double r) {
    const double inside = fmax(r - SEP_MARGIN, 0.0), outside = r + SEP_MARGIN;
    return {r, r * r, inside * inside, outside * outside};
}

struct SepAnnulus {
    SepCircle inner, outer;

    // Coverage of the pixel at (dx, dy) by subpix x subpix samples.
    __device__ double coverage(double dx, double dy, int subpix) const {
        const double d2 = dx * dx + dy * dy;
        if (!(d2 < outer.surely_outside2 && d2 > inner.surely_inside2)) return SEP_NOT_VISITED;
        if (!(d2 > outer.surely_inside2 || d2 < inner.surely_outside2)) return 1;
        return sep_sampled(dx, dy, inner.r2, outer.r2, subpix);
    }
};

__device__ inline SepAnnulus sep_annulus(double r_in, double r_out) {
    return {sep_circle(r_in), sep_circle(r_out)};
}
