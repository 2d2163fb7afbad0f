// The kernel for any levels: ands of bit planes, and the number of their ones.
//
// The planes of a padded input row lie one after the other, the channels of neighbouring pixels
// without a gap, so that one row of a convolution's taps is one run of bits. It is read as 32-bit
// words from any byte; the weights' bits beyond the run are zero.
#include <algorithm>
#include <array>
#include <utility>

#include "../kernel.h"
#include "codes.h"

namespace {

constexpr int MOST_PLANES = 8;
constexpr int SUBBLOCKS = BLOCK / Lanes::count;

int channel_bytes(const Step& s) { return (s.channels + 7) / 8; }
int words(const Step& s) { return (s.kernel_wide * channel_bytes(s) + 3) / 4; }
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
                layer.pairs.push_back({place * BLOCK, 2 * s.w_multiplier[p] * s.a_multiplier[j],
                                       top_weight(s, s.w_group[p]), s.a_group[j], !met[place]});
                met[place] = true;
            }
    });
}

// Weights [sub-block][kernel row][word][plane][lane].
void pack_weights(Layer& layer) {
    const Step& s = layer.step;
    set_pairs(layer);
    const int lanes = Lanes::count, width = words(s), bytes = channel_bytes(s);
    layer.set_offsets(int(row_bytes(layer)) * s.a_planes, width, 4);
    const size_t row = size_t(s.kernel_high) * width * s.w_planes * lanes;
    layer.packed.assign(row * SUBBLOCKS * layer.blocks(), 0);
    const uint8_t* code = s.w_codes;
    for (int o = 0; o < s.outputs; o++)
        for (int ky = 0; ky < s.kernel_high; ky++)
            for (int kx = 0; kx < s.kernel_wide; kx++)
                for (int c = 0; c < s.channels; c++, code++) {
                    const int bit = kx * bytes * 8 + c;
                    const size_t at = row * (o / lanes) + size_t(ky * width + bit / 32) * s.w_planes * lanes;
                    for (int p = 0; p < s.w_planes; p++)
                        layer.packed[at + p * lanes + o % lanes] |=
                            uint32_t(s.w_bits[p * s.w_levels + *code]) << bit % 32;
                }
}

constexpr int MANY = 64;  // codes whose bits are taken together

// Bit i of the result: the highest bit of table[numbers[i]], for i below MANY.
uint64_t bits_of(const uint8_t* numbers, const uint8_t* table) {
#if defined(__AVX512BW__)
    const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
    return _mm512_movepi8_mask(_mm512_shuffle_epi8(all, _mm512_loadu_si512(numbers)));
#else
    uint64_t bits = 0;
#if defined(__SSSE3__)
    const __m128i all = _mm_loadu_si128((const __m128i*)table);
    for (int i = 0; i < MANY; i += 16) {
        const __m128i some = _mm_shuffle_epi8(all, _mm_loadu_si128((const __m128i*)(numbers + i)));
        bits |= uint64_t(_mm_movemask_epi8(some)) << i;
    }
#else
    for (int i = 0; i < MANY; i++) bits |= uint64_t(table[numbers[i]] >> 7) << i;
#endif
    return bits;
#endif
}

// The planes of a row of n codes, a multiple of eight, each `row` bytes behind the one before it.
void pack_numbers(const Step& s, const uint8_t* numbers, int n, uint8_t* to, size_t row) {
    uint8_t table[MOST_PLANES][MOST_HANDED + 1] = {};
    for (int j = 0; j < s.a_planes; j++)
        for (int q = 0; q <= s.thresholds; q++) table[j][q] = s.a_bits[j * (s.thresholds + 1) + q] << 7;
    for (int i = 0; i < n; i += MANY, numbers += MANY, to += MANY / 8) {
        uint8_t last[MANY] = {};
        const bool whole = n - i >= MANY;
        if (!whole) std::memcpy(last, numbers, n - i);
        for (int j = 0; j < s.a_planes; j++) {
            const uint64_t bits = bits_of(whole ? numbers : last, table[j]);
            std::memcpy(to + j * row, &bits, whole ? 8 : (n - i) / 8);
        }
    }
}

#if defined(__AVX512F__)
constexpr int FEW = 3;

// The same from floats, with at most FEW thresholds: bit j of a code is an XOR of "x >= t" over those t where
// it changes, for sixteen numbers at a time.
template <int T>
void pack_few(const Step& s, const float* x, int n, uint8_t* to, size_t row) {
    __m512 t[T];
    uint16_t changes[MOST_PLANES][T];  // all ones where bit j changes at threshold i
    for (int i = 0; i < T; i++) {
        t[i] = _mm512_set1_ps(s.threshold[i]);
        for (int j = 0; j < s.a_planes; j++) {
            const uint8_t* bits = s.a_bits + j * (T + 1);
            changes[j][i] = uint16_t(-(bits[i] ^ bits[i + 1]));
        }
    }
    const auto pack = [&](__m512 some, auto store) {
        uint32_t reached[T];
#pragma GCC unroll 3
        for (int k = 0; k < T; k++) reached[k] = _cvtmask16_u32(_mm512_cmp_ps_mask(some, t[k], _CMP_GE_OQ));
        for (int j = 0; j < s.a_planes; j++) {
            uint32_t bits = 0;
#pragma GCC unroll 3
            for (int k = 0; k < T; k++) bits ^= reached[k] & changes[j][k];
            store(to + j * row, bits);
        }
    };
    int i = 0;
    for (; i + 16 <= n; i += 16, to += 2)
        pack(_mm512_loadu_ps(x + i), [](uint8_t* to, uint32_t bits) { std::memcpy(to, &bits, 2); });
    if (i < n)  // eight are left
        pack(_mm512_maskz_loadu_ps(255, x + i), [](uint8_t* to, uint32_t bits) { *to = uint8_t(bits); });
}
constexpr void (*PACK_FEW[FEW])(const Step&, const float*, int, uint8_t*, size_t) = {pack_few<1>, pack_few<2>,
                                                                                     pack_few<3>};
#else
constexpr int FEW = 0;
constexpr void (*PACK_FEW[1])(const Step&, const float*, int, uint8_t*, size_t) = {nullptr};
#endif

// The same from floats, of any number of channels and thresholds: the bits of a code are an XOR of
// "x >= t", since bit j changes at those t where its value does.
void pack_row(const Step& s, const float* x, uint8_t* to, size_t row) {
    const int bytes = channel_bytes(s);
    std::vector<uint64_t> changes(s.thresholds);
    for (int i = 0; i < s.thresholds; i++)
        for (int j = 0; j < s.a_planes; j++) {
            const uint8_t* bits = s.a_bits + j * (s.thresholds + 1);
            changes[i] |= uint64_t(bits[i] ^ bits[i + 1]) << 8 * j;
        }
    for (int pixel = 0; pixel < s.wide; pixel++, x += s.channels)
        for (int b = 0; b < bytes; b++, to++) {
            const int left = s.channels - 8 * b;
            float few[8] = {};
            const float* eight = x + 8 * b;
            if (left < 8) eight = (float*)std::memcpy(few, eight, 4 * left);
            uint64_t planes = 0;
            for (int i = 0; i < s.thresholds; i++) planes ^= reaches(eight, s.threshold[i]) * changes[i];
            const uint8_t mask = left < 8 ? uint8_t((1 << left) - 1) : 255;
            for (int j = 0; j < s.a_planes; j++) to[j * row] = uint8_t(planes >> 8 * j) & mask;
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

// One row of pixels of a tile against one vector of outputs.
struct Operands {
    const uint32_t* weights;  // of the first plane of the chunk, plane stride Lanes::count
    const uint8_t* input;     // of the first plane of the chunk at the first pixel's first tap
    const int32_t* offsets;   // of each word of the taps from there
    size_t plane;             // bytes between planes of the input
    int w_planes, pixel, words;
    const Pair* pairs;        // (P, J)
    bool units;               // each pair is a group of weights and one of inputs, in units of their values
    int32_t* counts;          // of the first pixel
    const int32_t* sums;
    int each, wide;           // counts of a pixel; sums of a row and a term
};

typedef int32_t Sums __attribute__((vector_size(4 * Lanes::count)));

// Count the ones of w_p & a_j, for P planes of weights, J of inputs and X pixels.
template <int P, int J, int X>
void count_ones(const Operands& at) {
    using V = Lanes::V;
    constexpr int lanes = Lanes::count;
    V counts[X][P * J];
    bool again = false;
    auto flush = [&] {
#pragma GCC unroll 8
        for (int k = 0; k < P * J; k++) {
            const Pair pair = at.pairs[k];  // a copy, which no count can overwrite
            const bool first = pair.first && !again;
            const Sums factor = Sums{} + pair.factor, each = Sums{} + pair.weights;
            int32_t* to = at.counts + pair.place;
            const int32_t* sum = at.sums + pair.term * at.wide;
            if (at.units && !again) {
#pragma GCC unroll 8
                for (int x = 0; x < X; x++, to += at.each, sum++) {
                    const Sums ones = (Sums)Lanes::whole(counts[x][k]), total = ones + ones - *sum;
                    std::memcpy(to, &total, sizeof total);
                }
                continue;
            }
#pragma GCC unroll 8
            for (int x = 0; x < X; x++, to += at.each, sum++) {
                const Sums ones = (Sums)Lanes::whole(counts[x][k]) * factor;
                const Sums total = first ? ones - each * *sum : ones + read<Sums>(to);
                std::memcpy(to, &total, sizeof total);
            }
        }
        again = true;
    };
    const uint32_t* weights = at.weights;
    for (int word = 0; word < at.words;) {
        for (auto& pixel : counts)
            for (auto& count : pixel) count = Lanes::zero();
        const int end = std::min(at.words, word + Lanes::most);
        for (; word < end; word++, weights += at.w_planes * lanes) {
            const uint8_t* input = at.input + at.offsets[word];
            V w[P];
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) w[p] = Lanes::load(weights + p * lanes);
#pragma GCC unroll 8
            for (int x = 0; x < X; x++)
#pragma GCC unroll 8
                for (int j = 0; j < J; j++) {
                    const V a = Lanes::broadcast(read<uint32_t>(input + x * at.pixel + j * at.plane));
#pragma GCC unroll 4
                    for (int p = 0; p < P; p++) counts[x][p * J + j] = Lanes::add_bits(counts[x][p * J + j], w[p], a);
                }
        }
        flush();
    }
}

// So many pixels at a time have their counts in registers.
template <int P, int J>
constexpr int ROOM = std::max(1, std::min(MOST_PIXELS, Lanes::registers / (P * J)));

using Count = void (*)(const Operands&);
template <int P, int J, int... X>
constexpr std::array<Count, sizeof...(X)> up_to(std::integer_sequence<int, X...>) {
    return {count_ones<P, J, X + 1>...};
}

// n pixels.
template <int P, int J>
void count_pixels(Operands at, int n) {
    static constexpr auto COUNT = up_to<P, J>(std::make_integer_sequence<int, ROOM<P, J>>{});
    in_equal_parts(n, ROOM<P, J>, [&](int X) {
        COUNT[X - 1](at);
        at.input += X * at.pixel;
        at.counts += X * at.each;
        at.sums += X;
    });
}

constexpr void (*COUNT[MOST_P][MOST_J])(Operands, int) = {
    {count_pixels<1, 1>, count_pixels<1, 2>, count_pixels<1, 3>, count_pixels<1, 4>},
    {count_pixels<2, 1>, count_pixels<2, 2>, count_pixels<2, 3>, count_pixels<2, 4>},
    {count_pixels<3, 1>, count_pixels<3, 2>, nullptr, nullptr},
    {count_pixels<4, 1>, count_pixels<4, 2>, nullptr, nullptr},
};

void tile(const Layer& layer, const uint8_t* packed, Tile t, const int32_t* sums, int32_t* counts) {
    const Step& s = layer.step;
    const int terms = layer.a_terms(), bytes = channel_bytes(s);
    const size_t plane = row_bytes(layer), row = plane * s.a_planes;
    const int used = std::min(SUBBLOCKS, (s.outputs - t.block * BLOCK + Lanes::count - 1) / Lanes::count);
    const size_t sub_size = size_t(s.kernel_high) * words(s) * s.w_planes * Lanes::count;
    const uint8_t* input = packed + row * t.y * s.stride_high + size_t(t.x) * s.stride_wide * bytes;
    const Pair* pairs = layer.pairs.data();
    const auto is_unit = [](const Pair& pair) { return pair.first && pair.factor == 2 && pair.weights == 1; };
    const bool units = std::all_of(layer.pairs.begin(), layer.pairs.end(), is_unit);
    each_chunk(s, [&](int p0, int P, int j0, int J) {
        Operands at{layer.packed.data() + sub_size * t.block * SUBBLOCKS + p0 * Lanes::count, input + j0 * plane,
                    layer.offsets.data(), plane, s.w_planes, s.stride_wide * bytes, int(layer.offsets.size()), pairs,
                    units, counts, sums, s.w_groups * terms * BLOCK, s.out_wide};
        for (int sub = 0; sub < used; sub++, at.weights += sub_size, at.counts += Lanes::count) {
            Operands line = at;
            for (int i = 0; i < t.rows; i++) {
                COUNT[P - 1][J - 1](line, t.n);
                line.input += row * s.stride_high;
                line.counts += t.n * at.each;
                line.sums += s.out_wide * terms;
            }
        }
        pairs += P * J;
    });
}

}  // namespace

const Kernel POPCOUNT{Lanes::name, serves,     pack_weights,    input_bytes,
                      pack<float>, row_sums, TILE, ROWS, tile, true, nullptr, nullptr, pack<uint8_t>};
