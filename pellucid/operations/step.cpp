// One step of a decoder for a few rows: all of its layers in one call, with the weights read once.
//
// A step is a list of operations, which Python writes once for a model; every thread goes through it, and shares the
// work of each operation with the others. The residual stream and all activations are float32. What a row gives does
// not depend on the other rows.
//
// R rows, one token each; E hidden size, H query heads, K key-value heads, G = H / K, D head dimension.

#include <omp.h>

#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "linear.h"
#include "quantised.h"

namespace {

enum Kind { EMBED, ANGLES, NORM, LINEAR, STORE, ATTEND, TAKE };
enum Type { FLOAT32, BFLOAT16, Q8_0_BLOCKS, Q4_0_BLOCKS, Q4_1_BLOCKS };
enum Activation { NONE, RELU, GELU, GELU_TANH, SILU };
constexpr long SPAN = 256;  // keys that one task of attention reads

// Where threads wait for one another, some hundred times a step. OpenMP's own barrier spins for as long as it takes; on a
// machine with other work the thread that is waited for may not be running, and needs the processor that spins.
class Barrier {
  public:
    void wait(int threads) {
        const int now = round_.load(std::memory_order_acquire);
        if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            waiting_.store(0, std::memory_order_relaxed);
            round_.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == now; spins++)
            if (spins > SPINS) std::this_thread::yield();
    }

  private:
    static constexpr int SPINS = 4000;  // some microseconds: longer than an operation's threads differ where all run
    std::atomic<int> waiting_{0}, round_{0};
};

// What an operation reads of the step: R rows with their tokens and positions, the place of each in the cache (a slot is
// block * size + offset), the blocks of its sequence, and which rows' logits are wanted.
struct Rows {
    const int64_t *tokens, *positions, *slots, *tables, *wanted;
    int64_t count, width, num_wanted;  // width: entries of a row of tables
};

struct Team {
    Barrier barrier;
    int threads;
    void wait() { barrier.wait(threads); }
};

struct Operation {
    int64_t kind, type;
    const void *weight, *bias;         // LINEAR, EMBED, NORM
    const float *from;                 // what it reads, float32, (R, inputs)
    float *to;                         // what it writes, (R, outputs)
    int64_t inputs, outputs;
    int64_t stride;                    // NORM: from the numbers of one row to those of the next
    int64_t add;                       // LINEAR, NORM: to what is there
    int64_t few;                       // over the wanted rows alone
    int64_t activation, gated;         // LINEAR: of its input; gated: act(first half) * second half
    float scale, cap;                  // EMBED, ANGLES, ATTEND; cap: c tanh(x / c) of what it gives, 0 for none
    float eps;                         // NORM
    int64_t centred;                   // NORM: LayerNorm
    int64_t heads, kv_heads, dim, window, block;  // STORE, ATTEND
    void *keys, *values;               // the cache: keys (blocks, K, D, block), values (blocks, K, block, D)
    const float *angles;               // STORE: (R, D), cos and then sin of D / 2 angles; null: it does not turn
    const float *slopes;               // ATTEND: ALiBi's, or null
    float *parts;                      // ATTEND: room for what its tasks find
    int64_t spans;                     // ATTEND: room for so many of them a row
};

// x_r = scale * table[token_r]; with `add` x_r += table[position_r], learned positions
template <typename T>
void embed(const Operation& op, const Rows& rows) {
#pragma omp for schedule(static) nowait
    for (long r = 0; r < rows.count; r++) {
        const T* row = (const T*)op.weight + (op.add ? rows.positions[r] : rows.tokens[r]) * op.outputs;
        float* x = op.to + r * op.outputs;
        for (long i = 0; i < op.outputs; i++) x[i] = op.add ? x[i] + widen(row[i]) : op.scale * widen(row[i]);
    }
}

template <typename Format>
void embed_quantised(const Operation& op, const Rows& rows) {
    const long bytes = op.outputs / BLOCK * Format::BYTES;
#pragma omp for schedule(static) nowait
    for (long r = 0; r < rows.count; r++) {
        float* x = op.to + r * op.outputs;
        widen_row<Format>((const uint8_t*)op.weight + rows.tokens[r] * bytes, x, op.outputs);
        for (long i = 0; i < op.outputs; i++) x[i] *= op.scale;
    }
}

// cos and sin of position * theta_i, times the attention factor
void angles(const Operation& op, const Rows& rows) {
    const long half = op.outputs / 2;
#pragma omp for schedule(static) nowait
    for (long r = 0; r < rows.count; r++)
        for (long i = 0; i < half; i++) {
            const float angle = float(rows.positions[r]) * op.from[i];
            op.to[r * op.outputs + i] = op.scale * std::cos(angle);
            op.to[r * op.outputs + half + i] = op.scale * std::sin(angle);
        }
}

// RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight; LayerNorm takes the mean off first, and adds a bias.
void normalise(const float* x, const float* weight, const float* bias, float* y, long size, float eps, bool centred, bool add) {
    float mean = 0;
    if (centred) {
        for (long i = 0; i < size; i++) mean += x[i];
        mean /= size;
    }
    floats squares = {};
    long i = 0;
    for (; i + LANES <= size; i += LANES) {
        const floats away = load(x + i) - mean;
        squares += away * away;
    }
    float total = sum(squares);
    for (; i < size; i++) total += (x[i] - mean) * (x[i] - mean);
    const float scale = 1 / std::sqrt(total / size + eps);
    for (i = 0; i < size; i++) {
        const float normal = (x[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
        y[i] = add ? y[i] + normal : normal;
    }
}

// Of each row, or (inputs < outputs) of each head of it.
void norm(const Operation& op, const Rows& rows) {
    const long heads = op.outputs / op.inputs;
#pragma omp for schedule(static) nowait
    for (long n = 0; n < rows.count * heads; n++) {
        const long place = n / heads * op.stride + n % heads * op.inputs;
        normalise(op.from + place, (const float*)op.weight, (const float*)op.bias, op.to + place, op.inputs, op.eps,
                  op.centred, op.add);
    }
}

inline floats hyperbolic_tangent(floats x) {  // tanh x = 1 - 2 / (e^2x + 1)
    const floats bounded = larger(-larger(-x, all(-15.0f)), all(-15.0f));
    return 1 - 2 / (exponential(2 * bounded) + 1);
}

inline floats activated(floats x, long activation) {
    switch (activation) {
        case RELU: return larger(x, floats{});
        case GELU: {  // x Phi(x)
            float lanes[LANES];
            store(x, lanes);
            for (float& lane : lanes) lane = 0.5f * lane * (1 + std::erf(lane * 0.70710678f));
            return load(lanes);
        }
        case GELU_TANH:  // Hendrycks & Gimpel 2016, section 2
            return 0.5f * x * (1 + hyperbolic_tangent(0.79788456f * (x + 0.044715f * x * x * x)));
        case SILU: return x / (1 + exponential(-larger(x, all(-80.0f))));  // x sigmoid(x)
    }
    return x;
}

// What the linear layer reads of row r: act(x), or act(gate) * up.
const float* activate(const Operation& op, const float* x, std::vector<float>& buffer) {
    if (op.activation == NONE) return x;
    buffer.resize(op.inputs + LANES);
    const float* up = x + op.inputs;
    float* y = buffer.data();
    long k = 0;
    for (; k + LANES <= op.inputs; k += LANES) {
        const floats active = activated(load(x + k), op.activation);
        store(op.gated ? active * load(up + k) : active, y + k);
    }
    float last[LANES] = {};
    for (long i = k; i < op.inputs; i++) last[i - k] = x[i];
    store(activated(load(last), op.activation), last);
    for (long i = k; i < op.inputs; i++) y[i] = op.gated ? last[i - k] * up[i] : last[i - k];
    return y;
}

// y = total + bias, squeezed or added where that is asked for.
inline void put(const Operation& op, const float* totals, long count, long n) {
    for (long r = 0; r < count; r++) {
        float y = op.bias ? totals[r] + ((const float*)op.bias)[n] : totals[r];
        if (op.cap > 0) y = op.cap * std::tanh(y / op.cap);
        float& place = op.to[r * op.outputs + n];
        place = op.add ? place + y : y;
    }
}

// y = f(x) w^T + bias. Every thread lays f(x) out for itself: that is less work than waiting for one another.
template <typename T>
void linear(const Operation& op, long count) {
    typedef typename Reader<T>::Arranged X;
    static thread_local std::vector<X> arranged;
    static thread_local std::vector<float> active, totals;
    const long inputs = op.inputs, stride = op.gated ? 2 * inputs : inputs;
    arranged.resize((count + 1) * inputs);
    totals.resize(count);
    for (long r = 0; r < count; r++)
        lay_out<T>(activate(op, op.from + r * stride, active), r, count, inputs, arranged.data() + count * inputs,
                   arranged.data());
    const T* weight = (const T*)op.weight;
#pragma omp for schedule(static) nowait
    for (long n = 0; n < op.outputs; n++) {
        dots(arranged.data(), weight + n * inputs, count, inputs, totals.data());
        put(op, totals.data(), count, n);
    }
}

template <typename Format>
void linear_quantised(const Operation& op, long count) {
    static thread_local std::vector<int8_t> bytes;
    static thread_local std::vector<float> active, numbers, totals;
    static thread_local std::vector<Rounded> rounded;
    const long inputs = op.inputs, stride = op.gated ? 2 * inputs : inputs, blocks = inputs / BLOCK;
    bytes.resize(count * inputs);
    numbers.resize(2 * count * blocks);
    rounded.resize(count);
    totals.resize(count);
    for (long r = 0; r < count; r++) {
        float* own = numbers.data() + 2 * r * blocks;
        rounded[r] = {bytes.data() + r * inputs, own, own + blocks};
        round_row(activate(op, op.from + r * stride, active), rounded[r], inputs);
    }
#pragma omp for schedule(static) nowait
    for (long n = 0; n < op.outputs; n++) {
        const uint8_t* row = (const uint8_t*)op.weight + n * blocks * Format::BYTES;
        quantised_dots<Format>(rounded.data(), row, count, blocks, totals.data());
        put(op, totals.data(), count, n);
    }
}

// Turns a head by its row's angles (RoFormer, Su et al. 2021, eq. 34), halves apart.
inline void turn(float* x, const float* angles, long dim) {
    const float *cos = angles, *sin = angles + dim / 2;
    for (long i = 0; i < dim / 2; i++) {
        const float first = x[i], second = x[i + dim / 2];
        x[i] = first * cos[i] - second * sin[i];
        x[i + dim / 2] = second * cos[i] + first * sin[i];
    }
}

// Queries and keys are turned; keys and values go into the cache. `to`: (R, (H + 2 K) D), query, key, value.
template <typename C>
void store_heads(const Operation& op, const Rows& rows) {
    const long D = op.dim, B = op.block, heads = op.heads + op.kv_heads;
#pragma omp for schedule(static) nowait
    for (long n = 0; n < rows.count * heads; n++) {
        const long r = n / heads, head = n % heads;
        float* row = op.to + r * (op.heads + 2 * op.kv_heads) * D;
        if (op.angles) turn(row + head * D, op.angles + r * D, D);
        if (head < op.heads) continue;
        const long k = head - op.heads, block = rows.slots[r] / B, offset = rows.slots[r] % B;
        const float *key = row + head * D, *value = key + op.kv_heads * D;
        C* keys = (C*)op.keys + (block * op.kv_heads + k) * D * B;
        C* values = (C*)op.values + (block * op.kv_heads + k) * B * D;
        for (long d = 0; d < D; d++) store(key[d], keys + d * B + offset);
        for (long d = 0; d < D; d++) store(value[d], values + offset * D + d);
    }
}

// For row r and key-value head k, over the keys of one span: of each of the G query heads the largest score m, the sum of
// e^(s - m), and the sum of e^(s - m) v (online softmax, Milakov & Gimelshein 2018; spans as in Flash-Decoding, Dao
// et al. 2023). part: G times (m, sum, D numbers).
template <typename C>
void attend_span(const Operation& op, const Rows& rows, long r, long k, long first, long last, float* part) {
    const long D = op.dim, B = op.block, G = op.heads / op.kv_heads;
    const float* query = op.from + r * (op.heads + 2 * op.kv_heads) * D + k * G * D;
    const int64_t* table = rows.tables + r * rows.width;
    const long begin = first / B * B, length = (last - begin + LANES - 1) / LANES * LANES;
    static thread_local std::vector<float> scores;
    scores.resize(G * length);
    for (long t = begin; t < last; t += LANES) {  // LANES keys at once: B is a multiple of LANES
        const C* keys = (const C*)op.keys + (table[t / B] * op.kv_heads + k) * D * B + t % B;
        for (long g = 0; g < G; g++) {
            floats s[2] = {};
            long d = 0;
            for (; d + 2 <= D; d += 2) {
                s[0] += query[g * D + d] * load(keys + d * B);
                s[1] += query[g * D + d + 1] * load(keys + (d + 1) * B);
            }
            if (d < D) s[0] += query[g * D + d] * load(keys + d * B);
            floats score = (s[0] + s[1]) * op.scale;
            if (op.cap > 0) score = op.cap * hyperbolic_tangent(score / op.cap);
            for (long i = 0; i < LANES; i++) {
                if (op.slopes) score[i] -= op.slopes[k * G + g] * float(rows.positions[r] - (t + i));
                if (t + i < first || t + i >= last) score[i] = -INFINITY;
            }
            store(score, scores.data() + g * length + t - begin);
        }
    }
    for (long g = 0; g < G; g++, part += D + 2) {
        float* s = scores.data() + g * length;
        floats most = all(-INFINITY), total = {};
        for (long t = 0; t < length; t += LANES) most = larger(most, load(s + t));
        const float m = largest(most);
        for (long t = 0; t < length; t += LANES) {
            const floats p = exponential(load(s + t) - m);
            store(p, s + t);
            total += p;
        }
        part[0] = m, part[1] = sum(total);
        for (long d = 0; d < D; d++) part[2 + d] = 0;
        for (long t = first; t < last; t++) {
            const C* value = (const C*)op.values + ((table[t / B] * op.kv_heads + k) * B + t % B) * D;
            const float p = s[t - begin];
            long d = 0;
            for (; d + LANES <= D; d += LANES) store(load(part + 2 + d) + p * load(value + d), part + 2 + d);
            for (; d < D; d++) part[2 + d] += p * widen(value[d]);
        }
    }
}

// softmax(q K^T * scale) V (Vaswani et al. 2017, eq. 1). Spans lie at fixed places, so that no sum depends on the batch.
template <typename C>
void attend(const Operation& op, const Rows& rows, Team& team) {
    const long D = op.dim, K = op.kv_heads, G = op.heads / K, size = G * (D + 2);
    const long tasks = rows.count * K * op.spans;
#pragma omp for schedule(dynamic, 1) nowait
    for (long n = 0; n < tasks; n++) {
        const long r = n / (K * op.spans), k = n / op.spans % K, span = n % op.spans;
        const long end = rows.positions[r] + 1, start = op.window && end > op.window ? end - op.window : 0;
        const long first = span * SPAN > start ? span * SPAN : start, last = (span + 1) * SPAN < end ? (span + 1) * SPAN : end;
        if (first < last) attend_span<C>(op, rows, r, k, first, last, op.parts + n * size);
    }
    team.wait();
#pragma omp for schedule(static) nowait
    for (long n = 0; n < rows.count * op.heads; n++) {
        const long r = n / op.heads, h = n % op.heads, k = h / G;
        const long end = rows.positions[r] + 1, start = op.window && end > op.window ? end - op.window : 0;
        float* y = op.to + n * D;
        float most = -INFINITY, total = 0;
        for (long d = 0; d < D; d++) y[d] = 0;
        for (long span = start / SPAN; span * SPAN < end; span++) {
            const float* part = op.parts + ((r * K + k) * op.spans + span) * size + h % G * (D + 2);
            const float m = part[0] > most ? part[0] : most;
            const float before = std::exp(most - m), now = std::exp(part[0] - m);
            total = total * before + part[1] * now;
            for (long d = 0; d < D; d++) y[d] = y[d] * before + part[2 + d] * now;
            most = m;
        }
        for (long d = 0; d < D; d++) y[d] /= total;
    }
}

// The rows whose logits are wanted, one after the other.
void take(const Operation& op, const Rows& rows) {
#pragma omp for schedule(static) nowait
    for (long n = 0; n < rows.num_wanted; n++)
        std::memcpy(op.to + n * op.inputs, op.from + rows.wanted[n] * op.inputs, op.inputs * sizeof(float));
}

void perform(const Operation& op, const Rows& rows, Team& team) {
    const bool narrow = op.type == BFLOAT16;
    const long count = op.few ? rows.num_wanted : rows.count;
    switch (op.kind) {
        case EMBED:
            switch (op.type) {
                case Q8_0_BLOCKS: return embed_quantised<Q8_0>(op, rows);
                case Q4_0_BLOCKS: return embed_quantised<Q4_0>(op, rows);
                case Q4_1_BLOCKS: return embed_quantised<Q4_1>(op, rows);
                default: return narrow ? embed<uint16_t>(op, rows) : embed<float>(op, rows);
            }
        case ANGLES: return angles(op, rows);
        case NORM: return norm(op, rows);
        case LINEAR:
            switch (op.type) {
                case Q8_0_BLOCKS: return linear_quantised<Q8_0>(op, count);
                case Q4_0_BLOCKS: return linear_quantised<Q4_0>(op, count);
                case Q4_1_BLOCKS: return linear_quantised<Q4_1>(op, count);
                default: return narrow ? linear<uint16_t>(op, count) : linear<float>(op, count);
            }
        case STORE: return narrow ? store_heads<uint16_t>(op, rows) : store_heads<float>(op, rows);
        case ATTEND: return narrow ? attend<uint16_t>(op, rows, team) : attend<float>(op, rows, team);
        case TAKE: return take(op, rows);
    }
}

}  // namespace

extern "C" int64_t span() { return SPAN; }

extern "C" void run_step(const Operation* operations, int64_t count, const Rows* rows) {
    Team team;
#pragma omp parallel
    {
#pragma omp single
        team.threads = omp_get_num_threads();
        for (long n = 0; n < count; n++) {
            perform(operations[n], *rows, team);
            team.wait();
        }
    }
}
