// y = x w^T in tiles: some rows of the weights times some rows of x, whose sums stay in registers.

#pragma once

#include "vectors.h"

// What is loaded of a row at once stays in its register, and is not loaded again for each product.
#ifdef __AVX512F__
#define HELD(vector) asm("" : "+v"(vector))
#else
#define HELD(vector)
#endif

// Numbers of a row that are loaded at once.
struct Plain {  // of float32
    static constexpr long SIZE = LANES;
    floats numbers;
    Plain() = default;
    explicit Plain(const float* place) : numbers(load(place)) { HELD(numbers); }
};

struct Wide {  // of bfloat16, in float32: one load gives those at even places, shifted up, and those at odd ones, masked
    static constexpr long SIZE = 2 * LANES;
    floats low, high;
    Wide() = default;
    explicit Wide(const uint16_t* place) {
        words pairs;
        std::memcpy(&pairs, place, sizeof pairs);
        const words even = pairs << 16, odd = pairs & 0xffff0000u;
        std::memcpy(&low, &even, sizeof even);
        std::memcpy(&high, &odd, sizeof odd);
    }
    explicit Wide(const float* place) : low(load(place)), high(load(place + LANES)) {}
};

inline void add_product(floats& sums, const Plain& w, const Plain& x) { sums = fused(w.numbers, x.numbers, sums); }
inline void add_product(floats& sums, const Wide& w, const Wide& x) {
    sums = fused(w.high, x.high, fused(w.low, x.low, sums));
}

// How weights of type T are read and multiplied, a Chunk at a time. `arrange` lays a row of x out to match; what is left
// behind its last whole chunk stays in order.
template <typename T>
struct Reader {
    typedef Plain Chunk;
    typedef float Arranged;
    static void arrange(const float* x, float* chunk) { std::memcpy(chunk, x, sizeof(Chunk)); }
};

#ifndef __AVX512BF16__
template <>
struct Reader<uint16_t> {
    typedef Wide Chunk;
    typedef float Arranged;
    static void arrange(const float* x, float* chunk) {
        for (int i = 0; i < LANES; i++) {
            chunk[i] = x[2 * i];
            chunk[LANES + i] = x[2 * i + 1];
        }
    }
};
#else
struct Pairs {  // of bfloat16: one instruction for 32 products
    static constexpr long SIZE = 2 * LANES;
    __m512bh pairs;
    Pairs() = default;
    explicit Pairs(const uint16_t* place) : pairs((__m512bh)_mm512_loadu_si512(place)) { HELD(pairs); }
};

inline void add_product(floats& sums, const Pairs& w, const Pairs& x) {
    sums = (floats)_mm512_dpbf16_ps((__m512)sums, w.pairs, x.pairs);
}

template <>
struct Reader<uint16_t> {
    typedef Pairs Chunk;
    typedef uint16_t Arranged;
    static void arrange(const float* x, uint16_t* chunk) {
        const __m512bh numbers = _mm512_cvtne2ps_pbh((__m512)load(x + LANES), (__m512)load(x));
        std::memcpy(chunk, &numbers, sizeof numbers);
    }
};
#endif

inline void narrow_to(float value, float* place) { *place = value; }
inline void narrow_to(float value, uint16_t* place) { *place = narrow(value); }

// Rows of x stand together in groups of eight (the last may have fewer): a chunk of each after the other, so that one
// pointer walks over all of them; then what is left of each behind its last whole chunk.
constexpr long TOGETHER = 8;

// Row m of a group of S.
template <typename T>
inline void lay_out(const float* row, long m, long S, long inputs, typename Reader<T>::Arranged* group) {
    constexpr long SIZE = Reader<T>::Chunk::SIZE;
    const long whole = inputs / SIZE * SIZE, rest = inputs - whole;
    for (long k = 0; k < whole; k += SIZE) Reader<T>::arrange(row + k, group + k * S + m * SIZE);
    for (long k = whole; k < inputs; k++) narrow_to(row[k], group + whole * S + m * rest + k - whole);
}

constexpr int TILE = LANES;  // sums at once, in registers
constexpr long AHEAD = 12288;  // bytes: so far ahead weights are fetched, into the second-level cache

// sums[w][m] += w x_m for W rows of weights, what is left behind their last whole chunk apart, and M rows of x of a group
// of S.
template <int W, int M, typename T, typename X>
inline void tile(const X* x, long S, const T* w, long inputs, floats (&sums)[W][M]) {
    typedef typename Reader<T>::Chunk Chunk;
    constexpr long SIZE = Chunk::SIZE;
    const T* next = w + AHEAD / sizeof(T);
    for (long k = 0; k + SIZE <= inputs; k += SIZE, x += S * SIZE) {
        Chunk chunks[M];
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) chunks[m] = Chunk(x + m * SIZE);
#pragma GCC unroll 16
        for (int r = 0; r < W; r++, next += SIZE) {
            __builtin_prefetch(next, 0, 2);
            const Chunk weights(w + r * inputs + k);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) add_product(sums[r][m], weights, chunks[m]);
        }
    }
}

// y[m][n] = x_m w_n for M rows x of a group, from the m-th on, and W rows of weights; y: a row is `stride` numbers long.
template <int W, int M, typename T, typename X>
inline void products(const X* group, long m, long S, const T* w, long inputs, float* y, long stride) {
    constexpr long SIZE = Reader<T>::Chunk::SIZE;
    const long whole = inputs / SIZE * SIZE, rest = inputs - whole;
    constexpr int TWO = W > 1 ? 2 : 1;  // rows of weights at once: memory gives two streams as fast as one, but not more
    floats sums[W * M] = {};
    for (int r = 0; r < W; r += TWO) {
        floats some[TWO][M] = {};
        tile(group + m * SIZE, S, w + r * inputs, inputs, some);
        for (int i = 0; i < TWO * M; i++) sums[r * M + i] = some[i / M][i % M];
    }
    alignas(64) float totals[W * M];
    add_up(sums, totals);
    for (int i = 0; i < W * M; i++) {
        const X* left = group + whole * S + (m + i % M) * rest;
        for (long k = 0; k < rest; k++)  // rounded once, whatever else a compiler makes of the loop around it
            totals[i] = __builtin_fmaf(widen(w[i / M * inputs + whole + k]), widen(left[k]), totals[i]);
        y[(m + i % M) * stride + i / M] = totals[i];
    }
}

// The same for N rows of weights and M rows of the group as long as there are so many; the rows that were done.
template <int M, typename T, typename X>
inline long some_rows(const X* group, long m, long S, const T* w, long inputs, long N, float* y, long stride) {
    constexpr int W = TILE / M;
    for (; m + M <= S; m += M) {
        long n = 0;
        for (; n + W <= N; n += W) products<W, M>(group, m, S, w + n * inputs, inputs, y + n, stride);
        for (; n < N; n++)
            for (int i = 0; i < M; i++) products<1, 1>(group, m + i, S, w + n * inputs, inputs, y + n, stride);
    }
    return m;
}

// y[m][n] = x_m w_n for a group of S rows and N rows of weights. What a row gives does not depend on the others.
template <typename T, typename X>
inline void multiply(const X* group, long S, const T* w, long inputs, long N, float* y, long stride) {
    long m = 0;
    if constexpr (TILE == 16) m = some_rows<8>(group, m, S, w, inputs, N, y, stride);
    m = some_rows<4>(group, m, S, w, inputs, N, y, stride);
    m = some_rows<2>(group, m, S, w, inputs, N, y, stride);
    some_rows<1>(group, m, S, w, inputs, N, y, stride);
}
