// Functions that CUDA has and the host's headers lack or define otherwise.
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>

// NVRTC does not know these; a kernel that uses them undefined must not compile here either.
#undef INFINITY
#undef NAN
#undef HUGE_VAL
#undef M_PI

// ---- minimum and maximum: of floating-point numbers they are fmin and fmax, which skip NaN ------

#define HOSTCUDA_MIN_MAX(type, min_expression, max_expression)     \
    inline type min(type a, type b) { return min_expression; } \
    inline type max(type a, type b) { return max_expression; }
HOSTCUDA_MIN_MAX(int, a < b ? a : b, a < b ? b : a)
HOSTCUDA_MIN_MAX(unsigned, a < b ? a : b, a < b ? b : a)
HOSTCUDA_MIN_MAX(long, a < b ? a : b, a < b ? b : a)
HOSTCUDA_MIN_MAX(unsigned long, a < b ? a : b, a < b ? b : a)
HOSTCUDA_MIN_MAX(long long, a < b ? a : b, a < b ? b : a)
HOSTCUDA_MIN_MAX(unsigned long long, a < b ? a : b, a < b ? b : a)
HOSTCUDA_MIN_MAX(float, fminf(a, b), fmaxf(a, b))
HOSTCUDA_MIN_MAX(double, fmin(a, b), fmax(a, b))
#undef HOSTCUDA_MIN_MAX

// ---- elementary functions -----------------------------------------------------------------------

inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline double rcbrt(double x) { return 1.0 / cbrt(x); }
inline double rhypot(double x, double y) { return 1.0 / hypot(x, y); }
inline double norm3d(double x, double y, double z) { return sqrt(x * x + y * y + z * z); }

// Reduced first, so that whole and half turns are exact as in CUDA.
inline void sincospi(double x, double* sine, double* cosine) {
    const double rest = remainder(x, 2.0), pi = 3.14159265358979323846;
    const double quarters = rint(2.0 * rest), angle = (rest - 0.5 * quarters) * pi;
    const double s = sin(angle), c = cos(angle);
    switch (int(quarters) & 3) {
        case 0: *sine = s, *cosine = c; break;
        case 1: *sine = c, *cosine = -s; break;
        case 2: *sine = -s, *cosine = -c; break;
        default: *sine = -c, *cosine = s; break;
    }
}
inline double sinpi(double x) {
    double sine, cosine;
    sincospi(x, &sine, &cosine);
    return sine;
}
inline double cospi(double x) {
    double sine, cosine;
    sincospi(x, &sine, &cosine);
    return cosine;
}

// ---- arithmetic with a stated rounding: never contracted ----------------------------------------

__attribute__((noipa)) inline double __dadd_rn(double a, double b) { return a + b; }
__attribute__((noipa)) inline double __dsub_rn(double a, double b) { return a - b; }
__attribute__((noipa)) inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
__attribute__((noipa)) inline float __fmul_rn(float a, float b) { return a * b; }

// ---- conversions: they saturate; no kernel may rely on what becomes of NaN ----------------------

inline int hostcuda_saturate(double x) {
    return x >= 2147483647.0 ? 2147483647 : x > -2147483648.0 ? int(x) : -2147483647 - 1;
}
inline int __double2int_rd(double x) { return hostcuda_saturate(floor(x)); }
inline int __double2int_ru(double x) { return hostcuda_saturate(ceil(x)); }
inline int __double2int_rn(double x) { return hostcuda_saturate(rint(x)); }
inline int __double2int_rz(double x) { return hostcuda_saturate(trunc(x)); }
inline float __double2float_rn(double x) { return float(x); }
inline double __int2double_rn(int x) { return x; }

template <class To, class From>
inline To hostcuda_same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline double __longlong_as_double(long long x) { return hostcuda_same_bits<double>(x); }
inline long long __double_as_longlong(double x) { return hostcuda_same_bits<long long>(x); }
inline float __int_as_float(int x) { return hostcuda_same_bits<float>(x); }
inline int __float_as_int(float x) { return hostcuda_same_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return hostcuda_same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return hostcuda_same_bits<unsigned>(x); }
inline int __double2hiint(double x) { return int(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return int(__double_as_longlong(x)); }
inline double __hiloint2double(int high, int low) {
    return __longlong_as_double((long long)high << 32 | (unsigned)low);
}

// ---- bits ---------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
