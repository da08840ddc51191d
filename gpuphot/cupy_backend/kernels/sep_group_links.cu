// Which sources are fitted together: how far each one reaches, and the blocks of large groups.
#include "search.cuh"
#include "sep_stamps.cuh"

#define THREADS 128
#define MAX_MEMBERS 64  // gpuphot.models.sep.MAX_FIT_GROUP

// Largest value of a block; of_warp: shared, a double for each warp
__device__ inline double block_max(double value, double* of_warp) {
    for (int step = 16; step > 0; step >>= 1)
        value = fmax(value, __shfl_xor_sync(FULL_WARP, value, step));
    __syncthreads();
    if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x >> 5] = value;
    __syncthreads();
    for (int warp = 0; warp < (int)(blockDim.x >> 5); ++warp) value = fmax(value, of_warp[warp]);
    return value;
}

// How far sources reach, that is, from where on they are linked to others. One block per source.
//
// See SepPSF for what describes the model, and sep_psf_stamps for the scratch.
// x, y, wanted: (n); reach: (n), NaN for sources that are not wanted
extern "C" __global__ void __launch_bounds__(128, 8) sep_reach(
    const float* planes, int n_planes, int height, int width, int degree, float step, double x0,
    double y0, double sx, double sy, int rows, int columns, const double* x, const double* y,
    const unsigned char* wanted, int begin, float* workspace, int n_scratch, int in_shared,
    double* reach) {
    extern __shared__ float shared[];
    __shared__ double of_warp[THREADS / 32];
    const SepPSF psf = {planes, n_planes, height, width, degree, step,
                        x0,     y0,       sx,     sy,    rows,   columns};
    const int source = begin + blockIdx.x;
    if (!wanted[source]) {  // the whole block
        if (threadIdx.x == 0) reach[source] = NAN;
        return;
    }
    float* combined = in_shared ? shared : workspace + (long long)blockIdx.x * n_scratch;
    float* resampled = combined + height * width;
    float* stamp = resampled + height * columns;
    sep_normed_stamp(psf, x[source], y[source], sep_centre(x[source]), sep_centre(y[source]),
                     combined, resampled, stamp, of_warp);
    double peak = 0, farthest = 0;
    for (int k = threadIdx.x; k < rows * columns; k += THREADS)
        peak = fmax(peak, (double)fabsf(stamp[k]));
    peak = block_max(peak, of_warp);
    for (int k = threadIdx.x; k < rows * columns; k += THREADS) {
        if (!((double)fabsf(stamp[k]) >= 0.01 * peak)) continue;
        const double dx = k % columns - columns / 2, dy = k / columns - rows / 2;
        farthest = fmax(farthest, dx * dx + dy * dy);
    }
    farthest = block_max(farthest, of_warp);
    if (threadIdx.x == 0) reach[source] = farthest > 0 ? sqrt(farthest) : 0.5;
}

// Members of a group near a square, which its core lies in.
struct Surroundings {
    const double *x, *y;
    const int* core;  // of every member
    int group_end, system;
    double left, low, side;

    __device__ double distance2(int k) const {
        const double dx = fmax(fmax(left - x[k], x[k] - (left + side)), 0.0);
        const double dy = fmax(fmax(low - y[k], y[k] - (low + side)), 0.0);
        return dx * dx + dy * dy;
    }

    // How many members outside the core are within a distance, from a first one on. At most `room`
    // of them are listed if wanted. By a warp.
    __device__ int find(int first, double distance, int room, int* list) const {
        const int lane = threadIdx.x & 31;
        int n_found = 0;
        for (int base = first; base < group_end && y[base] <= low + side + distance; base += 32) {
            const int k = base + lane;
            const bool near = k < group_end && core[k] != system &&
                              distance2(k) <= distance * distance;
            const unsigned found = __ballot_sync(FULL_WARP, near);
            const int place = n_found + __popc(found & ((1u << lane) - 1));
            if (near && place < room) list[place] = k;
            n_found += __popc(found);
        }
        return n_found;
    }
};

// Members of the blocks of large groups: those of a core, then the nearest ones around it as far as
// there is room. One warp per block.
//
// core_order: (n), members sorted by core; core_begin: (n_cores + 1), where each core begins
// x, y, core, side: (n), of the members, y rising in each group; side: of the square of the core
// group_begin, group_end: (n), the members of each one's group; halo: width of the surroundings
// count: (n_cores); list: (n_cores, MAX_MEMBERS)
extern "C" __global__ void __launch_bounds__(128, 8) sep_list_blocks(
    const int* core_order, const int* core_begin, int n_cores, const double* x, const double* y,
    const int* core, const double* side, const int* group_begin, const int* group_end,
    double halo, int* count, int* list) {
    const int lane = threadIdx.x & 31;
    const long long warp = (long long)blockIdx.x * (THREADS / 32) + (threadIdx.x >> 5);
    if (warp >= n_cores) return;  // whole warps leave together
    const int system = (int)warp, begin = core_begin[system];
    const int n_core = core_begin[system + 1] - begin, room = MAX_MEMBERS - n_core;
    const int one = core_order[begin];
    const double width = side[one];
    const Surroundings around = {x, y, core, group_end[one], system,
                                 floor(x[one] / width) * width, floor(y[one] / width) * width,
                                 width};
    const int first = lower_bound(y, group_begin[one], group_end[one], around.low - halo);
    double near = 0, far = halo;
    if (around.find(first, far, 0, list) <= room) near = far;
    for (int k = 0; k < 20 && near < far; ++k) {
        const double middle = 0.5 * (near + far);
        if (around.find(first, middle, 0, list) <= room) {
            near = middle;
        } else {
            far = middle;
        }
    }
    int* members = list + (long long)system * MAX_MEMBERS;
    for (int k = lane; k < n_core; k += 32) members[k] = core_order[begin + k];
    const int n_found = around.find(first, near, room, members + n_core);
    if (lane == 0) count[system] = n_core + min(n_found, room);
}
