// The race detector. Kernels are compiled with -fsanitize=thread, which calls a hook at every
// access to memory, and linked to the hooks below instead of the sanitizer's own library.
//
// Two accesses to the same bytes race if different CUDA threads make them, one writes, not both
// are atomic, and nothing orders them: no __syncthreads in their block, no __syncwarp that both
// lanes take part in. Shuffles and votes order nothing, as in CUDA. Threads of different blocks are
// never ordered. So a race is found whatever the order in which the threads happened to run.
#include "races.h"

#include "fiber.h"
#include "runtime.h"

#include <algorithm>
#include <cstring>
#include <dlfcn.h>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

extern "C" {
extern char __start_hostcuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_hostcuda_shared[] __attribute__((weak, visibility("hidden")));
}

namespace hostcuda::races {
namespace {

constexpr unsigned warp_size = 32;
constexpr uintptr_t granule = 4;  // bytes of a cell; smaller accesses have cells of their own

enum class Kind { read, write, atomic };

struct Access {
    bool happened = false;
    Kind kind = Kind::read;
    unsigned thread = 0;
    uint64_t block = 0;
    unsigned block_epoch = 0;  // barriers that the block had passed
    unsigned lane_epoch = 0;   // __syncwarps that the lane had passed
    const void* code = nullptr;

    unsigned warp() const { return thread / warp_size; }
    unsigned lane() const { return thread % warp_size; }
};

// seen[i][j]: lane i comes after everything that lane j did before that epoch of its own.
struct WarpClock {
    unsigned seen[warp_size][warp_size] = {};
};

struct Clocks {
    uint64_t block = 0;
    unsigned block_epoch = 0;
    std::vector<WarpClock> warps;
};
Clocks clocks;

bool ordered(const Access& before, const Access& now) {
    if (before.block != now.block) return false;
    if (before.thread == now.thread || before.block_epoch != now.block_epoch) return true;
    if (before.warp() != now.warp()) return false;
    return clocks.warps[now.warp()].seen[now.lane()][before.lane()] > before.lane_epoch;
}

bool conflicting(const Access& before, const Access& now) {
    if (before.kind == Kind::read && now.kind == Kind::read) return false;
    if (before.kind == Kind::atomic && now.kind == Kind::atomic) return false;
    return before.happened && !ordered(before, now);
}

// The latest access of some thread, and the latest ones before it by another lane of its warp, by
// another warp, by another block: whoever comes next, a partner is among them.
class History {
  public:
    const Access* conflict_with(const Access& now) const {
        for (const Access* before : {&latest_, &other_lane_, &other_warp_, &other_block_})
            if (conflicting(*before, now)) return before;
        return nullptr;
    }

    void add(const Access& now) {
        if (latest_.happened) {
            if (latest_.block != now.block)
                other_block_ = latest_;
            else if (latest_.warp() != now.warp())
                other_warp_ = latest_;
            else if (latest_.thread != now.thread)
                other_lane_ = latest_;
        }
        latest_ = now;
    }

  private:
    Access latest_, other_lane_, other_warp_, other_block_;
};

struct Cell {
    History reads, writes;
};
using Memory = std::unordered_map<uintptr_t, Cell>;
Memory shared_memory, global_memory;

size_t dynamic_shared_bytes = 0;

bool is_shared(const char* address) {
    const auto* dynamic = static_cast<const char*>(state.dynamic_shared);
    return (address >= dynamic && address < dynamic + dynamic_shared_bytes) ||
           (address >= __start_hostcuda_shared && address < __stop_hostcuda_shared);
}

bool is_private(const char* address, const Fiber& fiber) {
    const auto* built_in = reinterpret_cast<const char*>(&state);
    return fiber.owns(address) || (address >= built_in && address < built_in + sizeof state);
}

// ---- reports ------------------------------------------------------------------------------------

// As build.py reads it: places in the code are offsets into the library.
struct Report {
    int is_shared;
    int first_kind, second_kind;
    unsigned first_thread, second_thread;
    uint64_t first_block, second_block;
    uint64_t first_offset, second_offset;
};
std::vector<Report> reports;
std::set<std::tuple<const void*, const void*>> reported;

uint64_t offset_in_library(const void* code) {
    Dl_info library;
    dladdr(code, &library);
    return static_cast<const char*>(code) - static_cast<const char*>(library.dli_fbase);
}

// One report for each pair of places, whichever came first.
void report(const Access& first, const Access& second, bool in_shared_memory) {
    const auto [low, high] = std::minmax(first.code, second.code);
    if (!reported.insert({low, high}).second) return;
    reports.push_back({in_shared_memory, int(first.kind), int(second.kind), first.thread,
                       second.thread, first.block, second.block, offset_in_library(first.code),
                       offset_in_library(second.code)});
}

// ---- accesses -----------------------------------------------------------------------------------

void visit(Cell& cell, const Access& now, bool in_shared_memory) {
    const Access* partner = cell.writes.conflict_with(now);
    if (!partner) partner = cell.reads.conflict_with(now);
    if (partner) report(*partner, now, in_shared_memory);
    (now.kind == Kind::read ? cell.reads : cell.writes).add(now);
}

void access(const void* address, size_t size, Kind kind, const void* code) {
    Runner runner;
    if (!running_thread(runner)) return;
    const auto* byte = static_cast<const char*>(address);
    if (is_private(byte, *runner.fiber)) return;

    Access now;
    now.happened = true;
    now.kind = kind;
    now.thread = runner.thread;
    now.block = clocks.block;
    now.block_epoch = clocks.block_epoch;
    now.lane_epoch = clocks.warps[now.warp()].seen[now.lane()][now.lane()];
    now.code = code;

    const bool in_shared_memory = is_shared(byte);
    Memory& memory = in_shared_memory ? shared_memory : global_memory;
    const auto first = reinterpret_cast<uintptr_t>(address);
    for (uintptr_t cell = first; cell < first + size; cell += granule)
        visit(memory[cell], now, in_shared_memory);
}

}  // namespace

// ---- what the scheduler tells -------------------------------------------------------------------

void begin_grid() {
    shared_memory.clear();
    global_memory.clear();
    reports.clear();
    reported.clear();
}

void begin_block(uint64_t block, size_t n_warps, size_t n_dynamic_shared_bytes) {
    shared_memory.clear();
    clocks.block = block;
    clocks.block_epoch = 0;
    clocks.warps.assign(n_warps, {});
    dynamic_shared_bytes = n_dynamic_shared_bytes;
}

void block_synchronised() { ++clocks.block_epoch; }

// Every lane of the mask has now seen what any of them has seen, and enters an epoch of its own.
void warp_synchronised(unsigned thread, unsigned mask) {
    auto& seen = clocks.warps[thread / warp_size].seen;
    unsigned all[warp_size] = {};
    for (unsigned i = 0; i < warp_size; ++i) {
        if (!(mask >> i & 1)) continue;
        ++seen[i][i];
        for (unsigned j = 0; j < warp_size; ++j) all[j] = std::max(all[j], seen[i][j]);
    }
    for (unsigned i = 0; i < warp_size; ++i)
        if (mask >> i & 1) memcpy(seen[i], all, sizeof all);
}

void atomic_access(const void* address, size_t size) {
    access(address, size, Kind::atomic, __builtin_return_address(0));
}

}  // namespace hostcuda::races

extern "C" __attribute__((visibility("default"))) const void* hostcuda_races(size_t* count) {
    *count = hostcuda::races::reports.size();
    return hostcuda::races::reports.data();
}

// ---- the hooks that -fsanitize=thread calls -----------------------------------------------------

#define HOOK extern "C" __attribute__((used)) void
#define ACCESS_HOOKS(name, size)                                                             \
    HOOK __tsan_read##name(void* address) {                                                  \
        hostcuda::races::access(address, size, hostcuda::races::Kind::read,                  \
                                __builtin_return_address(0));                                \
    }                                                                                        \
    HOOK __tsan_write##name(void* address) {                                                 \
        hostcuda::races::access(address, size, hostcuda::races::Kind::write,                 \
                                __builtin_return_address(0));                                \
    }
ACCESS_HOOKS(1, 1)
ACCESS_HOOKS(2, 2)
ACCESS_HOOKS(4, 4)
ACCESS_HOOKS(8, 8)
ACCESS_HOOKS(16, 16)
HOOK __tsan_unaligned_read2(void* address) { __tsan_read2(address); }
HOOK __tsan_unaligned_read4(void* address) { __tsan_read4(address); }
HOOK __tsan_unaligned_read8(void* address) { __tsan_read8(address); }
HOOK __tsan_unaligned_read16(void* address) { __tsan_read16(address); }
HOOK __tsan_unaligned_write2(void* address) { __tsan_write2(address); }
HOOK __tsan_unaligned_write4(void* address) { __tsan_write4(address); }
HOOK __tsan_unaligned_write8(void* address) { __tsan_write8(address); }
HOOK __tsan_unaligned_write16(void* address) { __tsan_write16(address); }
HOOK __tsan_read_range(void* address, size_t size) {
    hostcuda::races::access(address, size, hostcuda::races::Kind::read,
                            __builtin_return_address(0));
}
HOOK __tsan_write_range(void* address, size_t size) {
    hostcuda::races::access(address, size, hostcuda::races::Kind::write,
                            __builtin_return_address(0));
}
HOOK __tsan_init() {}
HOOK __tsan_func_entry(void*) {}
HOOK __tsan_func_exit() {}
