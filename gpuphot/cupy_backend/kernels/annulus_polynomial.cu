// Polynomial surfaces through the pixels of annuli, at the source. One block per source.
//
// Least squares by normal equations in coordinates relative to the source, in units of the outer
// radius, and of values relative to a typical one. Up to 3 rounds reject residuals beyond 3
// standard deviations, unless these are rounding errors. What a round rejected is not stored: a pixel is kept if it lies within the limit of
// every fit so far.
#include "annulus.cuh"

#define CLIP_SIGMA 3.0
#define MAX_ROUNDS 3
#define MIN_PIXELS 10
#define SINGULAR_PIVOT 1e-10
#define NEGLIGIBLE 1e-14
#define N_LOOKED_AT 64
#define BLOCK 128
#define MAX_SUMS 21  // moments and right-hand sides of order 2

// Terms of an order, sorted by degree n and power b of v: u^(n - b) v^b. The normal matrix holds
// moments, the sums of the terms of twice the order.
template <int order>
struct Polynomial {
    static const int terms = (order + 1) * (order + 2) / 2;
    static const int moments = (2 * order + 1) * (2 * order + 2) / 2;
};

__device__ inline int degree(int term) { return term == 0 ? 0 : term < 3 ? 1 : 2; }

__device__ inline int moment_of(int term, int other) {
    const int n = degree(term) + degree(other);
    const int b = term - degree(term) * (degree(term) + 1) / 2 +
                  other - degree(other) * (degree(other) + 1) / 2;
    return n * (n + 1) / 2 + b;
}

template <int order>
__device__ inline double evaluate(const double* coefficients, double u, double v) {
    const double linear = coefficients[0] + coefficients[1] * u + coefficients[2] * v;
    if (order == 1) return linear;
    return linear + coefficients[3] * u * u + coefficients[4] * u * v + coefficients[5] * v * v;
}

// Fits so far, and the residuals that they allow. In shared memory.
struct History {
    double coefficients[MAX_ROUNDS][6], limit[MAX_ROUNDS];
    int n_rounds;
};

// Static shared memory of the block.
struct Scratch {
    History history;
    double of_warp[BLOCK / 32][MAX_SUMS], sums[MAX_SUMS];
    double factor[6][6], scale[6];
    double spread[3], initial[6], current[6];
    double looked_at[N_LOOKED_AT], typical;
};

// Candidate k relative to the offset, and its place, if no round rejected it.
template <int order>
__device__ inline bool kept(const AnnulusPixels& pixels, const History& history, double offset,
                            long long k, double& value, double& u, double& v) {
    if (!pixels.value(k, value)) return false;
    value -= offset;
    const double scale = 1 / pixels.r_out;
    u = (pixels.first_column + (int)(k % pixels.n_columns) - pixels.x) * scale;
    v = (pixels.first_row + (int)(k / pixels.n_columns) - pixels.y) * scale;
    for (int round = 0; round < history.n_rounds; ++round) {
        const double residual = value - evaluate<order>(history.coefficients[round], u, v);
        if (!(fabs(residual) <= history.limit[round])) return false;
    }
    return true;
}

// Sums of n values a thread over the block, in a fixed order, into shared memory.
template <int n>
__device__ inline void block_sums(const double (&values)[n], Scratch& scratch, double* sums) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < n; ++k) {
        const double total = warp_sum(values[k]);
        if ((threadIdx.x & 31) == 0) scratch.of_warp[threadIdx.x >> 5][k] = total;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < n; k += BLOCK) {
        double total = 0;
        for (int warp = 0; warp < BLOCK / 32; ++warp) total += scratch.of_warp[warp][k];
        sums[k] = total;
    }
    __syncthreads();
}

// Solves the normal equations of `moments` and `rhs` by Cholesky factorisation with unit
// diagonal; the mean if there are too few pixels, or they do not determine the polynomial.
__device__ inline void solve(int terms, const double* moments, const double* rhs,
                             double (*factor)[6], double* scale, double* coefficients) {
    double smallest = 1;
    for (int j = 0; j < terms; ++j) scale[j] = 1 / sqrt(moments[moment_of(j, j)]);
    for (int j = 0; j < terms; ++j) {
        for (int i = j; i < terms; ++i) {
            double value = moments[moment_of(i, j)] * scale[i] * scale[j];
            for (int k = 0; k < j; ++k) value -= factor[i][k] * factor[j][k];
            if (i == j) smallest = value < smallest || isnan(value) ? value : smallest;
            factor[i][j] = i == j ? sqrt(value) : value / factor[j][j];
        }
    }
    const double n = moments[0];
    if (!(n >= MIN_PIXELS && smallest > SINGULAR_PIVOT)) {
        for (int j = 0; j < terms; ++j) coefficients[j] = 0;
        coefficients[0] = rhs[0] / n;
        return;
    }
    for (int j = 0; j < terms; ++j) {
        double value = rhs[j] * scale[j];
        for (int k = 0; k < j; ++k) value -= factor[j][k] * coefficients[k];
        coefficients[j] = value / factor[j][j];
    }
    for (int j = terms - 1; j >= 0; --j) {
        double value = coefficients[j];
        for (int k = j + 1; k < terms; ++k) value -= factor[k][j] * coefficients[k];
        coefficients[j] = value / factor[j][j];
    }
    for (int j = 0; j < terms; ++j) coefficients[j] *= scale[j];
}

// Fits what is kept; returns how many pixels that is.
template <int order>
__device__ inline int fit(const AnnulusPixels& pixels, Scratch& scratch, double offset,
                          double* coefficients) {
    const int moments = Polynomial<order>::moments, terms = Polynomial<order>::terms;
    double sum[Polynomial<order>::moments + Polynomial<order>::terms] = {};
    double value, u, v;
    for (long long k = threadIdx.x; k < pixels.count(); k += BLOCK) {
        if (!kept<order>(pixels, scratch.history, offset, k, value, u, v)) continue;
#pragma unroll
        for (int n = 0, m = 0; n <= 2 * order; ++n) {
#pragma unroll
            for (int b = 0; b <= n; ++b, ++m) {
                double monomial = 1;
#pragma unroll
                for (int power = 0; power < n - b; ++power) monomial *= u;
#pragma unroll
                for (int power = 0; power < b; ++power) monomial *= v;
                sum[m] += monomial;
                if (n <= order) sum[moments + m] += value * monomial;
            }
        }
    }
    block_sums(sum, scratch, scratch.sums);
    if (threadIdx.x == 0) {
        solve(terms, scratch.sums, scratch.sums + moments, scratch.factor, scratch.scale,
              coefficients);
    }
    __syncthreads();
    return (int)scratch.sums[0];
}

// The median of one pixel from each of 64 stretches of the candidates; 0 if all are empty. Values
// are fitted relative to it: an outlier would cost precision, a mean turn equal values into
// rounding errors.
__device__ inline double typical_value(const AnnulusPixels& pixels, Scratch& scratch) {
    double* looked_at = scratch.looked_at;
    const int i = threadIdx.x;
    if (i == 0) scratch.typical = 0;
    if (i < N_LOOKED_AT) {
        double value;
        looked_at[i] = INFINITY;
        for (long long k = pixels.count() * i / N_LOOKED_AT;
             k < pixels.count() * (i + 1) / N_LOOKED_AT; ++k) {
            if (pixels.value(k, value)) {
                looked_at[i] = value;
                break;
            }
        }
    }
    __syncthreads();
    if (i < N_LOOKED_AT) {
        int n = 0, rank = 0;
        for (int other = 0; other < N_LOOKED_AT; ++other) {
            n += looked_at[other] < INFINITY;
            rank += looked_at[other] < looked_at[i] || (looked_at[other] == looked_at[i] && other < i);
        }
        if (looked_at[i] < INFINITY && rank == (n - 1) / 2) scratch.typical = looked_at[i];
    }
    __syncthreads();
    return scratch.typical;
}

template <int order>
__device__ inline void fit_annulus(const AnnulusPixels& pixels, Scratch& scratch, double* level) {
    History& history = scratch.history;
    double *spread = scratch.spread, *initial = scratch.initial, *current = scratch.current;
    double value, u, v;
    if (threadIdx.x == 0) history.n_rounds = 0;
    const double offset = typical_value(pixels, scratch);  // with barriers

    int n = fit<order>(pixels, scratch, offset, initial);
    if (threadIdx.x < 6) current[threadIdx.x] = initial[threadIdx.x];
    __syncthreads();
    for (int round = 0; round < MAX_ROUNDS && n >= MIN_PIXELS; ++round) {
        double residuals[3] = {};
        for (long long k = threadIdx.x; k < pixels.count(); k += BLOCK) {
            if (!kept<order>(pixels, history, offset, k, value, u, v)) continue;
            const double residual = value - evaluate<order>(current, u, v);
            residuals[0] += residual;
            residuals[1] += residual * residual;
            residuals[2] += value * value;
        }
        block_sums(residuals, scratch, spread);
        const double mean = spread[0] / n;
        const double variance = fmax(spread[1] / n - mean * mean, 0.0);
        if (!(variance > NEGLIGIBLE * NEGLIGIBLE * spread[2] / n)) break;
        const double limit = CLIP_SIGMA * sqrt(variance);
        if (threadIdx.x < 6) history.coefficients[round][threadIdx.x] = current[threadIdx.x];
        if (threadIdx.x == 0) {
            history.limit[round] = limit;
            history.n_rounds = round + 1;
        }
        __syncthreads();
        const int n_left = fit<order>(pixels, scratch, offset, current);
        if (n_left == n) break;
        n = n_left;
    }
    if (threadIdx.x == 0) {
        // Too few pixels survived: the fit to all of them stands.
        level[blockIdx.x] = offset + (n < MIN_PIXELS ? initial[0] : current[0]);
    }
}

// data, bad: planes (F, height, width); x, y, frame, valid, level: (n)
extern "C" __global__ void __launch_bounds__(128, 4) annulus_plane(
    const double* data, const unsigned char* bad, int height, int width, const double* x,
    const double* y, const int* frame, const unsigned char* valid, double r_in, double r_out,
    double* level) {
    __shared__ Scratch scratch;
    const int i = blockIdx.x;
    fit_annulus<1>(annulus_around(data, bad, height, width, x[i], y[i], frame[i], valid[i], r_in,
                                  r_out, false), scratch, level);
}

extern "C" __global__ void __launch_bounds__(128, 4) annulus_quadratic(
    const double* data, const unsigned char* bad, int height, int width, const double* x,
    const double* y, const int* frame, const unsigned char* valid, double r_in, double r_out,
    double* level) {
    __shared__ Scratch scratch;
    const int i = blockIdx.x;
    fit_annulus<2>(annulus_around(data, bad, height, width, x[i], y[i], frame[i], valid[i], r_in,
                                  r_out, false), scratch, level);
}
