// CPU kernels for generation: what PyTorch's own path is slow at when a step has few rows.
//
// Plain C interface, portable vectors (GCC and Clang lower them to AVX-512, AVX2 or NEON), OpenMP for the threads.
// Every result depends on its own row alone, in the same order whatever the other rows are.

#include <vector>

#include "linear.h"

namespace {

// y = x w^T + bias. x: (rows, inputs); w: (outputs, inputs); bias: (outputs) or null; y: (rows, outputs).
template <typename T>
void linear(const T* x, const T* w, const T* bias, T* y, long rows, long inputs, long outputs) {
    typedef typename Reader<T>::Arranged X;
    static thread_local std::vector<X> buffer;
    static thread_local std::vector<float> row;
    buffer.resize(rows * inputs + 64 / sizeof(X));
    row.resize(inputs);
    X* arranged = (X*)((uintptr_t(buffer.data()) + 63) / 64 * 64);
    for (long m = 0; m < rows; m++) {
        const long first = m / TOGETHER * TOGETHER, S = rows - first < TOGETHER ? rows - first : TOGETHER;
        for (long k = 0; k < inputs; k++) row[k] = widen(x[m * inputs + k]);
        lay_out<T>(row.data(), m - first, S, inputs, arranged + first * inputs);
    }
#pragma omp parallel for schedule(static)
    for (long n = 0; n < outputs; n += LANES) {
        const long N = outputs - n < LANES ? outputs - n : LANES;
        float totals[TOGETHER * LANES];
        for (long first = 0; first < rows; first += TOGETHER) {
            const long S = rows - first < TOGETHER ? rows - first : TOGETHER;
            multiply(arranged + first * inputs, S, w + n * inputs, inputs, N, totals, LANES);
            for (long m = 0; m < S; m++)
                for (long i = 0; i < N; i++)
                    store(totals[m * LANES + i] + (bias ? widen(bias[n + i]) : 0), y + (first + m) * outputs + n + i);
        }
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
