// Sigma-clipped mode of annuli, 3 median - 2 mean. One block per source.
#include "annulus.cuh"
#include "sample.cuh"

// data, bad: planes (F, height, width); x, y, frame, valid, level: (n)
// Dynamic shared memory: a double for each pixel of an annulus, up to the next power of two.
extern "C" __global__ void __launch_bounds__(128, 4) annulus_mode(
    const double* data, const unsigned char* bad, int height, int width, const double* x,
    const double* y, const int* frame, const unsigned char* valid, double r_in, double r_out,
    double* level) {
    extern __shared__ double sample[];
    __shared__ Scratch scratch;
    const int i = blockIdx.x;
    const AnnulusPixels pixels = annulus_around(data, bad, height, width, x[i], y[i], frame[i],
                                                valid[i], r_in, r_out, true);
    const Statistics left = clip_in_shared(pixels, false, sample, scratch);
    if (threadIdx.x == 0) level[i] = left.reference + 3 * left.median - 2 * left.mean;
}

// The same for annuli that shared memory does not hold.
extern "C" __global__ void __launch_bounds__(128, 4) annulus_mode_streaming(
    const double* data, const unsigned char* bad, int height, int width, const double* x,
    const double* y, const int* frame, const unsigned char* valid, double r_in, double r_out,
    double* level) {
    __shared__ Scratch scratch;
    const int i = blockIdx.x;
    const AnnulusPixels pixels = annulus_around(data, bad, height, width, x[i], y[i], frame[i],
                                                valid[i], r_in, r_out, true);
    const Statistics left = clip_streaming(pixels, false, scratch);
    if (threadIdx.x == 0) level[i] = left.reference + 3 * left.median - 2 * left.mean;
}
