// softmax(q K^T * scale) V over the paged cache (Vaswani et al. 2017, eq. 1), a tile of queries at a time.
//
// Keys are read in spans, which lie at fixed places: what a query finds in each comes together in their order (online softmax,
// Milakov & Gimelshein 2018; spans as in Flash-Decoding, Dao et al. 2023), so that no sum depends on what else is computed.
// G query heads share a key-value head; Q queries of a tile, D head dimension, B tokens a block of the cache.

#pragma once

#include <cmath>
#include <type_traits>
#include <vector>

#include "vectors.h"

constexpr long SPAN = 256;   // keys
constexpr long QUERIES = 12; // of a tile at most, where G does not ask for more
#ifdef __AVX512F__
constexpr int ACROSS = 4;    // vectors of a value that are added up together
#else
constexpr int ACROSS = 1;
#endif

inline floats hyperbolic_tangent(floats x) {  // tanh x = 1 - 2 / (e^2x + 1)
    const floats bounded = larger(-larger(-x, all(-15.0f)), all(-15.0f));
    return 1 - 2 / (exponential(2 * bounded) + 1);
}

// each(size, first) for `count` things, four at a time as long as there are so many.
template <typename F>
inline void in_fours(long count, const F& each) {
    long n = 0;
    for (; n + 4 <= count; n += 4) each(std::integral_constant<int, 4>{}, n);
    if (count - n == 3) each(std::integral_constant<int, 3>{}, n);
    if (count - n == 2) each(std::integral_constant<int, 2>{}, n);
    if (count - n == 1) each(std::integral_constant<int, 1>{}, n);
}

// Rows of the step that stand one after the other and belong to one sequence; they see the same keys.
struct Tile {
    long first, rows;
};

// What the queries of a tile ask of one key-value head.
template <typename C>
struct Asked {
    const C *keys, *values;  // the layer's, of this head: (blocks, K, D, B) and (blocks, K, B, D)
    const int64_t* table;    // the blocks of the sequence
    long B, D, apart;        // from one block's numbers to those of the next
    long Q;
    const float* queries;    // (D, Q), scaled
    const int64_t* ends;     // of each query: the first key that it does not see
    long window;             // how many keys it sees; 0: all
    float cap;
    const float* slopes;     // ALiBi's, of each query, or null

    const C* key(long t) const { return keys + table[t / B] * apart + t % B; }
    const C* value(long t) const { return values + table[t / B] * apart + t % B * D; }
    long start(long q) const { return window && ends[q] > window ? ends[q] - window : 0; }
};

// What a query has found: the largest score m, the sum of e^(s - m), and the sum of e^(s - m) v, D numbers.
constexpr long FOUND = 2;

inline void forget(float* found, long D) {
    found[0] = -INFINITY;
    for (long d = 0; d <= D; d++) found[1 + d] = 0;
}

// What was found in a later span, added to what was found before.
inline void add_found(const float* part, float* found, long D) {
    if (part[0] == -INFINITY) return;
    const float m = part[0] > found[0] ? part[0] : found[0];
    const float before = std::exp(found[0] - m), now = std::exp(part[0] - m);
    found[0] = m;
    for (long d = 1; d < FOUND + D; d++) found[d] = found[d] * before + part[d] * now;
}

// The scores of N queries from the n-th on with LANES keys.
template <int N, typename C>
inline void score(const Asked<C>& asked, long n, const C* keys, floats (&scores)[N]) {
    floats odd[N] = {};
    const float* q = asked.queries + n;
    long d = 0;
    for (; d + 2 <= asked.D; d += 2, q += 2 * asked.Q) {
        const floats first = load(keys + d * asked.B), second = load(keys + (d + 1) * asked.B);
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) {
            scores[i] += q[i] * first;
            odd[i] += q[asked.Q + i] * second;
        }
    }
    for (int i = 0; i < N; i++) {
        scores[i] += odd[i];
        if (d < asked.D) scores[i] += q[i] * load(keys + d * asked.B);
    }
}

// sums += p v over keys [first, last), for N queries and P vectors of the values from `d` on. p: a query's are `length` long.
template <int N, int P, typename C>
inline void mix(const Asked<C>& asked, const float* p, long length, long first, long last, long d, float* to) {
    floats sums[N][P] = {};
    for (long t = first; t < last;) {
        const C* value = asked.value(t) + d;
        const long stop = (t / asked.B + 1) * asked.B < last ? (t / asked.B + 1) * asked.B : last;
        for (; t < stop; t++, value += asked.D) {
            floats v[P];
            for (int i = 0; i < P; i++) v[i] = load(value + i * LANES);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++)
#pragma GCC unroll 4
                for (int i = 0; i < P; i++) sums[n][i] += p[n * length + t] * v[i];
        }
    }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < P; i++) store(sums[n][i], to + n * (FOUND + asked.D) + FOUND + d + i * LANES);
}

// What each query finds among the keys [first, last) of a span. found: Q times (m, sum, D numbers).
template <typename C>
void attend_span(const Asked<C>& asked, long first, long last, float* found) {
    const long D = asked.D, Q = asked.Q, begin = first / LANES * LANES, length = (last - begin + LANES - 1) / LANES * LANES;
    static thread_local std::vector<float> scores;
    scores.resize(Q * length);
    floats numbers;
    for (int i = 0; i < LANES; i++) numbers[i] = float(i);
    for (long t = begin; t < last; t += LANES) {  // a block holds a multiple of LANES keys
        const C* keys = asked.key(t);
        const floats places = numbers + float(t);
        in_fours(Q, [&](auto size, long n) {
            floats s[size] = {};
            score<size>(asked, n, keys, s);
            for (int i = 0; i < size; i++) {
                const long q = n + i;
                if (asked.cap > 0) s[i] = asked.cap * hyperbolic_tangent(s[i] / asked.cap);
                if (asked.slopes) s[i] -= asked.slopes[q] * (float(asked.ends[q] - 1) - places);
                s[i] = places < float(asked.ends[q]) ? s[i] : all(-INFINITY);
                if (asked.window) s[i] = places < float(asked.start(q)) ? all(-INFINITY) : s[i];
                store(s[i], scores.data() + q * length + t - begin);
            }
        });
    }
    for (long q = 0; q < Q; q++) {
        float* s = scores.data() + q * length;
        floats most = all(-INFINITY), total = {};
        for (long t = 0; t < length; t += LANES) most = larger(most, load(s + t));
        const float m = largest(most), away = m == -INFINITY ? 0 : m;  // a query that sees none of these keys
        for (long t = 0; t < length; t += LANES) {
            const floats p = exponential(load(s + t) - away);
            store(p, s + t);
            total += p;
        }
        found[q * (FOUND + D)] = m;
        found[q * (FOUND + D) + 1] = sum(total);
    }
    in_fours(Q, [&](auto size, long n) {
        const float* p = scores.data() + n * length - begin;
        float* to = found + n * (FOUND + D);
        long d = 0;
        for (; d + ACROSS * LANES <= D; d += ACROSS * LANES) mix<size, ACROSS>(asked, p, length, first, last, d, to);
        for (; d + LANES <= D; d += LANES) mix<size, 1>(asked, p, length, first, last, d, to);
        for (; d < D; d++)
            for (int i = 0; i < size; i++) {
                float total = 0;
                for (long t = first; t < last; t++) total += p[i * length + t] * widen(asked.value(t)[d]);
                to[i * (FOUND + D) + FOUND + d] = total;
            }
    });
}
