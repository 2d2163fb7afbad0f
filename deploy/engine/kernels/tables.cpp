// The kernel that looks sums up, for any levels.
//
// For every four channels of every pixel there is a table of the sums of all sixteen subsets of their
// codes, one for each group of planes of the input. Four bits of a plane of the weights are an index
// into it: one look-up adds the codes of four channels whose weight bit is one, for each of the sixteen
// output channels of a block. The tables of neighbouring channels lie side by side, and the parts of a
// vector read one each. Two planes of the weights lie byte by byte in two vectors, eight outputs in each,
// so that one instruction makes words of both.
#include "bytes.h"
#include "codes.h"

namespace {

constexpr int TABLE = 16;  // bytes
constexpr int TILE = 32;         // pixels
constexpr int L1_COUNTS = 2048;  // counts of a tile, for which the L1 data cache has room
constexpr int MOST_VECTORS = 8;  // of sums, which registers hold
constexpr int MOST_SUM = 255, MOST_WORD = 65535;  // the largest number of a byte, of a 16-bit word
constexpr int MOST_WEIGHT = 64;  // the multipliers of a group of planes together
static_assert(MOST_SUM * MOST_WEIGHT * TABLES <= MOST_WORD, "two planes that are summed as one");

int run(const Step& s) { return s.kernel_wide * pixel_groups(s); }  // tables of a row of taps
int lookups(const Step& s) { return (run(s) + TABLES - 1) / TABLES; }

// A row, of one group of planes: its tables, empty ones for the last step of the last pixel, and the sums
// of the pixels. The rows of all groups follow one another.
size_t table_bytes(const Step& s) { return rounded((size_t(padded_wide(s)) * pixel_groups(s) + TABLES) * TABLE); }
size_t row_bytes(const Step& s) { return table_bytes(s) + rounded(sizeof(int32_t) * padded_wide(s)); }
size_t input_bytes(const Step& s) { return row_bytes(s) * s.a_groups * padded_high(s) + 64; }

bool serves(const Step& s) {
    for (int g = 0; g < s.w_groups; g++)
        if (top_weight(s, g) > MOST_WEIGHT) return false;
    return GROUP * largest_code(s) <= MOST_SUM && input_bytes(s) < MOST_TABLES;
}

size_t input_bytes(const Layer& layer) { return input_bytes(layer.step); }

// Weights [block][kernel row][step][plane][part][lane]: four bits each. Of two planes, [half of the
// outputs][part][lane][plane].
size_t block_bytes(const Step& s) {
    return size_t(s.kernel_high) * lookups(s) * s.w_planes * TABLES * BLOCK;
}

void pack_weights(Layer& layer) {
    const Step& s = layer.step;
    const int most = L1_COUNTS / (s.w_groups * layer.a_terms() * BLOCK);
    layer.tile_wide = std::min(layer.tile_wide, std::max(MOST_VECTORS, most));
    layer.set_offsets(int(row_bytes(layer.step) * s.a_groups), lookups(s), sizeof(Bytes));
    layer.packed.assign(block_bytes(s) * layer.blocks() / 4 + 16, 0);
    uint8_t* packed = (uint8_t*)aligned(layer.packed.data());
    const uint8_t* code = s.w_codes;
    for (int o = 0; o < s.outputs; o++)
        for (int ky = 0; ky < s.kernel_high; ky++)
            for (int kx = 0; kx < s.kernel_wide; kx++)
                for (int c = 0; c < s.channels; c++, code++) {
                    const int group = kx * pixel_groups(s) + c / GROUP;
                    const size_t step = size_t(ky) * lookups(s) + group / TABLES;
                    uint8_t* to = packed + block_bytes(s) * (o / BLOCK) +
                                  (step * s.w_planes * TABLES + group % TABLES) * BLOCK;
                    for (int p = 0; p < s.w_planes; p++) {
                        const bool alone = p % 2 == 0 && p == s.w_planes - 1;
                        const int half = o % BLOCK / (BLOCK / 2), lane = o % (BLOCK / 2) * 2 + p % 2;
                        const int place = alone ? o % BLOCK : half * TABLES * BLOCK + lane;
                        to[p / 2 * 2 * TABLES * BLOCK + place] |= s.w_bits[p * s.w_levels + *code] << c % GROUP;
                    }
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
    const size_t n = size_t(s.wide) * each;
    std::vector<uint8_t> all(n * s.a_groups);
    each_padded_row(s, first, end, [&](int padded, int y) {
        uint8_t* row = aligned(packed) + row_bytes(layer.step) * s.a_groups * padded;
        if (y < 0) {
            std::memset(row, 0, row_bytes(layer.step) * s.a_groups);
            return;
        }
        const size_t start = size_t(s.pad_wide) * each / GROUP * TABLE;
        const size_t stop = start + n / GROUP * TABLE;
        integers.row(s, x, y, all.data(), n);
        for (int h = 0; h < s.a_groups; h++, row += row_bytes(layer.step)) {
            const uint8_t* codes = all.data() + n * h;
            std::memset(row, 0, start);
            build_tables(codes, int(n), row + start);
            std::memset(row + stop, 0, row_bytes(layer.step) - stop);
            int32_t* sums = (int32_t*)(row + table_bytes(layer.step)) + s.pad_wide;
            for (int pixel = 0; pixel < s.wide; pixel++) sums[pixel] = sum_of_codes(codes + pixel * each, each);
        }
    });
}

void row_sums(const Layer& layer, const uint8_t* packed, int row, int32_t* sums) {
    copy_sums(layer, aligned(packed), row_bytes(layer.step), table_bytes(layer.step), row, sums);
}

struct Operands {
    const uint8_t* weights;  // of the first plane
    const uint8_t* input;    // the tables of the first pixel's first tap
    const int32_t* offsets;  // of the tables of each look-up from there
    int lookups;             // of a pixel
    int most;                // of them, whose sum a byte holds
    size_t pixel, step;      // bytes between output pixels, and between the weights of two look-ups
    int multiplier[2];       // of both planes, where these are summed as one
    int flushes;             // that a 16-bit word holds
    Pair pairs[2];           // of each plane; of the first for both, where these are summed as one
    int32_t* counts;         // of the first pixel
    const int32_t* sums;
    size_t count;            // integers between the counts of two pixels
};

typedef int32_t Eight __attribute__((vector_size(32)));
typedef uint16_t EightWords __attribute__((vector_size(16)));

// How planes of the weights are summed: one alone, two apart, or two of one group, weighted and added as one.
enum Form { ALONE, APART, FUSED };

inline EightWords folded(Words words) {
    EightWords part[TABLES];
    std::memcpy(part, &words, sizeof words);
    for (int i = 1; i < TABLES; i++) part[0] += part[i];
    return part[0];
}

// To the counts of eight outputs of pixel x. again: they are not the first sums of this pair.
inline void add_to(const Operands& at, const Pair& pair, int x, int lane, bool again, EightWords words) {
    int32_t* to = at.counts + at.count * x + pair.place + lane;
    const Eight old = pair.first && !again ? Eight{} - pair.weights * at.sums[x] : read<Eight>(to);
    const Eight sum = old + __builtin_convertvector(words, Eight) * pair.factor;
    std::memcpy(to, &sum, sizeof sum);
}

// Sums of a vector of bytes, in 16-bit words. `all` takes pairs of bytes as they are, `odd` the upper ones
// alone, so that the lower ones are all - 256 odd; FUSED needs no `odd`.
struct Parts {
    Words all, odd;
};

// The sums of pixel x, of one vector or two, to its counts.
template <Form F>
inline void finish(const Operands& at, const Parts* parts, int x, bool again) {
    for (int v = 0; v < (F == ALONE ? 1 : 2); v++) {
        if (F == FUSED) {
            add_to(at, at.pairs[0], x, 8 * v, again, folded(parts[v].all));
            continue;
        }
        const EightWords odd = folded(parts[v].odd), even = folded(parts[v].all - (parts[v].odd << 8));
        if (F == APART) {
            add_to(at, at.pairs[0], x, 8 * v, again, even);
            add_to(at, at.pairs[1], x, 8 * v, again, odd);
        } else {
            const auto add = [&](int lane, EightWords words) { add_to(at, at.pairs[0], x, lane, again, words); };
            add(0, __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11));
            add(8, __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15));
        }
    }
}

// The sums of X pixels.
template <Form F, int X>
void add_codes(const Operands& at) {
    constexpr int V = F == ALONE ? 1 : 2;  // vectors of a pixel
    Bytes bytes[X][V];
    Parts parts[X][V];
    int flushes = 0;
    bool again = false;
    const auto finish_all = [&] {
        for (int x = 0; x < X; x++) finish<F>(at, parts[x], x, again);
        flushes = 0;
        again = true;
    };
    const auto flush = [&] {
        for (int x = 0; x < X; x++)
            for (int v = 0; v < V; v++) {
                const Words all = F == FUSED ? weighted(bytes[x][v], at.multiplier) : (Words)bytes[x][v];
                Parts& to = parts[x][v];
                to.all = flushes == 0 ? all : to.all + all;
                if (F != FUSED) to.odd = flushes == 0 ? all >> 8 : to.odd + (all >> 8);
            }
        if (++flushes == at.flushes) finish_all();
    };
    const uint8_t* weights = at.weights;
    const int32_t* offset = at.offsets;
    // Parts of one length, whose end the processor foresees.
    in_equal_parts(at.lookups, at.most, [&](int n) {
        for (auto& pixel : bytes)
            for (auto& cell : pixel) cell = Bytes{};
        for (int i = 0; i < n; i++, weights += at.step, offset++) {
            const uint8_t* tables = at.input + *offset;
            // Each is read once: no more than two loads of a whole vector go with two look-ups.
            Bytes w = read<Bytes>(weights), second = read<Bytes>(weights + (V - 1) * sizeof(Bytes));
            if (V > 1) keep(w), keep(second);
#pragma GCC unroll 8
            for (int x = 0; x < X; x++) {
                Bytes table = read<Bytes>(tables + x * at.pixel);
                if (V > 1) keep(table);
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) bytes[x][v] += look_up(table, v == 0 ? w : second);
            }
        }
        flush();
    });
    if (flushes != 0) finish_all();
}

using Add = void (*)(const Operands&);
constexpr Add ADD[][MOST_VECTORS] = {
    {add_codes<ALONE, 1>, add_codes<ALONE, 2>, add_codes<ALONE, 3>, add_codes<ALONE, 4>, add_codes<ALONE, 5>,
     add_codes<ALONE, 6>, add_codes<ALONE, 7>, add_codes<ALONE, 8>},
    {add_codes<APART, 1>, add_codes<APART, 2>, add_codes<APART, 3>, add_codes<APART, 4>},
    {add_codes<FUSED, 1>, add_codes<FUSED, 2>, add_codes<FUSED, 3>, add_codes<FUSED, 4>},
};

// The sums of the planes from `first` on and of group h of the input, for n pixels.
void add_planes(const Layer& layer, int n, int first, int h, Operands at) {
    const Step& s = layer.step;
    const int *group = s.w_group, *multiplier = s.w_multiplier;
    const Form form = first + 1 == s.w_planes ? ALONE : group[first] == group[first + 1] ? FUSED : APART;
    int largest = 1;
    at.pairs[0] = pair_of(layer, first, h);
    if (form == APART) at.pairs[1] = pair_of(layer, first + 1, h);
    if (form == FUSED) {
        std::copy(multiplier + first, multiplier + first + 2, at.multiplier);
        at.pairs[0].factor = 2;
        largest = at.multiplier[0] + at.multiplier[1];
    }
    at.most = MOST_SUM / (GROUP * std::max(1, top_code(s, h)));
    at.flushes = MOST_WORD / (MOST_SUM * TABLES * largest);
    in_equal_parts(n, form == ALONE ? MOST_VECTORS : MOST_VECTORS / 2, [&](int X) {
        ADD[form][X - 1](at);
        at.input += X * at.pixel;
        at.counts += X * at.count;
        at.sums += X;
    });
}

void tile(const Layer& layer, const uint8_t* packed, Tile t, const int32_t* sums, int32_t* counts) {
    const Step& s = layer.step;
    const size_t pixel = size_t(pixel_groups(s)) * TABLE * s.stride_wide, row = row_bytes(layer.step) * s.a_groups;
    const uint8_t* weights = (const uint8_t*)aligned(layer.packed.data()) + block_bytes(s) * t.block;
    Operands at{};
    at.input = aligned(packed) + row * t.y * s.stride_high + pixel * t.x;
    at.offsets = layer.offsets.data();
    at.lookups = int(layer.offsets.size());
    at.pixel = pixel;
    at.step = s.w_planes * sizeof(Bytes);
    at.counts = counts;
    at.sums = sums;
    at.count = size_t(s.w_groups) * layer.a_terms() * BLOCK;
    for (int h = 0; h < s.a_groups; h++, at.input += row_bytes(layer.step), at.sums += s.out_wide)
        for (int p = 0; p < s.w_planes; p += 2) {
            at.weights = weights + p * sizeof(Bytes);
            add_planes(layer, t.n, p, h, at);
        }
}

}  // namespace

extern const Kernel TABLE_SUMS;
const Kernel TABLE_SUMS{LOOKUP_NAME, serves,   pack_weights, input_bytes, pack<float>,
                        row_sums,    TILE, 1, tile, true, nullptr, nullptr, pack<uint8_t>};
