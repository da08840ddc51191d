// Atomics. One CPU thread runs the grid, so plain updates are atomic; what matters is that the
// race detector knows them, and that only CUDA's own combinations of types compile.
#pragma once
#include "runtime.h"

namespace hostcuda {

template <class T, class... Allowed>
constexpr bool is_one_of = (__is_same(T, Allowed) || ...);

template <class T>
constexpr bool is_atomic_integer = is_one_of<T, int, unsigned, unsigned long long>;
template <class T>
constexpr bool is_atomic_number = is_atomic_integer<T> || is_one_of<T, float, double>;
template <class T>
constexpr bool is_atomic_ordered = is_atomic_integer<T> || is_one_of<T, long long>;

// Keeps the type of the operand out of the deduction: it converts to the pointer's.
template <class T>
struct Same {
    using type = T;
};
template <class T>
using Operand = typename Same<T>::type;

// The update itself is hidden from the detector, which note_atomic() has told.
template <class T, class Update>
__attribute__((no_sanitize("thread"))) inline T atomic_update(T* address, Update update) {
    note_atomic(address, sizeof *address);
    const T old = *address;
    *address = update(old);
    return old;
}

}  // namespace hostcuda

#define HOSTCUDA_ATOMIC(name, types, expression)                                    \
    template <class T>                                                              \
    inline T name(T* address, hostcuda::Operand<T> value) {                         \
        static_assert(hostcuda::types<T>, #name " does not exist for this type");   \
        return hostcuda::atomic_update(address, [=](T old) -> T { return expression; }); \
    }

HOSTCUDA_ATOMIC(atomicAdd, is_atomic_number, old + value)
HOSTCUDA_ATOMIC(atomicSub, is_atomic_integer, old - value)
HOSTCUDA_ATOMIC(atomicExch, is_atomic_number, (void(old), value))
HOSTCUDA_ATOMIC(atomicMin, is_atomic_ordered, value < old ? value : old)
HOSTCUDA_ATOMIC(atomicMax, is_atomic_ordered, old < value ? value : old)
HOSTCUDA_ATOMIC(atomicAnd, is_atomic_integer, old & value)
HOSTCUDA_ATOMIC(atomicOr, is_atomic_integer, old | value)
HOSTCUDA_ATOMIC(atomicXor, is_atomic_integer, old ^ value)
#undef HOSTCUDA_ATOMIC

template <class T>
inline T atomicCAS(T* address, hostcuda::Operand<T> expected, hostcuda::Operand<T> value) {
    static_assert(hostcuda::is_atomic_integer<T>, "atomicCAS does not exist for this type");
    return hostcuda::atomic_update(address,
                                   [=](T old) -> T { return old == expected ? value : old; });
}
