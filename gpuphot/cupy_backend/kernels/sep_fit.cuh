// Least-squares fits of PSFs by SEP's rules: the pixels and the rules that all of them share.
//
//   const SepImage image = sep_image(data, err, bad, height, width, frame, gain);
//   image.variance(pixel)       with the noise of the pixel's own light; 0 if it is not used
//   image.weighted(pixel)       datum p and weight q, whose product is what SEP fits
#pragma once
#include "common.cuh"
#include "sep_flags.cuh"

// A datum and 1 / its standard deviation: 0 for pixels that are not used, the datum as well if that
// is because they are masked.
struct SepDatum {
    float value;
    double weight;
};

// A plane of a frame.
struct SepImage {
    const float* data;
    const float* err;
    const unsigned char* bad;
    int height, width;
    double gain;  // 0 for none

    __device__ bool holds(int row, int column) const {
        return row >= 0 && row < height && column >= 0 && column < width;
    }
    __device__ long long index(int row, int column) const {
        return (long long)row * width + column;
    }
    __device__ bool is_masked(long long pixel) const { return bad[pixel] & BAD_MASKED; }

    __device__ double variance(long long pixel) const {
        const double sigma = err[pixel], noise = sigma * sigma, light = data[pixel];
        if (is_masked(pixel) || !(noise > 0)) return 0;
        return gain > 0 && light > 0 ? noise + light / gain : noise;
    }
    __device__ SepDatum weighted(long long pixel) const {
        const double total = variance(pixel);
        return {is_masked(pixel) ? 0 : data[pixel], total > 0 ? 1 / sqrt(total) : 0};
    }
    // Variance of a flux from its own light.
    __device__ double photon_noise(double flux) const {
        return gain > 0 && flux > 0 ? flux / gain : 0;
    }
};

__device__ inline SepImage sep_image(const float* data, const float* err, const unsigned char* bad,
                                     int height, int width, int frame, double gain) {
    const long long plane = (long long)frame * height * width;
    return {data + plane, err + plane, bad + plane, height, width, gain};
}

struct SepRules {
    int max_iter;
    double fit_radius;  // of the pixels that are used; 0 for all
    double tolerance;   // a step that is not longer is the last, in pixels
    double max_drift;   // how far a position may move, in pixels
    double damping;     // of the steps of a source with a flux of 1; 0 for none

    __device__ bool reaches(double dx, double dy) const {
        return !(fit_radius > 0 && dx * dx + dy * dy > fit_radius * fit_radius);
    }
};
