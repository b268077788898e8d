// Sixteen numbers at a time, in portable vectors that GCC and Clang lower to AVX-512, AVX2 or NEON.

#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

constexpr int LANES = 16;          // numbers in a vector
constexpr int CHUNK = 2 * LANES;   // numbers read at once
typedef float floats __attribute__((vector_size(LANES * 4)));
typedef float floats8 __attribute__((vector_size(32)));
typedef float floats4 __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef int32_t integers __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));

// A bfloat16 is the upper half of a float32.
inline float widen(uint16_t value) {
    const uint32_t bits = uint32_t(value) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

// The nearest bfloat16, ties to even; NaN stays NaN.
inline uint16_t narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (value != value) return uint16_t((bits >> 16) | 0x40);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float widen(float value) { return value; }
inline void store(float value, float* place) { *place = value; }
inline void store(float value, uint16_t* place) { *place = narrow(value); }

// LANES numbers in float32, in their order.
inline floats load(const float* place) {
    floats loaded;
    std::memcpy(&loaded, place, sizeof loaded);
    return loaded;
}

inline floats load(const uint16_t* place) {
    halves narrow;
    std::memcpy(&narrow, place, sizeof narrow);
    const words wide = __builtin_convertvector(narrow, words) << 16;
    floats loaded;
    std::memcpy(&loaded, &wide, sizeof loaded);
    return loaded;
}

inline void store(floats vector, float* place) { std::memcpy(place, &vector, sizeof vector); }

inline floats all(float value) { return floats{} + value; }

// The half of a vector is added to the other half, again and again: registers, not memory.
inline float sum(floats4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }

inline float sum(floats8 vector) {
    floats4 halves[2];
    std::memcpy(halves, &vector, sizeof vector);
    return sum(halves[0] + halves[1]);
}

inline float sum(floats vector) {
    floats8 halves[2];
    std::memcpy(halves, &vector, sizeof vector);
    return sum(halves[0] + halves[1]);
}

inline floats larger(floats a, floats b) { return a > b ? a : b; }

inline float largest(floats vector) {
    float most = vector[0];
    for (int i = 1; i < LANES; i++) most = vector[i] > most ? vector[i] : most;
    return most;
}

// e^x for x <= 88: x = n ln 2 + r with |r| <= ln 2 / 2, then e^x = 2^n e^r, e^r by its Taylor series to r^6 (relative
// error below 2e-7). Below -87 it is 0.
inline floats exponential(floats x) {
    const floats bounded = larger(x, all(-87.0f));
    const floats turns = bounded * 1.44269504f;
    const integers n = __builtin_convertvector(turns + (turns < 0 ? all(-0.5f) : all(0.5f)), integers);
    const floats whole = __builtin_convertvector(n, floats);
    const floats r = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
    floats power = all(1.0f / 720);
    for (float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) power = power * r + term;
    const integers scale = (n + 127) << 23;
    floats two_to_n;
    std::memcpy(&two_to_n, &scale, sizeof scale);
    return x < -87.0f ? floats{} : power * two_to_n;
}
