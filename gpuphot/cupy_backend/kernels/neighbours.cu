// Who is near whom: sources linked to groups on a grid of cells, and members of a group whose
// stamps overlap.
#include "search.cuh"

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

// Sources sorted by grid and cell. All arrays: (n)
struct Sources {
    const double *x, *y, *reach;
};

// Whether a source of [a, a_end) is linked to one of [b, b_end); by a warp.
__device__ inline bool any_linked(const Sources& sources, int a, int a_end, int b, int b_end) {
    const int lane = threadIdx.x & 31, width = b_end - b;
    const long long n = (long long)(a_end - a) * width;
    if (n > 1024) {  // or else the boxes cost more than they save
        const double dx = gap_between(sources.x, a, a_end, b, b_end);
        const double dy = gap_between(sources.y, a, a_end, b, b_end);
        const double reach =
            extreme(sources.reach, a, a_end, -1) + extreme(sources.reach, b, b_end, -1);
        if (!(dx * dx + dy * dy <= reach * reach)) return false;
    }
    for (long long base = 0; base < n; base += 32) {
        bool linked = false;
        if (base + lane < n) {
            const int i = a + (int)((base + lane) / width), j = b + (int)((base + lane) % width);
            const double dx = sources.x[i] - sources.x[j], dy = sources.y[i] - sources.y[j];
            const double reach = sources.reach[i] + sources.reach[j];
            linked = dx * dx + dy * dy <= reach * reach;
        }
        if (__any_sync(FULL_WARP, linked)) return true;
    }
    return false;
}

// Row or column of the cell at a coordinate, among the n from `lowest` on.
__device__ inline long long cell_at(double coordinate, double side, long long lowest, long long n) {
    return (long long)fmin(fmax(floor(coordinate / side) - lowest, 0.0), n - 1.0);
}

// Links the cell of each source that is the first of its cell with the cells near it, on its own
// grid or one of wider reaches. One warp per source.
//
// grid, key: (n), sorted: the grid of each source, `n_grids` for none, and its cell there
// x, y, reach: (n), sorted like them
// begin: (n_grids + 1), where the sources of each grid begin
// side, widest: (n_grids), side of the cells of each grid, and the widest reach on it
// of_all: (4), lowest row and column of the cells of all grids, and how many rows and columns
// margin: sides of a cell that are added to distances
// parent: (n), on entry the first source of each one's cell
extern "C" __global__ void __launch_bounds__(128, 5) link_cells(
    const int* grid, const long long* key, const double* x, const double* y, const double* reach,
    int n, const int* begin, const double* side, const double* widest, const long long* of_all,
    int n_grids, double margin, int* parent) {
    const int lane = threadIdx.x & 31;
    const long long warp = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (warp >= n) return;  // whole warps leave together
    const int first = (int)warp, own = grid[first];
    const long long cell = key[first];
    if (own == n_grids || (first > begin[own] && key[first - 1] == cell)) return;
    const Sources sources = {x, y, reach};
    const int end = lower_bound(key, first, begin[own + 1], cell + 1);
    const long long low_row = of_all[0], low_column = of_all[1];
    const long long n_rows = of_all[2], n_columns = of_all[3];
    const long long own_row = cell / n_columns, plane = own_row / n_rows * n_rows;
    const double left = extreme(x, first, end, 1), right = -extreme(x, first, end, -1);
    const double low = extreme(y, first, end, 1), high = -extreme(y, first, end, -1);
    const double farthest = -extreme(reach, first, end, -1);
    for (int g = own; g < n_grids; ++g) {
        const int last = begin[g + 1];
        if (begin[g] == last) continue;
        const double s = side[g], distance = farthest + widest[g] + margin * s;
        const long long from = cell_at(left - distance, s, low_column, n_columns);
        const long long to = cell_at(right + distance, s, low_column, n_columns);
        const long long bottom = plane + cell_at(high + distance, s, low_row, n_rows);
        // Of two cells of a grid, the first one links them.
        long long row = g == own ? own_row : plane + cell_at(low - distance, s, low_row, n_rows);
        int other = g == own ? end : begin[g];
        for (; row <= bottom; ++row) {
            other = lower_bound(key, other, last, row * n_columns + from);
            while (other < last && key[other] <= row * n_columns + to) {
                const int other_end = lower_bound(key, other, last, key[other] + 1);
                bool linked = false;
                if (lane == 0) linked = root_of(parent, first) == root_of(parent, other);
                linked = __any_sync(FULL_WARP, linked);
                if (!linked && any_linked(sources, first, end, other, other_end) && lane == 0)
                    unite(parent, first, other);
                other = other_end;
            }
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
// group_begin, group_end: (n), the members of each one's group; widest: (n), largest half_row in it
// listing: 0 to count only; offset: (n), where the list of each member begins
// count: (n); begin, end: (n), members that may be in the list; list: (total)
extern "C" __global__ void __launch_bounds__(128, 8) list_neighbours(
    const int* row, const int* column, const int* half_row, const int* half_column,
    const int* group_begin, const int* group_end, const int* widest, int n, int listing,
    const long long* offset, int* count, int* begin, int* end, int* list) {
    const int lane = threadIdx.x & 31;
    const long long warp = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (warp >= n) return;  // whole warps leave together
    const int member = (int)warp, reach_row = 2 * widest[member];
    const int from = lower_bound(row, group_begin[member], group_end[member],
                                 row[member] - reach_row);
    const int to = lower_bound(row, from, group_end[member], row[member] + reach_row + 1);
    int n_found = 0;
    for (int base = from; base < to; base += 32) {
        const int other = base + lane;
        const bool overlaps =
            other < to && other != member &&
            abs(row[other] - row[member]) <= half_row[other] + half_row[member] &&
            abs(column[other] - column[member]) <= half_column[other] + half_column[member];
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
