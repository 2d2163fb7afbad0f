// The kernel for equally spaced levels on both sides: products of small integers.
//
// Four codes of a pixel are broadcast and multiplied with the weights of four channels for each output
// channel. Without an instruction for sums of four products, sums of two are kept in 16-bit words for
// as long as these cannot overflow.
#include <array>
#include <utility>

#include "codes.h"

#if defined(__SSSE3__)

namespace {

#if defined(__AVX512VNNI__)
// Pixels and blocks of outputs at a time, so that registers hold their sums.
constexpr int PIXELS = 7, BLOCKS = 2;
typedef __m512i Vector;
inline Vector load(const void* p) { return _mm512_loadu_si512(p); }
inline Vector broadcast(uint32_t codes) { return _mm512_set1_epi32(int(codes)); }
inline Vector pairs_of(Vector words) { return words; }  // there are no pairs
#elif defined(__AVX2__)
constexpr int PIXELS = 4, BLOCKS = 1;
typedef __m256i Vector;
inline Vector load(const void* p) { return _mm256_loadu_si256((const Vector*)p); }
inline Vector broadcast(uint32_t codes) { return _mm256_set1_epi32(int(codes)); }
inline Vector add_words(Vector a, Vector b) {
    asm("vpaddw %1, %0, %0" : "+x"(a) : "x"(b));  // so that the compiler copies no sums
    return a;
}
inline Vector in_pairs(Vector codes, Vector w) { return _mm256_maddubs_epi16(codes, w); }
inline Vector pairs_of(Vector words) { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); }
#else
constexpr int PIXELS = 4, BLOCKS = 1;
typedef __m128i Vector;
inline Vector load(const void* p) { return _mm_loadu_si128((const Vector*)p); }
inline Vector broadcast(uint32_t codes) { return _mm_set1_epi32(int(codes)); }
inline Vector add_words(Vector a, Vector b) {
    asm("paddw %1, %0" : "+x"(a) : "x"(b));  // so that the compiler copies no sums
    return a;
}
inline Vector in_pairs(Vector codes, Vector w) { return _mm_maddubs_epi16(codes, w); }
inline Vector pairs_of(Vector words) { return _mm_madd_epi16(words, _mm_set1_epi16(1)); }
#endif

#if defined(__AVX512VNNI__)
#define PRODUCTS_NAME "8-bit products (VNNI)"
constexpr bool FOUR = true;
// Not by _mm512_dpbusd_epi32, around which the compiler moves the sums from register to register.
inline Vector add_products(Vector sums, Vector codes, Vector w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(codes), "v"(w));
    return sums;
}
#elif defined(__AVXVNNI__)
#define PRODUCTS_NAME "8-bit products (VNNI)"
constexpr bool FOUR = true;
inline Vector add_products(Vector sums, Vector codes, Vector w) { return _mm256_dpbusd_avx_epi32(sums, codes, w); }
#else
#if defined(__AVX2__)
#define PRODUCTS_NAME "8-bit products (AVX2)"
#else
#define PRODUCTS_NAME "8-bit products (SSSE3)"
#endif
constexpr bool FOUR = false;
inline Vector add_products(Vector sums, Vector codes, Vector w) { return add_words(sums, in_pairs(codes, w)); }
#endif

constexpr int TILE = 32, ROWS = 8;  // pixels of a row, and rows
constexpr int LANES = sizeof(Vector) / 4, VECTORS = BLOCK / LANES;
typedef int32_t Sums __attribute__((vector_size(sizeof(Vector))));

bool serves(const Step& s) {
    const int code = top_code(s), weight = top_weight(s);
    return s.a_groups == 1 && s.w_groups == 1 && code <= 255 && weight <= 127 && 2 * code * weight <= 32767;
}

// A row: the codes of its pixels.
size_t row_bytes(const Layer& layer) { return size_t(layer.padded_wide()) * pixel_groups(layer.step) * GROUP; }

size_t input_bytes(const Layer& layer) { return row_bytes(layer) * layer.padded_high() + 64; }

// Weights [block][kernel row][group][output][channel of the group], each W in a byte.
size_t block_bytes(const Step& s) {
    return size_t(s.kernel_high) * s.kernel_wide * pixel_groups(s) * GROUP * BLOCK;
}

void pack_weights(Layer& layer) {
    const Step& s = layer.step;
    layer.tile_blocks = std::min(BLOCKS, layer.blocks());
    const int blocks = (layer.blocks() + BLOCKS - 1) / BLOCKS * BLOCKS;
    layer.set_offsets(int(row_bytes(layer)), s.kernel_wide * pixel_groups(s), GROUP);
    layer.packed.assign(block_bytes(s) * blocks / 4 + 16, 0);
    int8_t* packed = (int8_t*)aligned(layer.packed.data());
    std::vector<int8_t> integer(s.w_levels);
    for (int q = 0; q < s.w_levels; q++)
        for (int p = 0; p < s.w_planes; p++)
            integer[q] += s.w_multiplier[p] * (2 * s.w_bits[p * s.w_levels + q] - 1);
    const uint8_t* code = s.w_codes;
    for (int o = 0; o < s.outputs; o++)
        for (int tap = 0; tap < s.kernel_high * s.kernel_wide; tap++)
            for (int c = 0; c < s.channels; c++, code++) {
                const size_t group = size_t(tap) * pixel_groups(s) + c / GROUP;
                packed[block_bytes(s) * (o / BLOCK) + (group * BLOCK + o % BLOCK) * GROUP + c % GROUP] = integer[*code];
            }
}

// In is float or, for codes that an earlier step wrote, uint8_t.
template <class In>
void pack(const Layer& layer, const In* x, uint8_t* packed, int first, int end) {
    const Step& s = layer.step;
    const GroupCodes codes(s);
    const size_t side = size_t(s.pad_wide) * pixel_groups(s) * GROUP;
    each_padded_row(s, first, end, [&](int padded, int y) {
        uint8_t* row = aligned(packed) + row_bytes(layer) * padded;
        if (y < 0) {
            std::memset(row, 0, row_bytes(layer));
            return;
        }
        std::memset(row, 0, side);
        codes.row(s, x, y, row + side, 0);
        std::memset(row + row_bytes(layer) - side, 0, side);
    });
}

void row_sums(const Layer& layer, const uint8_t* packed, int row, int32_t* sums) {
    const int each = pixel_groups(layer.step) * GROUP;
    const uint8_t* codes = aligned(packed) + row_bytes(layer) * row;
    for (int x = 0; x < layer.padded_wide(); x++, codes += each) sums[x] = sum_of_codes(codes, each);
}

struct Operands {
    const int8_t* weights;
    const uint8_t* input;  // the codes of the first pixel's first tap
    const int32_t* offsets;  // of each group of the taps from there
    int groups;
    size_t pixel;          // bytes between output pixels
    int most;              // groups whose products 16-bit words hold
    size_t block;          // bytes between the weights of two blocks
    int32_t* counts;       // of the first pixel
    size_t count, between; // integers between the counts of two pixels, and of two blocks
};

// X pixels and B blocks.
template <int X, int B>
void add_up(const Operands& at) {
    constexpr int V = B * VECTORS;
    Sums total[X][V] = {};
    const int8_t* weights = at.weights;
    for (int group = 0; group < at.groups;) {
        Vector sums[X][V] = {};
        for (const int end = std::min(at.groups, group + at.most); group < end; group++, weights += GROUP * BLOCK) {
            const uint8_t* codes = at.input + at.offsets[group];
            Vector w[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++)
                w[v] = load(weights + v / VECTORS * at.block + v % VECTORS * sizeof(Vector));
#pragma GCC unroll 8
            for (int x = 0; x < X; x++) {
                const Vector four = broadcast(read<uint32_t>(codes + x * at.pixel));
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) sums[x][v] = add_products(sums[x][v], four, w[v]);
            }
        }
        for (int x = 0; x < X; x++)
            for (int v = 0; v < V; v++) total[x][v] += (Sums)(FOUR ? sums[x][v] : pairs_of(sums[x][v]));
    }
#pragma GCC unroll 8
    for (int x = 0; x < X; x++)
#pragma GCC unroll 2
        for (int b = 0; b < B; b++)
            std::memcpy(at.counts + at.count * x + at.between * b, &total[x][b * VECTORS], sizeof(Sums) * VECTORS);
}

using Add = void (*)(const Operands&);
template <int B, int... X>
constexpr std::array<Add, sizeof...(X)> up_to(std::integer_sequence<int, X...>) {
    return {add_up<X + 1, B>...};
}
constexpr std::array<Add, PIXELS> ADD[] = {up_to<1>(std::make_integer_sequence<int, PIXELS>{}),
                                           up_to<BLOCKS>(std::make_integer_sequence<int, PIXELS>{})};

void tile(const Layer& layer, const uint8_t* packed, Tile t, const int32_t*, int32_t* counts) {
    const Step& s = layer.step;
    const size_t pixel = size_t(pixel_groups(s)) * GROUP * s.stride_wide, row = row_bytes(layer);
    const size_t count = size_t(layer.a_terms()) * BLOCK;
    Operands at{(const int8_t*)aligned(layer.packed.data()) + block_bytes(s) * t.block,
                nullptr,
                layer.offsets.data(),
                int(layer.offsets.size()),
                pixel,
                FOUR ? 1 << 30 : 32767 / (2 * top_code(s) * top_weight(s)),
                block_bytes(s),
                counts,
                count,
                count * t.pixels()};
    for (int i = 0; i < t.rows; i++) {
        at.input = aligned(packed) + row * (t.y + i) * s.stride_high + pixel * t.x;
        in_equal_parts(t.n, PIXELS, [&](int X) {
            ADD[layer.tile_blocks > 1][X - 1](at);
            at.input += pixel * X;
            at.counts += count * X;
        });
    }
}

}  // namespace

extern const Kernel PRODUCTS;
const Kernel PRODUCTS{PRODUCTS_NAME, serves,   pack_weights, input_bytes, pack<float>,
                      row_sums,      TILE, ROWS, tile, false, nullptr, nullptr, pack<uint8_t>};

#endif
