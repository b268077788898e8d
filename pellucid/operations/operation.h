// What a step is made of: an operation, which Python writes, the rows that it is done for, and what its threads share.
//
// R rows, one token each; E hidden size, H query heads, K key-value heads, D head dimension.

#pragma once

#include <cstdint>
#include <vector>

#include "attention.h"
#include "threads.h"

namespace {

enum Kind { EMBED, ANGLES, NORM, LINEAR, STORE, ATTEND, TAKE, SPREAD };
enum Type { FLOAT32, BFLOAT16, Q8_0_BLOCKS, Q4_0_BLOCKS, Q4_1_BLOCKS, INT8 };  // INT8: of the cache alone
constexpr long FEW = 16;  // rows, up to which threads rather do a thing twice than wait for one another

// What an operation reads of the step: R rows, with their tokens, positions and sequences (rows of one sequence stand together,
// their positions one after the other); the blocks of each sequence; which rows' logits are wanted, and where they go. Of
// each row the number of its adapter, 0 for none; of each adapter the first of its rows, which stand together, and the one
// behind the last.
struct Rows {
    const int64_t *tokens, *positions, *sequences, *tables, *wanted;
    float* logits;
    const int64_t *adapters, *ranges;
    int64_t count, width, num_wanted;  // width: entries of a sequence's row of tables

    const int64_t* table(long r) const { return tables + sequences[r] * width; }
};

// What the threads share.
struct Team {
    Barrier barrier;
    int threads;
    char* room;  // for what a linear layer reads of many rows
    std::vector<Tile> tiles;
    void wait() { barrier.wait(threads); }
};

struct Operation {
    int64_t kind, type;
    const void *weight, *bias;         // LINEAR, EMBED, NORM
    const float *const *factors;       // LINEAR, SPREAD: of each adapter, what outputs are multiplied by before the bias, or null
    const float *from;                 // what it reads, float32, (R, inputs)
    float *to;                         // what it writes, (R, outputs); null: the logits
    int64_t inputs, outputs;
    int64_t stride;                    // NORM, LINEAR, SPREAD: from a row of what it writes to the next; LINEAR: 0 for `outputs`
    int64_t row;                       // LINEAR, SPREAD: from a row of what it reads to the next, 0 where nothing lies between
    int64_t adapter;                   // LINEAR, SPREAD: over the rows of this one alone, 0 for all
    int64_t add;                       // LINEAR, NORM: to what is there
    int64_t few;                       // over the wanted rows alone
    int64_t activation, gated;         // LINEAR: of its input; gated: act(first half) * second half
    float scale, cap;                  // EMBED, ANGLES, ATTEND; cap: c tanh(x / c) of what it gives, 0 for none
    float eps;                         // NORM
    int64_t centred;                   // NORM: LayerNorm
    int64_t heads, kv_heads, dim, window, block;  // STORE, ATTEND
    int64_t apart;                     // heads of the cache from a block to the next: K of every layer
    void *keys, *values;               // the cache: keys (blocks, K, D / P, block, P), values (blocks, K, block / P, D, P)
    float *key_scales, *value_scales;  // of a cache of bytes: (blocks, K, block)
    const float *angles;               // STORE: (R, D), cos and then sin of D / 2 angles; null: it does not turn
    const float *slopes;               // ATTEND: ALiBi's, or null
    float *parts;                      // ATTEND: room for what the spans of few rows find
    int64_t spans;                     // ATTEND: of the longest sequence
};

}  // namespace
