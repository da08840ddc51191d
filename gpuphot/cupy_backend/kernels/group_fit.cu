// Grouped optimal sums: the normal equations of the members of groups, and what is left of the
// pixels after the fit. One block per member.
//
// The pixels of a group are usable and lie within r of one of its members, on the stamp of that
// member. Each one is the own pixel of the first member that it lies near.
//
// P: a member's stamp, D: data without the group's background, V: variance.
#include "search.cuh"
#include "usable.cuh"

#define BLOCK 128

struct Image {
    const double *data, *err;  // planes (F, height, width), like `bad`
    const unsigned char* bad;
    int height, width;
};

// Sorted by group and, in it, by y and x. All arrays: (n)
struct Members {
    const double *x, *y;
    const int *frame, *row, *column;        // the plane and the pixel that a member lies on
    const int *half_row, *half_column;      // half sizes of its stamp
    const double* level;                    // background of its group
    const long long* offset;                // (n + 1), where the list of its neighbours begins
    const int* list;                        // members of its group whose stamps overlap its own
    double r;
};

struct Pixel {
    bool usable, of_group, own;
    double value, sigma;
};

// Whether a pixel lies within the radius of a member, and on its stamp.
__device__ inline bool in_circle(const Members& members, int k, int row, int column) {
    const int down = row - members.row[k], right = column - members.column[k];
    if (abs(down) > members.half_row[k] || abs(right) > members.half_column[k]) return false;
    const double dx = (members.column[k] - members.x[k]) + right;
    const double dy = (members.row[k] - members.y[k]) + down;
    return sqrt(dx * dx + dy * dy) <= members.r;
}

// What a pixel is to the group of member k.
__device__ inline Pixel pixel_at(const Image& image, const Members& members, int k, int row,
                                 int column) {
    Pixel pixel = {false, false, false, 0.0, 0.0};
    if (row < 0 || row >= image.height || column < 0 || column >= image.width) return pixel;
    const long long index =
        ((long long)members.frame[k] * image.height + row) * image.width + column;
    const double sigma = image.err[index];
    if (!is_usable(image.bad[index], sigma)) return pixel;
    const bool near = in_circle(members, k, row, column);
    bool near_earlier = false, near_other = false;
    for (long long e = members.offset[k]; e < members.offset[k + 1] && !near_other; ++e) {
        const int other = members.list[e];
        if (near && other > k) break;
        near_other = in_circle(members, other, row, column);
        near_earlier = near_other && other < k;
    }
    pixel.usable = true;
    pixel.of_group = near || near_other;
    pixel.own = near && !near_earlier;
    pixel.value = image.data[index] - members.level[k];
    pixel.sigma = sigma;
    return pixel;
}

// Stamps (n_stamps, rows, columns) of the members from `first` on.
struct Stamps {
    const double* pixels;
    int first, rows, columns;
};

// Light of member k on a pixel; 0 off its stamp.
__device__ inline double light_at(const Stamps& stamps, const Members& members, int k, int row,
                                  int column) {
    const int down = row - members.row[k], right = column - members.column[k];
    if (abs(down) > members.half_row[k] || abs(right) > members.half_column[k]) return 0;
    const long long first = (long long)(k - stamps.first) * stamps.rows * stamps.columns;
    return stamps.pixels[first + (long long)(down + stamps.rows / 2) * stamps.columns + right +
                         stamps.columns / 2];
}

// Sums of each member over the pixels of its group, on its stamp.
//
// begin: first member, that of block 0; in_group: (blocks, rows, columns), whether a pixel of the
// stamp belongs to the group
// power, noise, rhs, light, light_noise: (n), sums of P P, P P V, P D, P and P V
// own_area, own_data, own_noise: (n), number of own pixels, and sums of D and V over them
extern "C" __global__ void __launch_bounds__(128, 5) member_sums(
    const double* data, const double* err, const unsigned char* bad, int height, int width,
    const double* x, const double* y, const int* frame, const int* row, const int* column,
    const int* half_row, const int* half_column, const double* level, const long long* offset,
    const int* list, double r, int begin, const double* stamps, int first_stamp, int stamp_rows,
    int stamp_columns, unsigned char* in_group, double* power, double* noise, double* rhs,
    double* light, double* light_noise, double* own_area, double* own_data, double* own_noise) {
    __shared__ double of_warp[BLOCK / 32];
    const Image image = {data, err, bad, height, width};
    const Members members = {x, y, frame, row, column, half_row, half_column, level, offset, list, r};
    const Stamps stamp = {stamps, first_stamp, stamp_rows, stamp_columns};
    const int k = begin + blockIdx.x, size = stamp_rows * stamp_columns;
    double sum[8] = {};
    for (int p = threadIdx.x; p < size; p += BLOCK) {
        const int down = p / stamp_columns - stamp_rows / 2;
        const int right = p % stamp_columns - stamp_columns / 2;
        bool belongs = abs(down) <= half_row[k] && abs(right) <= half_column[k];
        if (belongs) {
            const int at_row = row[k] + down, at_column = column[k] + right;
            const Pixel pixel = pixel_at(image, members, k, at_row, at_column);
            belongs = pixel.of_group;
            if (belongs) {
                const double p_k = light_at(stamp, members, k, at_row, at_column);
                const double variance = pixel.sigma * pixel.sigma;
                sum[0] += p_k * p_k;
                sum[1] += p_k * (p_k * variance);
                sum[2] += p_k * pixel.value;
                sum[3] += p_k;
                sum[4] += p_k * variance;
                if (pixel.own) {
                    sum[5] += 1;
                    sum[6] += pixel.value;
                    sum[7] += variance;
                }
            }
        }
        in_group[(long long)blockIdx.x * size + p] = belongs;
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) sum[n] = block_sum(sum[n], of_warp);
    if (threadIdx.x == 0) {
        power[k] = sum[0];
        noise[k] = sum[1];
        rhs[k] = sum[2];
        light[k] = sum[3];
        light_noise[k] = sum[4];
        own_area[k] = sum[5];
        own_data[k] = sum[6];
        own_noise[k] = sum[7];
    }
}

// Sums of P_k P_l and P_k P_l V over the pixels of the group of k and l, for the neighbours l > k
// of each member k, and the same numbers where k is the neighbour of l.
//
// begin, in_group: as in member_sums; products, noise_products: (total of the lists)
extern "C" __global__ void __launch_bounds__(128, 5) pair_products(
    const double* err, int height, int width, const int* frame, const int* row, const int* column,
    const int* half_row, const int* half_column, const long long* offset, const int* list,
    int begin, const double* stamps, int first_stamp, int stamp_rows, int stamp_columns,
    const unsigned char* in_group, double* products, double* noise_products) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int k = begin + blockIdx.x, size = stamp_rows * stamp_columns;
    const double* stamp_k = stamps + (long long)(k - first_stamp) * size;
    const unsigned char* belongs = in_group + (long long)blockIdx.x * size;
    const long long plane = (long long)frame[k] * height * width;
    for (long long e = offset[k] + warp; e < offset[k + 1]; e += BLOCK / 32) {
        const int other = list[e];
        if (other < k) continue;
        const double* stamp_l = stamps + (long long)(other - first_stamp) * size;
        const int down = row[other] - row[k], right = column[other] - column[k];
        const int top = max(-half_row[k], down - half_row[k]);
        const int left = max(-half_column[k], right - half_column[k]);
        const int n_rows = 2 * half_row[k] + 1 - abs(down);
        const int n_columns = 2 * half_column[k] + 1 - abs(right);
        double sum = 0, sum_noise = 0;
        for (int p = lane; p < n_rows * n_columns; p += 32) {
            const int j = top + p / n_columns, i = left + p % n_columns;
            const int at_k = (j + stamp_rows / 2) * stamp_columns + i + stamp_columns / 2;
            if (!belongs[at_k]) continue;
            const double sigma =
                err[plane + (long long)(row[k] + j) * width + column[k] + i];
            const double product = stamp_k[at_k] * stamp_l[at_k - down * stamp_columns - right];
            sum += product;
            sum_noise += product * (sigma * sigma);
        }
        sum = warp_sum(sum);
        sum_noise = warp_sum(sum_noise);
        if (lane == 0) {
            const int end = (int)(offset[other + 1] - offset[other]);
            const long long back = offset[other] + lower_bound(list + offset[other], 0, end, k);
            products[e] = products[back] = sum;
            noise_products[e] = noise_products[back] = sum_noise;
        }
    }
}

// Chi-squared of the own pixels of each member, without what the fit puts there.
//
// flux, constant: (n), of each member and of its group; chi2: (n)
extern "C" __global__ void __launch_bounds__(128, 5) group_residuals(
    const double* data, const double* err, const unsigned char* bad, int height, int width,
    const double* x, const double* y, const int* frame, const int* row, const int* column,
    const int* half_row, const int* half_column, const double* level, const long long* offset,
    const int* list, double r, int begin, const double* stamps, int first_stamp, int stamp_rows,
    int stamp_columns, const double* flux, const double* constant, double* chi2) {
    __shared__ double of_warp[BLOCK / 32];
    const Image image = {data, err, bad, height, width};
    const Members members = {x, y, frame, row, column, half_row, half_column, level, offset, list, r};
    const Stamps stamp = {stamps, first_stamp, stamp_rows, stamp_columns};
    const int k = begin + blockIdx.x;
    const int n_rows = 2 * half_row[k] + 1, n_columns = 2 * half_column[k] + 1;
    double sum = 0;
    for (int p = threadIdx.x; p < n_rows * n_columns; p += BLOCK) {
        const int at_row = row[k] + p / n_columns - half_row[k];
        const int at_column = column[k] + p % n_columns - half_column[k];
        if (!in_circle(members, k, at_row, at_column)) continue;
        const Pixel pixel = pixel_at(image, members, k, at_row, at_column);
        if (!pixel.own) continue;
        double residual = pixel.value - constant[k];
        residual -= flux[k] * light_at(stamp, members, k, at_row, at_column);
        for (long long e = offset[k]; e < offset[k + 1]; ++e) {
            const int other = list[e];
            residual -= flux[other] * light_at(stamp, members, other, at_row, at_column);
        }
        sum += residual * residual / (pixel.sigma * pixel.sigma);
    }
    sum = block_sum(sum, of_warp);
    if (threadIdx.x == 0) chi2[k] = sum;
}
