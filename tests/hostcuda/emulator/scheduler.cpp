// Runs a grid on one CPU thread: the threads of a block are fibers that take turns at barriers and
// warp functions. Every way in which such a wait can be wrong on a GPU ends the launch here.
#include "fiber.h"
#include "races.h"
#include "runtime.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

// Ends of the section that holds all static shared memory; weak, for a module may have none.
extern "C" {
extern char __start_hostcuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_hostcuda_shared[] __attribute__((weak, visibility("hidden")));
}

namespace hostcuda {

State state{};

namespace {

constexpr unsigned warp_size = 32;

enum class Status { ready, at_barrier, at_warp_function, finished };

struct Thread {
    Fiber fiber;
    uint3 index;
    unsigned number;  // in its block
    Status status;
    Place place;  // of the wait
    WarpFunction function;
    unsigned mask, source;
    uint64_t value, result;
};

// A bit for every lane.
struct Warp {
    unsigned waiting, gone;
};

struct Barrier {
    unsigned arrived, predicates;
    unsigned result;  // of the release before; all read it before any can arrive again
    Place place;
};

struct Block {
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<unsigned> order;  // of the threads' turns
    Barrier barrier;
    unsigned n_finished;
    void (*body)(void*);
    void* context;
};

Block block;
Thread* current = nullptr;
bool failed = false;
char message[400];

unsigned lane_of(const Thread& thread) { return thread.number % warp_size; }
Warp& warp_of(const Thread& thread) { return block.warps[thread.number / warp_size]; }
bool same(Place a, Place b) { return a.line == b.line && !strcmp(a.file, b.file); }

void record_failure(Place place, const char* format, va_list arguments) {
    const int n = snprintf(message, sizeof message, "%s:%d: ", place.file, place.line);
    vsnprintf(message + n, sizeof message - n, format, arguments);
    failed = true;
}

__attribute__((format(printf, 2, 3))) void record_failure(Place place, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record_failure(place, format, arguments);
    va_end(arguments);
}

// ---- the life of a thread -----------------------------------------------------------------------

// A barrier or a warp function must not wait for threads that have returned.
void finish(Thread& thread) {
    const Barrier& barrier = block.barrier;
    if (barrier.arrived)
        fail(barrier.place, "thread %u has returned while others wait at __syncthreads",
             thread.number);
    Warp& warp = warp_of(thread);
    const unsigned me = 1u << lane_of(thread);
    for (unsigned lane = 0; lane < warp_size; ++lane) {
        if (!(warp.waiting >> lane & 1)) continue;
        const Thread& other = block.threads[thread.number - lane_of(thread) + lane];
        if (other.mask & me)
            fail(other.place, "thread %u has returned; thread %u names it in mask 0x%08x",
                 thread.number, other.number, other.mask);
    }
    warp.gone |= me;
    thread.status = Status::finished;
    ++block.n_finished;
}

void thread_entry() {
    Fiber::entered();
    block.body(block.context);
    finish(*current);
    current->fiber.leave();
}

void resume(Thread& thread) {
    current = &thread;
    state.thread = thread.index;
    thread.fiber.resume();
    current = nullptr;
}

void wait(Thread& thread, Status status, Place place) {
    thread.status = status;
    thread.place = place;
    thread.fiber.suspend();
}

// ---- barriers -----------------------------------------------------------------------------------

void arrive_at_barrier(Place place, bool predicate) {
    Barrier& barrier = block.barrier;
    if (block.n_finished)
        fail(place, "__syncthreads after %u threads of the block have returned", block.n_finished);
    if (barrier.arrived && !same(barrier.place, place))
        fail(place, "divergent __syncthreads: other threads wait at line %d", barrier.place.line);
    barrier.place = place;
    barrier.predicates += predicate;
    ++barrier.arrived;
}

void release_barrier() {
    Barrier& barrier = block.barrier;
    barrier.result = barrier.predicates;
    barrier.arrived = barrier.predicates = 0;
    for (Thread& thread : block.threads) thread.status = Status::ready;
    races::block_synchronised();
}

// ---- warp functions -----------------------------------------------------------------------------

// All lanes of the mask must be in the same call.
bool all_have_arrived(const Thread& me, const Thread* lanes) {
    const Warp& warp = warp_of(me);
    if ((warp.waiting & me.mask) != me.mask) return false;
    for (unsigned lane = 0; lane < warp_size; ++lane) {
        if (!(me.mask >> lane & 1)) continue;
        if (lanes[lane].mask != me.mask) return false;
        if (lanes[lane].function != me.function || !same(lanes[lane].place, me.place))
            fail(me.place, "lanes of a warp are in different warp functions: one waits at line %d",
                 lanes[lane].place.line);
    }
    return true;
}

// A shuffle that reads from a lane outside the mask is undefined: it gets NaN, or -1.
uint64_t result_of(const Thread& me, const Thread* lanes, uint64_t ballot) {
    if (me.function != WarpFunction::shuffle) return ballot;
    return me.mask >> me.source & 1 ? lanes[me.source].value : ~uint64_t{0};
}

void release_lanes(unsigned mask, Thread* lanes) {
    uint64_t ballot = 0;
    for (unsigned lane = 0; lane < warp_size; ++lane)
        if (mask >> lane & 1 && lanes[lane].value) ballot |= uint64_t{1} << lane;
    for (unsigned lane = 0; lane < warp_size; ++lane) {
        if (!(mask >> lane & 1)) continue;
        lanes[lane].result = result_of(lanes[lane], lanes, ballot);
        lanes[lane].status = Status::ready;
    }
}

// ---- a block ------------------------------------------------------------------------------------

// ASan puts guards between the arrays in this section and would object to memset, hence volatile.
__attribute__((no_sanitize("address"), noinline)) void poison_static_shared_memory() {
    for (volatile char* byte = __start_hostcuda_shared; byte < __stop_hostcuda_shared; ++byte)
        *byte = static_cast<char>(0xFF);
}

// Shared memory starts undefined on a GPU. All bits set reads as NaN, or as -1.
void poison_shared_memory(size_t dynamic_bytes) {
    if (dynamic_bytes) memset(state.dynamic_shared, 0xFF, dynamic_bytes);
    poison_static_shared_memory();
}

void prepare_block() {
    const unsigned n = block.threads.size();
    for (Thread& thread : block.threads) {
        thread.fiber.prepare(thread_entry);
        thread.status = Status::ready;
    }
    for (Warp& warp : block.warps) warp = {};
    if (n % warp_size) block.warps.back().gone = ~0u << n % warp_size;  // lanes that never were
    block.barrier = {};
    block.n_finished = 0;
}

// No thread can go on. Barriers complain on arrival, so somebody waits for lanes of its warp.
void report_deadlock() {
    for (const Thread& thread : block.threads) {
        if (thread.status != Status::at_warp_function) continue;
        record_failure(thread.place, "deadlock: thread %u waits for lanes (mask 0x%08x) that wait "
                       "elsewhere", thread.number, thread.mask);
        return;
    }
}

void run_block(Order order, std::mt19937_64& generator) {
    prepare_block();
    const unsigned n = block.threads.size();
    while (block.n_finished < n && !failed) {
        if (order == random) std::shuffle(block.order.begin(), block.order.end(), generator);
        bool progress = false;
        for (unsigned number : block.order) {
            Thread& thread = block.threads[number];
            if (thread.status != Status::ready) continue;
            resume(thread);
            progress = true;
            if (failed) return;
        }
        if (block.barrier.arrived == n) {
            release_barrier();
        } else if (!progress) {
            report_deadlock();
        }
    }
}

// ---- a grid -------------------------------------------------------------------------------------

void shape_block(const unsigned size[3]) {
    const unsigned n = size[0] * size[1] * size[2];
    block.threads.resize(n);
    block.warps.resize((n + warp_size - 1) / warp_size);
    block.order.resize(n);
    for (unsigned i = 0; i < n; ++i) {
        block.threads[i].number = i;
        block.threads[i].index = {i % size[0], i / size[0] % size[1], i / (size[0] * size[1])};
        block.order[i] = i;
    }
}

std::vector<uint64_t> order_of_blocks(uint64_t n, Order order, std::mt19937_64& generator) {
    std::vector<uint64_t> blocks(n);
    for (uint64_t i = 0; i < n; ++i) blocks[i] = order == reverse ? n - 1 - i : i;
    if (order == random) std::shuffle(blocks.begin(), blocks.end(), generator);
    return blocks;
}

void run_blocks(const Launch& launch) {
    const auto order = static_cast<Order>(launch.order);
    const uint64_t nx = launch.grid[0], ny = launch.grid[1], nz = launch.grid[2];
    std::mt19937_64 generator(launch.seed);
    if (order == reverse) std::reverse(block.order.begin(), block.order.end());
    races::begin_grid();
    for (uint64_t i : order_of_blocks(nx * ny * nz, order, generator)) {
        state.block = {unsigned(i % nx), unsigned(i / nx % ny), unsigned(i / (nx * ny))};
        poison_shared_memory(launch.shared_bytes);
        races::begin_block(i, block.warps.size(), launch.shared_bytes);
        run_block(order, generator);
        if (failed) break;
    }
}

}  // namespace

// ---- what kernels call --------------------------------------------------------------------------

void fail(Place place, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record_failure(place, format, arguments);
    va_end(arguments);
    current->fiber.suspend();
    abort();  // nobody resumes it
}

unsigned lane() { return lane_of(*current); }

unsigned block_barrier(Place place, bool predicate) {
    arrive_at_barrier(place, predicate);
    wait(*current, Status::at_barrier, place);
    return block.barrier.result;
}

uint64_t warp_collective(WarpFunction function, unsigned mask, uint64_t value, unsigned source,
                         Place place) {
    Thread& me = *current;
    Warp& warp = warp_of(me);
    if (!(mask >> lane_of(me) & 1))
        fail(place, "thread %u is not in its own mask 0x%08x", me.number, mask);
    if (mask & warp.gone)
        fail(place, "mask 0x%08x names lanes that have returned or never were (0x%08x)", mask,
             mask & warp.gone);
    me.function = function;
    me.mask = mask;
    me.value = value;
    me.source = source;
    me.place = place;
    me.status = Status::at_warp_function;
    warp.waiting |= 1u << lane_of(me);
    Thread* lanes = &me - lane_of(me);
    if (all_have_arrived(me, lanes)) {
        release_lanes(mask, lanes);
        warp.waiting &= ~mask;
        if (function == WarpFunction::synchronise) races::warp_synchronised(me.number, mask);
    }
    me.fiber.suspend();  // even when released, so that no lane is always ahead
    return me.result;
}

void note_atomic(const void* address, size_t size) { races::atomic_access(address, size); }

bool run_grid(const Launch& launch, void (*body)(void*), void* context) {
    block.body = body;
    block.context = context;
    shape_block(launch.block);
    state.block_size = {launch.block[0], launch.block[1], launch.block[2]};
    state.grid_size = {launch.grid[0], launch.grid[1], launch.grid[2]};
    // Memory of exactly this size, so that ASan sees the first byte beyond it.
    state.dynamic_shared = launch.shared_bytes ? malloc(launch.shared_bytes) : nullptr;
    failed = false;
    run_blocks(launch);
    free(state.dynamic_shared);
    state.dynamic_shared = nullptr;
    if (failed)
        for (Thread& thread : block.threads) thread.fiber.forget();
    return !failed;
}

namespace races {

// The detector asks who runs.
bool running_thread(Runner& runner) {
    if (!current || current->status != Status::ready) return false;
    runner = {current->number, &current->fiber};
    return true;
}

}  // namespace races
}  // namespace hostcuda

extern "C" __attribute__((visibility("default"))) const char* hostcuda_error() {
    return hostcuda::message;
}
