// The split patterns of patterns.py, followed by hand: a `Scanner` finds the borders that the regex would.
#pragma once

#include <cstdint>

using Byte = uint8_t;

// What a character is to the patterns; sets of kinds are masks. The table, code point -> kind, comes from Python.
// BREAK is [\r\n], SPACE the rest of \s, SYMBOL what is none of the others, END that there is no character.
enum Kind : Byte {
    END = 0, SYMBOL = 1, SPACE = 2, BREAK = 4, UPPER = 8, LOWER = 16, CASELESS = 32, MARK = 64, NUMBER = 128
};
constexpr Byte LETTER = UPPER | LOWER | CASELESS, WHITE = SPACE | BREAK;  // \p{L}, \s
constexpr Byte CAPITALS = UPPER | CASELESS | MARK, SMALL = LOWER | CASELESS | MARK;

enum Words : int32_t { AFTER_SPACE, AFTER_ANY, CASED };  // ` ?\p{L}+`; `[^\r\n\p{L}\p{N}]?\p{L}+`; the two of o200k
enum Contractions : int32_t { NONE, SMALL_FIRST, ANY_FIRST, ANY_AFTER_WORD };

struct Rules {
    int32_t words;
    int32_t contractions;
    int32_t digits;         // the longest number; 0: ` ?\p{N}+`
    int32_t numbers_apart;  // numbers are cut out first: what stands before one stands at the end of its text
    int32_t marks_in_words; // words are of [\p{L}\p{M}]
    int32_t breaks;         // line breaks follow symbols (2: and slashes); `\s*[\r\n]+` comes before other white space
};

class Scanner {
  public:
    Scanner(const Rules& rules, const Byte* kinds, const Byte* end) : rules(rules), kinds(kinds), end(end) {}

    // The end of the pre-token that begins at p < end. The alternatives of the pattern are tried in its order.
    const Byte* next(const Byte* p) const {
        const Character first = read(p);
        const Byte* second = p + first.size;
        const Byte* after_space = *p == ' ' ? second : p;
        if (rules.contractions == SMALL_FIRST || rules.contractions == ANY_FIRST)
            if (const Byte* found = contraction(p)) return found;
        if (const Byte* found = word(p, first.kind, second)) return found;
        if (rules.digits && first.kind == NUMBER) return number(p);
        if (!rules.digits && read(after_space).kind == NUMBER) return run(after_space, NUMBER);
        const Byte symbols = rules.marks_in_words ? SYMBOL : SYMBOL | MARK;  // ` ?[^\s\p{L}\p{N}]+[\r\n/]*`
        if (read(after_space).kind & symbols) return line_breaks(run(after_space, symbols));
        return white_space(p);
    }

  private:
    struct Character { Byte kind; Byte size; };

    const Rules& rules;
    const Byte* kinds;
    const Byte* end;

    Character read(const Byte* p) const {  // UTF-8, known to be whole
        if (p >= end) return {END, 0};
        if (*p < 0x80) return {kinds[*p], 1};
        if (*p < 0xE0) return {kinds[(*p & 31) << 6 | (p[1] & 63)], 2};
        if (*p < 0xF0) return {kinds[(*p & 15) << 12 | (p[1] & 63) << 6 | (p[2] & 63)], 3};
        return {kinds[(*p & 7) << 18 | (p[1] & 63) << 12 | (p[2] & 63) << 6 | (p[3] & 63)], 4};
    }

    const Byte* run(const Byte* p, Byte set) const {
        for (Character c = read(p); c.kind & set; c = read(p)) p += c.size;
        return p;
    }

    // 's|'t|'re|'ve|'m|'ll|'d; in any case, s is also U+017F (long s), which folds to it.
    const Byte* contraction(const Byte* p) const {
        if (end - p < 2 || *p != '\'') return nullptr;
        const Byte fold = rules.contractions == SMALL_FIRST ? 0 : 0x20;
        const Byte a = p[1] | fold, b = end - p > 2 ? p[2] | fold : 0;
        if (a == 's' || a == 't' || a == 'm' || a == 'd') return p + 2;
        if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return p + 3;
        return fold && end - p > 2 && p[1] == 0xC5 && p[2] == 0xBF ? p + 3 : nullptr;
    }

    const Byte* word(const Byte* p, Byte first, const Byte* second) const {
        const bool may_lead = rules.words == AFTER_SPACE ? *p == ' ' : !(first & (BREAK | LETTER | NUMBER));
        if (rules.words == CASED) {
            const Byte* found = may_lead ? small_after_capitals(second) : nullptr;
            if (!found) found = small_after_capitals(p);
            if (!found && may_lead) found = capitals(second);
            if (!found) found = capitals(p);
            if (!found || rules.contractions != ANY_AFTER_WORD) return found;
            const Byte* longer = contraction(found);
            return longer ? longer : found;
        }
        const Byte letters = rules.marks_in_words ? LETTER | MARK : LETTER;
        if (first & letters) return run(second, letters);
        return may_lead && read(second).kind & letters ? run(second, letters) : nullptr;
    }

    // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+. Where no small letter follows the first run, it is
    // given back up to its last character that is in both sets.
    const Byte* small_after_capitals(const Byte* p) const {
        const Byte* middle = run(p, CAPITALS);
        if (read(middle).kind == LOWER) return run(middle, SMALL);
        const Byte* found = nullptr;
        while (p < middle) {
            const Character c = read(p);
            p += c.size;
            if (c.kind & SMALL) found = p;
        }
        return found;
    }

    // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*
    const Byte* capitals(const Byte* p) const {
        const Byte* middle = run(p, CAPITALS);
        return middle == p ? nullptr : run(middle, SMALL);
    }

    const Byte* number(const Byte* p) const {
        for (int32_t left = rules.digits; left > 0 && read(p).kind == NUMBER; left--) p += read(p).size;
        return p;
    }

    const Byte* line_breaks(const Byte* p) const {
        if (rules.breaks)
            while (p < end && (*p == '\r' || *p == '\n' || (*p == '/' && rules.breaks == 2))) p++;
        return p;
    }

    // `\s*[\r\n]+|\s+(?!\S)|\s+`: up to the last line break; else all but the last character, which leads what follows.
    const Byte* white_space(const Byte* p) const {
        const Byte *last = p, *after = p, *broken = nullptr;
        for (Character c = read(p); c.kind & WHITE; c = read(after)) {
            last = after;
            after += c.size;
            if (c.kind == BREAK) broken = after;
        }
        if (rules.breaks && broken) return broken;
        const bool ends = after == end || (rules.numbers_apart && read(after).kind == NUMBER);
        return ends || last == p ? after : last;
    }
};
