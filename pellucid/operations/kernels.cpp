// CPU kernels for generation: what PyTorch's own path is slow at when a step has few rows.
//
// Plain C interface, portable vectors (GCC and Clang lower them to AVX-512, AVX2 or NEON), OpenMP for the threads.
// Every result depends on its own row alone, in the same order whatever the other rows are.

#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;          // numbers in a vector
constexpr int CHUNK = 2 * LANES;   // numbers read at once
typedef float floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));

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

inline floats load(const float* place) {
    floats loaded;
    std::memcpy(&loaded, place, sizeof loaded);
    return loaded;
}

inline float sum(floats vector) {
    float lanes[LANES];
    std::memcpy(lanes, &vector, sizeof lanes);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

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

// How weights of type T are read and multiplied, a Chunk at a time. `arrange` lays a row of x out to match.
template <typename T>
struct Reader {
    typedef Wide Chunk;
    typedef float Arranged;
    static void arrange(const float* x, float* arranged, long size) { std::memcpy(arranged, x, size * sizeof(float)); }
    static void arrange(const uint16_t* x, float* arranged, long size) {
        long k = 0;
        for (; k + CHUNK <= size; k += CHUNK) {
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
    static void arrange(const uint16_t* x, uint16_t* arranged, long size) { std::memcpy(arranged, x, size * 2); }
};
#endif

// y[m] = sum_k x[m][k] w[k] + bias, for one row w of the weights and M rows of x: a weight is read from memory once and
// used M times. The row after it, which comes next, is fetched meanwhile.
template <int M, typename T, typename X>
inline void dot(const X* x, const T* w, const T* bias, T* y, long inputs, long outputs) {
    typedef typename Reader<T>::Chunk Chunk;
    constexpr int CHAINS = 2;  // sums side by side, so that an addition need not wait for the one before
    floats sums[M][CHAINS] = {};
    long k = 0;
    for (; k + CHAINS * CHUNK <= inputs; k += CHAINS * CHUNK)
#pragma GCC unroll 2
        for (int c = 0; c < CHAINS; c++) {
            const T* place = w + k + c * CHUNK;
            __builtin_prefetch(place + inputs);
            if (sizeof(T) == 4) __builtin_prefetch(place + inputs + LANES);
            const Chunk weights(place);
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) add_product(sums[m][c], weights, Chunk(x + m * inputs + k + c * CHUNK));
        }
    for (int m = 0; m < M; m++) {
        float total = sum(sums[m][0] + sums[m][1]);
        for (long rest = k; rest < inputs; rest++) total += widen(w[rest]) * widen(x[m * inputs + rest]);
        store(bias ? total + widen(*bias) : total, y + m * outputs);
    }
}

// y = x w^T + bias. x: (rows, inputs); w: (outputs, inputs); bias: (outputs) or null; y: (rows, outputs).
template <typename T>
void linear(const T* x, const T* w, const T* bias, T* y, long rows, long inputs, long outputs) {
    typedef typename Reader<T>::Arranged X;
    static thread_local std::vector<X> buffer;
    buffer.resize(rows * inputs);
    for (long m = 0; m < rows; m++) Reader<T>::arrange(x + m * inputs, buffer.data() + m * inputs, inputs);
    const X* arranged = buffer.data();
#pragma omp parallel for schedule(static)
    for (long n = 0; n < outputs; n++) {
        const T* row = w + n * inputs;
        const T* b = bias ? bias + n : nullptr;
        long m = 0;
        for (; m + 8 <= rows; m += 8) dot<8>(arranged + m * inputs, row, b, y + m * outputs + n, inputs, outputs);
        for (; m < rows; m++) dot<1>(arranged + m * inputs, row, b, y + m * outputs + n, inputs, outputs);
    }
}

// y = x / sqrt(mean(x^2) + eps) * weight, row by row. x, y: (rows, size); weight: (size).
template <typename T>
void rms_norm(const T* x, const T* weight, T* y, long rows, long size, float eps) {
#pragma omp parallel for schedule(static) if (rows > 16)
    for (long row = 0; row < rows; row++) {
        const T* from = x + row * size;
        floats squares = {};
        long i = 0;
        for (; i + CHUNK <= size; i += CHUNK) {
            const Wide numbers(from + i);
            squares += numbers.low * numbers.low + numbers.high * numbers.high;
        }
        float total = sum(squares);
        for (; i < size; i++) total += widen(from[i]) * widen(from[i]);
        const float scale = 1 / __builtin_sqrtf(total / size + eps);
        for (i = 0; i < size; i++) store(widen(from[i]) * scale * widen(weight[i]), y + row * size + i);
    }
}

}  // namespace

extern "C" {

void linear_bfloat16(const uint16_t* x, const uint16_t* w, const uint16_t* b, uint16_t* y, long m, long k, long n) {
    linear(x, w, b, y, m, k, n);
}
void linear_float32(const float* x, const float* w, const float* b, float* y, long m, long k, long n) {
    linear(x, w, b, y, m, k, n);
}
void rms_norm_bfloat16(const uint16_t* x, const uint16_t* weight, uint16_t* y, long rows, long size, float eps) {
    rms_norm(x, weight, y, rows, size, eps);
}
void rms_norm_float32(const float* x, const float* weight, float* y, long rows, long size, float eps) {
    rms_norm(x, weight, y, rows, size, eps);
}
}
