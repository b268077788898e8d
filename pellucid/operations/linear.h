// y = x w^T, a row of the weights at a time: each is read from memory once and used for up to eight rows of x.

#pragma once

#include "vectors.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// CHUNK numbers in float32. Of bfloat16, one load gives those at even places, shifted up, and those at odd ones, masked.
struct Wide {
    floats low, high;
    explicit Wide(const float* place) : low(load(place)), high(load(place + LANES)) {}
    explicit Wide(const uint16_t* place) {
        words pairs;
        std::memcpy(&pairs, place, sizeof pairs);
        const words even = pairs << 16, odd = pairs & 0xffff0000u;
        std::memcpy(&low, &even, sizeof even);
        std::memcpy(&high, &odd, sizeof odd);
    }
};

inline void add_product(floats& sums, const Wide& w, const Wide& x) { sums += w.low * x.low + w.high * x.high; }

constexpr int CHAINS = 2;  // sums side by side, so that an addition need not wait for the one before
constexpr int STEP = CHAINS * CHUNK;  // numbers that are multiplied together; what is left of a row comes one by one

// How weights of type T are read and multiplied, a Chunk at a time. `arrange` lays a row of x out to match.
template <typename T>
struct Reader {
    typedef Wide Chunk;
    typedef float Arranged;
    static void arrange(const float* x, float* arranged, long size) {
        if (sizeof(T) == 4) {
            std::memcpy(arranged, x, size * sizeof(float));
            return;
        }
        const long whole = size / STEP * STEP;
        long k = 0;
        for (; k < whole; k += CHUNK)
            for (int i = 0; i < LANES; i++) {
                arranged[k + i] = x[k + 2 * i];
                arranged[k + LANES + i] = x[k + 2 * i + 1];
            }
        for (; k < size; k++) arranged[k] = x[k];
    }
    static void arrange(const uint16_t* x, float* arranged, long size) {
        const long whole = size / STEP * STEP;
        long k = 0;
        for (; k < whole; k += CHUNK) {
            const Wide numbers(x + k);
            std::memcpy(arranged + k, &numbers, sizeof numbers);
        }
        for (; k < size; k++) arranged[k] = widen(x[k]);
    }
};

#ifdef __AVX512BF16__  // one instruction for 32 products of bfloat16
struct Pairs {
    __m512bh pairs;
    explicit Pairs(const uint16_t* place) : pairs((__m512bh)_mm512_loadu_si512(place)) {}
};

inline void add_product(floats& sums, const Pairs& w, const Pairs& x) {
    sums = (floats)_mm512_dpbf16_ps((__m512)sums, w.pairs, x.pairs);
}

template <>
struct Reader<uint16_t> {
    typedef Pairs Chunk;
    typedef uint16_t Arranged;
    static void arrange(const float* x, uint16_t* arranged, long size) {
        long k = 0;
        for (; k + LANES <= size; k += LANES) {
            const __m256bh numbers = _mm512_cvtneps_pbh((__m512)load(x + k));
            std::memcpy(arranged + k, &numbers, sizeof numbers);
        }
        for (; k < size; k++) arranged[k] = narrow(x[k]);
    }
    static void arrange(const uint16_t* x, uint16_t* arranged, long size) { std::memcpy(arranged, x, size * 2); }
};
#endif

// Rows of x as `dots` reads them: eight rows at a time (fewer at the end), a Chunk of each after the other, so that one
// pointer walks over all of them. What is left of each row behind its last whole STEP stands behind that, row by row.
constexpr long TOGETHER = 8;

template <typename X>
inline void place_row(const X* row, X* x, long m, long rows, long inputs) {
    const long first = m / TOGETHER * TOGETHER, M = rows - first < TOGETHER ? rows - first : TOGETHER;
    const long whole = inputs / STEP * STEP, rest = inputs - whole;
    X* tile = x + first * inputs;
    for (long k = 0; k < whole; k += CHUNK)
        std::memcpy(tile + k * M + (m - first) * CHUNK, row + k, CHUNK * sizeof(X));
    std::memcpy(tile + whole * M + (m - first) * rest, row + whole, rest * sizeof(X));
}

// total[m] = sum_k x[m][k] w[k], for one row w of the weights and M rows of x. The row after it, which comes next, is
// fetched meanwhile.
template <int M, typename T, typename X>
inline void dot(const X* x, const T* w, long inputs, float* total) {
    typedef typename Reader<T>::Chunk Chunk;
    floats sums[M][CHAINS] = {};
    const long whole = inputs / STEP * STEP, rest = inputs - whole;
    const X* place = x;
    for (long k = 0; k < whole; k += STEP, place += M * STEP) {
        __builtin_prefetch(w + k + inputs);
        __builtin_prefetch(w + k + inputs + CHUNK);
        if (sizeof(T) == 4) __builtin_prefetch(w + k + inputs + LANES);
        if (sizeof(T) == 4) __builtin_prefetch(w + k + inputs + CHUNK + LANES);
#pragma GCC unroll 2
        for (int c = 0; c < CHAINS; c++) {
            const Chunk weights(w + k + c * CHUNK);
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) add_product(sums[m][c], weights, Chunk(place + (c * M + m) * CHUNK));
        }
    }
    for (int m = 0; m < M; m++) {
        total[m] = sum(sums[m][0] + sums[m][1]);
        for (long i = 0; i < rest; i++) total[m] += widen(w[whole + i]) * widen(place[m * rest + i]);
    }
}

// The same for any number of rows; what a row gives does not depend on the others.
template <typename T, typename X>
inline void dots(const X* x, const T* w, long rows, long inputs, float* total) {
    long m = 0;
    for (; m + TOGETHER <= rows; m += TOGETHER) dot<TOGETHER>(x + m * inputs, w, inputs, total + m);
    x += m * inputs, total += m;
    switch (rows - m) {
        case 1: return dot<1>(x, w, inputs, total);
        case 2: return dot<2>(x, w, inputs, total);
        case 3: return dot<3>(x, w, inputs, total);
        case 4: return dot<4>(x, w, inputs, total);
        case 5: return dot<5>(x, w, inputs, total);
        case 6: return dot<6>(x, w, inputs, total);
        case 7: return dot<7>(x, w, inputs, total);
    }
}

// Row m of `rows` rows, put to its place among those that `dots` reads. row: room for one.
template <typename T, typename From>
inline void lay_out(const From* from, long m, long rows, long inputs, typename Reader<T>::Arranged* row,
                    typename Reader<T>::Arranged* x) {
    Reader<T>::arrange(from, row, inputs);
    place_row(row, x, m, rows, inputs);
}
