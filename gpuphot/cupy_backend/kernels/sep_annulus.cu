// Weighted medians and clipped means of annuli in SEP's way. One block per source.
//
// Annuli that fit shared memory are sorted once: clipping then only moves the two ends of an
// interval, whose median absolute deviation a binary search finds. The pixels of larger ones are
// read again for every sum, and their medians are found by radix selection. Which of two kernels
// does an annulus is decided by `most`, the pixels that it has room for.
#include "sample.cuh"
#include "sep_coverage.cuh"

#define SAMPLES (SEP_SUBPIX * SEP_SUBPIX)
#define STD_PER_MAD 1.4826

// The pixels that an annulus may hold; as a sample those whose centre it does hold.
struct Annulus {
    const float* data;  // the source's plane
    const unsigned char* bad;
    int width;
    double x, y;
    SepBox box;
    SepAnnulus rings;

    __device__ long long count() const { return box.n_pixels(); }
    __device__ int column(long long k) const {
        return box.first_column + (int)(k % box.n_columns());
    }
    __device__ int row(long long k) const { return box.first_row + (int)(k / box.n_columns()); }
    __device__ long long index(long long k) const { return (long long)row(k) * width + column(k); }
    __device__ bool value(long long k, double& value) const {
        const double dx = column(k) - x, dy = row(k) - y, d2 = dx * dx + dy * dy;
        if (!(d2 > rings.inner.r2 && d2 < rings.outer.r2)) return false;
        if (bad[index(k)] & BAD_UNUSABLE) return false;
        value = data[index(k)];
        return true;
    }

    // How many sub-pixels of pixel k the annulus holds; SAMPLES + 1 if SEP does not count them.
    __device__ int samples(long long k) const {
        const double covered = rings.coverage(column(k) - x, row(k) - y, SEP_SUBPIX);
        if (!(covered > 0) || bad[index(k)] & BAD_UNUSABLE) return 0;
        // Sub-pixels that are added up never make exactly 1.
        return covered == 1 ? SAMPLES + 1 : (int)rint(covered * SAMPLES);
    }
};

// Without pixels if the position is not valid or the radii make no annulus.
__device__ inline Annulus annulus_at(const float* data, const unsigned char* bad, int height,
                                     int width, double x, double y, int frame, bool valid,
                                     double r_in, double r_out) {
    const long long plane = (long long)frame * height * width;
    const bool exists = valid && r_in >= 0 && r_out >= r_in;
    return {data + plane,
            bad + plane,
            width,
            x,
            y,
            sep_box(x, y, exists ? r_out : NAN, height, width),
            sep_annulus(r_in, r_out)};
}

// ---- Medians

// The lowest bits of a double that single precision leaves free.
#define TAG_BITS 29
#define TAG_MASK ((1LL << TAG_BITS) - 1)
#define COUNT_BITS 5
#define COUNT_MASK ((1 << COUNT_BITS) - 1)

// Carries a tag in the value's free bits. Sorts like the value, and by the tag among equal ones.
__device__ inline double with_tag(double value, long long tag) {
    const long long bits = __double_as_longlong(value + 0.0);  // there is only one zero
    return __longlong_as_double(bits | (bits < 0 ? TAG_MASK - tag : tag));
}

__device__ inline long long tag_of(double tagged) {
    const long long bits = __double_as_longlong(tagged), tag = bits & TAG_MASK;
    return bits < 0 ? TAG_MASK - tag : tag;
}

__device__ inline double without_tag(double tagged) {
    return __longlong_as_double(__double_as_longlong(tagged) & ~TAG_MASK);
}

// The sample of all pixels with some weight, tagged with their place and their samples.
struct Weighted {
    const Annulus& annulus;

    __device__ long long count() const { return annulus.count(); }
    __device__ bool value(long long k, double& value) const {
        const int samples = annulus.samples(k);
        if (samples) value = with_tag(annulus.data[annulus.index(k)], k << COUNT_BITS | samples);
        return samples != 0;
    }
};

// The weight of a pixel in units of a sub-pixel's.
__device__ inline int weight_of(int samples) { return min(samples, SAMPLES); }

// Sum of SEP's weights of the first n of some tags, rounded as when SEP adds them up.
__device__ inline double running_weight(const double* tags, bool in_values, int n,
                                        const double* weight) {
    double total = 0;
    for (int k = 0; k < n; ++k) {
        const long long tag = in_values ? tag_of(tags[k]) : (long long)tags[k];
        total += weight[tag & COUNT_MASK];
    }
    return total;
}

// The first of the sorted values that, with those before it, has at least half of the weight.
__device__ inline double weighted_median(double* sample, int n, double* weight, int* totals) {
    const int share = (n + blockDim.x - 1) / blockDim.x;
    const int begin = min(share * (int)threadIdx.x, n), end = min(begin + share, n);
    int mine = 0, below = 0, total = 0;
    for (int k = begin; k < end; ++k) mine += weight_of((int)(tag_of(sample[k]) & COUNT_MASK));
    totals[threadIdx.x] = mine;
    if (threadIdx.x == 0) {
        weight[0] = 0;
        const double side = 1.0 / SEP_SUBPIX, share = side * side;
        for (int k = 1; k <= SAMPLES; ++k) weight[k] = weight[k - 1] + share;
        weight[SAMPLES + 1] = 1;
    }
    __syncthreads();
    for (int k = 0; k < (int)blockDim.x; ++k) {
        if (k < (int)threadIdx.x) below += totals[k];
        total += totals[k];
    }
    __syncthreads();
    for (int k = begin; k < end; ++k) {
        const int before = below;
        below += weight_of((int)(tag_of(sample[k]) & COUNT_MASK));
        if (2 * before < total && 2 * below >= total) {
            totals[0] = k;
            totals[1] = 2 * below == total;
        }
    }
    __syncthreads();
    const int middle = totals[0];
    const double value = without_tag(sample[middle]);
    if (!totals[1]) return value;
    // An exact half: here SEP's rounding decides, and it adds up all the weights in the order of
    // the image.
    const double next = without_tag(sample[min(middle + 1, n - 1)]);
    const double reached = running_weight(sample, true, middle + 1, weight);
    __syncthreads();
    for (int k = threadIdx.x; k < n; k += blockDim.x) sample[k] = (double)tag_of(sample[k]);
    sort(sample, n);
    return reached >= 0.5 * running_weight(sample, false, n, weight) ? value : next;
}

// data, bad: planes (F, height, width); x, y, frame, valid, r_in, r_out, most, level: (n)
// Dynamic shared memory: `capacity` doubles, a power of two.
extern "C" __global__ void __launch_bounds__(128, 4) sep_annulus_median(
    const float* data, const unsigned char* bad, int height, int width, const double* x,
    const double* y, const int* frame, const unsigned char* valid, const double* r_in,
    const double* r_out, const double* most, int capacity, double* level) {
    extern __shared__ double sample[];
    __shared__ Scratch scratch;
    __shared__ double weight[SAMPLES + 2];
    __shared__ int totals[128];
    const int i = blockIdx.x;
    if (most[i] > capacity) return;
    const Annulus annulus = annulus_at(data, bad, height, width, x[i], y[i], frame[i], valid[i],
                                       r_in[i], r_out[i]);
    const int n = collect(Weighted{annulus}, sample, scratch);
    sort(sample, n);
    const double median = n ? weighted_median(sample, n, weight, totals) : NAN;
    if (threadIdx.x == 0) level[i] = median;
}

// The same for annuli that shared memory does not hold, where an exact half is half.
extern "C" __global__ void __launch_bounds__(128, 4) sep_annulus_median_streaming(
    const float* data, const unsigned char* bad, int height, int width, const double* x,
    const double* y, const int* frame, const unsigned char* valid, const double* r_in,
    const double* r_out, const double* most, int capacity, double* level) {
    __shared__ unsigned long long histogram[256];
    const int i = blockIdx.x;
    if (!(most[i] > capacity)) return;
    const Annulus annulus = annulus_at(data, bad, height, width, x[i], y[i], frame[i], valid[i],
                                       r_in[i], r_out[i]);
    unsigned long long total = 0, below = 0, prefix = 0;
    // The 24 lowest bits are those that single precision leaves free.
    for (int shift = 56; shift >= 24; shift -= 8) {
        __syncthreads();
        for (int bin = threadIdx.x; bin < 256; bin += blockDim.x) histogram[bin] = 0;
        __syncthreads();
        for (long long k = threadIdx.x; k < annulus.count(); k += blockDim.x) {
            const int samples = annulus.samples(k);
            if (samples == 0) continue;
            const unsigned long long key = sortable(annulus.data[annulus.index(k)] + 0.0);
            if (shift == 56 || key >> (shift + 8) == prefix) {
                atomicAdd(&histogram[(key >> shift) & 255],
                          (unsigned long long)weight_of(samples));
            }
        }
        __syncthreads();
        if (shift == 56) {
            for (int bin = 0; bin < 256; ++bin) total += histogram[bin];
        }
        int bin = 0;
        while (bin < 255 && 2 * (below + histogram[bin]) < total) below += histogram[bin++];
        prefix = prefix << 8 | bin;
    }
    // Keys of negative values have all bits flipped, the free ones too.
    const unsigned long long free_bits = prefix >> 39 ? 0 : (1ULL << 24) - 1;
    if (threadIdx.x == 0) level[i] = total ? from_sortable(prefix << 24 | free_bits) : NAN;
}

// ---- Clipped means

struct Means {
    double mean;   // of what is left
    double total;  // sum before clipping
    double n;      // pixels before clipping
};

// Lower median of the absolute deviations from the median of the sorted values [begin, end). The
// smaller half of the deviations belongs to neighbours, of which the first is sought.
__device__ inline double median_deviation(const double* sorted, int begin, int end,
                                          double median) {
    const int half = (end - begin - 1) / 2;
    int low = begin, high = begin + half;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (median - sorted[middle] > sorted[middle + half + 1] - median) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return fmax(median - sorted[low], sorted[low + half] - median);
}

// The clipped mean of a sample in shared memory.
__device__ inline Means means_in_shared(const Annulus& annulus, double clip_sigma, int clip_iters,
                                        double* sample, Scratch& scratch) {
    const int n = collect(annulus, sample, scratch);
    sort(sample, n);
    if (n == 0) return {NAN, 0, 0};
    int first = 0, last = n;
    for (int round = 0; round < clip_iters; ++round) {
        const double median = sample[(first + last - 1) / 2];
        const double std = STD_PER_MAD * median_deviation(sample, first, last, median);
        if (!(std > 0)) break;
        const double low = median - clip_sigma * std, high = median + clip_sigma * std;
        const int begin = lower_bound(sample, first, last, low);
        const int end = lower_bound(sample, first, last, nextafter(high, INFINITY));
        if (begin == first && end == last) break;
        first = begin;
        last = end;
    }
    const double reference = sample[(n - 1) / 2];
    double total = 0, left = 0;
    for (int k = threadIdx.x; k < n; k += blockDim.x) {
        total += sample[k] - reference;
        if (k >= first && k < last) left += sample[k] - reference;
    }
    total = block_sum(total, scratch.of_warp);
    left = block_sum(left, scratch.of_warp);
    return {reference + left / (last - first), total + reference * n, (double)n};
}

// The absolute deviations of a sample.
struct AbsoluteDeviations {
    const Deviations<Annulus>& sample;
    double median;

    __device__ long long count() const { return sample.pixels.count(); }
    __device__ bool value(long long k, double& value) const {
        if (!sample.value(k, value)) return false;
        value = fabs(value - median);
        return true;
    }
};

// Number of values and sum of their differences from a reference.
struct Sum {
    int n;
    double sum;
};

__device__ inline Sum sum_of(const Deviations<Annulus>& sample, double reference,
                             Scratch& scratch) {
    double n = 0, sum = 0, value;
    for (long long k = threadIdx.x; k < sample.pixels.count(); k += blockDim.x) {
        if (!sample.value(k, value)) continue;
        n += 1;
        sum += value - reference;
    }
    n = block_sum(n, scratch.of_warp);
    return {(int)n, block_sum(sum, scratch.of_warp)};
}

// The same numbers for a sample of any size.
__device__ inline Means means_streaming(const Annulus& annulus, double clip_sigma, int clip_iters,
                                        Scratch& scratch) {
    Deviations<Annulus> sample = {annulus, 0.0, -INFINITY, INFINITY};
    Sum left = sum_of(sample, 0.0, scratch);
    const int n = left.n;
    if (n == 0) return {NAN, 0, 0};
    const double reference = select(sample, (n - 1) / 2, scratch);
    left = sum_of(sample, reference, scratch);
    const double total = left.sum + reference * n;
    double median = reference;
    for (int round = 0; round < clip_iters; ++round) {
        const AbsoluteDeviations deviations = {sample, median};
        const double mad = select(Deviations<AbsoluteDeviations>{deviations, 0.0, 0.0, INFINITY},
                                  (left.n - 1) / 2, scratch);
        const double std = STD_PER_MAD * mad;
        if (!(std > 0)) break;
        sample.low = fmax(sample.low, median - clip_sigma * std);
        sample.high = fmin(sample.high, median + clip_sigma * std);
        const int before = left.n;
        left = sum_of(sample, reference, scratch);
        if (left.n == before) break;
        median = select(sample, (left.n - 1) / 2, scratch);
    }
    return {reference + left.sum / left.n, total, (double)n};
}

// Sum of the variances of an annulus's pixels, which are squared in single precision.
__device__ inline double noise_in(const Annulus& annulus, const float* err, Scratch& scratch) {
    double sum = 0, value;
    for (long long k = threadIdx.x; k < annulus.count(); k += blockDim.x) {
        if (!annulus.value(k, value)) continue;
        const float sigma = err[annulus.index(k)];
        sum += (double)(sigma * sigma);
    }
    return block_sum(sum, scratch.of_warp);
}

__device__ inline void store_means(int i, const Means& means, double noise, double gain,
                                   double* level, double* error, double* area) {
    if (threadIdx.x) return;
    const double variance = noise + (gain > 0 && means.total > 0 ? means.total / gain : 0.0);
    level[i] = means.mean;
    error[i] = sqrt(variance) / means.n;
    area[i] = means.n;
}

// data, err, bad: planes (F, height, width)
// x, y, frame, valid, r_in, r_out, most and the results: (n)
// gain: electrons per count, 0 for no Poisson noise; without clipping `err` counts as well
// Dynamic shared memory: `capacity` doubles, a power of two.
extern "C" __global__ void __launch_bounds__(128, 4) sep_annulus_means(
    const float* data, const float* err, const unsigned char* bad, int height, int width,
    const double* x, const double* y, const int* frame, const unsigned char* valid,
    const double* r_in, const double* r_out, const double* most, int capacity, double clip_sigma,
    int clip_iters, double gain, double* level, double* error, double* area) {
    extern __shared__ double sample[];
    __shared__ Scratch scratch;
    const int i = blockIdx.x;
    if (most[i] > capacity) return;
    const Annulus annulus = annulus_at(data, bad, height, width, x[i], y[i], frame[i], valid[i],
                                       r_in[i], r_out[i]);
    const Means means = means_in_shared(annulus, clip_sigma, clip_iters, sample, scratch);
    const double noise =
        clip_iters ? 0 : noise_in(annulus, err + (annulus.data - data), scratch);
    store_means(i, means, noise, gain, level, error, area);
}

// The same for annuli that shared memory does not hold.
extern "C" __global__ void __launch_bounds__(128, 4) sep_annulus_means_streaming(
    const float* data, const float* err, const unsigned char* bad, int height, int width,
    const double* x, const double* y, const int* frame, const unsigned char* valid,
    const double* r_in, const double* r_out, const double* most, int capacity, double clip_sigma,
    int clip_iters, double gain, double* level, double* error, double* area) {
    __shared__ Scratch scratch;
    const int i = blockIdx.x;
    if (!(most[i] > capacity)) return;
    const Annulus annulus = annulus_at(data, bad, height, width, x[i], y[i], frame[i], valid[i],
                                       r_in[i], r_out[i]);
    const Means means = means_streaming(annulus, clip_sigma, clip_iters, scratch);
    const double noise =
        clip_iters ? 0 : noise_in(annulus, err + (annulus.data - data), scratch);
    store_means(i, means, noise, gain, level, error, area);
}
