// Normal equations of a group, solved by one block. Matrices are symmetric, with rows one after
// the other.
#pragma once
#include "common.cuh"

#define MAX_SWEEPS 512     // of the iteration for fluxes that are not negative
#define MAX_ROTATIONS 40   // rounds that make all rows orthogonal
#define MIN_EIGENVALUE 1e-8  // smaller ones, in units of the largest, count as 0

// Cholesky factor in the lower triangle; what is above the diagonal stays as it is. Rows below the
// matrix are divided by the transposed factor. Returns whether all pivots are positive.
//
// matrix: (n_rows, n); column: shared, (n_rows)
__device__ inline bool factorise(double* matrix, int n, int n_rows, double* column) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    for (int j = 0; j < n; ++j) {
        const double pivot = matrix[j * n + j];
        if (!(pivot > 0)) return false;  // the whole block
        const double root = sqrt(pivot);
        for (int i = j + 1 + threadIdx.x; i < n_rows; i += blockDim.x)
            column[i] = matrix[i * n + j] / root;
        __syncthreads();
        if (threadIdx.x == 0) matrix[j * n + j] = root;
        for (int i = j + 1 + warp; i < n_rows; i += n_warps) {
            double* row = matrix + i * n;
            if (lane == 0) row[j] = column[i];
            for (int k = j + 1 + lane; k <= i && k < n; k += 32) row[k] -= column[i] * column[k];
        }
        __syncthreads();
    }
    return true;
}

// Divides a vector by the transposed factor, in place, by a warp.
__device__ inline void substitute_back(const double* factor, int n, double* vector) {
    const int lane = threadIdx.x & 31;
    for (int j = n - 1; j >= 0; --j) {
        const double value = vector[j] / factor[j * n + j];
        __syncwarp();
        for (int k = lane; k < j; k += 32) vector[k] -= factor[j * n + k] * value;
        if (lane == 0) vector[j] = value;
        __syncwarp();
    }
}

// Diagonal of the inverse matrix from its factor, one thread per element.
//
// scratch: (n, n); inverse: (n)
__device__ inline void inverse_diagonal(const double* factor, int n, double* scratch,
                                        double* inverse) {
    const int i = threadIdx.x;
    if (i < n) {
        double total = 0;
        for (int j = i; j < n; ++j) {
            double value = j == i ? 1 : 0;
            for (int k = i; k < j; ++k) value -= factor[j * n + k] * scratch[k * n + i];
            value /= factor[j * n + j];
            scratch[j * n + i] = value;
            total += value * value;
        }
        inverse[i] = total;
    }
    __syncthreads();
}

// Makes two rows orthogonal by a rotation, by a warp. Returns whether they were not.
__device__ inline bool rotate(double* a, double* b, int n) {
    const int lane = threadIdx.x & 31;
    double aa = 0, bb = 0, ab = 0;
    for (int k = lane; k < n; k += 32) {
        aa += a[k] * a[k];
        bb += b[k] * b[k];
        ab += a[k] * b[k];
    }
    aa = warp_sum(aa);
    bb = warp_sum(bb);
    ab = warp_sum(ab);
    if (!(fabs(ab) > 1e-15 * sqrt(aa * bb))) return false;
    const double ratio = (bb - aa) / (2 * ab);
    const double tangent = (ratio < 0 ? -1 : 1) / (fabs(ratio) + sqrt(1 + ratio * ratio));
    const double cosine = 1 / sqrt(1 + tangent * tangent), sine = cosine * tangent;
    for (int k = lane; k < n; k += 32) {
        const double of_a = a[k];
        a[k] = cosine * of_a - sine * b[k];
        b[k] = sine * of_a + cosine * b[k];
    }
    return true;
}

// Solution of least norm of a positive semidefinite system. Rotations turn the rows of the matrix,
// which is overwritten, into its eigenvectors times the eigenvalues.
//
// scale: shared, (n)
__device__ inline void solve_singular(double* matrix, int n, const double* rhs, double* scale,
                                      double* solution) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    const int n_pairs = (n + 1) / 2, n_rounds = 2 * n_pairs - 1;
    bool rotated = true;
    for (int sweep = 0; rotated && sweep < MAX_ROTATIONS; ++sweep) {
        rotated = false;
        for (int round = 0; round < n_rounds; ++round) {  // every row meets every other one
            for (int pair = warp; pair < n_pairs; pair += n_warps) {
                const int a = (round + pair) % n_rounds;
                const int b = pair == 0 ? n_rounds : (round - pair + n_rounds) % n_rounds;
                if (a < n && b < n) rotated |= rotate(matrix + a * n, matrix + b * n, n);
            }
            __syncthreads();
        }
        rotated = __syncthreads_or(rotated);
    }
    for (int k = warp; k < n; k += n_warps) {
        const double* row = matrix + k * n;
        double norm = 0;
        for (int i = lane; i < n; i += 32) norm += row[i] * row[i];
        norm = sqrt(warp_sum(norm));
        if (lane == 0) scale[k] = norm;
    }
    __syncthreads();
    double largest = 0;
    for (int k = 0; k < n; ++k) largest = fmax(largest, scale[k]);
    __syncthreads();
    for (int k = warp; k < n; k += n_warps) {
        const double* row = matrix + k * n;
        const double eigenvalue = scale[k];
        double product = 0;
        for (int i = lane; i < n; i += 32) product += row[i] * rhs[i];
        product = warp_sum(product);
        const bool counts = eigenvalue > 0 && eigenvalue >= MIN_EIGENVALUE * largest;
        __syncwarp();
        if (lane == 0)
            scale[k] = counts ? product / eigenvalue / eigenvalue / eigenvalue : 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        double sum = 0;
        for (int k = 0; k < n; ++k)
            if (scale[k] != 0) sum += scale[k] * matrix[k * n + i];
        solution[i] = sum;
    }
    __syncthreads();
}

// Fluxes that are not negative, found one after the other until they stay, by a warp.
//
// matrix: (n, n); rhs: (n); flux: (n), where the search begins and what it finds
__device__ inline void solve_positive(const double* matrix, const double* rhs, int n,
                                      double* flux) {
    const int lane = threadIdx.x & 31;
    double largest = 1;
    for (int i = 0; i < n; ++i) largest = fmax(largest, fabs(rhs[i]));
    bool changed = true;
    for (int sweep = 0; changed && sweep < MAX_SWEEPS; ++sweep) {
        double change = 0;
        for (int i = 0; i < n; ++i) {
            const double* row = matrix + i * n;
            double others = 0;
            for (int j = lane; j < n; j += 32)
                if (j != i) others += row[j] * flux[j];
            const double value = (rhs[i] - warp_sum(others)) / row[i];
            const double found = row[i] > 0 && isfinite(value) && value > 0 ? value : 0;
            change = fmax(change, fabs(found - flux[i]));
            __syncwarp();
            if (lane == 0) flux[i] = found;
            __syncwarp();
        }
        changed = change > 1e-10 * largest;
    }
}
