// The kernel for processors that multiply matrices of bytes (Intel's AMX): any levels.
//
// Every group of planes is one integer of eight bits, of the input without a sign. A matrix of up to
// sixteen pixels by 64 of these integers is multiplied with one of 64 by sixteen output channels, for
// each pair of a group of weights and one of inputs. A row of taps is one run of bytes; where its
// last 64 reach beyond it, the weights are zero.
#include "codes.h"

#if defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "codebook.h"

namespace {

constexpr int DEEP = 64, MOST_HIGH = 16;         // bytes of a row, rows of a matrix register
constexpr int MATRIX = DEEP * BLOCK;             // bytes of the weights' matrix
constexpr size_t CACHED_BYTES = 1 << 18;                 // bytes of a layer's weights that caches may keep
constexpr int AT_ONCE = 4;                       // matrices of sums, as many as hide the latency
constexpr int ASK_FOR_PERMISSION = 0x1023, MATRICES = 18;  // of arch_prctl; the state of matrices

// The operating system must allow a process to use the registers; it is asked once.
bool allowed() {
    static const bool granted = syscall(SYS_arch_prctl, ASK_FOR_PERMISSION, MATRICES) == 0;
    return granted;
}

int32_t top(int planes, const int32_t* multiplier, const int32_t* group, int which) {
    int32_t sum = 0;
    for (int p = 0; p < planes; p++) sum += group[p] == which ? multiplier[p] : 0;
    return sum;
}

bool serves(const Step& s) {
    for (int h = 0; h < s.a_groups; h++)
        if (top(s.a_planes, s.a_multiplier, s.a_group, h) > 255) return false;
    for (int g = 0; g < s.w_groups; g++)
        if (top(s.w_planes, s.w_multiplier, s.w_group, g) > 127) return false;
    return allowed();
}

int pixel_bytes(const Step& s) { return pixel_groups(s) * GROUP; }
int depth(const Step& s) { return (s.kernel_wide * pixel_bytes(s) + DEEP - 1) / DEEP; }  // matrices of a row

// A padded row of one group of the input, and all rows of a group, which lie one after the other.
size_t row_bytes(const Layer& layer) { return size_t(layer.padded_wide()) * pixel_bytes(layer.step); }
size_t group_bytes(const Layer& layer) { return row_bytes(layer) * layer.padded_high(); }

// Matrices are read beyond the last row, by pixels and by bytes.
size_t input_bytes(const Layer& layer) {
    const Step& s = layer.step;
    const size_t beyond = size_t(MOST_HIGH) * s.stride_wide * pixel_bytes(s) + 2 * DEEP;
    return group_bytes(layer) * s.a_groups + beyond + DEEP;
}

// Output rows of a matrix: where they are short, several with the padding between them.
int joined(const Layer& layer) {
    const Step& s = layer.step;
    if (s.out_wide >= MOST_HIGH || s.stride_high != s.stride_wide) return 1;
    return std::min(s.out_high, 1 + (MOST_HIGH - s.out_wide) / layer.padded_wide());
}

// Bytes of a group of weights, for a block of outputs.
size_t weight_bytes(const Step& s) { return size_t(s.kernel_high) * depth(s) * MATRIX; }

// Weights that are larger than the output are read once for each block: as codes, where they do not
// stay in the caches, and where no bytes of zero are needed beyond a row of taps or the channels.
bool as_codes(const Step& s) {
    const size_t bytes = weight_bytes(s) * s.w_groups * s.outputs / BLOCK;
    const bool is_large = bytes >= CACHED_BYTES && bytes >= sizeof(float) * s.out_high * s.out_wide * s.outputs;
    return is_large && s.w_levels <= MOST_LEVELS && s.kernel_wide * s.channels % DEEP == 0 && s.channels % GROUP == 0;
}

// A row of the output is cut into as few equal parts as possible.
void choose_tile(Layer& layer) {
    const Step& s = layer.step;
    const int matrices = s.a_groups % AT_ONCE == 0 ? 1 : s.a_groups % 2 == 0 ? AT_ONCE / 2 : AT_ONCE;
    const int rows = layer.unit_rows = joined(layer);
    const int parts = (s.out_wide + MOST_HIGH - 1) / MOST_HIGH;
    const int high = layer.unit_pixels = (s.out_wide + parts - 1) / parts + (rows - 1) * layer.padded_wide();
    if (rows > 1) {  // the padding between rows must find room behind the tile
        layer.tile_wide = s.out_wide;
        layer.tile_high = rows * std::max(1, std::min(matrices, MARGIN / (high - rows * s.out_wide + 1)));
        return;
    }
    const int used = (s.out_wide + high - 1) / high;
    layer.tile_wide = std::min(used, matrices) * high;
    layer.tile_high = std::max(1, matrices / used);
}

// Entries of the table of a group: one a level, and at least as many as split_codes reads.
size_t table_size(const Step& s) { return std::max(MOST_LEVELS, s.w_levels); }

// The integer of each level: (groups, table_size).
std::vector<int8_t> integers(const Step& s) {
    std::vector<int8_t> table(s.w_groups * table_size(s));
    for (int p = 0; p < s.w_planes; p++)
        for (int q = 0; q < s.w_levels; q++)
            table[s.w_group[p] * table_size(s) + q] +=
                s.w_multiplier[p] * (2 * s.w_bits[p * s.w_levels + q] - 1);
    return table;
}

// Call put(code, block of outputs, place in the block) for every weight. A block is [kernel row]
// [matrix][four channels][output][channel of the four].
template <class F>
void each_weight(const Step& s, F put) {
    const uint8_t* code = s.w_codes;
    for (int o = 0; o < s.outputs; o++)
        for (int ky = 0; ky < s.kernel_high; ky++)
            for (int kx = 0; kx < s.kernel_wide; kx++)
                for (int c = 0; c < s.channels; c++, code++) {
                    const int k = kx * pixel_bytes(s) + c;
                    put(*code, o / BLOCK, size_t(ky) * depth(s) * MATRIX + size_t(k / GROUP) * GROUP * BLOCK +
                                              o % BLOCK * GROUP + k % GROUP);
                }
}

// Blocks of weights: of codes, or of the bytes of each group.
void pack_weights(Layer& layer) {
    const Step& s = layer.step;
    choose_tile(layer);
    layer.by_block = as_codes(s);
    const size_t each = weight_bytes(s);
    if (layer.by_block) {
        std::vector<uint8_t> codes(each * layer.blocks());
        each_weight(s, [&](uint8_t code, int block, size_t at) { codes[each * block + at] = code; });
        const int bits = code_bits(s.w_levels);
        layer.packed.assign(codes.size() * bits / 8 / 4 + DEEP / 4, 0);
        join_codes(codes.data(), codes.size(), bits, (uint8_t*)aligned(layer.packed.data()));
        return;
    }
    layer.packed.assign(each * s.w_groups * layer.blocks() / 4 + DEEP / 4, 0);
    int8_t* packed = (int8_t*)aligned(layer.packed.data());
    const std::vector<int8_t> table = integers(s);
    each_weight(s, [&](uint8_t code, int block, size_t at) {
        for (int g = 0; g < s.w_groups; g++)
            packed[each * (s.w_groups * size_t(block) + g) + at] = table[g * table_size(s) + code];
    });
}

// The bytes of the block that a thread works on, where weights are codes.
struct Unpacked {
    int block;
    std::vector<int8_t> table, bytes;
};
thread_local Unpacked unpacked;

// The weights of a block: (groups, weight_bytes).
const int8_t* weights_of(const Layer& layer, int block) {
    const Step& s = layer.step;
    const size_t each = weight_bytes(s);
    if (!layer.by_block) return (const int8_t*)aligned(layer.packed.data()) + each * s.w_groups * block;
    int8_t* bytes = aligned(unpacked.bytes.data());
    if (unpacked.block != block) {
        const int bits = code_bits(s.w_levels);
        const uint8_t* codes = (const uint8_t*)aligned(layer.packed.data()) + each * bits / 8 * block;
        split_codes(codes, each, bits, unpacked.table.data(), s.w_groups, bytes, each);
        unpacked.block = block;
    }
    return bytes;
}

// In is float or, for codes that an earlier step wrote, uint8_t.
template <class In>
void pack(const Layer& layer, const In* x, uint8_t* packed, int first, int end) {
    const Step& s = layer.step;
    const GroupCodes codes(s);
    const size_t bytes = row_bytes(layer), group = group_bytes(layer), side = size_t(s.pad_wide) * pixel_bytes(s);
    each_padded_row(s, first, end, [&](int padded, int y) {
        uint8_t* row = aligned(packed) + bytes * padded;
        if (y >= 0) codes.row(s, x, y, row + side, group);
        for (int h = 0; h < s.a_groups; h++, row += group) {
            std::memset(row, 0, y >= 0 ? side : bytes);
            std::memset(row + bytes - side, 0, side);
        }
    });
}

void row_sums(const Layer& layer, const uint8_t* packed, int row, int32_t* sums) {
    const Step& s = layer.step;
    const int each = pixel_bytes(s);
    for (int h = 0; h < s.a_groups; h++) {
        const uint8_t* codes = aligned(packed) + group_bytes(layer) * h + row_bytes(layer) * row;
        for (int x = 0; x < layer.padded_wide(); x++, codes += each)
            sums[h * layer.padded_wide() + x] = sum_of_codes(codes, each);
    }
}

struct __attribute__((packed)) Shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
constexpr int REGISTERS = 8;  // 0 to 3: sums; 4 and 5: weights; 6 and 7: inputs

// The compiler does not know that instructions on matrices read memory.
inline void memory_is_written() { asm volatile("" ::: "memory"); }

void begin(const Layer& layer) {
    alignas(64) Shapes shapes;
    for (int i = 0; i < REGISTERS; i++) {
        shapes.row_bytes[i] = DEEP;
        shapes.rows[i] = uint8_t(i == 4 || i == 5 ? DEEP / GROUP : layer.unit_pixels);
    }
    memory_is_written();
    _tile_loadconfig(&shapes);
    if (!layer.by_block) return;
    unpacked.block = -1;
    unpacked.table = integers(layer.step);
    unpacked.bytes.resize(weight_bytes(layer.step) * layer.step.w_groups + DEEP);
}

void end() { _tile_release(); }

struct Operands {
    const int8_t* weights;
    const uint8_t* input[AT_ONCE];  // the first tap of each matrix's first pixel
    int32_t* counts[AT_ONCE];
    size_t group;              // bytes between the weights of two groups
    size_t row, pixel, count;  // bytes between kernel rows, output pixels, and counts of two pixels
    int rows, depth, terms;
};

// One group of weights by N matrices of inputs.
template <int N>
void multiply(const Operands& at) {
    const int8_t* weights = at.weights;
    _tile_zero(0);
    if (N > 1) _tile_zero(1);
    if (N > 2) _tile_zero(2);
    if (N > 3) _tile_zero(3);
    for (int ky = 0; ky < at.rows; ky++)
        for (int i = 0; i < at.depth; i++, weights += MATRIX) {
            const size_t offset = at.row * ky + size_t(i) * DEEP;
            _tile_loadd(4, weights, GROUP * BLOCK);
            _tile_loadd(6, at.input[0] + offset, at.pixel);
            _tile_dpbusd(0, 6, 4);
            if (N > 1) {
                _tile_loadd(7, at.input[1] + offset, at.pixel);
                _tile_dpbusd(1, 7, 4);
            }
            if (N > 2) {
                _tile_loadd(6, at.input[2] + offset, at.pixel);
                _tile_dpbusd(2, 6, 4);
            }
            if (N > 3) {
                _tile_loadd(7, at.input[3] + offset, at.pixel);
                _tile_dpbusd(3, 7, 4);
            }
        }
    // In this order, since a matrix may reach into the pixels of the next one.
    _tile_stored(0, at.counts[0], at.count);
    if (N > 1) _tile_stored(1, at.counts[1], at.count);
    if (N > 2) _tile_stored(2, at.counts[2], at.count);
    if (N > 3) _tile_stored(3, at.counts[3], at.count);
}

constexpr void (*MULTIPLY[])(const Operands&) = {multiply<1>, multiply<2>, multiply<3>, multiply<4>};

// Two groups of weights by two matrices of inputs, from number `first`: four products of four loads.
void multiply_pairs(const Operands& at, int first) {
    const int8_t* weights = at.weights;
    const uint8_t *one = at.input[first], *two = at.input[first + 1];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int ky = 0; ky < at.rows; ky++)
        for (int i = 0; i < at.depth; i++, weights += MATRIX) {
            const size_t offset = at.row * ky + size_t(i) * DEEP;
            _tile_loadd(4, weights, GROUP * BLOCK);
            _tile_loadd(6, one + offset, at.pixel);
            _tile_dpbusd(0, 6, 4);
            _tile_loadd(7, two + offset, at.pixel);
            _tile_dpbusd(1, 7, 4);
            _tile_loadd(5, weights + at.group, GROUP * BLOCK);
            _tile_dpbusd(2, 6, 5);
            _tile_dpbusd(3, 7, 5);
        }
    _tile_stored(0, at.counts[first], at.count);
    _tile_stored(2, at.counts[first] + at.terms * BLOCK, at.count);
    _tile_stored(1, at.counts[first + 1], at.count);
    _tile_stored(3, at.counts[first + 1] + at.terms * BLOCK, at.count);
}

// All groups of weights by `used` matrices of inputs.
void multiply_groups(Operands at, int used, int groups) {
    const auto next = [&](int done) {
        at.weights += at.group * done;
        for (int i = 0; i < used; i++) at.counts[i] += at.terms * BLOCK * done;
    };
    int left = groups;
    for (; left >= 2 && used % 2 == 0; left -= 2, next(2))
        for (int i = 0; i < used; i += 2) multiply_pairs(at, i);
    for (; left > 0; left--, next(1)) MULTIPLY[used - 1](at);
}

void tile(const Layer& layer, const uint8_t* packed, Tile t, const int32_t*, int32_t* counts) {
    const Step& s = layer.step;
    const int terms = layer.a_terms(), step = layer.unit_pixels, rows = layer.unit_rows;
    const size_t each = size_t(s.w_groups) * terms * BLOCK, pixel = size_t(pixel_bytes(s)) * s.stride_wide;
    Operands at{weights_of(layer, t.block), {}, {}, weight_bytes(s), row_bytes(layer), pixel,
                each * sizeof(int32_t), s.kernel_high, depth(s), terms};
    int used = 0;
    memory_is_written();
    for (int y = 0; y < t.rows; y += rows)
        for (int x = 0; x < t.n; x += step) {
            const uint8_t* input = aligned(packed) + at.row * ((t.y + y) * s.stride_high) + pixel * (t.x + x);
            for (int h = 0; h < s.a_groups; h++) {
                at.input[used] = input + group_bytes(layer) * h;
                at.counts[used] = counts + (rows > 1 ? y / rows * step : y * t.n + x) * each + h * BLOCK;
                if (++used < AT_ONCE) continue;
                multiply_groups(at, used, s.w_groups);
                used = 0;
            }
        }
    if (used > 0) multiply_groups(at, used, s.w_groups);
    memory_is_written();
    for (int y = 1; rows > 1 && y < t.rows; y++)  // close the gaps between joined rows
        std::memmove(counts + each * y * t.n, counts + each * (y / rows * step + y % rows * layer.padded_wide()),
                     sizeof(int32_t) * each * t.n);
}

}  // namespace

extern const Kernel MATRIX_PRODUCTS;
const Kernel MATRIX_PRODUCTS{"matrices (AMX)", serves, pack_weights, input_bytes, pack<float>, row_sums,
                             AT_ONCE * MOST_HIGH, 0, tile, false, begin, end, pack<uint8_t>};

#endif
