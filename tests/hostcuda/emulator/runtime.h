// What kernels and the machinery below them share. A kernel's translation unit sees this header
// only, so it compiles fast; scheduler.cpp and races.cpp are compiled once and linked to all.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
};

namespace hostcuda {

// The built-in variables of the thread that runs now.
struct State {
    uint3 thread, block;
    dim3 block_size, grid_size;
    void* dynamic_shared;
};
extern State state;

// Where in the source a thread waits: for messages, and to tell one barrier from another.
struct Place {
    const char* file;
    int line;
};

// Ends the launch with a message; a fiber that calls it never runs again.
[[noreturn]] void fail(Place place, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// __syncthreads and its relatives: the number of threads whose predicate held.
unsigned block_barrier(Place place, bool predicate);

enum class WarpFunction { synchronise, shuffle, ballot };

// Waits for all lanes of the mask. A shuffle returns the value of the source lane, a ballot the
// lanes that brought a value other than 0.
uint64_t warp_collective(WarpFunction function, unsigned mask, uint64_t value, unsigned source,
                         Place place);

// Position of the running thread in its warp.
unsigned lane();

// Tells the race detector of an atomic access; nothing in other builds.
void note_atomic(const void* address, size_t size);

// ---- launching ----------------------------------------------------------------------------------

enum Order : int { forward, reverse, random };

// build.py fills the same structure.
struct Launch {
    unsigned grid[3], block[3];
    uint64_t shared_bytes, seed;
    int order;
};

// Runs body(context) once for every thread of the grid; false if the launch failed.
bool run_grid(const Launch& launch, void (*body)(void*), void* context);

// A parameter as the kernel's signature has it.
struct Parameter {
    const char* type;
    bool is_pointer, is_constant;
};

}  // namespace hostcuda
