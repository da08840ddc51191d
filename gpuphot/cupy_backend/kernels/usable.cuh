// Which pixels optimal sums can use.
#pragma once
#include "common.cuh"

// With a value, not masked, and with finite noise.
__device__ inline bool is_usable(int bits, double sigma) {
    return !(bits & (BAD_UNUSABLE | BAD_NOISE)) && sigma > 0;
}
