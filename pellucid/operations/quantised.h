// y = x w^T for weights in blocks of 32 small integers, read as they lie in a GGUF file.
//
// Of every format a weight is d u + o, with u in 0 .. 255 and two numbers a block; x is rounded to signed bytes, a scale for
// each 32 of its numbers, so that the products are sums of bytes:
//   sum_i w_i x_i = sum over blocks of  d s (sum_i u_i q_i) + o s (sum_i q_i),   x_i = s q_i

#pragma once

#include "linear.h"

constexpr int BLOCK = 32, HALF = 16;

// The float16 at a place. Shifted into a float32, its exponent is 112 too small; that makes subnormals right too.
inline float half_at(const uint8_t* place) {
    uint16_t half;
    std::memcpy(&half, place, 2);
#ifdef __F16C__
    return _cvtsh_ss(half);
#else
    const uint32_t bits = uint32_t(half & 0x7fff) << 13;
    float small;
    std::memcpy(&small, &bits, 4);
    const float value = small * 0x1p112f;
    return half & 0x8000 ? -value : value;
#endif
}

// A group of S rows of x, rounded. Of each block: the bytes of one row after the other; s of each row; s * (sum of its bytes).
struct Rounded {
    int8_t* bytes;
    float *scales, *totals;
    Rounded(void* place, long S, long inputs)
        : bytes((int8_t*)place), scales((float*)(bytes + S * inputs)), totals(scales + S * (inputs / BLOCK)) {}
};

constexpr long rounded_size(long inputs) { return inputs + 2 * sizeof(float) * (inputs / BLOCK); }

// Row m of the group: s is the largest |x| of a block / 127, q = round(x / s), halves away from zero.
inline void round_row(const float* x, long m, long S, const Rounded& to, long inputs) {
    constexpr int N = BLOCK / LANES;
    typedef int8_t bytes __attribute__((vector_size(LANES)));
    for (long b = 0; b < inputs / BLOCK; b++, x += BLOCK) {
        floats v[N], most = {};
        for (int i = 0; i < N; i++) {
            v[i] = load(x + i * LANES);
            most = larger(most, larger(v[i], -v[i]));
        }
        const float s = largest(most) / 127, inverse = s > 0 ? 1 / s : 0;
        integers total = {};
        for (int i = 0; i < N; i++) {
            const floats scaled = v[i] * inverse;
            const integers q = __builtin_convertvector(scaled + (scaled < 0 ? all(-0.5f) : all(0.5f)), integers);
            const bytes narrow = __builtin_convertvector(q, bytes);
            std::memcpy(to.bytes + (b * S + m) * BLOCK + i * LANES, &narrow, sizeof narrow);
            total += q;
        }
        to.scales[b * S + m] = s;
        to.totals[b * S + m] = s * sum(__builtin_convertvector(total, floats));
    }
}

// A block of LANES rows, a row in each lane: u in eight times four bytes, and d and o.
struct Columns {
    integers u[8];
    floats d, o;
};

// The same block of LANES rows: 16 bytes of each, from `place` on, in four times four bytes.
inline void turn_over(const uint8_t* const (&rows)[LANES], long place, integers* to) {
    integers a[4];  // every fourth row
    for (int i = 0; i < 4; i++) {
#if defined(__AVX512F__)
        __m512i some = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)(rows[i] + place)));
        some = _mm512_inserti32x4(some, _mm_loadu_si128((const __m128i*)(rows[i + 4] + place)), 1);
        some = _mm512_inserti32x4(some, _mm_loadu_si128((const __m128i*)(rows[i + 8] + place)), 2);
        a[i] = (integers)_mm512_inserti32x4(some, _mm_loadu_si128((const __m128i*)(rows[i + 12] + place)), 3);
#elif defined(__AVX2__)
        const __m256i some = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(rows[i] + place)));
        a[i] = (integers)_mm256_inserti128_si256(some, _mm_loadu_si128((const __m128i*)(rows[i + 4] + place)), 1);
#else
        for (int n = 0; n < LANES / 4; n++) std::memcpy((char*)&a[i] + n * HALF, rows[i + 4 * n] + place, HALF);
#endif
    }
    integers b[4];
    for (int i = 0; i < 2; i++) {
        b[2 * i] = FIRST_OF_PAIRS(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = LAST_OF_PAIRS(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        to[2 * i] = FIRST_PAIRS(b[i], b[2 + i]);
        to[2 * i + 1] = LAST_PAIRS(b[i], b[2 + i]);
    }
}

inline floats halves_at(const uint8_t* const (&rows)[LANES], long place) {
#if defined(__AVX512F__) || defined(__F16C__)
    alignas(32) uint16_t halves[LANES];
    for (int r = 0; r < LANES; r++) std::memcpy(halves + r, rows[r] + place, 2);
#if defined(__AVX512F__)
    return (floats)_mm512_cvtph_ps(_mm256_load_si256((const __m256i*)halves));
#else
    return (floats)_mm256_cvtph_ps(_mm_load_si128((const __m128i*)halves));
#endif
#else
    floats found;
    for (int r = 0; r < LANES; r++) found[r] = half_at(rows[r] + place);
    return found;
#endif
}

inline void nibbles(const uint8_t* const (&rows)[LANES], long place, Columns& to) {  // the low halves of 16 bytes come first
    turn_over(rows, place, to.u);
    for (int i = 0; i < 4; i++) {
        to.u[4 + i] = (to.u[i] >> 4) & 0x0f0f0f0f;
        to.u[i] &= 0x0f0f0f0f;
    }
}

struct Q8_0 {  // w = d q, q = u - 128
    static constexpr int BYTES = 34;
    static void read(const uint8_t* const (&rows)[LANES], long at, Columns& to) {
        to.d = halves_at(rows, at);
        to.o = -128 * to.d;
        turn_over(rows, at + 2, to.u);
        turn_over(rows, at + 2 + HALF, to.u + 4);
        for (integers& u : to.u) u ^= integers{} + int32_t(0x80808080);
    }
    static float number(const uint8_t* block, int i) { return half_at(block) * float(int8_t(block[2 + i])); }
};

struct Q4_0 {  // w = d (u - 8)
    static constexpr int BYTES = 18;
    static void read(const uint8_t* const (&rows)[LANES], long at, Columns& to) {
        to.d = halves_at(rows, at);
        to.o = -8 * to.d;
        nibbles(rows, at + 2, to);
    }
    static float number(const uint8_t* block, int i) {
        return half_at(block) * float((i < HALF ? block[2 + i] & 0x0f : block[2 + i - HALF] >> 4) - 8);
    }
};

struct Q4_1 {  // w = d u + m
    static constexpr int BYTES = 20;
    static void read(const uint8_t* const (&rows)[LANES], long at, Columns& to) {
        to.d = halves_at(rows, at);
        to.o = halves_at(rows, at + 2);
        nibbles(rows, at + 4, to);
    }
    static float number(const uint8_t* block, int i) {
        const int u = i < HALF ? block[4 + i] & 0x0f : block[4 + i - HALF] >> 4;
        return half_at(block) * float(u) + half_at(block + 2);
    }
};

// sums += four products each: of u with four bytes of x.
inline integers add_products(integers sums, integers u, const int8_t* q) {
    int32_t four;
    std::memcpy(&four, q, 4);
#if defined(__AVX512VNNI__)
    return (integers)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)u, _mm512_set1_epi32(four));
#elif defined(__AVX512BW__)  // sums of two products fit 16 bits if u has four bits
    const __m512i x = _mm512_set1_epi32(four), nibble = _mm512_set1_epi8(15);
    const __m512i low = _mm512_and_si512((__m512i)u, nibble), high = _mm512_and_si512(_mm512_srli_epi16((__m512i)u, 4), nibble);
    const __m512i of_low = _mm512_madd_epi16(_mm512_maddubs_epi16(low, x), _mm512_set1_epi16(1));
    const __m512i of_high = _mm512_madd_epi16(_mm512_maddubs_epi16(high, x), _mm512_set1_epi16(16));
    return sums + (integers)_mm512_add_epi32(of_low, of_high);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i x = _mm256_set1_epi32(four), nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256((__m256i)u, nibble), high = _mm256_and_si256(_mm256_srli_epi16((__m256i)u, 4), nibble);
    const __m256i of_low = _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), _mm256_set1_epi16(1));
    const __m256i of_high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(16));
    return sums + (integers)_mm256_add_epi32(of_low, of_high);
#else
    for (int i = 0; i < 4; i++) sums += ((u >> (8 * i)) & 0xff) * int32_t(q[i]);
    return sums;
#endif
}

// y[m][n] += x_m w_n over one block, for M rows of a group from the m-th on.
template <int M>
inline void add_block(const Columns& w, const Rounded& x, long b, long m, long S, floats (&y)[M]) {
    const int8_t* bytes = x.bytes + (b * S + m) * BLOCK;
    const float *scales = x.scales + b * S + m, *totals = x.totals + b * S + m;
    integers sums[M] = {};
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++)
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) sums[i] = add_products(sums[i], w.u[g], bytes + i * BLOCK + 4 * g);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) {
        y[i] = fused(__builtin_convertvector(sums[i], floats), w.d * scales[i], y[i]);
        y[i] = fused(w.o, all(totals[i]), y[i]);
    }
}

// y[m][n] = x_m w_n for M rows of a group from the m-th on, and LANES rows of weights.
template <int M, typename Get>
inline void quantised_products(const Rounded& x, long m, long S, long blocks, float* y, long stride, const Get& columns) {
    floats sums[M] = {};
    for (long b = 0; b < blocks; b++) add_block(columns(b), x, b, m, S, sums);
    for (int i = 0; i < M; i++) store(sums[i], y + (m + i) * stride);
}

template <typename Get>
inline void multiply_columns(const Rounded& x, long S, long blocks, float* y, long stride, const Get& columns) {
    long m = 0;
    for (; m + 8 <= S; m += 8) quantised_products<8>(x, m, S, blocks, y, stride, columns);
    for (; m + 4 <= S; m += 4) quantised_products<4>(x, m, S, blocks, y, stride, columns);
    for (; m + 2 <= S; m += 2) quantised_products<2>(x, m, S, blocks, y, stride, columns);
    for (; m < S; m++) quantised_products<1>(x, m, S, blocks, y, stride, columns);
}

// The same for N <= LANES rows of weights that begin at w, read as they are multiplied.
template <typename Format>
inline void multiply_quantised(const Rounded& x, long S, const uint8_t* w, long blocks, long N, float* y, long stride) {
    const long size = blocks * Format::BYTES;
    const uint8_t* rows[LANES];
    for (int r = 0; r < LANES; r++) rows[r] = w + (r < N ? r : N - 1) * size;
    const uint8_t* next = w + LANES * size + 4096;  // all rows begin at once: they are fetched before the first is
    multiply_columns(x, S, blocks, y, stride, [&](long b) {
        Columns read;
        for (int i = 0; i < LANES * Format::BYTES; i += 64) __builtin_prefetch(next + b * LANES * Format::BYTES + i, 0, 2);
        Format::read(rows, b * Format::BYTES, read);
        return read;
    });
}

// The numbers of a row, in float32.
template <typename Format>
inline void widen_row(const uint8_t* w, float* to, long size) {
    for (long i = 0; i < size; i++) to[i] = Format::number(w + i / BLOCK * Format::BYTES, i % BLOCK);
}
