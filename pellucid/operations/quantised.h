// y = x w^T for weights in blocks of 32 small integers, read as they lie in a GGUF file.
//
// Of every format a weight is d u + o, with u in 0 .. 255 and two numbers a block; x is rounded to signed bytes, a scale for
// each 32 of its numbers, so that the products are sums of bytes:
//   sum_i w_i x_i = sum over blocks of  d s (sum_i u_i q_i) + o s (sum_i q_i),   x_i = s q_i

#pragma once

#include "vectors.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#include <immintrin.h>
#endif

constexpr int BLOCK = 32;
typedef int32_t sums8 __attribute__((vector_size(32)));
typedef uint8_t unsigneds __attribute__((vector_size(LANES)));
typedef int8_t signeds __attribute__((vector_size(LANES)));

// The float16 at a place. Shifted into a float32, its exponent is 112 too small; that makes subnormals right too.
inline float half_at(const uint8_t* place) {
    uint16_t half;
    std::memcpy(&half, place, 2);
    const uint32_t bits = uint32_t(half & 0x7fff) << 13;
    float small;
    std::memcpy(&small, &bits, 4);
    const float value = small * 0x1p112f;
    return half & 0x8000 ? -value : value;
}

// A row of x, rounded: its bytes, and for each block s and s * (sum of the bytes).
struct Rounded {
    int8_t* bytes;
    float *scales, *totals;
};

inline void round_row(const float* x, const Rounded& to, long size) {
    for (long b = 0; b < size / BLOCK; b++) {
        floats low = load(x + b * BLOCK), high = load(x + b * BLOCK + LANES);
        const float most = largest(larger(larger(low, -low), larger(high, -high)));
        const float inverse = most > 0 ? 127 / most : 0;
        int32_t total = 0;
        for (int i = 0; i < BLOCK; i++) {
            const float scaled = x[b * BLOCK + i] * inverse;
            const int8_t byte = int8_t(int32_t(scaled + (scaled < 0 ? -0.5f : 0.5f)));
            to.bytes[b * BLOCK + i] = byte;
            total += byte;
        }
        to.scales[b] = most / 127;
        to.totals[b] = to.scales[b] * total;
    }
}

// u of a block, and d and o.
struct Integers {
    unsigneds low, high;  // the first half of the block, and the second
    float d, o;
};

struct Q8_0 {  // w = d q, q = u - 128
    static constexpr int BYTES = 34;
    static void read(const uint8_t* block, Integers& to) {
        to.d = half_at(block);
        to.o = -128 * to.d;
        std::memcpy(&to.low, block + 2, LANES);
        std::memcpy(&to.high, block + 2 + LANES, LANES);
        to.low ^= 0x80, to.high ^= 0x80;
    }
};

inline void read_nibbles(const uint8_t* packed, Integers& to) {  // the low halves of the bytes are the first 16
    unsigneds both;
    std::memcpy(&both, packed, sizeof both);
    to.low = both & 0x0f, to.high = both >> 4;
}

struct Q4_0 {  // w = d (q - 8)
    static constexpr int BYTES = 18;
    static void read(const uint8_t* block, Integers& to) {
        to.d = half_at(block);
        to.o = -8 * to.d;
        read_nibbles(block + 2, to);
    }
};

struct Q4_1 {  // w = d q + m
    static constexpr int BYTES = 20;
    static void read(const uint8_t* block, Integers& to) {
        to.d = half_at(block);
        to.o = half_at(block + 2);
        read_nibbles(block + 4, to);
    }
};

// Eight sums of four products each: sum_i u_i q_i in parts.
inline sums8 products(const Integers& block, const int8_t* q) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    const __m256i u = _mm256_set_m128i((__m128i)block.high, (__m128i)block.low);
    return (sums8)_mm256_dpbusd_epi32(_mm256_setzero_si256(), u, _mm256_loadu_si256((const __m256i*)q));
#else
    typedef int16_t shorts __attribute__((vector_size(2 * LANES)));
    signeds first, second;
    std::memcpy(&first, q, LANES);
    std::memcpy(&second, q + LANES, LANES);
    const shorts low = __builtin_convertvector(block.low, shorts) * __builtin_convertvector(first, shorts);
    const shorts high = __builtin_convertvector(block.high, shorts) * __builtin_convertvector(second, shorts);
    const integers wide = __builtin_convertvector(low, integers) + __builtin_convertvector(high, integers);
    sums8 parts[2];
    std::memcpy(parts, &wide, sizeof wide);
    return parts[0] + parts[1];
#endif
}

// total[m] = w . x_m for one row of weights and M rows of x.
template <int M, typename Format>
inline void quantised_dot(const Rounded* x, const uint8_t* w, long blocks, float* total) {
    floats8 sums[M] = {};
    float offsets[M] = {};
    for (long b = 0; b < blocks; b++) {
        Integers block;
        const uint8_t* place = w + b * Format::BYTES;
        __builtin_prefetch(place + blocks * Format::BYTES);
        Format::read(place, block);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            const floats8 part = __builtin_convertvector(products(block, x[m].bytes + b * BLOCK), floats8);
            sums[m] += part * (block.d * x[m].scales[b]);
            offsets[m] += block.o * x[m].totals[b];
        }
    }
    for (int m = 0; m < M; m++) total[m] = offsets[m] + sum(sums[m]);
}

template <typename Format>
inline void quantised_dots(const Rounded* x, const uint8_t* w, long rows, long blocks, float* total) {
    long m = 0;
    for (; m + 8 <= rows; m += 8) quantised_dot<8, Format>(x + m, w, blocks, total + m);
    for (; m + 4 <= rows; m += 4) quantised_dot<4, Format>(x + m, w, blocks, total + m);
    for (; m < rows; m++) quantised_dot<1, Format>(x + m, w, blocks, total + m);
}

// The numbers of a row, in float32.
template <typename Format>
inline void widen_row(const uint8_t* w, float* to, long size) {
    Integers block;
    for (long b = 0; b < size / BLOCK; b++) {
        Format::read(w + b * Format::BYTES, block);
        for (int i = 0; i < LANES; i++) {
            to[b * BLOCK + i] = block.d * block.low[i] + block.o;
            to[b * BLOCK + LANES + i] = block.d * block.high[i] + block.o;
        }
    }
}
