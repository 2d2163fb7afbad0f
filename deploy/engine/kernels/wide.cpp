// The kernel of tables for 64 outputs at a time: one look-up among the sums of six channels' codes.
//
// As tables.cpp, with a table of the sums of all 64 subsets of six codes for every group of six
// channels of every pixel, one for each group of planes of the input. The 64 lanes of a look-up are
// output channels, that is four blocks, which share the table; six bits of a plane of the weights are
// the index.
#include <array>
#include <utility>

#include "codes.h"

#if defined(__AVX512VBMI__) && defined(__AVX512BW__)

namespace {

constexpr int SIX = 6, TABLE = 64;  // codes of a table, and its bytes
constexpr int WIDE = 64 / BLOCK;    // blocks of outputs
constexpr int TILE = 32, ROWS = 2;   // pixels of a tile in a row, and its rows
constexpr int MOST_SUM = 255, MOST_FLUSHES = 65535 / MOST_SUM;  // of a byte; into a 16-bit word
constexpr int L1_COUNTS = 4096;     // counts of a tile, for which the L1 data cache has room
constexpr int ROOM = 9;             // pixels x planes whose sums are in registers

int groups(const Step& s) { return (s.channels + SIX - 1) / SIX; }  // of a pixel
int run(const Step& s) { return s.kernel_wide * groups(s); }        // tables of a row of taps

// A row, of one group of planes: its tables, and the sums of its pixels.
size_t table_bytes(const Step& s) { return size_t(padded_wide(s)) * groups(s) * TABLE; }
size_t row_bytes(const Step& s) { return table_bytes(s) + rounded(sizeof(int32_t) * padded_wide(s)); }
size_t input_bytes(const Step& s) { return row_bytes(s) * s.a_groups * padded_high(s) + 64; }
size_t input_bytes(const Layer& layer) { return input_bytes(layer.step); }

bool serves(const Step& s) { return SIX * largest_code(s) <= MOST_SUM && input_bytes(s) < MOST_TABLES; }

// Weights [64 outputs][kernel row][group][plane][lane]: six bits each. Outputs o and 32 + o have
// neighbouring lanes, since 16-bit words take the sums of every second byte.
size_t wide_bytes(const Step& s) { return size_t(s.kernel_high) * run(s) * s.w_planes * TABLE; }

int lane(int output) { return output % 32 * 2 + output / 32; }

void pack_weights(Layer& layer) {
    const Step& s = layer.step;
    layer.tile_blocks = WIDE;
    const int most = std::max(1, L1_COUNTS / (s.w_groups * layer.a_terms() * TABLE));  // pixels of a tile
    layer.tile_wide = std::min(layer.tile_wide, most);
    layer.tile_high = std::max(1, std::min({ROWS, s.out_high, most / layer.tile_wide}));
    const int wide = (layer.blocks() + WIDE - 1) / WIDE;
    layer.packed.assign(wide_bytes(s) * wide / 4 + 16, 0);
    uint8_t* packed = (uint8_t*)aligned(layer.packed.data());
    const uint8_t* code = s.w_codes;
    for (int o = 0; o < s.outputs; o++)
        for (int tap = 0; tap < s.kernel_high * s.kernel_wide; tap++)
            for (int c = 0; c < s.channels; c++, code++) {
                const size_t group = size_t(tap) * groups(s) + c / SIX;
                uint8_t* to = packed + wide_bytes(s) * (o / TABLE) + group * s.w_planes * TABLE + lane(o % TABLE);
                for (int p = 0; p < s.w_planes; p++, to += TABLE)
                    *to |= s.w_bits[p * s.w_levels + *code] << c % SIX;
            }
}

// The table of six codes, the lowest bytes of `codes`; the two bytes above them are zero.
inline void build_table(uint64_t codes, uint8_t* to) {
    // Of each pair of codes a, b the four sums 0, a, b, a + b are chosen by two bits of the index.
    const __m512i zero = _mm512_set1_epi8(-128);
    const __m512i first = _mm512_broadcast_i32x4(_mm_setr_epi8(-1, 0, 1, 8, -1, 0, 1, 8, -1, 0, 1, 8, -1, 0, 1, 8));
    const __m512i second = _mm512_broadcast_i32x4(
        _mm_setr_epi8(-1, -1, -1, -1, 2, 2, 2, 2, 3, 3, 3, 3, 10, 10, 10, 10));
    const __m512i third = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_castsi512_si128(zero)),
                                                       _mm_set1_epi8(4), 1)),
        _mm256_inserti128_si256(_mm256_set1_epi8(5), _mm_set1_epi8(12), 1), 1);
    const __m512i sums = _mm512_broadcast_i32x4(_mm_set_epi64x(int64_t(codes + (codes >> 8)), int64_t(codes)));
    const __m512i both = _mm512_add_epi8(_mm512_shuffle_epi8(sums, first), _mm512_shuffle_epi8(sums, second));
    _mm512_storeu_si512(to, _mm512_add_epi8(both, _mm512_shuffle_epi8(sums, third)));
}

// In is float or, for codes that an earlier step wrote, uint8_t.
template <class In>
void pack(const Layer& layer, const In* x, uint8_t* packed, int first, int end) {
    const Step& s = layer.step;
    const GroupCodes integers(s);
    const int each = pixel_groups(s) * GROUP, most = groups(s);
    const uint64_t six = 0xffffffffffff, last = six >> 8 * (most * SIX - s.channels);
    const size_t n = size_t(s.wide) * each;
    std::vector<uint8_t> codes(n * s.a_groups + 8);
    each_padded_row(s, first, end, [&](int padded, int y) {
        uint8_t* row = aligned(packed) + row_bytes(layer.step) * s.a_groups * padded;
        if (y < 0) {
            std::memset(row, 0, row_bytes(layer.step) * s.a_groups);
            return;
        }
        const size_t side = size_t(s.pad_wide) * most * TABLE;
        integers.row(s, x, y, codes.data(), n);
        for (int h = 0; h < s.a_groups; h++, row += row_bytes(layer.step)) {
            std::memset(row, 0, side);
            uint8_t* to = row + side;
            int32_t* sums = (int32_t*)(row + table_bytes(layer.step)) + s.pad_wide;
            const uint8_t* from = codes.data() + n * h;
            for (int pixel = 0; pixel < s.wide; pixel++, from += each) {
                for (int g = 0; g < most; g++, to += TABLE)
                    build_table(read<uint64_t>(from + g * SIX) & (g == most - 1 ? last : six), to);
                sums[pixel] = sum_of_codes(from, each);
            }
            std::memset(to, 0, side);
            std::memset(row + table_bytes(layer.step), 0, sizeof(int32_t) * s.pad_wide);
            std::memset(sums + s.wide, 0, sizeof(int32_t) * s.pad_wide);
        }
    });
}

void row_sums(const Layer& layer, const uint8_t* packed, int row, int32_t* sums) {
    copy_sums(layer, aligned(packed), row_bytes(layer.step), table_bytes(layer.step), row, sums);
}

// A part of the taps: some kernel rows, or a part of one, of no more groups than the words hold.
struct Operands {
    const uint8_t* weights;  // of the first plane
    const uint8_t* input;    // the tables of the first pixel's first tap
    size_t row, pixel;       // bytes of the input between kernel rows and between output pixels
    size_t step, weight_row; // bytes of the weights between groups and between kernel rows
    int kernel_high, run;
    int most;                // look-ups that a byte holds
    bool again;              // not the first part
    const Pair* pairs;       // of each plane
    int32_t* counts;         // of the first pixel
    const int32_t* sums;
    size_t count, block;     // integers between the counts of two pixels, and of two blocks
};

// counts of one pixel and plane from the sums of its bytes: `all` is pairs of bytes as 16-bit words,
// `odd` the upper ones alone, so that the lower ones are all - 256 odd.
inline void finish(const Operands& at, const Pair& pair, int x, __m512i all, __m512i odd) {
    const __m512i even = _mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8));
    const __m512i factor = _mm512_set1_epi32(pair.factor);
    const __m512i start = _mm512_set1_epi32(-pair.weights * at.sums[x]);
    int32_t* to = at.counts + pair.place + at.count * x;
#pragma GCC unroll 4
    for (int b = 0; b < WIDE; b++, to += at.block) {
        const __m512i half = b < 2 ? even : odd;
        const __m256i words = b % 2 ? _mm512_extracti64x4_epi64(half, 1) : _mm512_castsi512_si256(half);
        const __m512i old = pair.first && !at.again ? start : _mm512_loadu_si512(to);
        _mm512_storeu_si512(to, _mm512_add_epi32(old, _mm512_mullo_epi32(_mm512_cvtepu16_epi32(words), factor)));
    }
}

// X pixels and P planes.
template <int P, int X>
void add_codes(const Operands& at) {
    __m512i bytes[X][P], all[X][P], odd[X][P];
    for (auto* vectors : {bytes, all, odd})
#pragma GCC unroll 9
        for (int x = 0; x < X; x++)
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) vectors[x][p] = _mm512_setzero_si512();
    const auto flush = [&] {
#pragma GCC unroll 9
        for (int x = 0; x < X; x++)
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                all[x][p] = _mm512_add_epi16(all[x][p], bytes[x][p]);
                odd[x][p] = _mm512_add_epi16(odd[x][p], _mm512_srli_epi16(bytes[x][p], 8));
                bytes[x][p] = _mm512_setzero_si512();
            }
    };
    int left = at.most;
    for (int ky = 0; ky < at.kernel_high; ky++) {
        const uint8_t *tables = at.input + at.row * ky, *weights = at.weights + at.weight_row * ky;
        for (int todo = at.run; todo > 0;) {
            if (left == 0) {
                flush();
                left = at.most;
            }
            const int n = std::min(todo, left);
            todo -= n;
            left -= n;
            for (int i = 0; i < n; i++, weights += at.step, tables += TABLE) {
                __m512i w[P];
#pragma GCC unroll 4
                for (int p = 0; p < P; p++) w[p] = _mm512_loadu_si512(weights + p * TABLE);
#pragma GCC unroll 9
                for (int x = 0; x < X; x++) {
                    __m512i table = _mm512_loadu_si512(tables + x * at.pixel);
                    if (P > 1) asm("" : "+v"(table));  // or it would be loaded again for each plane
#pragma GCC unroll 4
                    for (int p = 0; p < P; p++)
                        bytes[x][p] = _mm512_add_epi8(bytes[x][p], _mm512_permutexvar_epi8(w[p], table));
                }
            }
        }
    }
    flush();
#pragma GCC unroll 9
    for (int x = 0; x < X; x++)
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) finish(at, at.pairs[p], x, all[x][p], odd[x][p]);
}

// The rows of a tile, and what lies between the operands of two.
struct Rows {
    int n;
    size_t input, counts, sums;
};

using Add = void (*)(const Operands&);
template <int P, int... X>
constexpr std::array<Add, sizeof...(X)> up_to(std::integer_sequence<int, X...>) {
    return {add_codes<P, X + 1>...};
}

// n pixels of each row. The rows follow one another, so that the L1 data cache holds the tables of both.
template <int P>
void add_pixels(Operands at, int n, Rows rows) {
    constexpr int MOST = ROOM / P;
    static constexpr auto ADD = up_to<P>(std::make_integer_sequence<int, MOST>{});
    in_equal_parts(n, MOST, [&](int X) {
        Operands row = at;
        for (int i = 0; i < rows.n; i++) {
            ADD[X - 1](row);
            row.input += rows.input;
            row.counts += rows.counts;
            row.sums += rows.sums;
        }
        at.input += X * at.pixel;
        at.counts += X * at.count;
        at.sums += X;
    });
}

constexpr int MOST_P = 3;
constexpr void (*ADD[MOST_P])(Operands, int, Rows) = {add_pixels<1>, add_pixels<2>, add_pixels<3>};

// Call part(first kernel row, rows, first group, groups) for parts that words hold the sums of.
template <class F>
void each_part(const Step& s, int most, F part) {
    const int all = run(s), room = most * MOST_FLUSHES, rows = std::min(s.kernel_high, room / all);
    if (rows == 0) {
        for (int ky = 0; ky < s.kernel_high; ky++)
            for (int g = 0; g < all; g += room) part(ky, 1, g, std::min(room, all - g));
        return;
    }
    for (int ky = 0; ky < s.kernel_high; ky += rows) part(ky, std::min(rows, s.kernel_high - ky), 0, all);
}

// counts: (blocks, pixels, groups of weights, terms, BLOCK).
void tile(const Layer& layer, const uint8_t* packed, Tile t, const int32_t* sums, int32_t* counts) {
    const Step& s = layer.step;
    const int terms = layer.a_terms();
    const size_t pixel = size_t(groups(s)) * TABLE * s.stride_wide, row = row_bytes(layer.step) * s.a_groups;
    const size_t count = size_t(s.w_groups) * terms * BLOCK, step = size_t(s.w_planes) * TABLE;
    const uint8_t* weights = (const uint8_t*)aligned(layer.packed.data()) + wide_bytes(s) * (t.block / WIDE);
    const uint8_t* input = aligned(packed) + row * t.y * s.stride_high + pixel * t.x;
    const Rows rows{t.rows, row * s.stride_high, count * t.n, size_t(s.out_wide) * terms};
    for (int h = 0; h < s.a_groups; h++, input += row_bytes(layer.step), sums += s.out_wide) {
        const int most = MOST_SUM / (SIX * std::max(1, top_code(s, h)));
        for (int p0 = 0; p0 < s.w_planes; p0 += MOST_P) {
            const int P = std::min(MOST_P, s.w_planes - p0);
            Pair pairs[MOST_P];
            for (int p = 0; p < P; p++) pairs[p] = pair_of(layer, p0 + p, h);
            each_part(s, most, [&](int ky, int kernel_rows, int g, int n) {
                const Operands at{weights + step * run(s) * ky + step * g + size_t(p0) * TABLE,
                                  input + row * ky + size_t(g) * TABLE, row, pixel, step, step * run(s), kernel_rows,
                                  n, most, ky > 0 || g > 0, pairs, counts, sums, count, count * t.pixels()};
                ADD[P - 1](at, t.n, rows);
            });
        }
    }
}

}  // namespace

extern const Kernel WIDE_TABLES;
const Kernel WIDE_TABLES{"wide tables (AVX-512)", serves, pack_weights, input_bytes, pack<float>, row_sums,
                         TILE, 0, tile, true, nullptr, nullptr, pack<uint8_t>};

#endif
