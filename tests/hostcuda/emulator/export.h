// What build.py appends for every kernel: a function that launches it and one that tells its
// parameters.
#pragma once
#include "runtime.h"

namespace hostcuda {

template <class T>
constexpr const char* type_name = nullptr;
#define HOSTCUDA_TYPE(type) \
    template <>             \
    inline constexpr const char* type_name<type> = #type;
HOSTCUDA_TYPE(bool)
HOSTCUDA_TYPE(signed char)
HOSTCUDA_TYPE(char)
HOSTCUDA_TYPE(unsigned char)
HOSTCUDA_TYPE(short)
HOSTCUDA_TYPE(unsigned short)
HOSTCUDA_TYPE(int)
HOSTCUDA_TYPE(unsigned int)
HOSTCUDA_TYPE(long)
HOSTCUDA_TYPE(unsigned long)
HOSTCUDA_TYPE(long long)
HOSTCUDA_TYPE(unsigned long long)
HOSTCUDA_TYPE(float)
HOSTCUDA_TYPE(double)
#undef HOSTCUDA_TYPE

template <class T>
struct ParameterOf {
    static constexpr Parameter value{type_name<T>, false, false};
};
template <class T>
struct ParameterOf<T*> {
    static constexpr Parameter value{type_name<T>, true, false};
};
template <class T>
struct ParameterOf<const T*> {
    static constexpr Parameter value{type_name<T>, true, true};
};

template <class... T>
inline const Parameter* parameters(void (*)(T...), int* count) {
    static constexpr Parameter table[] = {ParameterOf<T>::value..., {}};
    *count = sizeof...(T);
    return table;
}

template <class Function>
struct Call {
    Function function;
    void** arguments;  // one address per parameter, as cuLaunchKernel takes them
};

template <class T>
inline T next_argument(void**& arguments) {
    return *static_cast<T*>(*arguments++);
}

// Braces fix the order in which the arguments are read.
template <class... T>
struct Unpacked {
    Unpacked(void (*function)(T...), T... values) { function(values...); }
};

template <class... T>
inline bool launch(void (*function)(T...), const Launch& request, void** arguments) {
    Call<void (*)(T...)> call{function, arguments};
    return run_grid(
        request,
        [](void* context) {
            auto& call = *static_cast<Call<void (*)(T...)>*>(context);
            [[maybe_unused]] void** arguments = call.arguments;
            Unpacked<T...>{call.function, next_argument<T>(arguments)...};
        },
        &call);
}

}  // namespace hostcuda

#define HOSTCUDA_API extern "C" __attribute__((visibility("default")))
#define HOSTCUDA_EXPORT(kernel)                                                            \
    HOSTCUDA_API const hostcuda::Parameter* hostcuda_parameters_##kernel(int* count) {     \
        return hostcuda::parameters(&kernel, count);                                       \
    }                                                                                      \
    HOSTCUDA_API bool hostcuda_launch_##kernel(const hostcuda::Launch* request,            \
                                               void** arguments) {                         \
        return hostcuda::launch(&kernel, *request, arguments);                             \
    }
