// The softmax of attention over packed documents and of the cross-entropy, forward and backward: what stands between
// matrix products in training. Each is one pass over memory where PyTorch's operations make five or more.
//
// Plain C interface, loops that the compiler vectorises, OpenMP for the threads. A row's result depends on it alone.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// A bfloat16 is the upper half of a float32.
inline float widen(uint16_t value) {
    const uint32_t bits = uint32_t(value) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}
inline float widen(float value) { return value; }

// The nearest bfloat16, ties to even; NaN stays NaN.
inline void store(float value, uint16_t* place) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *place = uint16_t(value != value ? (bits >> 16) | 0x40 : rounded);
}
inline void store(float value, float* place) { *place = value; }

// e^x for x <= 0, to 2 units in the last place: 2^n e^r with |r| <= ln 2 / 2, e^r by its Taylor series. NaN stays NaN.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float n = __builtin_rintf(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const uint32_t bits = uint32_t(int32_t(n == n ? n : 0) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

struct Total {
    float largest, sum;  // of the scores; of e^(score - largest)
};

// p = e^(scale * s - largest), for `size` scores.
template <typename T>
inline Total exponentials(const T* s, float* p, long size, float scale) {
    float largest = scale * widen(s[0]);
#pragma omp simd reduction(max : largest)
    for (long j = 0; j < size; j++) {
        p[j] = scale * widen(s[j]);
        largest = p[j] > largest ? p[j] : largest;
    }
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < size; j++) {
        p[j] = exponential(p[j] - largest);
        sum += p[j];
    }
    return {largest, sum};
}

template <typename T>
inline void clear(T* row, long from, long to) {
    if (to > from) std::memset(row + from, 0, (to - from) * sizeof(T));
}

// In place: scores -> softmax(scale * scores) over the keys that a query sees, 0 elsewhere.
// scores: (rows, heads, queries, keys). Query q of a row is its token (start + q % tokens), which sees the keys from
// first[row][token] to itself; the first key is token number `skip`. first: (rows, length).
template <typename T>
void attend(T* scores, const int32_t* first, long rows, long heads, long queries, long keys, long tokens, long start,
            long skip, long length, float scale) {
#pragma omp parallel
    {
        std::vector<float> p(keys);
#pragma omp for schedule(static)
        for (long row = 0; row < rows * heads * queries; row++) {
            const long token = start + row % tokens;
            const long from = first[row / (heads * queries) * length + token] - skip, to = token + 1 - skip;
            T* s = scores + row * keys;
            const Total total = exponentials(s + from, p.data(), to - from, scale);
            const float share = 1 / total.sum;
            clear(s, 0, from);
#pragma omp simd
            for (long j = from; j < to; j++) store(p[j - from] * share, s + j);
            clear(s, to, keys);
        }
    }
}

// In place: scores -> p = softmax(scale * scores); gradient of p -> gradient of the scores. Both as in `attend`.
//   dL/ds_j = scale * p_j (g_j - sum_k p_k g_k)
template <typename T>
void attend_backward(T* scores, T* gradient, const int32_t* first, long rows, long heads, long queries, long keys,
                     long tokens, long start, long skip, long length, float scale) {
#pragma omp parallel
    {
        std::vector<float> p(keys);
#pragma omp for schedule(static)
        for (long row = 0; row < rows * heads * queries; row++) {
            const long token = start + row % tokens;
            const long from = first[row / (heads * queries) * length + token] - skip, to = token + 1 - skip;
            T *s = scores + row * keys, *g = gradient + row * keys;
            const Total total = exponentials(s + from, p.data(), to - from, scale);
            const float share = 1 / total.sum;
            float mean = 0;
#pragma omp simd reduction(+ : mean)
            for (long j = from; j < to; j++) {
                p[j - from] *= share;
                mean += p[j - from] * widen(g[j]);
            }
            clear(s, 0, from);
            clear(g, 0, from);
#pragma omp simd
            for (long j = from; j < to; j++) {
                store(scale * p[j - from] * (widen(g[j]) - mean), g + j);
                store(p[j - from], s + j);
            }
            clear(s, to, keys);
            clear(g, to, keys);
        }
    }
}

// losses[i] = log sum_v e^(logit_v) - logit_target, and in place: logits -> softmax - onehot(target).
// logits: (rows, vocabulary).
template <typename T>
void cross_entropy(T* logits, const int64_t* targets, float* losses, long rows, long vocabulary) {
#pragma omp parallel
    {
        std::vector<float> p(vocabulary);
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++) {
            T* z = logits + row * vocabulary;
            const long target = targets[row];
            const float at_target = widen(z[target]);
            const Total total = exponentials(z, p.data(), vocabulary, 1);
            losses[row] = __builtin_logf(total.sum) + total.largest - at_target;
            const float share = 1 / total.sum;
            const float gradient = p[target] * share - 1;
#pragma omp simd
            for (long v = 0; v < vocabulary; v++) store(p[v] * share, z + v);
            store(gradient, z + target);
        }
    }
}

}  // namespace

#define FOR_TYPE(NAME, T)                                                                                              \
    void attend_##NAME(T* s, const int32_t* first, long rows, long heads, long queries, long keys, long tokens,        \
                       long start, long skip, long length, float scale) {                                              \
        attend(s, first, rows, heads, queries, keys, tokens, start, skip, length, scale);                              \
    }                                                                                                                  \
    void attend_backward_##NAME(T* s, T* g, const int32_t* first, long rows, long heads, long queries, long keys,      \
                                long tokens, long start, long skip, long length, float scale) {                        \
        attend_backward(s, g, first, rows, heads, queries, keys, tokens, start, skip, length, scale);                  \
    }                                                                                                                  \
    void cross_entropy_##NAME(T* logits, const int64_t* targets, float* losses, long rows, long vocabulary) {          \
        cross_entropy(logits, targets, losses, rows, vocabulary);                                                      \
    }

extern "C" {
FOR_TYPE(float32, float)
FOR_TYPE(bfloat16, uint16_t)
}
