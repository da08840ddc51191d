// Binary search.
#pragma once
#include "common.cuh"

// First of the sorted values [first, last) that is not below the bound; `last` if all are.
template <typename T>
__device__ inline int lower_bound(const T* sorted, int first, int last, T bound) {
    while (first < last) {
        const int middle = first + (last - first) / 2;
        if (sorted[middle] < bound) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    return first;
}
