// softmax(q K^T * scale) V over the paged cache (Vaswani et al. 2017, eq. 1), a tile of queries at a time.
//
// Keys are read in spans, which lie at fixed places: what a query finds in each comes together in their order (online softmax,
// Milakov & Gimelshein 2018; spans as in Flash-Decoding, Dao et al. 2023), so that no sum depends on what else is computed.
// G query heads share a key-value head; Q queries of a tile, D head dimension, B tokens a block of the cache.

#pragma once

#include <cmath>
#include <type_traits>
#include <vector>

#include "elementwise.h"
#include "linear.h"

constexpr long SPAN = 256;   // keys
constexpr long QUERIES = 12; // of a tile at most, where G does not ask for more
#ifdef __AVX512F__
constexpr int ACROSS = 4;    // vectors of a value that are added up together
#else
constexpr int ACROSS = 1;
#endif

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

// How many numbers of the cache stand side by side that are multiplied together: two of bfloat16, one of others.
template <typename C>
constexpr long BESIDE = sizeof(C) == 2 ? 2 : 1;

// What a number of the cache is multiplied with, and the sum of such products for LANES keys or LANES entries of a value.
// Of bfloat16 it is a pair, and so is what is broadcast.
template <typename C>
struct Factor {
    typedef float Own;
    static float of(float first, float) { return first; }
    static void of(floats numbers, float* to) { store(numbers, to); }
};

#ifdef __AVX512BF16__
template <>
struct Factor<uint16_t> {
    typedef uint32_t Own;
    static uint32_t of(float first, float second) { return uint32_t(narrow(second)) << 16 | narrow(first); }
    static void of(floats numbers, Own* to) {  // of each two neighbours
        const __m256bh narrowed = _mm512_cvtneps_pbh((__m512)numbers);
        std::memcpy(to, &narrowed, sizeof narrowed);
    }
};

inline void add_product(floats& sums, uint32_t factor, const Pairs& numbers) {
    sums = (floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(int(factor)), numbers.pairs);
}
#else
template <>
struct Factor<uint16_t> {
    struct Own {
        float first, second;
    };
    static Own of(float first, float second) { return {first, second}; }
    static void of(floats numbers, Own* to) { std::memcpy(to, &numbers, sizeof numbers); }
};

inline void add_product(floats& sums, const Factor<uint16_t>::Own& factor, const Wide& numbers) {
    sums = fused(all(factor.second), numbers.high, fused(all(factor.first), numbers.low, sums));
}
#endif

inline void add_product(floats& sums, float factor, const floats& numbers) { sums = fused(all(factor), numbers, sums); }
inline floats numbers_at(const float* place) { return load(place); }
inline floats numbers_at(const int8_t* place) { return load(place); }
inline typename Reader<uint16_t>::Chunk numbers_at(const uint16_t* place) { return typename Reader<uint16_t>::Chunk(place); }

// What the queries of a tile ask of one key-value head.
template <typename C>
struct Asked {
    typedef typename Factor<C>::Own Own;
    static constexpr long P = BESIDE<C>;
    const C *keys, *values;  // the layer's, of this head: (blocks, K, D / P, B, P) and (blocks, K, B / P, D, P)
    const float *key_scales, *value_scales;  // of bytes: (blocks, K, B), what each key and value was divided by
    const int64_t* table;    // the blocks of the sequence
    long B, D, apart;        // from one block's numbers to those of the next
    long Q;
    const Own* queries;      // (D / P, Q), scaled
    const int64_t* ends;     // of each query: the first key that it does not see
    long window;             // how many keys it sees; 0: all
    float cap;
    const float* slopes;     // ALiBi's, of each query, or null

    const C* key(long t) const { return keys + table[t / B] * apart + t % B * P; }       // LANES keys from t on: their first
    const C* value(long t) const { return values + table[t / B] * apart + t % B * D; }  // P values from t on
    floats scales(const float* of, long t) const { return load(of + table[t / B] * (apart / D) + t % B); }  // of LANES keys
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
    floats odd[N] = {};  // sums side by side, so that an addition need not wait for the one before
    const auto* q = asked.queries + n;
    const long apart = asked.B * asked.P, steps = asked.D / asked.P;
    long d = 0;
    for (; d + 2 <= steps; d += 2, q += 2 * asked.Q) {
        const auto first = numbers_at(keys + d * apart), second = numbers_at(keys + (d + 1) * apart);
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) {
            add_product(scores[i], q[i], first);
            add_product(odd[i], q[asked.Q + i], second);
        }
    }
    for (int i = 0; i < N; i++) {
        if (d < steps) add_product(scores[i], q[i], numbers_at(keys + d * apart));
        scores[i] += odd[i];
    }
}

// What stands in the place of a key that is not there yet may be anything: it is not multiplied, not even with 0.
inline void leave_first(floats&) {}
inline void leave_first(Wide& numbers) { numbers.high = floats{}; }
#ifdef __AVX512BF16__
inline void leave_first(Pairs& numbers) { numbers.pairs = (__m512bh)((words)numbers.pairs & 0xffffu); }
#endif

// sum_t p_t v_t over keys [first, last), for N queries and A vectors of the values from entry d on. factors: of each P keys
// from `first` on, `length` for a query.
template <int N, int A, typename C>
inline void mix(const Asked<C>& asked, const typename Factor<C>::Own* factors, long length, long first, long last, long d,
                float* to) {
    constexpr long P = BESIDE<C>;
    floats sums[N][A] = {};
    for (long t = first; t < last;) {
        const C* value = asked.value(t) + d * P;
        const long stop = (t / asked.B + 1) * asked.B < last ? (t / asked.B + 1) * asked.B : last;
        for (; t < stop; t += P, value += asked.D * P) {
            const auto* p = factors + (t - first) / P;
            decltype(numbers_at(value)) v[A];
#pragma GCC unroll 4
            for (int i = 0; i < A; i++) v[i] = numbers_at(value + i * LANES * P);
            if (P > 1 && t + 1 == last)
                for (int i = 0; i < A; i++) leave_first(v[i]);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++)
#pragma GCC unroll 4
                for (int i = 0; i < A; i++) add_product(sums[n][i], p[n * length], v[i]);
        }
    }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < A; i++) store(sums[n][i], to + n * (FOUND + asked.D) + FOUND + d + i * LANES);
}

// Into the second-level cache: what a block holds is read once, and no block lies beside the one before.
template <typename C>
inline void fetch(const C* place, long count) {
    for (long i = 0; i < count; i += 64 / long(sizeof(C))) __builtin_prefetch(place + i, 0, 2);
}

// What each query finds among the keys [first, last) of a span. found: Q times (m, sum, D numbers).
template <typename C>
void attend_span(const Asked<C>& asked, long first, long last, float* found) {
    typedef typename Factor<C>::Own Own;
    constexpr long P = BESIDE<C>;
    const long D = asked.D, Q = asked.Q, begin = first / LANES * LANES, length = (last - begin + LANES - 1) / LANES * LANES;
    static thread_local std::vector<float> scores;
    static thread_local std::vector<Own> factors;
    scores.resize(Q * length), factors.resize(Q * length / P);
    floats lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = float(i);
    for (long t = begin; t < last; t += LANES) {  // a block holds a multiple of LANES keys
        const C* keys = asked.key(t);
        const floats places = lanes + float(t);
        if (t % asked.B == 0) {
            if (t + asked.B < last) fetch(asked.key(t + asked.B), D * asked.B);
            fetch(asked.value(t), D * asked.B);
        }
        in_fours(Q, [&](auto size, long n) {
            floats s[size] = {};
            score<size>(asked, n, keys, s);
            for (int i = 0; i < size; i++) {
                const long q = n + i;
                if constexpr (sizeof(C) == 1) s[i] *= asked.scales(asked.key_scales, t);
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
            if constexpr (sizeof(C) == 1)
                Factor<C>::of(p * asked.scales(asked.value_scales, begin + t), &factors[(q * length + t) / P]);
            else
                Factor<C>::of(p, &factors[(q * length + t) / P]);
            total += p;
        }
        found[q * (FOUND + D)] = m;
        found[q * (FOUND + D) + 1] = sum(total);
    }
    in_fours(Q, [&](auto size, long n) {
        const Own* p = factors.data() + n * length / P;
        float* to = found + n * (FOUND + D);
        long d = 0;
        for (; d + ACROSS * LANES <= D; d += ACROSS * LANES)
            mix<size, ACROSS>(asked, p, length / P, begin, last, d, to);
        for (; d + LANES <= D; d += LANES)
            for (int i = 0; i < size; i++)
                mix<1, 1>(asked, p + i * length / P, length / P, begin, last, d, to + i * (FOUND + D));
        for (; d < D; d++)
            for (int i = 0; i < size; i++) {
                float total = 0;
                for (long t = first; t < last; t++) {
                    const float own = sizeof(C) == 1 ? asked.value_scales[asked.table[t / asked.B] * (asked.apart / D) +
                                                                          t % asked.B] : 1;
                    const float v = own * widen(asked.value(t / P * P)[d * P + t % P]);
                    total = __builtin_fmaf(scores[(n + i) * length + t - begin], v, total);
                }
                to[i * (FOUND + D) + FOUND + d] = total;
            }
    });
}
