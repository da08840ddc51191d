// The members of a group, the pixels of their stamps and sums over these.
//
// q: reciprocal noise of a pixel, g: its value in units of the noise.
//
// Unrolled loops over pixels would take more registers than there are, and functions that are used
// more than once take long to compile inline.
#pragma once
#include "sep_fit.cuh"
#include "sep_stamps.cuh"

#define THREADS 128

struct Pixel {
    double q, g;
};

// A member of the group and its stamp.
struct Member {
    double x, y;            // where its displacement counts from
    double dx, dy;          // its displacement
    double flux, sum;       // sum of its stamp
    double old_scale;       // of its stamp in the plane of light
    int left, top;          // first pixel of its stamp
    int old_left, old_top;  // of the one in the plane of light
    int source, flag;
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
__device__ inline Box region_of(const SepPSF& psf, const SepImage& image, const Member* members,
                                int n) {
    Box box = stamp_box(psf, members[0].left, members[0].top);
    for (int i = 1; i < n; ++i) {
        box.left = min(box.left, members[i].left);
        box.top = min(box.top, members[i].top);
        box.right = max(box.right, members[i].left + psf.columns);
        box.bottom = max(box.bottom, members[i].top + psf.rows);
    }
    return common_part(box, whole_image(image));
}

// Where a block keeps what does not fit into shared memory.
struct Workspace {
    double* columns;    // (n, 3, stamp), derivatives of the pixels in units of the noise
    double* matrix;     // (3 n + 1, 3 n), its last row is the right-hand side of damped equations
    double* rhs;        // (3 n)
    double* diagonal;   // (3 n)
    double* solution;   // (3 n)
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
#pragma unroll 1
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
__device__ __noinline__ void make_stamps(const Fit& fit, bool normed) {
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
        if (normed) sep_norm(stamp, size, sum);
        if (threadIdx.x == 0) {
            member.sum = sum;
            member.left = centre_x - psf.columns / 2;
            member.top = centre_y - psf.rows / 2;
        }
    }
    __syncthreads();
}

// Flags of a member, given whether a pixel of its stamp is masked.
__device__ inline int flag_of(const Fit& fit, const Member& member, bool masked) {
    const Box box = stamp_box(fit.psf, member.left, member.top);
    const bool truncated = area_of(common_part(box, whole_image(fit.image))) < area_of(box);
    return (truncated ? SEP_TRUNCATED : 0) | (masked ? SEP_HAS_MASKED : 0);
}

// Derivatives of a member's pixels by its flux and position, their products with each other and
// with g, by a warp. Returns the member's flags.
__device__ inline int member_sums(const Fit& fit, const Box& region, int i) {
    const int lane = threadIdx.x & 31, n_columns = fit.psf.columns;
    const int size = fit.psf.rows * n_columns, stride = 3 * fit.n;
    const Member& member = fit.members[i];
    const Box image = whole_image(fit.image);
    const Box box = common_part(stamp_box(fit.psf, member.left, member.top), region);
    const float* stamp = fit.work.stamps + (long long)i * size;
    double* a = fit.work.columns + 3LL * i * size;
    bool masked = false;
    double b0 = 0, b1 = 0, b2 = 0, n00 = 0, n01 = 0, n02 = 0, n11 = 0, n12 = 0, n22 = 0;
#pragma unroll 1
    for (int k = lane; k < size; k += 32) {
        const int column = member.left + k % n_columns, row = member.top + k / n_columns;
        double a0 = 0, a1 = 0, a2 = 0;
        masked |= is_inside(image, column, row) && fit.is_masked(column, row);
        if (is_inside(box, column, row)) {
            const Pixel pixel = fit.pixel(column, row, true);
            if (pixel.q != 0 && fit.lights(member, column, row)) {
                const double left = column > box.left ? stamp[k - 1] : 0;
                const double right = column < box.right - 1 ? stamp[k + 1] : 0;
                const double below = row > box.top ? stamp[k - n_columns] : 0;
                const double above = row < box.bottom - 1 ? stamp[k + n_columns] : 0;
                a0 = stamp[k] * pixel.q;
                a1 = (right - left) * pixel.q * 0.5;
                a2 = (above - below) * pixel.q * 0.5;
            }
            b0 += a0 * pixel.g;  // also where a0 is 0: g may be NaN
            b1 += a1 * pixel.g;
            b2 += a2 * pixel.g;
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
    return flag_of(fit, member, __any_sync(FULL_WARP, masked));
}

// The same with respect to the flux alone. Stamps are not normed.
__device__ inline int flux_sums(const Fit& fit, int i) {
    const int lane = threadIdx.x & 31, n_columns = fit.psf.columns;
    const int size = fit.psf.rows * n_columns;
    const Member& member = fit.members[i];
    const Box image = whole_image(fit.image);
    const float* stamp = fit.work.stamps + (long long)i * size;
    const float scale = member.sum > 0 ? (float)member.sum : 1;
    double* a = fit.work.columns + (long long)i * size;
    bool masked = false;
    double b = 0, power = 0;
#pragma unroll 1
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
    return flag_of(fit, member, __any_sync(FULL_WARP, masked));
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
#pragma unroll 1
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
