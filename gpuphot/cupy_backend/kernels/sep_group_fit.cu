// Grouped PSF fits with SEP's conventions: the pixels that link sources, the blocks of large
// groups, and the fits. One block per group, or per block of a large group.
//
// q: reciprocal noise of a pixel, g: its value in units of the noise.
#include "search.cuh"
#include "sep_fit.cuh"
#include "sep_group_solve.cuh"

#define THREADS 128
#define MAX_MEMBERS 64
#define NO_FLUX 1e-12  // below it, a member is not moved
#define FAINT 1e-30    // below it, steps are not damped

struct Pixel {
    double q, g;
};

// A member of the group and its stamp.
struct Member {
    double x, y;      // where its displacement counts from
    double dx, dy;    // its displacement
    double flux, sum;  // sum of its stamp
    int left, top;     // first pixel of its stamp
    int source, flag;
    int old_left, old_top;  // what the plane of light has of it
    double old_scale;
};

// Pixels from (left, top) to (right, bottom), which are not among them.
struct Box {
    int left, top, right, bottom;
};

__device__ inline Box common_part(const Box& a, const Box& b) {
    return {max(a.left, b.left), max(a.top, b.top), min(a.right, b.right),
            min(a.bottom, b.bottom)};
}

__device__ inline bool is_inside(const Box& box, int column, int row) {
    return column >= box.left && column < box.right && row >= box.top && row < box.bottom;
}

__device__ inline long long area_of(const Box& box) {
    return (long long)max(0, box.right - box.left) * max(0, box.bottom - box.top);
}

__device__ inline Box whole_image(const SepImage& image) {
    return {0, 0, image.width, image.height};
}

__device__ inline Box stamp_box(const SepPSF& psf, int left, int top) {
    return {left, top, left + psf.columns, top + psf.rows};
}

// Smallest rectangle around all stamps, as far as it is on the image.
__device__ inline Box region_of(const SepPSF& psf, const SepImage& image,
                                const Member* members, int n) {
    Box box = stamp_box(psf, members[0].left, members[0].top);
    for (int i = 1; i < n; ++i) {
        box.left = min(box.left, members[i].left);
        box.top = min(box.top, members[i].top);
        box.right = max(box.right, members[i].left + psf.columns);
        box.bottom = max(box.bottom, members[i].top + psf.rows);
    }
    return common_part(box, whole_image(image));
}

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
    SepWork work;
    work.sums = of_warp;
    work.combined = in_shared ? shared : workspace + (long long)blockIdx.x * n_scratch;
    work.resampled = work.combined + height * width;
    work.stamp = work.resampled + height * columns;
    sep_norm_stamp(psf, x[source], y[source], sep_centre(x[source]), sep_centre(y[source]), work);
    double peak = 0, farthest = 0;
    for (int k = threadIdx.x; k < rows * columns; k += THREADS)
        peak = fmax(peak, (double)fabsf(work.stamp[k]));
    peak = block_max(peak, of_warp);
    for (int k = threadIdx.x; k < rows * columns; k += THREADS) {
        if (!((double)fabsf(work.stamp[k]) >= 0.01 * peak)) continue;
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

// Where a block keeps what does not fit into shared memory.
struct Workspace {
    double* columns;   // (n, 3, stamp), derivatives of the pixels in units of the noise
    double* matrix;    // (3 n + 1, 3 n), below it the right-hand side
    double* rhs;       // (3 n)
    double* diagonal;  // (3 n)
    double* solution;  // (3 n)
    float* stamps;      // (n, stamp)
    float* old_stamps;  // (n, stamp), what the plane of light has of the members
    float *combined, *resampled;
};

__device__ inline Workspace workspace_of(const SepPSF& psf, double* memory, int n, int has_light) {
    const long long size = psf.rows * psf.columns;
    Workspace work;
    work.columns = memory;
    work.matrix = work.columns + 3 * n * size;
    work.rhs = work.matrix + (3 * n + 1) * 3 * n;
    work.diagonal = work.rhs + 3 * n;
    work.solution = work.diagonal + 3 * n;
    work.stamps = (float*)(work.solution + 3 * n);
    work.old_stamps = work.stamps + n * size;
    work.combined = work.old_stamps + (has_light ? n * size : 0);
    work.resampled = work.combined + psf.height * psf.width;
    return work;
}

// What a fit is made of.
struct Fit {
    SepPSF psf;
    SepImage image;
    const double* light;  // plane, of all members of large groups as they were found last
    int has_light;
    SepRules rules;
    Member* members;  // shared, n of them
    int n;
    Workspace work;
    double* of_warp;  // shared, a double for each warp
    double* column;   // shared, (3 n + 1)

    // Whether a pixel is near enough to where a member is now.
    __device__ bool reaches(const Member& member, int column, int row) const {
        return rules.reaches(column - (member.x + member.dx), row - (member.y + member.dy));
    }

    // Whether a member is thought to have light on a pixel of its stamp. In blocks it always is.
    __device__ bool lights(const Member& member, int column, int row) const {
        return has_light || reaches(member, column, row);
    }

    // A pixel without the light of those that are not members. What has no noise does not matter
    // whatever it is, but may be NaN in the fits of positions without damping. Blocks use the
    // pixels near any member, for which they know the light of all of them.
    __device__ Pixel pixel(int column, int row, bool of_positions = false) const {
        const long long index = image.index(row, column);
        const double variance = image.variance(index);
        const bool has_noise = variance > 0, is_kept = of_positions && !(rules.damping > 0);
        const double q = has_noise ? 1 / sqrt(variance) : 0;
        double value = has_noise || (is_kept && !image.is_masked(index)) ? image.data[index] : 0;
        if (has_light) {
            double of_others = light[index];
            bool is_used = false;
            for (int i = 0; i < n; ++i) {
                const Member& member = members[i];
                is_used |= rules.reaches(column - member.x, row - member.y);
                const int x = column - member.old_left, y = row - member.old_top;
                if (x < 0 || x >= psf.columns || y < 0 || y >= psf.rows) continue;
                const long long place = ((long long)i * psf.rows + y) * psf.columns + x;
                of_others -= member.old_scale * work.old_stamps[place];
            }
            if (!is_used) return {0, 0};
            value -= of_others;
        }
        return {q, value * q};
    }

    __device__ bool is_masked(int column, int row) const {
        return image.is_masked(image.index(row, column));
    }
};

// Stamps of all members where they are now; of sum 1 if wanted.
__device__ inline void make_stamps(const Fit& fit, bool normed) {
    const SepPSF& psf = fit.psf;
    const int size = psf.rows * psf.columns;
    for (int i = 0; i < fit.n; ++i) {
        Member& member = fit.members[i];
        float* stamp = fit.work.stamps + (long long)i * size;
        const double x = member.x + member.dx, y = member.y + member.dy;
        const int centre_x = sep_centre(x), centre_y = sep_centre(y);
        sep_stamp(psf, x, y, x - centre_x, y - centre_y, fit.work.combined, fit.work.resampled,
                  stamp);
        const double sum = sep_stamp_sum(stamp, size, fit.of_warp);
        if (normed && sum > 0)
            for (int k = threadIdx.x; k < size; k += THREADS) stamp[k] /= (float)sum;
        if (threadIdx.x == 0) {
            member.sum = sum;
            member.left = centre_x - psf.columns / 2;
            member.top = centre_y - psf.rows / 2;
        }
    }
    __syncthreads();
}

// Derivatives of a member's pixels by its flux and position, their products with each other and
// with g, by a warp. Returns whether a pixel of its stamp is masked.
__device__ inline bool member_sums(const Fit& fit, const Box& region, int i) {
    const int lane = threadIdx.x & 31, n_columns = fit.psf.columns;
    const int size = fit.psf.rows * n_columns, stride = 3 * fit.n;
    const Member& member = fit.members[i];
    const Box image = whole_image(fit.image);
    const Box box = common_part(stamp_box(fit.psf, member.left, member.top), region);
    const float* stamp = fit.work.stamps + (long long)i * size;
    double* a = fit.work.columns + 3LL * i * size;
    bool masked = false;
    double b0 = 0, b1 = 0, b2 = 0, n00 = 0, n01 = 0, n02 = 0, n11 = 0, n12 = 0, n22 = 0;
    for (int k = lane; k < size; k += 32) {
        const int column = member.left + k % n_columns, row = member.top + k / n_columns;
        double a0 = 0, a1 = 0, a2 = 0;
        if (is_inside(image, column, row)) {
            const Pixel pixel = fit.pixel(column, row, true);
            masked |= fit.is_masked(column, row);
            if (is_inside(box, column, row)) {
                if (pixel.q != 0 && fit.lights(member, column, row)) {
                    const double left = column > box.left ? stamp[k - 1] : 0;
                    const double right = column < box.right - 1 ? stamp[k + 1] : 0;
                    const double below = row > box.top ? stamp[k - n_columns] : 0;
                    const double above = row < box.bottom - 1 ? stamp[k + n_columns] : 0;
                    a0 = stamp[k] * pixel.q;
                    a1 = (right - left) * pixel.q * 0.5;
                    a2 = (above - below) * pixel.q * 0.5;
                }
                b0 += a0 * pixel.g;
                b1 += a1 * pixel.g;
                b2 += a2 * pixel.g;
            }
        }
        a[k] = a0;
        a[size + k] = a1;
        a[2 * size + k] = a2;
        n00 += a0 * a0;
        n01 += a0 * a1;
        n02 += a0 * a2;
        n11 += a1 * a1;
        n12 += a1 * a2;
        n22 += a2 * a2;
    }
    b0 = warp_sum(b0), b1 = warp_sum(b1), b2 = warp_sum(b2);
    n00 = warp_sum(n00), n01 = warp_sum(n01), n02 = warp_sum(n02);
    n11 = warp_sum(n11), n12 = warp_sum(n12), n22 = warp_sum(n22);
    if (lane == 0) {
        double* rhs = fit.work.rhs + 3 * i;
        rhs[0] = b0, rhs[1] = b1, rhs[2] = b2;
        double* block = fit.work.matrix + 3 * i * stride + 3 * i;
        block[0] = n00;
        block[1] = block[stride] = n01;
        block[2] = block[2 * stride] = n02;
        block[stride + 1] = n11;
        block[stride + 2] = block[2 * stride + 1] = n12;
        block[2 * stride + 2] = n22;
    }
    return __any_sync(FULL_WARP, masked);
}

// The same with respect to the flux alone. Stamps are not normed.
__device__ inline bool flux_sums(const Fit& fit, int i) {
    const int lane = threadIdx.x & 31, n_columns = fit.psf.columns;
    const int size = fit.psf.rows * n_columns;
    const Member& member = fit.members[i];
    const Box image = whole_image(fit.image);
    const float* stamp = fit.work.stamps + (long long)i * size;
    const float scale = member.sum > 0 ? (float)member.sum : 1;
    double* a = fit.work.columns + (long long)i * size;
    bool masked = false;
    double b = 0, power = 0;
    for (int k = lane; k < size; k += 32) {
        const int column = member.left + k % n_columns, row = member.top + k / n_columns;
        double a0 = 0;
        if (is_inside(image, column, row)) {
            const Pixel pixel = fit.pixel(column, row);
            masked |= fit.is_masked(column, row);
            if (fit.lights(member, column, row)) a0 = stamp[k] / scale * pixel.q;
            b += a0 * pixel.g;
        }
        a[k] = a0;
        power += a0 * a0;
    }
    b = warp_sum(b);
    power = warp_sum(power);
    if (lane == 0) {
        fit.work.rhs[i] = b;
        fit.work.matrix[i * fit.n + i] = power;
    }
    return __any_sync(FULL_WARP, masked);
}

// Products of the derivatives of two members, n_kinds of each, by a warp.
template <int n_kinds>
__device__ inline void pair_products(const Fit& fit, int i, int j) {
    const int lane = threadIdx.x & 31, n_columns = fit.psf.columns;
    const int size = fit.psf.rows * n_columns, stride = n_kinds * fit.n;
    const Member &one = fit.members[i], &other = fit.members[j];
    const Box box = common_part(stamp_box(fit.psf, one.left, one.top),
                                stamp_box(fit.psf, other.left, other.top));
    const double* a = fit.work.columns + (long long)n_kinds * i * size;
    const double* b = fit.work.columns + (long long)n_kinds * j * size;
    const int across = box.right - box.left, n_common = (int)area_of(box);
    double product[n_kinds][n_kinds] = {};
    for (int k = lane; k < n_common; k += 32) {
        const int column = box.left + k % across, row = box.top + k / across;
        const int of_one = (row - one.top) * n_columns + column - one.left;
        const int of_other = (row - other.top) * n_columns + column - other.left;
#pragma unroll
        for (int p = 0; p < n_kinds; ++p)
#pragma unroll
            for (int q = 0; q < n_kinds; ++q)
                product[p][q] += a[p * size + of_one] * b[q * size + of_other];
    }
#pragma unroll
    for (int p = 0; p < n_kinds; ++p)
#pragma unroll
        for (int q = 0; q < n_kinds; ++q) {
            const double sum = n_common > 0 ? warp_sum(product[p][q]) : 0;
            const int row = n_kinds * i + p, column = n_kinds * j + q;
            if (lane == 0)
                fit.work.matrix[row * stride + column] = fit.work.matrix[column * stride + row] =
                    sum;
        }
}

template <int n_kinds>
__device__ inline void all_pair_products(const Fit& fit) {
    const int warp = threadIdx.x >> 5;
    int pair = 0;
    for (int i = 0; i < fit.n; ++i)
        for (int j = i + 1; j < fit.n; ++j, ++pair)
            if (pair % (THREADS / 32) == warp) pair_products<n_kinds>(fit, i, j);
    __syncthreads();
}

// Fluxes of all members where they are, none of them negative. Their stamps stay, not normed.
// Returns whether there are enough pixels.
__device__ inline bool fit_fluxes(const Fit& fit) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    make_stamps(fit, false);
    const Box region = region_of(fit.psf, fit.image, fit.members, fit.n);
    if (area_of(region) < fit.n) {  // the whole block
        __syncthreads();
        for (int i = threadIdx.x; i < fit.n; i += THREADS) fit.members[i].flux = 0;
        __syncthreads();
        return false;
    }
    for (int i = warp; i < fit.n; i += THREADS / 32) {
        Member& member = fit.members[i];
        const Box image = whole_image(fit.image);
        const Box box = stamp_box(fit.psf, member.left, member.top);
        int flag = flux_sums(fit, i) ? SEP_HAS_MASKED : 0;
        if (area_of(common_part(box, image)) < area_of(box)) flag |= SEP_TRUNCATED;
        if (lane == 0) {
            member.flag |= flag;
            fit.column[i] = fmax(member.flux, 0.0);
        }
    }
    __syncthreads();
    all_pair_products<1>(fit);
    if (warp == 0) solve_positive(fit.work.matrix, fit.work.rhs, fit.n, fit.column);
    __syncthreads();
    for (int i = threadIdx.x; i < fit.n; i += THREADS) fit.members[i].flux = fit.column[i];
    __syncthreads();
    return true;
}

// Variances of the fluxes just found, in `solution`. Members without flux do not matter to others.
__device__ inline void flux_variances(const Fit& fit) {
    const int n = fit.n;
    const double* matrix = fit.work.matrix;
    double *factor = fit.work.matrix + n * n, *scratch = factor + n * n;
    for (int k = threadIdx.x; k < n * n; k += THREADS) {
        const int i = k / n, j = k % n;
        const bool both = fit.members[i].flux > 0 && fit.members[j].flux > 0;
        factor[k] = both ? matrix[k] : (i == j ? 1 : 0);
    }
    __syncthreads();
    if (factorise(factor, n, n, fit.column)) {  // the whole block
        inverse_diagonal(factor, n, scratch, fit.work.solution);
        return;
    }
    for (int i = threadIdx.x; i < n; i += THREADS) fit.work.solution[i] = 1 / matrix[i * n + i];
    __syncthreads();
}

// Solution of the normal equations, damped if wanted. Of singular ones it is the least one.
__device__ inline void solve_step(const Fit& fit) {
    const int m = 3 * fit.n;
    double* matrix = fit.work.matrix;
    double *solution = fit.work.solution, *last_row = matrix + m * m;
    for (int k = threadIdx.x; k < m; k += THREADS) {
        const Member& member = fit.members[k / 3];
        const bool damped = fit.rules.damping > 0 && k % 3 != 0 && fabs(member.flux) > FAINT;
        const double weight = damped ? fit.rules.damping / (member.flux * member.flux) : 0;
        const double displacement = k % 3 == 1 ? member.dx : member.dy;
        fit.work.diagonal[k] = matrix[k * m + k];
        matrix[k * m + k] += weight;
        last_row[k] = fit.work.rhs[k] + (damped ? weight * member.flux * displacement : 0);
    }
    __syncthreads();
    if (factorise(matrix, m, m + 1, fit.column)) {  // the whole block
        for (int k = threadIdx.x; k < m; k += THREADS) solution[k] = last_row[k];
        __syncthreads();
        if (threadIdx.x < 32) substitute_back(matrix, m, solution);
        __syncthreads();
        return;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < m * m; k += THREADS) {
        const int i = k / m, j = k % m;
        if (j < i) matrix[k] = matrix[j * m + i];
        if (j == i) matrix[k] = fit.work.diagonal[i];
    }
    __syncthreads();
    solve_singular(matrix, m, fit.work.rhs, fit.column, solution);
}

// Moves a member by half of its step. Returns the square of what it is moved by.
__device__ inline double move_member(Member& member, const double* step, double farthest) {
    double flux = step[0] > 0 && isfinite(step[0]) ? step[0] : 0;
    double right = 0, up = 0;
    if (flux > NO_FLUX) {
        right = -step[1] / (2 * flux);
        up = -step[2] / (2 * flux);
    }
    const double dx = member.dx + right, dy = member.dy + up;
    if (!isfinite(right) || !isfinite(up)) {
        flux = right = up = 0;
    } else if (dx * dx + dy * dy > farthest * farthest) {
        right = up = 0;
    } else {
        member.dx = dx;
        member.dy = dy;
    }
    member.flux = flux;
    return right * right + up * up;
}

// Positions of all members. Returns the number of steps; 0 if there are too few pixels.
__device__ inline int fit_all_positions(const Fit& fit) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const Box image = whole_image(fit.image);
    const double tolerance = fit.rules.tolerance * fit.rules.tolerance;
    if (fit.rules.damping > 0) fit_fluxes(fit);
    Box region = image;
    for (int n_iter = 1;; ++n_iter) {
        make_stamps(fit, true);
        if (n_iter == 1) {
            region = region_of(fit.psf, fit.image, fit.members, fit.n);
            if (area_of(region) < 3 * fit.n) return 0;  // the whole block
        }
        for (int i = warp; i < fit.n; i += THREADS / 32) {
            Member& member = fit.members[i];
            const Box box = stamp_box(fit.psf, member.left, member.top);
            int flag = member_sums(fit, region, i) ? SEP_HAS_MASKED : 0;
            if (area_of(common_part(box, image)) < area_of(box)) flag |= SEP_TRUNCATED;
            if (lane == 0 && n_iter == 1) member.flag |= flag;
        }
        __syncthreads();
        all_pair_products<3>(fit);
        solve_step(fit);
        bool moving = false;
        for (int i = threadIdx.x; i < fit.n; i += THREADS)
            moving |= move_member(fit.members[i], fit.work.solution + 3 * i,
                                  fit.rules.max_drift) > tolerance;
        if (!__syncthreads_or(moving) || n_iter == fit.rules.max_iter) return n_iter;
    }
}

// Reduced chi-squared of a member's pixels without what the fit puts there, by a warp.
__device__ inline double chi_squared(const Fit& fit, int k) {
    const int lane = threadIdx.x & 31, n_columns = fit.psf.columns;
    const int size = fit.psf.rows * n_columns;
    const Box image = whole_image(fit.image);
    const Member& member = fit.members[k];
    double chi2 = 0, count = 0;
    for (int p = lane; p < size; p += 32) {
        const int column = member.left + p % n_columns, row = member.top + p / n_columns;
        if (!is_inside(image, column, row) || !fit.reaches(member, column, row)) continue;
        const Pixel pixel = fit.pixel(column, row);
        if (pixel.q == 0) continue;
        double residual = pixel.g;
        for (int i = 0; i < fit.n; ++i) {
            const Member& other = fit.members[i];
            const int x = column - other.left, y = row - other.top;
            if (x < 0 || x >= n_columns || y < 0 || y >= fit.psf.rows || !(other.sum > 0)) continue;
            if (!fit.lights(other, column, row)) continue;
            const float value = fit.work.stamps[(long long)i * size + y * n_columns + x];
            residual -= other.flux * (value / other.sum) * pixel.q;
        }
        chi2 += residual * residual;
        count += 1;
    }
    chi2 = warp_sum(chi2);
    count = warp_sum(count);
    return count > 3 ? chi2 / (count - 3) : 0;
}

// Members of a group: where they are, and what the plane of light has of them.
//
// rows: of the members among all sources; x0, y0, x, y, flux: of all sources
__device__ inline void load_members(const Fit& fit, const int* rows, const double* x0,
                                    const double* y0, const double* x, const double* y,
                                    const double* flux) {
    const int size = fit.psf.rows * fit.psf.columns;
    __syncthreads();  // the members before are done with
    for (int i = threadIdx.x; i < fit.n; i += THREADS) {
        Member& member = fit.members[i];
        const int source = rows[i];
        member.source = source;
        member.x = x0[source];
        member.y = y0[source];
        member.dx = x[source] - x0[source];
        member.dy = y[source] - y0[source];
        member.flux = flux[source];
        member.flag = 0;
    }
    __syncthreads();
    if (!fit.has_light) return;  // the whole block
    make_stamps(fit, false);
    for (int i = threadIdx.x; i < fit.n; i += THREADS) {
        Member& member = fit.members[i];
        member.old_left = member.left;
        member.old_top = member.top;
        member.old_scale = member.sum > 0 ? member.flux / member.sum : 0;
    }
    for (long long k = threadIdx.x; k < (long long)fit.n * size; k += THREADS)
        fit.work.old_stamps[k] = fit.work.stamps[k];
    __syncthreads();
}

// Fits groups, or blocks of large ones. Blocks of threads take one after the other.
//
// data, err, bad, light: planes (F, height, width); tolerance: length of the last step
// systems: (n_systems), those to fit, with at most max_count members; begin, count: of each system,
// its members in `rows`; home: (n), the system that a source gets its results from
// x0, y0, frame, x, y, flux: (n), where sources were at first, their planes, and where they are
// new_flux to n_iter: (n), results; alone: (n), whether a source has to be fitted alone
// workspace: n_workspace doubles for each block
extern "C" __global__ void __launch_bounds__(128, 3) sep_fit_groups(
    const float* planes, int n_planes, int height_psf, int width_psf, int degree, float step,
    double psf_x0, double psf_y0, double psf_sx, double psf_sy, int rows_psf, int columns_psf,
    const float* data, const float* err, const unsigned char* bad, const double* light,
    int has_light, int height, int width, double gain, int fit_positions, int max_iter,
    double fit_radius, double tolerance, double max_drift, double damping, const int* systems, int n_systems,
    int max_count, const int* begin, const int* count, const int* rows, const int* home,
    const double* x0, const double* y0, const int* frame, const double* x, const double* y,
    const double* flux, double* workspace, long long n_workspace, double* new_flux,
    double* fluxerr, double* new_x, double* new_y, long long* flag, double* chi2,
    long long* n_iter, unsigned char* alone) {
    __shared__ Member members[MAX_MEMBERS];
    __shared__ double of_warp[THREADS / 32], column[3 * MAX_MEMBERS + 1];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const SepPSF psf = {planes, n_planes, height_psf, width_psf, degree,   step,
                        psf_x0, psf_y0,   psf_sx,     psf_sy,    rows_psf, columns_psf};
    const SepRules rules = {max_iter, fit_radius, tolerance, max_drift, damping};
    const Workspace work =
        workspace_of(psf, workspace + blockIdx.x * n_workspace, max_count, has_light);
    for (int k = blockIdx.x; k < n_systems; k += gridDim.x) {
        const int system = systems[k], n = count[system];
        const int* of_system = rows + begin[system];
        const int plane = frame[of_system[0]];
        const SepImage image = sep_image(data, err, bad, height, width, plane, gain);
        const Fit fit = {psf, image, light + (has_light ? (long long)plane * height * width : 0),
                         has_light, rules, members, n, work, of_warp, column};
        load_members(fit, of_system, x0, y0, x, y, flux);
        int n_steps = 0;
        if (fit_positions) {
            n_steps = fit_all_positions(fit);
            if (n_steps == 0) {  // the whole block
                for (int i = threadIdx.x; i < n; i += THREADS)
                    if (home[members[i].source] == system) alone[members[i].source] = 1;
                continue;
            }
        }
        const bool has_fluxes = fit_fluxes(fit);
        if (has_fluxes) flux_variances(fit);
        for (int i = warp; i < n; i += THREADS / 32) {
            const Member& member = members[i];
            const int source = member.source;
            if (home[source] != system) continue;  // the whole warp
            const double of_pixels = fit_positions ? chi_squared(fit, i) : NAN;
            if (lane != 0) continue;
            new_flux[source] = member.flux;
            fluxerr[source] = member.flux > 0 ? sqrt(work.solution[i] + image.photon_noise(member.flux)) : 0;
            new_x[source] = member.x + member.dx;
            new_y[source] = member.y + member.dy;
            flag[source] = member.flag;
            chi2[source] = of_pixels;
            n_iter[source] = n_steps;
        }
    }
}
