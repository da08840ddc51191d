// SEP's optimal sums of groups: what the members of groups have in common.
//
// Members are sorted by group and, in it, by y. P is a member's Gaussian on the pixels that count
// and are usable, V the variance of the pixels.
#include "search.cuh"
#include "sep_optimal.cuh"

#define BLOCK 128

// Stamps of members: P in units of the noise on the box around the circle. One warp per member.
//
// err, bad: planes (F, height, width); x, y, frame, r, fwhm: (n); max_lines: as in sep_optimal_sums
// begin, end: members to make stamps of; stamp_begin: (n + 1), where those of all members begin
// stamps: of the members from `begin` on
extern "C" __global__ void __launch_bounds__(128, 5) sep_member_stamps(
    const float* err, const unsigned char* bad, int height, int width, const double* x,
    const double* y, const int* frame, const double* r, const double* fwhm, int max_lines,
    int begin, int end, const long long* stamp_begin, double* stamps) {
    extern __shared__ double shared[];
    const int warp = threadIdx.x >> 5;
    const long long member = begin + (long long)blockIdx.x * (blockDim.x >> 5) + warp;
    if (member >= end) return;  // whole warps leave together
    const SepProfile profile =
        sep_profile(x[member], y[member], r[member], fwhm[member], height, width);
    const long long plane = (long long)frame[member] * height * width;
    double* stamp = stamps + (stamp_begin[member] - stamp_begin[begin]);
    for (long long k = threadIdx.x & 31; k < profile.box.n_pixels(); k += 32) stamp[k] = 0;
    __syncwarp();
    sep_for_each_pixel(profile, (SepLine*)shared + 2LL * max_lines * warp, max_lines,
                       [&](long long number, int row, int column, double p) {
                           const long long pixel = plane + (long long)row * width + column;
                           const float sigma = err[pixel];
                           const double variance = sigma * sigma;
                           if (!(bad[pixel] & BAD_MASKED) && variance > 0)
                               stamp[number] = p / sqrt(variance);
                       });
}

// Sums of P_k P_l / V over the pixels of both, for the neighbours l > k of each member k, and the
// same numbers where k is the neighbour of l. One block per member.
//
// x, y, r: (n); begin: first member, that of block 0; offset, list: neighbours of each member
// stamp_begin, stamps: as above; products: (total of the lists)
extern "C" __global__ void __launch_bounds__(128, 8) sep_pair_products(
    int height, int width, const double* x, const double* y, const double* r, int begin,
    const long long* offset, const int* list, const long long* stamp_begin, const double* stamps,
    double* products) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, k = begin + blockIdx.x;
    const SepBox box_k = sep_box(x[k], y[k], r[k], height, width);
    const double* stamp_k = stamps + (stamp_begin[k] - stamp_begin[begin]);
    for (long long e = offset[k] + warp; e < offset[k + 1]; e += BLOCK / 32) {
        const int l = list[e];
        if (l < k) continue;
        const SepBox box_l = sep_box(x[l], y[l], r[l], height, width);
        const double* stamp_l = stamps + (stamp_begin[l] - stamp_begin[begin]);
        const int left = max(box_k.first_column, box_l.first_column);
        const int low = max(box_k.first_row, box_l.first_row);
        const int n_columns = max(0, min(box_k.end_column, box_l.end_column) - left);
        const int n_rows = max(0, min(box_k.end_row, box_l.end_row) - low);
        double sum = 0;
        for (long long p = lane; p < (long long)n_rows * n_columns; p += 32) {
            const int row = low + (int)(p / n_columns), column = left + (int)(p % n_columns);
            const long long at_k = (long long)(row - box_k.first_row) * box_k.n_columns();
            const long long at_l = (long long)(row - box_l.first_row) * box_l.n_columns();
            sum += stamp_k[at_k + column - box_k.first_column] *
                   stamp_l[at_l + column - box_l.first_column];
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            const int n_others = (int)(offset[l + 1] - offset[l]);
            products[e] = sum;
            products[offset[l] + lower_bound(list + offset[l], 0, n_others, k)] = sum;
        }
    }
}
