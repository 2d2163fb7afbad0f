// The kernel for equally spaced activation levels and any weight levels: sums are looked up.
//
// For every group of four channels of every pixel there is a table of the sums of all sixteen subsets
// of its codes. Four bits of a plane of the weights are an index into it: one look-up adds the codes
// of four channels whose weight bit is one, for each of the sixteen output channels of a block. The
// tables of neighbouring groups lie side by side, and the parts of a vector read one each.
#include "bytes.h"
#include "codes.h"

namespace {

constexpr int TABLE = 16;  // bytes
constexpr int MOST_PIXELS = 8;
constexpr int MOST_SUM = 255, MOST_PARTS = 65535;  // of a byte, of a 16-bit word

int run(const Step& s) { return s.kernel_wide * pixel_groups(s); }  // tables of a row of taps
int steps(const Step& s) { return (run(s) + TABLES - 1) / TABLES; }

// A row: its tables, empty ones for the last step of the last pixel, and the sums of the pixels.
size_t table_bytes(const Layer& layer) {
    return rounded((size_t(layer.padded_wide()) * pixel_groups(layer.step) + TABLES) * TABLE);
}
size_t row_bytes(const Layer& layer) {
    return table_bytes(layer) + rounded(sizeof(int32_t) * layer.padded_wide());
}

bool serves(const Step& s) { return s.a_groups == 1 && GROUP * top_code(s) <= MOST_SUM; }

size_t input_bytes(const Layer& layer) { return row_bytes(layer) * layer.padded_high() + 64; }

// Weights [block][kernel row][step][plane][part][lane]: four bits each.
size_t block_bytes(const Step& s) {
    return size_t(s.kernel_high) * steps(s) * s.w_planes * TABLES * BLOCK;
}

void pack_weights(Layer& layer) {
    const Step& s = layer.step;
    layer.packed.assign(block_bytes(s) * layer.blocks() / 4 + 16, 0);
    uint8_t* packed = (uint8_t*)aligned(layer.packed.data());
    const uint8_t* code = s.w_codes;
    for (int o = 0; o < s.outputs; o++)
        for (int ky = 0; ky < s.kernel_high; ky++)
            for (int kx = 0; kx < s.kernel_wide; kx++)
                for (int c = 0; c < s.channels; c++, code++) {
                    const int group = kx * pixel_groups(s) + c / GROUP;
                    const size_t step = size_t(ky) * steps(s) + group / TABLES;
                    uint8_t* to = packed + block_bytes(s) * (o / BLOCK) +
                                  (step * s.w_planes * TABLES + group % TABLES) * BLOCK + o % BLOCK;
                    for (int p = 0; p < s.w_planes; p++, to += TABLES * BLOCK)
                        *to |= s.w_bits[p * s.w_levels + *code] << c % GROUP;
                }
}

// The tables of the groups of n codes, a multiple of four.
void build_tables(const uint8_t* codes, int n, uint8_t* to) {
#if defined(__AVX2__)
    // Of each pair of codes a, b come four bytes a, b, a + b, 0. The sums of a group are a byte of its
    // first pair, chosen by two bits of the index, and one of its second pair, chosen by the others.
    const __m256i first = _mm256_setr_epi8(3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 11, 8, 9, 10, 11, 8, 9,
                                           10, 11, 8, 9, 10, 11, 8, 9, 10);
    const __m256i second = _mm256_setr_epi8(7, 7, 7, 7, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 15, 15, 15, 15, 12, 12,
                                            12, 12, 13, 13, 13, 13, 14, 14, 14, 14);
    const __m128i low = _mm_set1_epi16(255);
    for (; n >= 16; n -= 16, codes += 16, to += 4 * TABLE) {
        const __m128i c = _mm_loadu_si128((const __m128i*)codes);
        const __m128i sums = _mm_and_si128(_mm_add_epi8(c, _mm_srli_epi16(c, 8)), low);
        const __m256i left = _mm256_broadcastsi128_si256(_mm_unpacklo_epi16(c, sums));
        const __m256i right = _mm256_broadcastsi128_si256(_mm_unpackhi_epi16(c, sums));
        const __m256i a = _mm256_add_epi8(_mm256_shuffle_epi8(left, first), _mm256_shuffle_epi8(left, second));
        const __m256i b = _mm256_add_epi8(_mm256_shuffle_epi8(right, first), _mm256_shuffle_epi8(right, second));
        _mm256_storeu_si256((__m256i*)to, a);
        _mm256_storeu_si256((__m256i*)(to + 2 * TABLE), b);
    }
#endif
    for (; n > 0; n -= GROUP, codes += GROUP, to += TABLE) {
        uint64_t half = codes[0] * 0x0100010001000100 + codes[1] * 0x0101000001010000 +
                        codes[2] * 0x0101010100000000;
        std::memcpy(to, &half, 8);
        half += codes[3] * 0x0101010101010101;
        std::memcpy(to + 8, &half, 8);
    }
}

// In is float or, for codes that an earlier step wrote, uint8_t.
template <class In>
void pack(const Layer& layer, const In* x, uint8_t* packed, int first, int end) {
    const Step& s = layer.step;
    const GroupCodes integers(s);
    const int each = pixel_groups(s) * GROUP;
    std::vector<uint8_t> codes(size_t(s.wide) * each);
    each_padded_row(s, first, end, [&](int padded, int y) {
        uint8_t* row = aligned(packed) + row_bytes(layer) * padded;
        if (y < 0) {
            std::memset(row, 0, row_bytes(layer));
            return;
        }
        const size_t start = size_t(s.pad_wide) * each / GROUP * TABLE;
        const size_t stop = start + codes.size() / GROUP * TABLE;
        integers.row(s, x, y, codes.data(), 0);
        std::memset(row, 0, start);
        build_tables(codes.data(), int(codes.size()), row + start);
        std::memset(row + stop, 0, row_bytes(layer) - stop);
        int32_t* sums = (int32_t*)(row + table_bytes(layer)) + s.pad_wide;
        for (int pixel = 0; pixel < s.wide; pixel++) sums[pixel] = sum_of_codes(codes.data() + pixel * each, each);
    });
}

void row_sums(const Layer& layer, const uint8_t* packed, int row, int32_t* sums) {
    const uint8_t* from = aligned(packed) + row_bytes(layer) * row + table_bytes(layer);
    std::memcpy(sums, from, sizeof(int32_t) * layer.padded_wide());
}

struct Operands {
    const uint8_t* weights;  // of the first plane
    const uint8_t* input;    // the tables of the first pixel's first tap
    size_t row, pixel;       // bytes between kernel rows and between output pixels
    int kernel_high, steps;
    size_t step;             // bytes between the weights of two steps
    int most;                // look-ups that a byte holds
};

typedef int32_t Eight __attribute__((vector_size(32)));
typedef uint16_t EightWords __attribute__((vector_size(16)));

// Sums of bytes in 16-bit words: `all` takes pairs of bytes as they are, `odd` the upper ones alone,
// so that the lower ones are all - 256 odd.
struct Parts {
    Words all, odd;
};

inline EightWords folded(Words words) {
    EightWords part[TABLES];
    std::memcpy(part, &words, sizeof words);
    for (int i = 1; i < TABLES; i++) part[0] += part[i];
    return part[0];
}

// What a plane's sums mean: counts[lane] += factor x sum, or start + factor x sum if it is the first.
struct Target {
    int32_t* counts;
    int32_t factor, start;
    bool first;
};

inline void finish(const Parts& parts, Target& t) {
    const EightWords odd = folded(parts.odd), even = folded(parts.all - (parts.odd << 8));
    const EightWords half[2] = {__builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11),
                                __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15)};
    for (int i = 0; i < 2; i++) {
        const Eight old = t.first ? Eight{} + t.start : read<Eight>(t.counts + 8 * i);
        const Eight sum = old + __builtin_convertvector(half[i], Eight) * t.factor;
        std::memcpy(t.counts + 8 * i, &sum, sizeof sum);
    }
    t.first = false;
}

// The sums of X pixels and P planes.
template <int P, int X>
void add_codes(const Operands& at, Target* targets) {
    constexpr int MOST_FLUSHES = MOST_PARTS / (MOST_SUM * TABLES);
    Bytes bytes[X][P];
    Parts parts[X][P];
    int left = 0, flushes = 0;
    auto flush = [&] {
        for (int x = 0; x < X; x++)
            for (int p = 0; p < P; p++) {
                const Words all = (Words)bytes[x][p];
                Parts& to = parts[x][p];
                if (flushes == 0) to = {all, all >> 8};
                else to = {to.all + all, to.odd + (all >> 8)};
            }
        if (++flushes < MOST_FLUSHES) return;
        for (int i = 0; i < X * P; i++) finish(parts[i / P][i % P], targets[i]);
        flushes = 0;
    };
    const uint8_t* weights = at.weights;
    for (int ky = 0; ky < at.kernel_high; ky++) {
        const uint8_t* tables = at.input + at.row * ky;
        for (int todo = at.steps; todo > 0;) {
            if (left == 0) {
                left = at.most;
                for (auto& row : bytes)
                    for (auto& cell : row) cell = Bytes{};
            }
            const int n = std::min(todo, left);
            todo -= n;
            left -= n;
            for (int i = 0; i < n; i++, weights += at.step, tables += sizeof(Bytes)) {
                Bytes w[P];
#pragma GCC unroll 4
                for (int p = 0; p < P; p++) w[p] = read<Bytes>(weights + p * sizeof(Bytes));
#pragma GCC unroll 8
                for (int x = 0; x < X; x++) {
                    Bytes table = read<Bytes>(tables + x * at.pixel);
                    if (P > 1) keep(table);
#pragma GCC unroll 4
                    for (int p = 0; p < P; p++) bytes[x][p] += look_up(table, w[p]);
                }
            }
            if (left == 0) flush();
        }
    }
    if (left != 0) flush();
    if (flushes != 0)
        for (int i = 0; i < X * P; i++) finish(parts[i / P][i % P], targets[i]);
}

using Add = void (*)(const Operands&, Target*);
constexpr int MOST_P = 2;
constexpr Add ADD[MOST_P][MOST_PIXELS] = {
    {add_codes<1, 1>, add_codes<1, 2>, add_codes<1, 3>, add_codes<1, 4>, add_codes<1, 5>, add_codes<1, 6>,
     add_codes<1, 7>, add_codes<1, 8>},
    {add_codes<2, 1>, add_codes<2, 2>, add_codes<2, 3>, add_codes<2, 4>},
};

// The weights of one plane, or of two: its place, and where its sums go.
struct Planes {
    int first, count;
    int32_t* counts[MOST_P];
    int32_t factor[MOST_P], each[MOST_P];  // each: of the group; 0 for all but its first plane
};

Planes planes_of(const Layer& layer, int first, int32_t* counts) {
    const Step& s = layer.step;
    Planes planes{first, std::min(MOST_P, s.w_planes - first), {}, {}, {}};
    for (int i = 0; i < planes.count; i++) {
        const int p = first + i, group = s.w_group[p];
        planes.counts[i] = counts + size_t(group) * layer.a_terms() * BLOCK;
        planes.factor[i] = 2 * s.w_multiplier[p];
        if (p != 0 && s.w_group[p - 1] == group) continue;
        for (int q = p; q < s.w_planes && s.w_group[q] == group; q++) planes.each[i] += s.w_multiplier[q];
    }
    return planes;
}

void tile(const Layer& layer, const uint8_t* packed, Tile t, const int32_t* sums, int32_t* counts) {
    const Step& s = layer.step;
    const int terms = layer.a_terms();
    const size_t pixel = size_t(pixel_groups(s)) * TABLE * s.stride_wide, row = row_bytes(layer);
    const size_t count = size_t(s.w_groups) * terms * BLOCK;  // integers of a pixel
    const uint8_t* weights = (const uint8_t*)aligned(layer.packed.data()) + block_bytes(s) * t.block;
    const uint8_t* input = aligned(packed) + row * t.y * s.stride_high + pixel * t.x;
    Operands at{weights, input, row, pixel, s.kernel_high, steps(s), s.w_planes * sizeof(Bytes),
                MOST_SUM / (GROUP * top_code(s))};
    for (int p = 0; p < s.w_planes; p += MOST_P, at.weights += MOST_P * sizeof(Bytes)) {
        const Planes planes = planes_of(layer, p, counts);
        Target targets[MOST_PIXELS * MOST_P];
        Target* next = targets;
        for (int x = 0; x < t.n; x++)
            for (int i = 0; i < planes.count; i++)
                *next++ = {planes.counts[i] + x * count, planes.factor[i], -planes.each[i] * sums[x],
                           planes.each[i] != 0};
        // Registers hold the sums of eight pixels and planes.
        const int X = planes.count > 1 && t.n > MOST_PIXELS / 2 ? (t.n + 1) / 2 : t.n;
        at.input = input;
        ADD[planes.count - 1][X - 1](at, targets);
        if (X == t.n) continue;
        at.input += X * pixel;
        ADD[planes.count - 1][t.n - X - 1](at, targets + X * planes.count);
    }
}

}  // namespace

extern const Kernel TABLE_SUMS;
const Kernel TABLE_SUMS{LOOKUP_NAME, serves,   pack_weights, input_bytes, pack<float>,
                        row_sums,    MOST_PIXELS, 1, tile, true, nullptr, nullptr, pack<uint8_t>};
