// Who is near whom: sources linked to groups on a grid of cells, and members of a group whose
// stamps overlap.
#include "search.cuh"

#define REACH 2  // linked sources lie at most so many cells apart

// ---- Union-find over the sources: each points to one with a smaller number, roots to themselves

__device__ inline int root_of(int* parent, int i) {
    // Others write meanwhile: read atomically.
    for (int next = atomicOr(parent + i, 0); next != i; next = atomicOr(parent + i, 0)) i = next;
    return i;
}

__device__ inline void unite(int* parent, int a, int b) {
    while (true) {
        a = root_of(parent, a);
        b = root_of(parent, b);
        if (a == b) return;
        const int larger = a > b ? a : b, smaller = a > b ? b : a;
        if (atomicCAS(parent + larger, larger, smaller) == larger) return;
    }
}

// Smallest or, with sign -1, minus the largest of values [begin, end); by a warp.
__device__ inline double extreme(const double* values, int begin, int end, double sign) {
    double least = INFINITY;
    for (int i = begin + (threadIdx.x & 31); i < end; i += 32) least = fmin(least, sign * values[i]);
    for (int step = 16; step > 0; step >>= 1)
        least = fmin(least, __shfl_xor_sync(FULL_WARP, least, step));
    return least;
}

// Distance along one axis of the boxes around the sources [a, a_end) and [b, b_end); by a warp.
__device__ inline double gap_between(const double* values, int a, int a_end, int b, int b_end) {
    const double after = extreme(values, b, b_end, 1) + extreme(values, a, a_end, -1);
    const double before = extreme(values, a, a_end, 1) + extreme(values, b, b_end, -1);
    return fmax(fmax(after, before), 0.0);
}

// Whether a source of [a, a_end) lies within the radius of one of [b, b_end); by a warp.
__device__ inline bool any_within(const double* x, const double* y, int a, int a_end, int b,
                                  int b_end, double radius) {
    const int lane = threadIdx.x & 31, width = b_end - b;
    const long long n = (long long)(a_end - a) * width;
    if (n > 1024) {  // or else the boxes cost more than they save
        const double dx = gap_between(x, a, a_end, b, b_end);
        const double dy = gap_between(y, a, a_end, b, b_end);
        if (!(sqrt(dx * dx + dy * dy) <= radius)) return false;
    }
    for (long long base = 0; base < n; base += 32) {
        bool near = false;
        if (base + lane < n) {
            const int i = a + (int)((base + lane) / width), j = b + (int)((base + lane) % width);
            const double dx = x[i] - x[j], dy = y[i] - y[j];
            near = sqrt(dx * dx + dy * dy) <= radius;
        }
        if (__any_sync(FULL_WARP, near)) return true;
    }
    return false;
}

// Links the cell of each source that is the first of its cell with the cells near it. One warp per
// source.
//
// key: (n), sorted numbers of the sources' cells; `off_grid` marks those that are on none
// x, y: (n), sorted like them; stride: cells in a row of the grid, one number
// parent: (n), on entry the first source of each one's cell
extern "C" __global__ void __launch_bounds__(128, 8) link_cells(
    const long long* key, const double* x, const double* y, int n, const long long* stride,
    long long off_grid, double radius, int* parent) {
    const int lane = threadIdx.x & 31;
    const long long warp = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (warp >= n) return;  // whole warps leave together
    const int first = (int)warp;
    const long long cell = key[first];
    if (cell == off_grid || (first > 0 && key[first - 1] == cell)) return;
    const int end = lower_bound(key, first, n, cell + 1);
    for (int down = 0; down <= REACH; ++down) {
        const long long middle = cell + down * stride[0];
        int other = lower_bound(key, 0, n, middle + (down == 0 ? 1 : -REACH));
        while (other < n && key[other] <= middle + REACH) {
            const int other_end = lower_bound(key, other, n, key[other] + 1);
            bool linked = false;
            if (lane == 0) linked = root_of(parent, first) == root_of(parent, other);
            linked = __any_sync(FULL_WARP, linked);
            if (!linked && any_within(x, y, first, end, other, other_end, radius) && lane == 0)
                unite(parent, first, other);
            other = other_end;
        }
    }
}

// Root of every source. One thread per source.
extern "C" __global__ void __launch_bounds__(256, 8) flatten_links(const int* parent, int n,
                                                                   int* label) {
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= n) return;
    int i = (int)thread;
    while (parent[i] != i) i = parent[i];
    label[thread] = i;
}

// Members of the same group whose stamps overlap a member's. One warp per member.
//
// Members are sorted by group and, in it, by their rows.
// row, column, half_row, half_column: (n), the pixel of each member and the half sizes of its stamp
// group_begin, group_end: (n), the members of each one's group
// listing: 0 to count only; offset: (n), where the list of each member begins
// count: (n); begin, end: (n), members that may be in the list; list: (total)
extern "C" __global__ void __launch_bounds__(128, 8) list_neighbours(
    const int* row, const int* column, const int* half_row, const int* half_column,
    const int* group_begin, const int* group_end, int n, int listing, const long long* offset, int* count,
    int* begin, int* end, int* list) {
    const int lane = threadIdx.x & 31;
    const long long warp = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (warp >= n) return;  // whole warps leave together
    const int member = (int)warp, reach_row = 2 * half_row[member];
    const int reach_column = 2 * half_column[member];
    const int from = lower_bound(row, group_begin[member], group_end[member],
                                 row[member] - reach_row);
    const int to = lower_bound(row, from, group_end[member], row[member] + reach_row + 1);
    int n_found = 0;
    for (int base = from; base < to; base += 32) {
        const int other = base + lane;
        const bool overlaps = other < to && other != member &&
                              abs(column[other] - column[member]) <= reach_column;
        const unsigned found = __ballot_sync(FULL_WARP, overlaps);
        if (overlaps && listing)
            list[offset[member] + n_found + __popc(found & ((1u << lane) - 1))] = other;
        n_found += __popc(found);
    }
    if (lane == 0) {
        count[member] = n_found;
        begin[member] = from;
        end[member] = to;
    }
}
