// The linear layers of a step: rows are laid out for the kernels of `linear.h` and `quantised.h`, products are put away.

#pragma once

#include <algorithm>
#include <vector>

#include "elementwise.h"
#include "linear.h"
#include "operation.h"
#include "quantised.h"

namespace {

constexpr long ROWS = 64, OUTPUTS = 64;  // of a linear layer that a thread computes before it puts them away

// y = factor * total + bias, squeezed or added where that is asked for, for LANES outputs.
inline void put(const Operation& op, const float* totals, const float* factors, const float* bias, float* y) {
    floats total = load(totals);
    if (factors) total *= load(factors);
    if (bias) total += load(bias);
    if (op.cap > 0) total = op.cap * hyperbolic_tangent(total / op.cap);
    store(op.add ? load(y) + total : total, y);
}

// The same for outputs n .. n + N of row r.
inline void put(const Operation& op, const Rows& rows, const float* totals, float* to, long r, long n, long N) {
    const float *factors = op.factors ? op.factors[rows.adapters[r]] : nullptr, *bias = (const float*)op.bias;
    if (factors) factors += n;
    if (bias) bias += n;
    float* y = to + r * (op.stride ? op.stride : op.outputs) + n;
    if (N == LANES) return put(op, totals, factors, bias, y);
    float last_y[LANES], last_factors[LANES], last_bias[LANES];  // the last outputs, where they are fewer
    for (long i = 0; i < N; i++)
        last_y[i] = y[i], last_factors[i] = factors ? factors[i] : 1, last_bias[i] = bias ? bias[i] : 0;
    put(op, totals, last_factors, last_bias, last_y);
    for (long i = 0; i < N; i++) y[i] = last_y[i];
}

// y = f(x) w^T + bias, by groups of rows and LANES outputs. arrange(r, group, m, S) lays f(x_r) out in its group, whose m-th
// row it is; multiply(group, S, n, N, y) gives the products of a group with N rows of weights from n on, y[m * OUTPUTS + i].
// Of few rows every thread lays f(x) out for itself: that is less work than waiting for one another.
template <typename Arrange, typename Multiply>
void by_panels(const Operation& op, const Rows& rows, Team& team, long size, const Arrange& arrange, const Multiply& multiply) {
    static thread_local Room own;
    const long count = op.few ? rows.num_wanted : rows.count;
    const bool few = count <= FEW;
    char* room = few ? own.of(count * size) : team.room;
    const auto place = [&](long r) {
        const long first = r / TOGETHER * TOGETHER, S = count - first < TOGETHER ? count - first : TOGETHER;
        arrange(r, room + first * size, r - first, S);
    };
    if (few)
        for (long r = 0; r < count; r++) place(r);
    else {
#pragma omp for schedule(static) nowait
        for (long r = 0; r < count; r++) place(r);
        team.wait();
    }
    const long outputs = few ? LANES : OUTPUTS, blocks = (count + ROWS - 1) / ROWS;
    alignas(64) float totals[ROWS * OUTPUTS];
#pragma omp for schedule(static) nowait
    for (long task = 0; task < (op.outputs + outputs - 1) / outputs * blocks; task++) {
        const long begin = task % blocks * ROWS, end = count - begin < ROWS ? count : begin + ROWS;
        const long from = task / blocks * outputs, to = op.outputs - from < outputs ? op.outputs : from + outputs;
        for (long n = from; n < to; n += LANES)
            for (long first = begin; first < end; first += TOGETHER)
                multiply(room + first * size, end - first < TOGETHER ? end - first : TOGETHER, n,
                         to - n < LANES ? to - n : LANES, totals + (first - begin) * OUTPUTS + n - from);
        for (long r = begin; r < end; r++)
            for (long n = from; n < to; n += LANES)
                put(op, rows, totals + (r - begin) * OUTPUTS + n - from, op.to ? op.to : rows.logits, r, n,
                    to - n < LANES ? to - n : LANES);
    }
}

template <typename T>
void linear(const Operation& op, const Rows& rows, Team& team) {
    typedef typename Reader<T>::Arranged X;
    const long inputs = op.inputs, stride = op.row ? op.row : op.gated ? 2 * inputs : inputs;
    by_panels(
        op, rows, team, inputs * sizeof(X),
        [&](long r, char* group, long m, long S) {
            static thread_local std::vector<float> active;
            const float* x = activate(op.from + r * stride, inputs, op.activation, op.gated, active);
            lay_out<T>(x, m, S, inputs, (X*)group);
        },
        [&](const char* group, long S, long n, long N, float* y) {
            multiply((const X*)group, S, (const T*)op.weight + n * inputs, inputs, N, y, OUTPUTS);
        });
}

template <typename Format>
void linear_quantised(const Operation& op, const Rows& rows, Team& team) {
    const long inputs = op.inputs, stride = op.row ? op.row : op.gated ? 2 * inputs : inputs, blocks = inputs / BLOCK;
    by_panels(
        op, rows, team, rounded_size(inputs),
        [&](long r, char* group, long m, long S) {
            static thread_local std::vector<float> active;
            const float* x = activate(op.from + r * stride, inputs, op.activation, op.gated, active);
            round_row(x, m, S, Rounded(group, S, inputs), inputs);
        },
        [&](char* group, long S, long n, long N, float* y) {
            const Rounded x(group, S, inputs);
            const uint8_t* w = (const uint8_t*)op.weight + n * blocks * Format::BYTES;
            multiply_quantised<Format>(x, S, w, blocks, N, y, OUTPUTS);
        });
}

// y += factor * sum_k x_k w_k for a matrix of few inputs, laid out (inputs, outputs): what is read of it at once belongs to
// outputs that stand together, and nothing is added up across.
void spread(const Operation& op, const Rows& rows) {
    constexpr long W = OUTPUTS / LANES;
    const float* weight = (const float*)op.weight;
#pragma omp for schedule(static) nowait
    for (long n = 0; n < op.outputs; n += OUTPUTS) {
        const long whole = (op.outputs - n < OUTPUTS ? op.outputs - n : OUTPUTS) / LANES, end = std::min(op.outputs, n + OUTPUTS);
        for (long r = 0; r < rows.count; r++) {
            const float *x = op.from + r * op.row, *factors = op.factors[rows.adapters[r]];
            float* y = op.to + r * op.stride;
            if (whole == W) {
                floats sums[W] = {};
                for (long k = 0; k < op.inputs; k++)
                    for (long i = 0; i < W; i++) sums[i] += x[k] * load(weight + k * op.outputs + n + i * LANES);
                for (long i = 0; i < W; i++) {
                    const long place = n + i * LANES;
                    store(load(y + place) + load(factors + place) * sums[i], y + place);
                }
                continue;
            }
            for (long i = n; i < end; i++) {
                float sum = 0;
                for (long k = 0; k < op.inputs; k++) sum += x[k] * weight[k * op.outputs + i];
                y[i] += factors[i] * sum;
            }
        }
    }
}

}  // namespace
