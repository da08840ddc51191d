// Warp functions: shuffles, votes, __syncwarp. CUDA's rules on masks hold to the letter.
#pragma once
#include "runtime.h"

#include <string.h>

namespace hostcuda {

constexpr unsigned full_warp = 0xffffffffu;

// The first argument of all functions below is the place that their macro adds.
template <class T>
inline T shuffle(Place place, unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = warp_collective(WarpFunction::shuffle, mask, bits, source, place);
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Shuffles work within segments of `width` lanes; a source beyond the segment is the lane itself.
inline unsigned segment_start(int width) { return lane() & ~(width - 1u); }

template <class T>
inline T shuffle_index(Place place, unsigned mask, T value, int source, int width = 32) {
    return shuffle(place, mask, value, segment_start(width) + (source & (width - 1)));
}

template <class T>
inline T shuffle_down(Place place, unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned source = lane() + delta, end = segment_start(width) + width;
    return shuffle(place, mask, value, source < end ? source : lane());
}

template <class T>
inline T shuffle_up(Place place, unsigned mask, T value, unsigned delta, int width = 32) {
    const bool inside = lane() >= segment_start(width) + delta;
    return shuffle(place, mask, value, inside ? lane() - delta : lane());
}

template <class T>
inline T shuffle_xor(Place place, unsigned mask, T value, int bits, int width = 32) {
    const unsigned source = lane() ^ bits, end = segment_start(width) + width;
    return shuffle(place, mask, value, source < end ? source : lane());
}

inline unsigned ballot(Place place, unsigned mask, bool predicate) {
    return unsigned(warp_collective(WarpFunction::ballot, mask, predicate, 0, place));
}

inline void synchronise_warp(Place place, unsigned mask = full_warp) {
    warp_collective(WarpFunction::synchronise, mask, 0, 0, place);
}

}  // namespace hostcuda

#define __shfl_sync(...) hostcuda::shuffle_index(HOSTCUDA_HERE, __VA_ARGS__)
#define __shfl_down_sync(...) hostcuda::shuffle_down(HOSTCUDA_HERE, __VA_ARGS__)
#define __shfl_up_sync(...) hostcuda::shuffle_up(HOSTCUDA_HERE, __VA_ARGS__)
#define __shfl_xor_sync(...) hostcuda::shuffle_xor(HOSTCUDA_HERE, __VA_ARGS__)
#define __ballot_sync(mask, predicate) hostcuda::ballot(HOSTCUDA_HERE, mask, predicate)
#define __any_sync(mask, predicate) (hostcuda::ballot(HOSTCUDA_HERE, mask, predicate) != 0)
#define __all_sync(mask, predicate) (hostcuda::ballot(HOSTCUDA_HERE, mask, !(predicate)) == 0)
#define __syncwarp(...) hostcuda::synchronise_warp(HOSTCUDA_HERE __VA_OPT__(, ) __VA_ARGS__)
