// Sigma-clipped statistics of one sample per block: the pixels of a mesh cell or of an annulus.
//
// A sample that fits shared memory is sorted once; clipping then only moves the two ends of an
// interval. A larger one is read again for every sum, and its medians are found by radix
// selection. Statistics are relative to the sample's median, the reference, so that a bright sky
// costs no precision, and every sum runs in a fixed order.
//
// A sample is described by a struct Pixels with
//   long long count() const                          candidates
//   bool value(long long k, double& value) const     whether candidate k belongs, and its value
#pragma once
#include "search.cuh"

#define CLIP_SIGMA 3.0
#define MAX_REJECTIONS 10

// Static shared memory of the block.
struct Scratch {
    double of_warp[32];
    int n_collected, histogram[256];
};

struct Statistics {
    int count;
    double reference;          // median of the whole sample
    double median, mean, std;  // of what is left, relative to the reference
};

__device__ inline double standard_deviation(double sum, double sum_of_squares, double n) {
    const double mean = sum / n;
    return sqrt(fmax(sum_of_squares / n - mean * mean, 0.0));
}

// ---- Samples in shared memory

// Collects a sample; returns its size. The order does not matter, it will be sorted.
template <typename Pixels>
__device__ inline int collect(const Pixels& pixels, double* sample, Scratch& scratch) {
    if (threadIdx.x == 0) scratch.n_collected = 0;
    __syncthreads();
    double value;
    for (long long k = threadIdx.x; k < pixels.count(); k += blockDim.x) {
        if (pixels.value(k, value)) sample[atomicAdd(&scratch.n_collected, 1)] = value;
    }
    __syncthreads();
    return scratch.n_collected;
}

// Bitonic sort of n values; room up to the next power of two is overwritten.
__device__ inline void sort(double* sample, int n) {
    int size = 1;
    while (size < n) size *= 2;
    for (int k = n + threadIdx.x; k < size; k += blockDim.x) sample[k] = INFINITY;
    for (int run = 2; run <= size; run *= 2) {
        for (int step = run / 2; step > 0; step /= 2) {
            __syncthreads();
            for (int k = threadIdx.x; k < size / 2; k += blockDim.x) {
                const int i = 2 * k - (k & (step - 1)), j = i + step;
                const double low = sample[i], high = sample[j];
                if ((low > high) == ((i & run) == 0)) {
                    sample[i] = high;
                    sample[j] = low;
                }
            }
        }
    }
    __syncthreads();
}

__device__ inline Statistics interval_statistics(const double* sorted, int first, int last,
                                                 double reference, Scratch& scratch) {
    double sum = 0, sum_of_squares = 0;
    for (int k = first + threadIdx.x; k < last; k += blockDim.x) {
        sum += sorted[k];
        sum_of_squares += sorted[k] * sorted[k];
    }
    sum = block_sum(sum, scratch.of_warp);
    sum_of_squares = block_sum(sum_of_squares, scratch.of_warp);
    Statistics result;
    result.count = last - first;
    result.reference = reference;
    result.mean = sum / result.count;
    result.std = standard_deviation(sum, sum_of_squares, result.count);
    result.median =
        result.count ? 0.5 * (sorted[(first + last - 1) / 2] + sorted[(first + last) / 2]) : NAN;
    return result;
}

// The clipped statistics of a sample in shared memory. With `recall`, the bounds computed last
// hold for the whole sample, also for values that were rejected on the way.
template <typename Pixels>
__device__ inline Statistics clip_in_shared(const Pixels& pixels, bool recall, double* sample,
                                            Scratch& scratch) {
    const int n = collect(pixels, sample, scratch);
    sort(sample, n);
    const double reference = n ? 0.5 * (sample[(n - 1) / 2] + sample[n / 2]) : 0.0;
    __syncthreads();
    for (int k = threadIdx.x; k < n; k += blockDim.x) sample[k] -= reference;
    __syncthreads();
    int first = 0, last = n;
    double low = 0, high = 0;
    for (int rejection = 0; n && rejection < MAX_REJECTIONS; ++rejection) {
        const Statistics left = interval_statistics(sample, first, last, reference, scratch);
        low = left.median - CLIP_SIGMA * left.std;
        high = left.median + CLIP_SIGMA * left.std;
        const int begin = lower_bound(sample, first, last, low);
        const int end = lower_bound(sample, first, last, nextafter(high, INFINITY));
        if (begin == first && end == last) break;
        first = begin;
        last = end;
    }
    if (recall && n) {
        first = lower_bound(sample, 0, n, low);
        last = lower_bound(sample, 0, n, nextafter(high, INFINITY));
    }
    return interval_statistics(sample, first, last, reference, scratch);
}

// ---- Samples of any size

// An integer that orders as the double does.
__device__ inline unsigned long long sortable(double value) {
    const unsigned long long bits = (unsigned long long)__double_as_longlong(value);
    return bits >> 63 ? ~bits : bits | 0x8000000000000000ULL;
}

__device__ inline double from_sortable(unsigned long long key) {
    const unsigned long long bits = key >> 63 ? key & 0x7fffffffffffffffULL : ~key;
    return __longlong_as_double((long long)bits);
}

// The deviations from the reference that lie in [low, high].
template <typename Pixels>
struct Deviations {
    const Pixels& pixels;
    double reference, low, high;

    __device__ bool value(long long k, double& deviation) const {
        if (!pixels.value(k, deviation)) return false;
        deviation -= reference;
        return deviation >= low && deviation <= high;
    }
};

// The value of a rank, by eight passes that fix eight bits of it each.
template <typename Pixels>
__device__ inline double select(const Deviations<Pixels>& sample, int rank, Scratch& scratch) {
    int* histogram = scratch.histogram;
    unsigned long long prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        __syncthreads();
        for (int bin = threadIdx.x; bin < 256; bin += blockDim.x) histogram[bin] = 0;
        __syncthreads();
        double value;
        for (long long k = threadIdx.x; k < sample.pixels.count(); k += blockDim.x) {
            if (!sample.value(k, value)) continue;
            const unsigned long long key = sortable(value);
            if (shift == 56 || key >> (shift + 8) == prefix) {
                atomicAdd(&histogram[(key >> shift) & 255], 1);
            }
        }
        __syncthreads();
        int bin = 0;
        while (bin < 255 && rank >= histogram[bin]) rank -= histogram[bin++];
        prefix = prefix << 8 | bin;
    }
    return from_sortable(prefix);
}

template <typename Pixels>
__device__ inline Statistics deviation_statistics(const Deviations<Pixels>& sample,
                                                  Scratch& scratch) {
    double n = 0, sum = 0, sum_of_squares = 0, value;
    for (long long k = threadIdx.x; k < sample.pixels.count(); k += blockDim.x) {
        if (!sample.value(k, value)) continue;
        n += 1;
        sum += value;
        sum_of_squares += value * value;
    }
    n = block_sum(n, scratch.of_warp);
    sum = block_sum(sum, scratch.of_warp);
    sum_of_squares = block_sum(sum_of_squares, scratch.of_warp);
    Statistics result;
    result.count = (int)n;
    result.reference = sample.reference;
    result.mean = sum / n;
    result.std = standard_deviation(sum, sum_of_squares, n);
    result.median = NAN;
    if (result.count) {
        double middle = 0;
#pragma unroll 1
        for (int upper = 0; upper < 2; ++upper) {
            middle += select(sample, (result.count - 1 + upper) / 2, scratch);
        }
        result.median = 0.5 * middle;
    }
    return result;
}

// The same numbers as clip_in_shared, for samples of any size.
template <typename Pixels>
__device__ inline Statistics clip_streaming(const Pixels& pixels, bool recall, Scratch& scratch) {
    Deviations<Pixels> sample = {pixels, 0.0, -INFINITY, INFINITY};
    Statistics left = deviation_statistics(sample, scratch);
    if (left.count == 0) {
        left.reference = 0;
        return left;
    }
    sample.reference = left.median;
    left = deviation_statistics(sample, scratch);
    double low = 0, high = 0;
    for (int rejection = 0; rejection < MAX_REJECTIONS; ++rejection) {
        low = left.median - CLIP_SIGMA * left.std;
        high = left.median + CLIP_SIGMA * left.std;
        sample.low = fmax(sample.low, low);
        sample.high = fmin(sample.high, high);
        const int before = left.count;
        left = deviation_statistics(sample, scratch);
        if (left.count == before) break;
    }
    if (recall) {
        sample.low = low;
        sample.high = high;
        left = deviation_statistics(sample, scratch);
    }
    return left;
}
