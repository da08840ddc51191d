// A fiber: a stack of its own that runs until it suspends itself. One CUDA thread is one fiber.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) || defined(HOSTCUDA_UCONTEXT)
#define HOSTCUDA_USE_UCONTEXT
#include <ucontext.h>
#endif

namespace hostcuda {

// ---- switching stacks ---------------------------------------------------------------------------

#ifdef HOSTCUDA_USE_UCONTEXT

// Portable, but each switch is a system call that saves the signal mask.
struct Context {
    ucontext_t registers;
};

inline void switch_context(Context& from, Context& to) {
    swapcontext(&from.registers, &to.registers);
}

inline void prepare_context(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context.registers);
    context.registers.uc_stack.ss_sp = stack;
    context.registers.uc_stack.ss_size = size;
    context.registers.uc_link = nullptr;
    makecontext(&context.registers, entry, 0);
}

#else

struct Context {
    void* stack_pointer;
};

// Pushes what a function must preserve, swaps stacks, pops it again: about ten times faster.
extern "C" void hostcuda_switch_stack(void** save_stack_pointer, void* new_stack_pointer);
asm(R"(
    .text
    .p2align 4
    .local hostcuda_switch_stack
    .type hostcuda_switch_stack, @function
hostcuda_switch_stack:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
    .size hostcuda_switch_stack, . - hostcuda_switch_stack
)");

inline void switch_context(Context& from, Context& to) {
    hostcuda_switch_stack(&from.stack_pointer, to.stack_pointer);
}

// Lays the stack out as if the fiber had just been switched away from at its entry.
inline void prepare_context(Context& context, char* stack, size_t size, void (*entry)()) {
    constexpr int saved_registers = 6;
    void** top = reinterpret_cast<void**>(stack + size);
    *--top = nullptr;  // stands for a return address: the ABI wants the stack 8 off a 16-byte line
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < saved_registers; ++i) *--top = nullptr;
    context.stack_pointer = top;
}

#endif

// ---- telling AddressSanitizer which stack is in use ---------------------------------------------

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t stack_bytes = 1024 * 1024;  // its reports are made on the fiber's own stack

inline void leaving_stack(void** fake_stack, const void* next_stack, size_t next_size) {
    __sanitizer_start_switch_fiber(fake_stack, next_stack, next_size);
}
inline void arrived_on_stack(void* fake_stack, const void** old_stack, size_t* old_size) {
    __sanitizer_finish_switch_fiber(fake_stack, old_stack, old_size);
}
inline void forget_stack_contents(char* stack) {
    __asan_unpoison_memory_region(stack, stack_bytes);
}
#else
constexpr size_t stack_bytes = 128 * 1024;

inline void leaving_stack(void**, const void*, size_t) {}
inline void arrived_on_stack(void*, const void**, size_t*) {}
inline void forget_stack_contents(char*) {}
#endif

// ---- fibers -------------------------------------------------------------------------------------

// The stack that resumes fibers: Python's.
struct Scheduler {
    Context context;
    const void* stack;
    size_t size;
    void* fake_stack;
};
inline Scheduler scheduler{};

class Fiber {
  public:
    Fiber() = default;
    Fiber(Fiber&& other) noexcept
        : context_(other.context_), stack_(other.stack_), fake_stack_(other.fake_stack_) {
        other.stack_ = nullptr;
    }
    Fiber& operator=(Fiber&&) = delete;
    ~Fiber() {
        if (!stack_) return;
        forget();
        munmap(stack_ - guard_bytes, guard_bytes + stack_bytes);
    }

    // Makes the next resume() start at `entry`; the stack is kept from launch to launch.
    void prepare(void (*entry)()) {
        if (!stack_) map_stack();
        prepare_context(context_, stack_, stack_bytes, entry);
    }

    void resume() {
        leaving_stack(&scheduler.fake_stack, stack_, stack_bytes);
        switch_context(scheduler.context, context_);
        arrived_on_stack(scheduler.fake_stack, nullptr, nullptr);
    }

    void suspend() {
        leaving_stack(&fake_stack_, scheduler.stack, scheduler.size);
        switch_context(context_, scheduler.context);
        arrived_on_stack(fake_stack_, nullptr, nullptr);
    }

    // First thing that runs on a new stack.
    static void entered() { arrived_on_stack(nullptr, &scheduler.stack, &scheduler.size); }

    // Last thing: the fiber is not resumed before prepare().
    [[noreturn]] void leave() {
        leaving_stack(nullptr, scheduler.stack, scheduler.size);
        switch_context(context_, scheduler.context);
        abort();
    }

    // After a failed launch: fibers that were left in the middle marked their stacks for ASan.
    void forget() {
        if (stack_) forget_stack_contents(stack_);
    }

    bool owns(const void* address) const {
        const char* a = static_cast<const char*>(address);
        return a >= stack_ && a < stack_ + stack_bytes;
    }

  private:
    static constexpr size_t guard_bytes = 4096;

    // Memory is taken only as it is touched; running over the end hits a page without access.
    void map_stack() {
        void* memory = mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, guard_bytes, PROT_NONE)) {
            fputs("hostcuda: no memory for the stack of a fiber\n", stderr);
            abort();
        }
        stack_ = static_cast<char*>(memory) + guard_bytes;
    }

    Context context_{};
    char* stack_ = nullptr;
    void* fake_stack_ = nullptr;
};

}  // namespace hostcuda
