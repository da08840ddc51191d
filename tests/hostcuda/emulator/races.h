// What the scheduler tells the race detector. Nothing at all in builds without it.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace hostcuda {
class Fiber;

namespace races {

// The thread that runs now; false if the scheduler does.
struct Runner {
    unsigned thread;
    const Fiber* fiber;
};
bool running_thread(Runner& runner);

#ifdef HOSTCUDA_RACES
void begin_grid();
void begin_block(uint64_t block, size_t n_warps, size_t dynamic_shared_bytes);
void block_synchronised();
void warp_synchronised(unsigned thread, unsigned mask);
void atomic_access(const void* address, size_t size);
#else
inline void begin_grid() {}
inline void begin_block(uint64_t, size_t, size_t) {}
inline void block_synchronised() {}
inline void warp_synchronised(unsigned, unsigned) {}
inline void atomic_access(const void*, size_t) {}
#endif

}  // namespace races
}  // namespace hostcuda
