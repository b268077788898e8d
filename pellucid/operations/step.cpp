// One step of a decoder: all of its layers in one call, for one row or for some hundred.
//
// A step is a list of operations, which Python writes once for a model; every thread goes through it, and shares the
// work of each operation with the others. The residual stream and all activations are float32. What a row gives does
// not depend on the other rows.
//
// R rows, one token each; E hidden size, H query heads, K key-value heads, G = H / K, D head dimension.

#include <omp.h>

#include <cmath>
#include <vector>

#include "attention.h"
#include "elementwise.h"
#include "operation.h"
#include "products.h"
#include "quantised.h"
#include "threads.h"

namespace {

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

// Turns a head by its row's angles (RoFormer, Su et al. 2021, eq. 34), halves apart.
inline void turn(float* x, const float* angles, long dim) {
    const float *cos = angles, *sin = angles + dim / 2;
    for (long i = 0; i < dim / 2; i++) {
        const float first = x[i], second = x[i + dim / 2];
        x[i] = first * cos[i] - second * sin[i];
        x[i + dim / 2] = second * cos[i] + first * sin[i];
    }
}

// D numbers to places that are `stride(d)` away. Of bytes, x = s q with s the largest |x| / 127, q rounded, halves away from
// zero; s goes to `scale`.
template <typename C, typename Stride>
inline void put_away(const float* x, C* to, long D, float* scale, const Stride& stride) {
    if constexpr (sizeof(C) > 1) {
        for (long d = 0; d < D; d++) store(x[d], to + stride(d));
        return;
    }
    float most = 0;
    for (long d = 0; d < D; d++) most = std::fabs(x[d]) > most ? std::fabs(x[d]) : most;
    *scale = most / 127;
    for (long d = 0; d < D; d++) to[stride(d)] = most > 0 ? C(std::round(x[d] / *scale)) : C(0);
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
        const long k = head - op.heads, block = rows.table(r)[rows.positions[r] / B], offset = rows.positions[r] % B;
        const float *key = row + head * D, *value = key + op.kv_heads * D;
        constexpr long P = BESIDE<C>;
        C* keys = (C*)op.keys + (block * op.apart + k) * D * B + offset * P;
        C* values = (C*)op.values + (block * op.apart + k) * B * D + offset / P * P * D + offset % P;
        const long scale = (block * op.apart + k) * B + offset;
        put_away(key, keys, D, op.key_scales + scale, [&](long d) { return d / P * B * P + d % P; });
        put_away(value, values, D, op.value_scales + scale, [&](long d) { return d * P; });
    }
}

// What tile `tile` asks of key-value head k; `queries` and `ends` are filled for it.
template <typename C>
Asked<C> ask(const Operation& op, const Rows& rows, const Tile& tile, long k) {
    static thread_local std::vector<typename Factor<C>::Own> queries;
    static thread_local std::vector<float> slopes;
    static thread_local std::vector<int64_t> ends;
    constexpr long P = BESIDE<C>;
    const long D = op.dim, B = op.block, K = op.kv_heads, G = op.heads / K, Q = tile.rows * G;
    queries.resize(D / P * Q), slopes.resize(Q), ends.resize(Q);
    for (long q = 0; q < Q; q++) {
        const long r = tile.first + q / G, h = k * G + q % G;
        const float* query = op.from + (r * (op.heads + 2 * K) + h) * D;
        for (long d = 0; d < D; d += P)
            queries[d / P * Q + q] = Factor<C>::of(query[d] * op.scale, query[d + P - 1] * op.scale);
        ends[q] = rows.positions[r] + 1;
        slopes[q] = op.slopes ? op.slopes[h] : 0;
    }
    return {(const C*)op.keys + k * D * B, (const C*)op.values + k * D * B, op.key_scales + k * B, op.value_scales + k * B,
            rows.table(tile.first), B, D, op.apart * D * B, Q,
            queries.data(), ends.data(), op.window, op.cap, op.slopes ? slopes.data() : nullptr};
}

// Every span of few rows is a task of its own; of many rows, a tile with all of its spans.
template <typename C>
void attend(const Operation& op, const Rows& rows, Team& team) {
    const long D = op.dim, K = op.kv_heads, G = op.heads / K, size = FOUND + D, tiles = team.tiles.size();
    const bool few = rows.count <= FEW;
    const auto parts = [&](const Tile& tile, long k, long span) {
        return op.parts + ((tile.first * op.heads + k * tile.rows * G) * op.spans + span * tile.rows * G) * size;
    };
    const auto spans = [&](const Tile& tile, const auto& each) {
        const long from = rows.positions[tile.first] + 1, end = rows.positions[tile.first + tile.rows - 1] + 1;
        const long start = op.window && from > op.window ? from - op.window : 0;
        for (long span = start / SPAN; span * SPAN < end; span++)
            each(span, span * SPAN > start ? span * SPAN : start, (span + 1) * SPAN < end ? (span + 1) * SPAN : end);
    };
    if (few) {
#pragma omp for schedule(dynamic, 1) nowait
        for (long n = 0; n < tiles * K * op.spans; n++) {
            const Tile& tile = team.tiles[n / (K * op.spans)];
            spans(tile, [&](long span, long first, long last) {
                const long k = n / op.spans % K;
                if (span == n % op.spans) attend_span(ask<C>(op, rows, tile, k), first, last, parts(tile, k, span));
            });
        }
        team.wait();
    }
#pragma omp for schedule(dynamic, 1) nowait
    for (long n = 0; n < tiles * K; n++) {
        static thread_local std::vector<float> found, part;
        const Tile& tile = team.tiles[n / K];
        const long k = n % K, Q = tile.rows * G;
        found.resize(Q * size), part.resize(Q * size);
        for (long q = 0; q < Q; q++) forget(&found[q * size], D);
        const Asked<C> asked = ask<C>(op, rows, tile, k);
        spans(tile, [&](long span, long first, long last) {
            const float* there = few ? parts(tile, k, span) : part.data();
            if (!few) attend_span(asked, first, last, part.data());
            for (long q = 0; q < Q; q++) add_found(there + q * size, &found[q * size], D);
        });
        for (long q = 0; q < Q; q++) {
            float* y = op.to + ((tile.first + q / G) * op.heads + k * G + q % G) * D;
            for (long d = 0; d < D; d++) y[d] = found[q * size + FOUND + d] / found[q * size + 1];
        }
    }
}

// Tiles of `most` rows at most.
void cut(const Rows& rows, long most, std::vector<Tile>& tiles) {
    for (long r = 0; r < rows.count; r++)
        if (r && rows.sequences[r] == rows.sequences[r - 1] && tiles.back().rows < most)
            tiles.back().rows++;
        else
            tiles.push_back({r, 1});
}

// The rows whose logits are wanted, one after the other.
void take(const Operation& op, const Rows& rows) {
#pragma omp for schedule(static) nowait
    for (long n = 0; n < rows.num_wanted; n++)
        std::memcpy(op.to + n * op.inputs, op.from + rows.wanted[n] * op.inputs, op.inputs * sizeof(float));
}

void perform(const Operation& op, const Rows& rows, Team& team) {
    const bool narrow = op.type == BFLOAT16;
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
                case Q8_0_BLOCKS: return linear_quantised<Q8_0>(op, rows, team);
                case Q4_0_BLOCKS: return linear_quantised<Q4_0>(op, rows, team);
                case Q4_1_BLOCKS: return linear_quantised<Q4_1>(op, rows, team);
                default: return narrow ? linear<uint16_t>(op, rows, team) : linear<float>(op, rows, team);
            }
        case STORE:
            if (op.type == INT8) return store_heads<int8_t>(op, rows);
            return narrow ? store_heads<uint16_t>(op, rows) : store_heads<float>(op, rows);
        case ATTEND:
            if (op.type == INT8) return attend<int8_t>(op, rows, team);
            return narrow ? attend<uint16_t>(op, rows, team) : attend<float>(op, rows, team);
        case TAKE: return take(op, rows);
        case SPREAD: return spread(op, rows);
    }
}

// What an adapter does to its rows; whether it has any.
bool perform_for_adapter(const Operation& op, const Rows& rows, Team& team) {
    const long first = rows.ranges[2 * op.adapter], end = rows.ranges[2 * op.adapter + 1];
    if (first == end) return false;
    Operation own = op;
    Rows part = rows;
    own.from += first * (op.row ? op.row : op.gated ? 2 * op.inputs : op.inputs);
    own.to += first * (op.stride ? op.stride : op.outputs);
    part.count = end - first, part.adapters += first;
    perform(own, part, team);
    return true;
}

}  // namespace

extern "C" int64_t span() { return SPAN; }

extern "C" void run_step(const Operation* operations, int64_t count, const Rows* rows) {
    static thread_local Room room;
    Team team;
    long needed = 0;
    for (long n = 0; n < count; n++) {
        const Operation& op = operations[n];
        if (op.kind == LINEAR && needed < op.inputs) needed = op.inputs;
        if (op.kind == ATTEND && team.tiles.empty()) cut(*rows, std::max(1L, QUERIES * op.kv_heads / op.heads), team.tiles);
    }
    team.room = room.of(rows->count > FEW ? rows->count * needed * sizeof(float) : 0);
#pragma omp parallel
    {
#pragma omp single
        team.threads = omp_get_num_threads();
        for (long n = 0; n < count; n++) {
            if (operations[n].adapter && !perform_for_adapter(operations[n], *rows, team)) continue;
            if (!operations[n].adapter) perform(operations[n], *rows, team);
            team.wait();
        }
    }
}
