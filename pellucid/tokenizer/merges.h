// Merges, and the two ways of applying them to a pre-token.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <unordered_map>
#include <utility>
#include <vector>

constexpr int32_t NO_RANK = INT32_MAX;
constexpr size_t LONG = 128;  // bytes: from here on, places are kept by rank instead of being searched
struct Merge { int32_t rank, result; };

inline uint64_t mixed(uint64_t x) {
    x *= 0x9E3779B97F4A7C15u;
    return x ^ x >> 32;
}

// (left, right) -> merge. Symbols, which are what merges join, are numbered from 0; key 0 marks an empty slot.
class Merges {
  public:
    void add(int32_t left, int32_t right, Merge merge) {
        if (2 * (count + 1) > slots.size()) grow();
        Slot& slot = slots[place(key_of(left, right))];
        if (!slot.key) count++;
        slot = {key_of(left, right), merge};
    }
    Merge find(int32_t left, int32_t right) const { return slots[place(key_of(left, right))].merge; }

  private:
    struct Slot { uint64_t key = 0; Merge merge = {NO_RANK, 0}; };
    std::vector<Slot> slots = std::vector<Slot>(64);
    size_t count = 0;

    static uint64_t key_of(int32_t left, int32_t right) { return uint64_t(left + 1) << 32 | uint32_t(right + 1); }
    size_t place(uint64_t key) const {
        size_t i = mixed(key) & (slots.size() - 1);
        while (slots[i].key && slots[i].key != key) i = (i + 1) & (slots.size() - 1);
        return i;
    }
    void grow() {
        std::vector<Slot> old(2 * slots.size());
        old.swap(slots);
        for (const Slot& slot : old)
            if (slot.key) slots[place(slot.key)] = slot;
    }
};

// The pair of lowest rank is merged, the leftmost first, until no pair has a rank; by searching the list of pairs.
inline size_t merge_short(const Merges& merges, int32_t* symbols, size_t length) {
    Merge pairs[LONG];
    for (size_t i = 0; i + 1 < length; i++) pairs[i] = merges.find(symbols[i], symbols[i + 1]);
    while (length > 1) {
        size_t i = 0;
        for (size_t j = 1; j + 1 < length; j++)
            if (pairs[j].rank < pairs[i].rank) i = j;
        if (pairs[i].rank == NO_RANK) break;
        symbols[i] = pairs[i].result;
        std::copy(symbols + i + 2, symbols + length, symbols + i + 1);
        std::copy(pairs + i + 1, pairs + length - 1, pairs + i);
        length--;
        if (i > 0) pairs[i - 1] = merges.find(symbols[i - 1], symbols[i]);
        if (i + 1 < length) pairs[i] = merges.find(symbols[i], symbols[i + 1]);
    }
    return length;
}

// The same in near-linear time: a linked list of symbols, and for each rank the places that have it.
class LongMerge {
  public:
    LongMerge(const Merges& merges, int32_t* symbols, size_t length)
        : merges(merges), symbols(symbols), end(int32_t(length)), after(length), before(length),
          pairs(length, {NO_RANK, 0}) {}

    size_t run() {
        for (int32_t i = 0; i < end; i++) {
            after[i] = i + 1;
            before[i] = i - 1;
        }
        for (int32_t i = 0; i < end; i++) look(i);
        while (!ranks.empty()) {
            const int32_t lowest = ranks.top();
            ranks.pop();
            std::vector<int32_t> waiting = std::move(places[lowest]);
            places.erase(lowest);
            if (!std::is_sorted(waiting.begin(), waiting.end())) std::sort(waiting.begin(), waiting.end());
            size_t done = 0;  // a merge may make a pair of lower rank: that goes first
            for (; done < waiting.size() && (ranks.empty() || ranks.top() > lowest); done++)
                if (pairs[waiting[done]].rank == lowest) merge(waiting[done]);  // else a part has changed since
            for (; done < waiting.size(); done++) put(lowest, waiting[done]);
        }
        size_t count = 0;
        for (int32_t i = 0; i < end; i = after[i]) symbols[count++] = symbols[i];
        return count;
    }

  private:
    const Merges& merges;
    int32_t* symbols;
    const int32_t end;
    std::vector<int32_t> after, before;
    std::vector<Merge> pairs;  // of the symbol at i with the next, as of now
    std::unordered_map<int32_t, std::vector<int32_t>> places;
    std::priority_queue<int32_t, std::vector<int32_t>, std::greater<int32_t>> ranks;

    void look(int32_t i) {
        pairs[i] = after[i] < end ? merges.find(symbols[i], symbols[after[i]]) : Merge{NO_RANK, 0};
        if (pairs[i].rank != NO_RANK) put(pairs[i].rank, i);
    }
    void put(int32_t rank, int32_t i) {
        std::vector<int32_t>& there = places[rank];
        if (there.empty()) ranks.push(rank);
        there.push_back(i);
    }
    void merge(int32_t i) {
        const int32_t gone = after[i];
        symbols[i] = pairs[i].result;
        pairs[gone].rank = NO_RANK;
        after[i] = after[gone];
        if (after[i] < end) before[after[i]] = i;
        look(i);
        if (before[i] >= 0) look(before[i]);
    }
};
