// Several numbers at a time, in portable vectors that GCC and Clang lower to AVX-512, AVX2 or NEON.

#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr int LANES = 16;  // numbers in a vector
#else
constexpr int LANES = 8;
#endif
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
inline float widen(int8_t value) { return float(value); }
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

inline floats load(const int8_t* place) {
    typedef int8_t bytes __attribute__((vector_size(LANES)));
    bytes narrow;
    std::memcpy(&narrow, place, sizeof narrow);
    return __builtin_convertvector(__builtin_convertvector(narrow, integers), floats);
}

inline void store(floats vector, float* place) { std::memcpy(place, &vector, sizeof vector); }

inline floats all(float value) { return floats{} + value; }

// a b + sum, rounded once: left to itself, a compiler does so in one loop and not in another.
inline floats fused(floats a, floats b, floats sum) {
#if defined(__AVX512F__)
    return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__FMA__)
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return a * b + sum;
#endif
}

// The sum of a vector: one half is added to the other half, again and again, in registers.
inline float sum(floats4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }

inline float sum(floats8 vector) {
    floats4 halves[2];
    std::memcpy(halves, &vector, sizeof vector);
    return sum(halves[0] + halves[1]);
}

// Lanes of a and, from LANES on, of b.
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (integers){__VA_ARGS__})
#endif

// The sums of eight vectors, in the same order each: two of them are folded into one, again and again. Where a vector has
// sixteen lanes, these are two eights, and the sums of all first eights come before those of the second.
#ifdef __AVX512F__
inline float sum(floats vector) {
    floats8 halves[2];
    std::memcpy(halves, &vector, sizeof vector);
    return sum(halves[0] + halves[1]);
}

// Of every four lanes of a and b: a0 b0 a1 b1; a2 b2 a3 b3; a0 a1 b0 b1; a2 a3 b2 b3.
#define FIRST_OF_PAIRS(a, b) PICK(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define LAST_OF_PAIRS(a, b) PICK(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define FIRST_PAIRS(a, b) PICK(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define LAST_PAIRS(a, b) PICK(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)

inline floats sums_of_eights(const floats (&v)[8]) {
    floats four[4], two[2];
    for (int i = 0; i < 4; i++)
        four[i] = PICK(v[i], v[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
                  PICK(v[i], v[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        two[i] = PICK(four[i], four[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                 PICK(four[i], four[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return PICK(two[0], two[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           PICK(two[0], two[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

inline floats sums_of(const floats (&v)[LANES]) {
    floats folded[8];
    for (int i = 0; i < 8; i++)
        folded[i] = PICK(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                    PICK(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    return sums_of_eights(folded);
}
#else
#define FIRST_OF_PAIRS(a, b) PICK(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define LAST_OF_PAIRS(a, b) PICK(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define FIRST_PAIRS(a, b) PICK(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define LAST_PAIRS(a, b) PICK(a, b, 2, 3, 10, 11, 6, 7, 14, 15)

inline floats sums_of_eights(const floats (&v)[8]) {
    floats four[4], two[2];
    for (int i = 0; i < 4; i++)
        four[i] = PICK(v[i], v[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) + PICK(v[i], v[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    for (int i = 0; i < 2; i++)
        two[i] = PICK(four[i], four[i + 2], 0, 1, 8, 9, 4, 5, 12, 13) + PICK(four[i], four[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    return PICK(two[0], two[1], 0, 8, 2, 10, 4, 12, 6, 14) + PICK(two[0], two[1], 1, 9, 3, 11, 5, 13, 7, 15);
}

inline floats sums_of(const floats (&v)[LANES]) { return sums_of_eights(v); }
#endif

// The same of any number of vectors.
template <int N>
inline void add_up(const floats (&vectors)[N], float* sums) {
    if constexpr (N == LANES)
        store(sums_of(vectors), sums);
    else
        for (int n = 0; n < N; n++) sums[n] = sum(vectors[n]);
}

inline floats larger(floats a, floats b) { return a > b ? a : b; }

inline float largest(floats4 v) {
    const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}

inline float largest(floats vector) {
    floats4 parts[LANES / 4];
    std::memcpy(parts, &vector, sizeof vector);
    for (int i = 1; i < LANES / 4; i++) parts[0] = parts[0] > parts[i] ? parts[0] : parts[i];
    return largest(parts[0]);
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
