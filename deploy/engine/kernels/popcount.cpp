// The kernel for any levels: the number of bits in which planes of weights and of inputs differ.
//
// A bit b of the weights stands for 2 b - 1, a bit a of the inputs for itself, and (2 b - 1) a = b - (a xor b). So
// the sum over all taps is the number of ones of the weights, which is counted at load, less that of the
// differences. Padding is zeros, which add nothing.
//
// The planes of a padded input row lie one after the other, the channels of neighbouring pixels
// without a gap, so that one row of a convolution's taps is one run of bits. It is read as 32-bit
// words from any byte. Where the run ends within a word, the bits beyond it are not compared; where it ends with half
// a word, two rows have one word together.
#include <algorithm>
#include <array>
#include <utility>

#include "../kernel.h"
#include "codes.h"
#include "planes.h"

namespace {

constexpr int SUBBLOCKS = BLOCK / Lanes::count;

// Bytes of one plane of one padded row; the last word may be read beyond the row.
size_t row_bytes(const Layer& layer) {
    return (size_t(layer.padded_wide()) * channel_bytes(layer.step) + 4 + 7) / 8 * 8;
}

bool serves(const Step& s) { return s.a_planes <= MOST_PLANES; }

size_t input_bytes(const Layer& layer) {
    return row_bytes(layer) * layer.padded_high() * layer.step.a_planes + sizeof(uint64_t);
}

constexpr int MOST_P = 4, MOST_J = 4;  // planes of weights and of inputs that are counted together

// Call chunk(p0, P, j0, J) for P planes of weights from p0 and J of inputs from j0, until all have met.
template <class F>
void each_chunk(const Step& s, F chunk) {
    for (int p0 = 0; p0 < s.w_planes; p0 += MOST_P) {
        const int P = std::min(MOST_P, s.w_planes - p0), most = P > 2 ? 2 : MOST_J;
        for (int j0 = 0; j0 < s.a_planes; j0 += most) chunk(p0, P, j0, std::min(most, s.a_planes - j0));
    }
}

void set_pairs(Layer& layer) {
    const Step& s = layer.step;
    layer.pairs.clear();
    std::vector<bool> met(size_t(s.w_groups) * layer.a_terms());
    each_chunk(s, [&](int p0, int P, int j0, int J) {
        for (int p = p0; p < p0 + P; p++)
            for (int j = j0; j < j0 + J; j++) {
                const int place = s.w_group[p] * layer.a_terms() + s.a_group[j];
                layer.pairs.push_back({place * BLOCK, s.w_multiplier[p] * s.a_multiplier[j], 0, 0, !met[place]});
                met[place] = true;
            }
    });
}

// Of a run of bits: the words that it fills, and the bits of the word in which it ends, or zero.
int whole_words(const Step& s) { return s.kernel_wide * channel_bytes(s) / 4; }
uint32_t last_bits(const Step& s) { return (1u << s.kernel_wide * channel_bytes(s) % 4 * 8) - 1; }
constexpr uint32_t HALF = 0xffff;
// Kernel rows of which two end in one word: the lower half is of the first one.
int joined_rows(const Step& s) { return last_bits(s) == HALF && whole_words(s) > 0 ? s.kernel_high / 2 * 2 : 0; }

// Where the words of the taps are in the packed input: those that the runs fill, then those in which they end.
void set_offsets(Layer& layer) {
    const Step& s = layer.step;
    const int row = int(row_bytes(layer)) * s.a_planes, whole = whole_words(s), joined = joined_rows(s);
    layer.set_offsets(row, whole, 4);
    for (int ky = 0; ky < s.kernel_high && last_bits(s); ky += ky < joined ? 2 : 1)
        layer.offsets.push_back(row * ky + 4 * whole);
}

// Place of a bit of kernel row ky: the word among the offsets, and the bit in it.
struct Place {
    int word, bit;
};
Place place_of(const Step& s, int ky, int bit) {
    const int whole = whole_words(s), word = bit / 32, joined = joined_rows(s);
    if (word < whole) return {ky * whole + word, bit % 32};
    const int first = s.kernel_high * whole;
    if (ky < joined) return {first + ky / 2, bit % 32 + ky % 2 * 16};
    return {first + ky - joined / 2, bit % 32};
}

// Words of a sub-block of outputs: for each of its lanes, the number of ones of each plane and then the planes.
size_t sub_block(const Layer& layer) {
    return (layer.offsets.size() + 1) * layer.step.w_planes * Lanes::count;
}

// Weights [sub-block][word][plane][lane], of which the first word is the number of ones.
void pack_weights(Layer& layer) {
    const Step& s = layer.step;
    set_pairs(layer);
    set_offsets(layer);
    const int lanes = Lanes::count, bytes = channel_bytes(s);
    const size_t sub = sub_block(layer), word = size_t(s.w_planes) * lanes;
    layer.packed.assign(sub * SUBBLOCKS * layer.blocks(), 0);
    const uint8_t* code = s.w_codes;
    for (int o = 0; o < s.outputs; o++) {
        uint32_t* const own = layer.packed.data() + sub * (o / lanes) + o % lanes;
        for (int ky = 0; ky < s.kernel_high; ky++)
            for (int kx = 0; kx < s.kernel_wide; kx++)
                for (int c = 0; c < s.channels; c++, code++) {
                    const Place place = place_of(s, ky, kx * bytes * 8 + c);
                    uint32_t* const to = own + (place.word + 1) * word;
                    for (int p = 0; p < s.w_planes; p++) {
                        const uint32_t one = s.w_bits[p * s.w_levels + *code];
                        own[p * lanes] += one;
                        to[p * lanes] |= one << place.bit;
                    }
                }
    }
}

// In is float or, for codes that an earlier step wrote, uint8_t.
template <class In>
void pack(const Layer& layer, const In* x, uint8_t* packed, int first, int end) {
    const Step& s = layer.step;
    const size_t row = row_bytes(layer);
    const int n = s.wide * s.channels;
    Staircase stairs(s);
    std::fill(stairs.rise, stairs.rise + stairs.thresholds, 1);
    std::vector<uint8_t> numbers(n);
    each_padded_row(s, first, end, [&](int padded, int y) {
        uint8_t* to = packed + row * s.a_planes * padded;
        std::memset(to, 0, row * s.a_planes);
        if (y < 0) return;
        const In* from = x + size_t(y) * n;
        to += s.pad_wide * channel_bytes(s);
        if constexpr (sizeof(In) == 1) {
            pack_numbers(s, from, n, to, row);
        } else if (s.channels % 8 == 0 && s.thresholds > 0 && s.thresholds <= FEW) {
            PACK_FEW[s.thresholds - 1](s, from, n, to, row);
        } else if (s.channels % 8 == 0 && s.thresholds <= MOST_HANDED) {
            codes_of(stairs, from, n, numbers.data());
            pack_numbers(s, numbers.data(), n, to, row);
        } else {
            pack_row(s, from, to, row);
        }
    });
}

// The number of ones of n pixels, each of one word: in vectors, since the compiler knows its size.
template <class Word>
void ones_of(const uint8_t* bits, int n, int32_t* to) {
    for (int x = 0; x < n; x++) {
        const Word word = read<Word>(bits + sizeof(Word) * x);
        to[x] = sizeof(Word) == 8 ? __builtin_popcountll(word) : __builtin_popcount(word);
    }
}

// The same of any number of bytes. The buffer goes on behind its last row, so that whole words can be read.
void ones_of(const uint8_t* bits, int bytes, int n, int32_t* to) {
    const uint64_t last = ~uint64_t(0) >> 8 * (7 - (bytes - 1) % 8);
    for (int x = 0; x < n; x++, bits += bytes) {
        int count = 0, at = 0;
        for (; at + 8 < bytes; at += 8) count += __builtin_popcountll(read<uint64_t>(bits + at));
        to[x] = count + __builtin_popcountll(read<uint64_t>(bits + at) & last);
    }
}

void row_sums(const Layer& layer, const uint8_t* packed, int row, int32_t* sums) {
    const Step& s = layer.step;
    const int bytes = channel_bytes(s), wide = layer.padded_wide();
    const uint8_t* plane = packed + row_bytes(layer) * s.a_planes * row;
    std::fill(sums, sums + size_t(wide) * s.a_groups, 0);
    constexpr int SOME = 64;  // pixels
    int32_t ones[SOME];
    for (int j = 0; j < s.a_planes; j++, plane += row_bytes(layer))
        for (int first = 0; first < wide; first += SOME) {
            const int n = std::min(SOME, wide - first);
            const uint8_t* bits = plane + size_t(first) * bytes;
            if (bytes == 2) ones_of<uint16_t>(bits, n, ones);
            else if (bytes == 4) ones_of<uint32_t>(bits, n, ones);
            else if (bytes == 8) ones_of<uint64_t>(bits, n, ones);
            else ones_of(bits, bytes, n, ones);
            const int multiplier = s.a_multiplier[j];
            int32_t* to = sums + s.a_group[j] * wide + first;
            for (int x = 0; x < n; x++) to[x] += multiplier * ones[x];
        }
}

constexpr int MOST_PIXELS = 8;  // whose counts are in registers
constexpr int TILE = 32, ROWS = 8;

// What all pixels of a tile meet: one vector of outputs.
struct Operands {
    const uint32_t* weights;  // number of ones, then words, of the first plane of the chunk; plane stride Lanes::count
    const int32_t* offsets;   // of each word of the taps from a pixel's first
    size_t plane;             // bytes between planes of the input
    int w_planes, pixel;
    int words, whole, joined; // of the taps; the first that are of one row, and where those of two rows end
    size_t below;             // bytes from a word's lower half to the place whose upper half is that of the next row
    uint32_t bits;            // that are compared in the last words
    const Pair* pairs;        // (P, J)
    bool units;               // each pair is a group of weights and one of inputs, in units of their values
    int each;                 // counts of a pixel
};

// A pixel. It is handed on in registers: no load waits for a store of the caller.
struct Pixel {
    const uint8_t* input;  // of the first plane of the chunk at the first tap
    int32_t* counts;
    Pixel behind(const Operands& at, int n) const { return {input + n * at.pixel, counts + n * at.each}; }
};

typedef int32_t Sums __attribute__((vector_size(4 * Lanes::count)));

// Count the bits in which P planes of weights differ from J of inputs, for X pixels.
template <int P, int J, int X>
void count_bits(const Operands& at, Pixel from) {
    using V = Lanes::V;
    constexpr int lanes = Lanes::count;
    V counts[X][P * J], all[P];
    const uint32_t* weights = at.weights;
    const auto next = [&](V* to) {
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) to[p] = Lanes::load(weights + p * lanes);
        weights += at.w_planes * lanes;
    };
    const V bits = Lanes::broadcast(at.bits);
    const auto one = [](const uint8_t* from) { return Lanes::broadcast(read<uint32_t>(from)); };
    const auto two = [&](const uint8_t* from) { return Lanes::halves(one(from), one(from + at.below), bits); };
    const auto all_differ = [](V w, V a) { return Lanes::differ(w, a); };
    const auto some_differ = [&](V w, V a) { return Lanes::differ(w, a, bits); };
    const auto meet = [&](int word, auto taps, auto differ) {
        const uint8_t* input = from.input + at.offsets[word];
        V w[P];
        next(w);
#pragma GCC unroll 8
        for (int x = 0; x < X; x++)
#pragma GCC unroll 8
            for (int j = 0; j < J; j++) {
                const V a = taps(input + x * at.pixel + j * at.plane);
#pragma GCC unroll 4
                for (int p = 0; p < P; p++)
                    counts[x][p * J + j] = Lanes::less(counts[x][p * J + j], differ(w[p], a));
            }
    };
    bool again = false;
    const auto flush = [&] {
#pragma GCC unroll 8
        for (int k = 0; k < P * J; k++) {
            const Pair pair = at.pairs[k];  // a copy, which no count can overwrite
            const bool first = pair.first && !again;
            const Sums factor = Sums{} + pair.factor;
            int32_t* to = from.counts + pair.place;
#pragma GCC unroll 8
            for (int x = 0; x < X; x++, to += at.each) {
                Sums total = (Sums)Lanes::left(counts[x][k], all[k / J]);
                if (!at.units) total *= factor;
                if (!first) total += read<Sums>(to);
                std::memcpy(to, &total, sizeof total);
            }
        }
        again = true;
    };
    next(all);
    for (int word = 0; word < at.words;) {
#pragma GCC unroll 8
        for (auto& pixel : counts)
#pragma GCC unroll 8
            for (int k = 0; k < P * J; k++) pixel[k] = Lanes::begin(all[k / J]);
        const int end = std::min(at.words, word + Lanes::most);
        for (; word < std::min(end, at.whole); word++) meet(word, one, all_differ);
        for (; word < std::min(end, at.joined); word++) meet(word, two, all_differ);
        for (; word < end; word++) meet(word, one, some_differ);
        flush();
        for (auto& one : all) one = Lanes::zero();
    }
}

// So many pixels at a time have their counts in registers.
template <int P, int J>
constexpr int ROOM = std::max(1, std::min(MOST_PIXELS, Lanes::registers / (P * J)));

using Count = void (*)(const Operands&, Pixel);
template <int P, int J, int... X>
constexpr std::array<Count, sizeof...(X)> up_to(std::integer_sequence<int, X...>) {
    return {count_bits<P, J, X + 1>...};
}

// n pixels.
template <int P, int J>
void count_pixels(const Operands& at, Pixel from, int n) {
    static constexpr auto COUNT = up_to<P, J>(std::make_integer_sequence<int, ROOM<P, J>>{});
    in_equal_parts(n, ROOM<P, J>, [&](int X) {
        COUNT[X - 1](at, from);
        from = from.behind(at, X);
    });
}

constexpr void (*COUNT[MOST_P][MOST_J])(const Operands&, Pixel, int) = {
    {count_pixels<1, 1>, count_pixels<1, 2>, count_pixels<1, 3>, count_pixels<1, 4>},
    {count_pixels<2, 1>, count_pixels<2, 2>, count_pixels<2, 3>, count_pixels<2, 4>},
    {count_pixels<3, 1>, count_pixels<3, 2>, nullptr, nullptr},
    {count_pixels<4, 1>, count_pixels<4, 2>, nullptr, nullptr},
};

void tile(const Layer& layer, const uint8_t* packed, Tile t, const int32_t*, int32_t* counts) {
    const Step& s = layer.step;
    const int bytes = channel_bytes(s);
    const int whole = s.kernel_high * whole_words(s);
    const size_t plane = row_bytes(layer), row = plane * s.a_planes, sub_size = sub_block(layer);
    const int used = std::min(SUBBLOCKS, (s.outputs - t.block * BLOCK + Lanes::count - 1) / Lanes::count);
    const uint8_t* input = packed + row * t.y * s.stride_high + size_t(t.x) * s.stride_wide * bytes;
    const Pair* pairs = layer.pairs.data();
    const auto is_unit = [](const Pair& pair) { return pair.first && pair.factor == 1; };
    const bool units = std::all_of(layer.pairs.begin(), layer.pairs.end(), is_unit);
    each_chunk(s, [&](int p0, int P, int j0, int J) {
        Operands at{layer.packed.data() + sub_size * t.block * SUBBLOCKS + p0 * Lanes::count,
                    layer.offsets.data(), plane, s.w_planes, s.stride_wide * bytes, int(layer.offsets.size()),
                    whole, whole + joined_rows(s) / 2, row - 2, last_bits(s), pairs, units,
                    s.w_groups * layer.a_terms() * BLOCK};
        for (int sub = 0; sub < used; sub++, at.weights += sub_size) {
            Pixel from{input + j0 * plane, counts + sub * Lanes::count};
            for (int i = 0; i < t.rows; i++) {
                COUNT[P - 1][J - 1](at, from, t.n);
                from = {from.input + row * s.stride_high, from.counts + t.n * at.each};
            }
        }
        pairs += P * J;
    });
}

}  // namespace

const Kernel POPCOUNT{Lanes::name, serves,     pack_weights,    input_bytes,
                      pack<float>, row_sums, TILE, ROWS, tile, false, nullptr, nullptr, pack<uint8_t>};
