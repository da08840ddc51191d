// Normal equations of groups: dense systems of small groups, and of overlapping blocks of large
// ones. `offset` and `list` are the neighbours of each member, `products` the elements of the
// normal matrix there, `power` its diagonal; `noise_products` and `noise` those of the noise matrix.
#include "search.cuh"

#define BLOCK 256

// Sums over each group, for every member of it. One warp per member, the first of its group works.
//
// values, total: (n); group_begin, group_end: (n)
extern "C" __global__ void __launch_bounds__(256, 5) group_totals(
    const double* values, const int* group_begin, const int* group_end, int n, double* total) {
    const int lane = threadIdx.x & 31;
    const long long member = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (member >= n) return;  // whole warps leave together
    const int begin = group_begin[member], end = group_end[member];
    if (member != begin) return;
    double sum = 0;
    for (int k = begin + lane; k < end; k += 32) sum += values[k];
    sum = warp_sum(sum);
    for (int k = begin + lane; k < end; k += 32) total[k] = sum;
}

// Members of dense systems: those of a core, then those around it. One warp per system.
//
// core_order: (n), members sorted by system; core_begin: (n_systems + 1), where each one begins
// x, y: (n), y rising in each group; cell_row, cell_column: (n), the cores that members lie in
// group_begin, group_end, halo: (n), the members of each one's group, and the width of the halo
// core: side of a core in pixels; is_block: (n), whether the group is cut into blocks
// listing: 0 to count only; offset: (n_systems), where the list of each system begins
// count: (n_systems), members of a system, 0 if they are more than max_members; list: (total)
extern "C" __global__ void __launch_bounds__(128, 8) list_systems(
    const int* core_order, const int* core_begin, int n_systems, const double* x, const double* y,
    const int* cell_row, const int* cell_column, const int* group_begin, const int* group_end,
    const double* halo, const unsigned char* is_block, double core, int max_members,
    int listing, const long long* offset, int* count, int* list) {
    const int lane = threadIdx.x & 31;
    const long long warp = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (warp >= n_systems) return;  // whole warps leave together
    const int system = (int)warp, first = core_order[core_begin[system]];
    const int n_core = core_begin[system + 1] - core_begin[system];
    if (listing && count[system] == 0) return;
    int* members = list + (listing ? offset[system] : 0);
    if (listing)
        for (int c = lane; c < n_core; c += 32) members[c] = core_order[core_begin[system] + c];
    int n_found = n_core;
    if (is_block[first]) {
        const double left = core * cell_column[first], low = core * cell_row[first];
        const double reach = halo[first];
        const int from = lower_bound(y, group_begin[first], group_end[first], low - reach);
        for (int base = from; base < group_end[first] && y[base] <= low + core + reach; base += 32) {
            const int k = base + lane;
            bool inside = false;
            if (k < group_end[first] &&
                (cell_row[k] != cell_row[first] || cell_column[k] != cell_column[first])) {
                const double off_x = fmax(left - x[k], x[k] - (left + core));
                const double off_y = fmax(low - y[k], y[k] - (low + core));
                inside = off_x <= reach && off_y <= reach;
            }
            const unsigned found = __ballot_sync(FULL_WARP, inside);
            if (inside && listing) members[n_found + __popc(found & ((1u << lane) - 1))] = k;
            n_found += __popc(found);
        }
    }
    if (lane == 0 && !listing) count[system] = n_found <= max_members ? n_found : 0;
}

// Place of member k among those of a system, -1 if it is not there.
__device__ inline int place_of(int k, const int* members, int n_core, int n_members) {
    int place = lower_bound(members, 0, n_core, k);
    if (place < n_core && members[place] == k) return place;
    place = lower_bound(members, n_core, n_members, k);
    return place < n_members && members[place] == k ? place : -1;
}

// Whether a row depends on earlier ones, from its pivot.
__device__ inline bool is_dependent(double pivot, double max_inflation) {
    return pivot * pivot * max_inflation < 1;
}

// Cholesky factor of a scaled matrix of unit diagonal, in its lower triangle, by the whole block.
// Squared pivots are not let below min_pivot. Rows that depend on earlier ones are left out of what
// follows. pivot: shared
__device__ inline void factorise(double* matrix, int m, double min_pivot, double max_inflation,
                                 double* pivot) {
    for (int j = 0; j < m; ++j) {
        double* row_j = matrix + (long long)j * m;
        if (threadIdx.x == 0) row_j[j] = pivot[0] = sqrt(fmax(row_j[j], min_pivot));
        __syncthreads();
        const bool dependent = is_dependent(pivot[0], max_inflation);
        for (int i = j + 1 + threadIdx.x; i < m; i += BLOCK) {
            double& below = matrix[(long long)i * m + j];
            below = dependent ? 0 : below / pivot[0];
        }
        __syncthreads();
        const int n = dependent ? 0 : m - j - 1;
        for (long long p = threadIdx.x; p < (long long)n * n; p += BLOCK) {
            const int i = j + 1 + (int)(p / n), l = j + 1 + (int)(p % n);
            if (l > i) continue;
            matrix[(long long)i * m + l] -=
                matrix[(long long)i * m + j] * matrix[(long long)l * m + j];
        }
        __syncthreads();
    }
}

// Row of the inverse from the factor, by a warp: L y = e, then L^T z = y without the rows that
// depend on others. Returns the inflation of the row's variance, the sum of squares of y.
__device__ inline double inverse_row(const double* matrix, int m, int row, double max_inflation,
                                     double* z) {
    const int lane = threadIdx.x & 31;
    for (int i = lane; i < row; i += 32) z[i] = 0;
    __syncwarp();
    double inflation = 0;
    for (int i = row; i < m; ++i) {
        const double* row_i = matrix + (long long)i * m;
        double sum = 0;
        for (int l = row + lane; l < i; l += 32) sum += row_i[l] * z[l];
        const double y = ((i == row ? 1.0 : 0.0) - warp_sum(sum)) / row_i[i];
        inflation += y * y;
        if (lane == 0) z[i] = is_dependent(row_i[i], max_inflation) ? 0 : y;
        __syncwarp();
    }
    for (int i = m - 1; i >= 0; --i) {
        const double* row_i = matrix + (long long)i * m;
        const double value = z[i] / row_i[i];
        __syncwarp();
        for (int l = lane; l < i; l += 32) z[l] -= row_i[l] * value;
        if (lane == 0) z[i] = value;
        __syncwarp();
    }
    return inflation;
}

// Rows of the inverse matrix for the core of each system, variances and their inflations. Blocks
// take one system after the other, each with a workspace of its own.
//
// core_begin, count, list, list_offset: systems as in list_systems
// workspace: (blocks, max_count * max_count + 2 max_count): the matrix, with the normal matrix and
// its factor in the lower triangle and the noise matrix in the upper one, its diagonal, the scales
// inverse, inverse_offset: rows of n_core x count elements a system; variance, inflation: (n)
extern "C" __global__ void __launch_bounds__(256, 3) invert_systems(
    const long long* offset, const int* list, const double* products, const double* power,
    const double* noise_products, const double* noise, const int* core_begin, const int* count,
    const int* members_of, const long long* members_offset, int n_systems, int max_count,
    double min_pivot, double max_inflation, double* workspace, const long long* inverse_offset,
    double* inverse, double* variance, double* inflation) {
    __shared__ double pivot[1];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    double* matrix = workspace + (long long)blockIdx.x * max_count * (max_count + 2LL);
    double* noise_diagonal = matrix + (long long)max_count * max_count;
    double* scale = noise_diagonal + max_count;
    for (int system = blockIdx.x; system < n_systems; system += gridDim.x) {
        const int m = count[system], n_core = core_begin[system + 1] - core_begin[system];
        if (m == 0) continue;  // the whole block
        const int* members = members_of + members_offset[system];
        double* rows = inverse + inverse_offset[system];
        __syncthreads();  // the workspace is free again
        for (int i = threadIdx.x; i < m; i += BLOCK) {
            const double diagonal = power[members[i]];
            noise_diagonal[i] = noise[members[i]];
            scale[i] = diagonal > 0 ? 1 / sqrt(diagonal) : 0;
        }
        for (long long p = threadIdx.x; p < (long long)m * m; p += BLOCK) matrix[p] = 0;
        __syncthreads();
        for (int i = warp; i < m; i += BLOCK / 32) {
            const int k = members[i];
            if (lane == 0) matrix[(long long)i * m + i] = power[k] * scale[i] * scale[i];
            for (long long e = offset[k] + lane; e < offset[k + 1]; e += 32) {
                const int j = place_of(list[e], members, n_core, m);
                if (j < 0) continue;
                matrix[(long long)i * m + j] =
                    j < i ? products[e] * scale[i] * scale[j] : noise_products[e];
            }
        }
        __syncthreads();
        factorise(matrix, m, min_pivot, max_inflation, pivot);
        for (int c = warp; c < n_core; c += BLOCK / 32) {
            double* row = rows + (long long)c * m;
            const double inflated = inverse_row(matrix, m, c, max_inflation, row);
            if (lane == 0) inflation[members[c]] = inflated;
            for (int i = lane; i < m; i += 32) row[i] *= scale[c] * scale[i];
            __syncwarp();
            double sum = 0;
            for (int i = 0; i < m; ++i) {
                const double* row_i = matrix + (long long)i * m;
                double along = lane == 0 ? row[i] * noise_diagonal[i] : 0;
                for (int l = i + 1 + lane; l < m; l += 32) along += 2 * row_i[l] * row[l];
                sum += row[i] * along;
            }
            sum = warp_sum(sum);
            if (lane == 0) variance[members[c]] = sum;
        }
    }
}

// What a solution leaves of the right-hand sides. One warp per member.
//
// rhs, solution, left: (n)
extern "C" __global__ void __launch_bounds__(128, 8) left_of_equations(
    const long long* offset, const int* list, const double* products, const double* power,
    const double* rhs, const double* solution, int n, double* left) {
    const int lane = threadIdx.x & 31;
    const long long k = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (k >= n) return;  // whole warps leave together
    double sum = 0;
    for (long long e = offset[k] + lane; e < offset[k + 1]; e += 32)
        sum += products[e] * solution[list[e]];
    sum = warp_sum(sum);
    if (lane == 0) left[k] = rhs[k] - (power[k] * solution[k] + sum);
}

// Adds the product of the systems' inverse matrices with a vector to the members of their cores.
// One warp per member.
//
// core_order, core_begin, count, members_of, members_offset, inverse, inverse_offset: as above
// system: (n), of each element of core_order; vector, result: (n)
extern "C" __global__ void __launch_bounds__(128, 8) add_inverse_product(
    const int* core_order, const int* system, const int* core_begin, const int* count,
    const int* members_of, const long long* members_offset, const double* inverse,
    const long long* inverse_offset, const double* vector, int n, double* result) {
    const int lane = threadIdx.x & 31;
    const long long place = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (place >= n) return;  // whole warps leave together
    const int s = system[place], m = count[s];
    const int* members = members_of + members_offset[s];
    const double* row = inverse + inverse_offset[s] + (place - core_begin[s]) * m;
    double sum = 0;
    for (int i = lane; i < m; i += 32) sum += row[i] * vector[members[i]];
    sum = warp_sum(sum);
    if (lane == 0) result[core_order[place]] += sum;
}
