// Local linear regression: which samples are nearest to a position, and what they predict there.
//
// Coordinates are scaled, and not so large that squared distances overflow. Samples are cut into
// bands of equal numbers by y; those of a band are sorted by x. What a circle holds is then a run
// of neighbours in memory for each band, whatever the density, and one sample far away does no
// harm.
#include "search.cuh"

// Distances that bound runs of samples are made larger by these: rounding must not lose any.
#define RELATIVE_MARGIN 1e-14
#define ABSOLUTE_MARGIN 1e-150

// One in so many of the samples in a circle is in its central band on one side of the centre, if
// there are n samples, k in the circle and sqrt(n * k) / 4 in a band.
#define SHARE_OF_BAND 7

#define MAX_GROWTH 16.0
#define BISECTION 4  // one step in so many halves the bits, in case the density misleads

struct Samples {
    const double *x, *y;       // (n), band by band
    const int* rank;           // (n), number of each in order of y, x and value
    const double *low, *high;  // (n_bands), least and largest y of each band
    int n, n_bands, band_size;
};

// Runs of samples, one run for each lane, that hold all whose squared distance from (x, y) is not
// larger than `reach`. Of more than 32 bands they are made for 32 at a time, from `band` on.
struct Runs {
    double x, y, reach;
    int first_band, last_band, band;
    int before;  // samples in the runs of the lanes before
    int offset;  // of sample numbers from the numbers that they have in all runs
    int n;       // samples in all runs
};

__device__ inline double squared_distance(const Samples& samples, int i, double x, double y) {
    // Rounds as NumPy does, however kernels are compiled: ties are then ties for both.
    const double dx = __dsub_rn(samples.x[i], x), dy = __dsub_rn(samples.y[i], y);
    return __dadd_rn(__dmul_rn(dx, dx), __dmul_rn(dy, dy));
}

// First of the sorted values [first, last) above the bound; `last` if none is.
__device__ inline int upper_bound(const double* sorted, int first, int last, double bound) {
    while (first < last) {
        const int middle = first + (last - first) / 2;
        if (bound < sorted[middle]) {
            last = middle;
        } else {
            first = middle + 1;
        }
    }
    return first;
}

// Makes the runs of 32 bands; by a warp.
__device__ inline void make_runs(const Samples& samples, int band, Runs& runs) {
    const int lane = threadIdx.x & 31, own = band + lane;
    int begin = 0, end = 0;
    if (own < runs.last_band) {
        const int first = own * samples.band_size;
        const int last = first + min(samples.band_size, samples.n - first);
        const double gap = fmax(fmax(samples.low[own] - runs.y, runs.y - samples.high[own]), 0.0);
        const double rest = runs.reach * (1 + RELATIVE_MARGIN) - gap * gap * (1 - RELATIVE_MARGIN);
        const double half = sqrt(fmax(rest, 0.0)) * (1 + RELATIVE_MARGIN) + ABSOLUTE_MARGIN;
        begin = lower_bound(samples.x, first, last, runs.x - half);
        end = upper_bound(samples.x, begin, last, runs.x + half);
    }
    int up_to = end - begin;
    for (int step = 1; step < 32; step *= 2) {
        const int below = __shfl_up_sync(FULL_WARP, up_to, step);
        if (lane >= step) up_to += below;
    }
    runs.band = band;
    runs.before = up_to - (end - begin);
    runs.offset = begin - runs.before;
    runs.n = __shfl_sync(FULL_WARP, up_to, 31);
}

__device__ inline Runs runs_within(const Samples& samples, double x, double y, double reach) {
    const double distance = sqrt(reach) * (1 + RELATIVE_MARGIN) + ABSOLUTE_MARGIN;
    Runs runs;
    runs.x = x;
    runs.y = y;
    runs.reach = reach;
    runs.first_band = lower_bound(samples.high, 0, samples.n_bands, y - distance);
    runs.last_band = upper_bound(samples.low, runs.first_band, samples.n_bands, y + distance);
    runs.band = -1;
    return runs;
}

// Calls visit(i, squared distance) for the samples of all runs but `self`, 32 at a time in a fixed
// order; for lanes without a sample the distance is NaN. By a warp.
template <typename Visit>
__device__ inline void visit_samples(const Samples& samples, Runs& runs, int self, Visit visit) {
    const int lane = threadIdx.x & 31;
    for (int band = runs.first_band; band < runs.last_band; band += 32) {
        if (band != runs.band) make_runs(samples, band, runs);
        for (int base = 0; base < runs.n; base += 32) {
            const int number = base + lane;
            int run = 0;  // the last one that begins at or before this number
            for (int step = 16; step > 0; step /= 2)
                if (__shfl_sync(FULL_WARP, runs.before, run + step) <= number) run += step;
            const int i = __shfl_sync(FULL_WARP, runs.offset, run) + number;
            const bool there = number < runs.n && i != self;
            visit(i, there ? squared_distance(samples, i, runs.x, runs.y) : NAN);
        }
    }
}

__device__ inline double warp_min(double value) {
    for (int step = 16; step > 0; step /= 2)
        value = fmin(value, __shfl_xor_sync(FULL_WARP, value, step));
    return value;
}

// A first guess of the squared distance of the k-th nearest sample, from those of one band.
__device__ inline double guess_reach(const Samples& samples, double x, double y, int k) {
    const int band = min(lower_bound(samples.high, 0, samples.n_bands, y), samples.n_bands - 1);
    const int first = band * samples.band_size;
    const int last = first + min(samples.band_size, samples.n - first) - 1;
    const int at = lower_bound(samples.x, first, last, x), window = k / SHARE_OF_BAND + 1;
    const double left = samples.x[max(first, at - window)];
    const double right = samples.x[at + min(window, last - at)];
    const double dx = fmax(x - left, right - x);
    const double dy = fmax(fmax(samples.low[band] - y, y - samples.high[band]), 0.0);
    const double guess = dx * dx + dy * dy;
    if (guess > 0) return guess;
    const double height = samples.high[samples.n_bands - 1] - samples.low[0];
    return height * height * k / samples.n;
}

// Squared distances are not negative: they are ordered as their bits are.
__device__ inline double between(long long low, long long high) {
    return __longlong_as_double(low + (high - low) / 2);
}

// The farthest of the k nearest samples of each query. One warp per query.
//
// Samples in circles are counted, for circles between the largest one known to hold too few and
// the smallest one known to hold enough, until one holds k or both bounds are the same distance.
//
// query_x, query_y: (n_queries); not leaving_out: any; else they are the samples themselves, each
// of which is left out of its own neighbours
// x, y, rank, low, high, n, n_bands, band_size: see Samples
// k: not more than there are neighbours
// farthest: (n_queries), number of that sample, of those at its distance the one of the highest
// rank; -1 for k = 0
extern "C" __global__ void __launch_bounds__(128, 6) loess_reach(
    const double* query_x, const double* query_y, int n_queries, int leaving_out, const double* x,
    const double* y, const int* rank, const double* low, const double* high, int n, int n_bands,
    int band_size, int k, int* farthest) {
    const int lane = threadIdx.x & 31;
    const long long warp = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (warp >= n_queries) return;  // whole warps leave together
    const Samples samples = {x, y, rank, low, high, n, n_bands, band_size};
    const int query = (int)warp, self = leaving_out ? query : -1;
    const double at_x = query_x[query], at_y = query_y[query];
    if (k == 0) {
        if (lane == 0) farthest[query] = -1;
        return;
    }

    long long few = -1, many = __double_as_longlong(INFINITY);  // bits of the bounds
    int n_few = 0, n_many = 0;  // samples within them; 0 until a circle holds enough
    double radius = guess_reach(samples, at_x, at_y, k);
    Runs runs = runs_within(samples, at_x, at_y, radius);
    for (int step = 1;; ++step) {
        int count = 0;
        double inside = -1, outside = INFINITY;
        visit_samples(samples, runs, self, [&](int, double distance) {
            count += __popc(__ballot_sync(FULL_WARP, distance <= radius));
            if (distance <= radius) inside = fmax(inside, distance);
            if (distance > radius) outside = fmin(outside, distance);
        });
        if (count >= k) {
            many = __double_as_longlong(-warp_min(-inside));
            n_many = count;
        } else {
            // Runs that hold enough also hold the next sample outside, up to which none is added.
            few = __double_as_longlong(radius);
            if (n_many) few = __double_as_longlong(warp_min(outside)) - 1;
            n_few = count;
        }
        if (count == k || few + 1 == many) break;

        const double least = few < 0 ? 0 : __longlong_as_double(few);
        const double most = __longlong_as_double(many);
        if (step % BISECTION == 0) {
            radius = between(few, many);
        } else if (n_many) {
            radius = least + (most - least) * ((k - n_few + 0.5) / (n_many - n_few));
        } else {
            radius *= fmin(fmax(1.5 * k / (n_few + 1), 2.0), MAX_GROWTH);
        }
        const long long bits = min(max(__double_as_longlong(radius), few + 1), many - 1);
        radius = __longlong_as_double(bits);
        const double needed = n_many ? most : radius;
        if (needed > runs.reach || needed < 0.5 * runs.reach)
            runs = runs_within(samples, at_x, at_y, needed);
    }

    const double reach = __longlong_as_double(many);
    int highest = n - 1;
    if (n_many > k) {  // k - n_few of those at this distance belong to the k nearest
        for (int from = 0; from < highest;) {
            const int middle = from + (highest - from) / 2;
            int count = 0;
            visit_samples(samples, runs, self, [&](int i, double distance) {
                const bool counts = distance == reach && rank[i] <= middle;
                count += __popc(__ballot_sync(FULL_WARP, counts));
            });
            if (count >= k - n_few) {
                highest = middle;
            } else {
                from = middle + 1;
            }
        }
    }
    int found = -1, found_rank = -1;
    visit_samples(samples, runs, self, [&](int i, double distance) {
        if (distance == reach && rank[i] <= highest && rank[i] > found_rank) {
            found = i;
            found_rank = rank[i];
        }
    });
    for (int step = 16; step > 0; step /= 2) {
        const int other = __shfl_xor_sync(FULL_WARP, found, step);
        const int other_rank = __shfl_xor_sync(FULL_WARP, found_rank, step);
        if (other_rank > found_rank) {
            found = other;
            found_rank = other_rank;
        }
    }
    if (lane == 0) farthest[query] = found;
}

// Weighted sums over samples: of their offsets from one of them, in bandwidths, and of what their
// values differ from its value.
struct Sums {
    double one, x, y, xx, xy, yy, v, xv, yv;
};

// What the line of least squares predicts, as a difference from the value of the sample that the
// sums refer to, and 1 / weight of the prediction.
struct Prediction {
    double value, variance;
};

// x, y: offset of that sample from the query; ridge_x, ridge_y: added to the squares of offsets
__device__ inline Prediction predict(const Sums& s, double x, double y, double ridge_x,
                                     double ridge_y) {
    const double mean_x = s.x / s.one, mean_y = s.y / s.one, mean_v = s.v / s.one;
    const double xx = fmax(s.xx - s.x * mean_x, 0.0) + ridge_x, xy = s.xy - s.x * mean_y;
    const double ratio = xy / xx;
    // Exactly, what the elimination of x leaves is not less than the ridge.
    const double yy = fmax(s.yy - s.y * mean_y + ridge_y - ratio * xy, ridge_y);
    const double xv = s.xv - s.x * mean_v, yv = s.yv - s.y * mean_v;
    x += mean_x;
    y += mean_y;
    const double of_y = (y - ratio * x) / yy, of_x = x / xx - ratio * of_y;
    return {mean_v - of_x * xv - of_y * yv, 1 / s.one + of_x * x + of_y * y};
}

// Value that the nearest samples of each query predict there: the intercept b of the line, fitted
// to minimise  sum of weight * (value - line)^2 + ridge * (b^2 + slope_x^2 + slope_y^2).
// One warp per query.
//
// Without the ridge of b, the line through the mean of the samples has b = a and, if weights are
// 1 / variance, the variance q at the query; with it, b = a / (1 + ridge * q).
//
// Queries and samples as loess_reach takes them, and what it found
// value: (n), of the samples; robust: (n), weight of each
// min_bandwidth: least bandwidth
// ridge, ridge_x, ridge_y: of the intercept, and of the slopes per scaled distance
// predicted: (n_queries), NaN where `farthest` is -1 and where all weights are 0
extern "C" __global__ void __launch_bounds__(128, 6) loess_predict(
    const double* query_x, const double* query_y, int n_queries, int leaving_out, const double* x,
    const double* y, const int* rank, const double* low, const double* high, int n, int n_bands,
    int band_size, const int* farthest, const double* value, const double* robust,
    double min_bandwidth, double ridge, double ridge_x, double ridge_y, double* predicted) {
    const int lane = threadIdx.x & 31;
    const long long warp = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (warp >= n_queries) return;  // whole warps leave together
    const int query = (int)warp, self = leaving_out ? query : -1, last = farthest[query];
    if (last < 0) {
        if (lane == 0) predicted[query] = NAN;
        return;
    }
    const Samples samples = {x, y, rank, low, high, n, n_bands, band_size};
    const double at_x = query_x[query], at_y = query_y[query];
    const double reach = squared_distance(samples, last, at_x, at_y);
    const double last_x = x[last], last_y = y[last], last_value = value[last];
    const double per_width = 1 / fmax(sqrt(reach), min_bandwidth);
    const int highest = rank[last];
    Runs runs = runs_within(samples, at_x, at_y, reach);
    Sums s;
    // Without robust weights where these leave nothing.
    for (int weighing = 1; weighing >= 0; --weighing) {
        s = {0, 0, 0, 0, 0, 0, 0, 0, 0};
        visit_samples(samples, runs, self, [&](int i, double distance) {
            if (distance < reach || (distance == reach && rank[i] <= highest)) {
                const double dx = (x[i] - last_x) * per_width, dy = (y[i] - last_y) * per_width;
                const double dv = value[i] - last_value;
                double weight = exp(-0.5 * (distance * per_width * per_width));
                if (weighing) weight *= robust[i];
                const double wx = weight * dx, wy = weight * dy;
                s.one += weight;
                s.x += wx;
                s.y += wy;
                s.xx += wx * dx;
                s.xy += wx * dy;
                s.yy += wy * dy;
                s.v += weight * dv;
                s.xv += wx * dv;
                s.yv += wy * dv;
            }
        });
        s.one = warp_sum(s.one);
        if (s.one > 0) break;
    }
    s.x = warp_sum(s.x);
    s.y = warp_sum(s.y);
    s.xx = warp_sum(s.xx);
    s.xy = warp_sum(s.xy);
    s.yy = warp_sum(s.yy);
    s.v = warp_sum(s.v);
    s.xv = warp_sum(s.xv);
    s.yv = warp_sum(s.yv);
    const Prediction line =
        predict(s, (last_x - at_x) * per_width, (last_y - at_y) * per_width,
                ridge_x * per_width * per_width, ridge_y * per_width * per_width);
    const double result = (last_value + line.value) / (1 + ridge * line.variance);
    if (lane == 0) predicted[query] = s.one > 0 ? result : NAN;
}
