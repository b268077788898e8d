// Byte-level byte-pair encoding: what bpe.py and patterns.py do, several times as fast. Plain C interface at the end.
//
// Text is split into pre-tokens (patterns.h), and the tokens of a pre-token are looked up among those computed before,
// or merged (merges.h). Results are those of the Python path in every case; where a byte has no token, the encoder
// declines, and the Python path says so.

#include "merges.h"
#include "patterns.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace {

// ---- Remembering ---------------------------------------------------------------------------------------------------

// Pre-token -> ids, emptied when full: 2^18 pre-tokens of at most 256 bytes, 16 MB of bytes and ids.
class Memory {
  public:
    static constexpr size_t LONGEST = 256, MOST = 1 << 18, ROOM = 1 << 24;
    struct Entry { uint32_t hash = 0, start = 0, ids = 0; uint16_t length = 0, count = 0; };  // length 0: empty

    const int32_t* ids(const Entry& entry) const { return all_ids.data() + entry.ids; }

    Entry& find(const Byte* piece, size_t length, uint32_t hash) {
        size_t i = hash & (slots.size() - 1);
        while (slots[i].length) {
            const Entry& entry = slots[i];
            if (entry.hash == hash && entry.length == length)
                if (!memcmp(bytes.data() + entry.start, piece, length)) break;
            i = (i + 1) & (slots.size() - 1);
        }
        return slots[i];
    }

    void keep(const Byte* piece, size_t length, uint32_t hash, const int32_t* ids, size_t count) {
        if (entries == MOST || bytes.size() + 4 * all_ids.size() > ROOM) *this = Memory();
        if (2 * (entries + 1) > slots.size()) grow();
        const auto start = uint32_t(bytes.size()), first = uint32_t(all_ids.size());
        find(piece, length, hash) = {hash, start, first, uint16_t(length), uint16_t(count)};
        bytes.insert(bytes.end(), piece, piece + length);
        all_ids.insert(all_ids.end(), ids, ids + count);
        entries++;
    }

    static uint32_t hash_of(const Byte* piece, size_t length) {
        uint64_t hash = length, part = 0;
        for (; length >= 8; piece += 8, length -= 8) {
            memcpy(&part, piece, 8);
            hash = mixed(hash ^ part);
        }
        part = 0;
        for (size_t i = 0; i < length; i++) part |= uint64_t(piece[i]) << 8 * i;
        return uint32_t(mixed(mixed(hash ^ part)));
    }

  private:
    std::vector<Entry> slots = std::vector<Entry>(1024);
    std::vector<Byte> bytes;
    std::vector<int32_t> all_ids;
    size_t entries = 0;

    void grow() {
        std::vector<Entry> old(2 * slots.size());
        old.swap(slots);
        for (const Entry& entry : old) {
            size_t i = entry.hash & (slots.size() - 1);
            while (slots[i].length) i = (i + 1) & (slots.size() - 1);
            if (entry.length) slots[i] = entry;
        }
    }
};

// ---- The encoder ---------------------------------------------------------------------------------------------------

struct Encoder {
    Rules rules{};
    bool whole_first = false;
    std::deque<std::string> spelt;                           // the bytes of each symbol; the first 256 are the bytes
    std::unordered_map<std::string_view, int32_t> symbols;
    std::vector<int32_t> ids;                                // of each symbol; -1: none
    Merges merges;
    std::mutex lock;
    std::vector<std::unique_ptr<Memory>> idle;               // each call in progress has a memory to itself

    int32_t symbol(std::string_view bytes) {
        const auto found = symbols.find(bytes);
        if (found != symbols.end()) return found->second;
        spelt.emplace_back(bytes);
        ids.push_back(-1);
        return symbols[spelt.back()] = int32_t(ids.size() - 1);
    }

    // tiktoken's rule: neighbours merge if their concatenation is a token; its id is the rank.
    void merge_by_id() {
        for (size_t whole = 0; whole < ids.size(); whole++) {
            const std::string_view bytes = spelt[whole];
            for (size_t cut = 1; cut < bytes.size(); cut++) {
                const auto left = symbols.find(bytes.substr(0, cut));
                if (left == symbols.end()) continue;
                const auto right = symbols.find(bytes.substr(cut));
                if (right != symbols.end()) merges.add(left->second, right->second, {ids[whole], int32_t(whole)});
            }
        }
    }

    // Writes the ids of one pre-token; returns how many, or -1 if a byte or a result of merges has no token.
    int64_t piece(const Byte* text, size_t length, int32_t* out, Memory& memory) const {
        const uint32_t hash = length <= Memory::LONGEST ? Memory::hash_of(text, length) : 0;
        if (length <= Memory::LONGEST) {
            const Memory::Entry& entry = memory.find(text, length, hash);
            if (entry.length) {
                memcpy(out, memory.ids(entry), 4 * entry.count);
                return entry.count;
            }
        }
        if (length > INT32_MAX) return -1;  // places are 32 bits wide
        for (size_t i = 0; i < length; i++)
            if (ids[text[i]] < 0) return -1;
        const int64_t count = merged(text, length, out);
        if (length <= Memory::LONGEST && count > 0) memory.keep(text, length, hash, out, size_t(count));
        return count;
    }

    int64_t merged(const Byte* text, size_t length, int32_t* out) const {
        if (whole_first) {
            const auto found = symbols.find({reinterpret_cast<const char*>(text), length});
            if (found != symbols.end() && ids[found->second] >= 0) {
                *out = ids[found->second];
                return 1;
            }
        }
        std::copy(text, text + length, out);  // the symbol of a byte is its value
        length = length < LONG ? merge_short(merges, out, length) : LongMerge(merges, out, length).run();
        for (size_t i = 0; i < length; i++) {
            out[i] = ids[out[i]];
            if (out[i] < 0) return -1;
        }
        return int64_t(length);
    }

    template <typename Next> int64_t encode(const Byte* text, size_t length, int32_t* out, Next next) {
        std::unique_ptr<Memory> memory = take();
        const Byte* end = text + length;
        int64_t total = 0;
        while (text < end) {
            const Byte* border = next(text);
            const int64_t count = piece(text, size_t(border - text), out + total, *memory);
            if (count < 0) {
                total = -1;
                break;
            }
            total += count;
            text = border;
        }
        const std::lock_guard<std::mutex> held(lock);
        idle.push_back(std::move(memory));
        return total;
    }

    std::unique_ptr<Memory> take() {
        const std::lock_guard<std::mutex> held(lock);
        if (idle.empty()) return std::make_unique<Memory>();
        std::unique_ptr<Memory> memory = std::move(idle.back());
        idle.pop_back();
        return memory;
    }
};

}  // namespace

extern "C" {

// tokens: `token_count` of them joined, with their lengths and ids. merges: 2 * `merge_count` byte strings joined, left
// and right of each merge in order of rank; merge_count < 0 for the rule by id.
Encoder* bpe_new(const char* tokens, const uint32_t* lengths, const int32_t* ids, int64_t token_count,
                 const char* merges, const uint32_t* merge_lengths, int64_t merge_count, int32_t whole_first,
                 const Rules* rules) {
    auto* encoder = new Encoder;
    encoder->rules = *rules;
    encoder->whole_first = whole_first;
    encoder->symbols.reserve(size_t(token_count) + 256);
    for (int byte = 0; byte < 256; byte++) encoder->symbol(std::string(1, char(byte)));
    for (int64_t i = 0; i < token_count; tokens += lengths[i++]) {
        const int32_t symbol = encoder->symbol({tokens, lengths[i]});
        encoder->ids[symbol] = ids[i];
    }
    if (merge_count < 0) encoder->merge_by_id();
    for (int64_t i = 0; i < merge_count; i++) {
        const uint32_t left = merge_lengths[2 * i], right = merge_lengths[2 * i + 1];
        const int32_t a = encoder->symbol({merges, left}), b = encoder->symbol({merges + left, right});
        encoder->merges.add(a, b, {int32_t(i), encoder->symbol({merges, left + right})});
        merges += left + right;
    }
    return encoder;
}

void bpe_free(Encoder* encoder) { delete encoder; }

// The ids of a text, split by the encoder's rules, into `out`, which has room for `length`; -1: the encoder declines.
int64_t bpe_encode(Encoder* encoder, const Byte* text, int64_t length, const Byte* kinds, int32_t* out) {
    const Scanner scanner(encoder->rules, kinds, text + length);
    return encoder->encode(text, size_t(length), out, [&](const Byte* p) { return scanner.next(p); });
}

// The same of pre-tokens, joined, none of them empty, with their lengths.
int64_t bpe_encode_pieces(Encoder* encoder, const Byte* text, int64_t length, const uint32_t* lengths, int32_t* out) {
    return encoder->encode(text, size_t(length), out, [&](const Byte* p) { return p + *lengths++; });
}
}
