// The kernel for any levels: ands of bit planes, and the number of their ones.
//
// The planes of a padded input row lie one after the other, the channels of neighbouring pixels
// without a gap, so that one row of a convolution's taps is one run of bits. It is read as 32-bit
// words from any byte; the weights' bits beyond the run are zero.
#include <algorithm>

#include "kernel.h"
#include "lanes.h"

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
    return row_bytes(layer) * layer.padded_high() * layer.step.a_planes;
}

// Weights [sub-block][kernel row][word][plane][lane].
void pack_weights(Layer& layer) {
    const Step& s = layer.step;
    const int lanes = Lanes::count, width = words(s), bytes = channel_bytes(s);
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

// The bits of a code are an XOR of "x >= t": bit j changes at those t where its value does.
void pack_rows(const Layer& layer, const float* x, uint8_t* packed, int first, int end) {
    const Step& s = layer.step;
    const int bytes = channel_bytes(s);
    const size_t row = row_bytes(layer);
    std::vector<uint64_t> changes(s.thresholds);
    for (int i = 0; i < s.thresholds; i++)
        for (int j = 0; j < s.a_planes; j++) {
            const uint8_t* bits = s.a_bits + j * (s.thresholds + 1);
            changes[i] |= uint64_t(bits[i] ^ bits[i + 1]) << 8 * j;
        }
    for (int padded = first; padded < end; padded++) {
        uint8_t* to = packed + row * s.a_planes * padded;
        const int y = padded - s.pad_high;
        if (s.kernel_high == 1 && padded % s.stride_high) continue;  // no tap reads it
        std::memset(to, 0, row * s.a_planes);
        if (y < 0 || y >= s.high) continue;
        const float* from = x + size_t(y) * s.wide * s.channels;
        to += s.pad_wide * bytes;
        for (int pixel = 0; pixel < s.wide; pixel++, from += s.channels)
            for (int b = 0; b < bytes; b++, to++) {
                const int left = s.channels - 8 * b;
                float few[8] = {};
                const float* eight = from + 8 * b;
                if (left < 8) eight = (float*)std::memcpy(few, eight, 4 * left);
                uint64_t planes = 0;
                for (int i = 0; i < s.thresholds; i++)
                    planes ^= reaches(eight, s.threshold[i]) * changes[i];
                const uint8_t mask = left < 8 ? uint8_t((1 << left) - 1) : 255;
                for (int j = 0; j < s.a_planes; j++) to[j * row] = uint8_t(planes >> 8 * j) & mask;
            }
    }
}

int ones(const uint8_t* p, int bytes) {
    int count = 0;
    for (; bytes >= 8; p += 8, bytes -= 8) count += __builtin_popcountll(read<uint64_t>(p));
    for (; bytes > 0; p++, bytes--) count += __builtin_popcount(*p);
    return count;
}

void row_sums(const Layer& layer, const uint8_t* packed, int row, int32_t* sums) {
    const Step& s = layer.step;
    const int bytes = channel_bytes(s), wide = layer.padded_wide();
    const uint8_t* plane = packed + row_bytes(layer) * s.a_planes * row;
    std::fill(sums, sums + size_t(wide) * s.a_groups, 0);
    for (int j = 0; j < s.a_planes; j++, plane += row_bytes(layer)) {
        int32_t* to = sums + s.a_group[j];
        for (int x = 0; x < wide; x++, to += s.a_groups)
            *to += s.a_multiplier[j] * ones(plane + size_t(x) * bytes, bytes);
    }
}

// One row of pixels of a tile against one vector of outputs.
struct Operands {
    const uint32_t* weights;  // of the first plane of the chunk, plane stride Lanes::count
    const uint8_t* input;     // of the first plane of the chunk at the first pixel's first tap
    size_t row, plane;        // bytes between kernel rows and between planes of the input
    int w_planes, pixel, kernel_high, words;
};

// ones[x][p][j][lane] = number of ones of w_p & a_j, for P planes of weights and J of inputs.
template <int P, int J, int X>
void count_ones(const Operands& at, int32_t* ones) {
    using V = Lanes::V;
    constexpr int lanes = Lanes::count;
    std::memset(ones, 0, sizeof(int32_t) * X * P * J * lanes);
    V counts[X][P][J];
    int left = 0;
    auto flush = [&] {
        for (int x = 0; x < X; x++)
            for (int p = 0; p < P; p++)
                for (int j = 0; j < J; j++)
                    Lanes::add_to(ones + ((x * P + p) * J + j) * lanes, Lanes::whole(counts[x][p][j]));
    };
    const uint32_t* weights = at.weights;
    for (int ky = 0; ky < at.kernel_high; ky++) {
        const uint8_t* row = at.input + at.row * ky;
        for (int first = 0; first < at.words;) {
            if (left == 0) {
                left = Lanes::most;
                for (auto& a : counts)
                    for (auto& b : a)
                        for (auto& c : b) c = Lanes::zero();
            }
            const int end = std::min(at.words, first + left);
            left -= end - first;
            for (; first < end; first++, weights += at.w_planes * lanes) {
                V w[P];
#pragma GCC unroll 4
                for (int p = 0; p < P; p++) w[p] = Lanes::load(weights + p * lanes);
#pragma GCC unroll 8
                for (int x = 0; x < X; x++)
#pragma GCC unroll 8
                    for (int j = 0; j < J; j++) {
                        const V a = Lanes::broadcast(
                            read<uint32_t>(row + x * at.pixel + j * at.plane + 4 * first));
#pragma GCC unroll 4
                        for (int p = 0; p < P; p++)
                            counts[x][p][j] = Lanes::add_bits(counts[x][p][j], w[p], a);
                    }
            }
            if (left == 0) flush();
        }
    }
    if (left != 0) flush();
}

constexpr int MOST_PIXELS = 8;
constexpr int MOST_PAIRS = 8;  // of a plane of weights and one of inputs, counted together
constexpr int tile_pixels(int planes) {
    return std::max(1, std::min(MOST_PIXELS, Lanes::registers / planes));
}

// As many pixels at a time as registers hold counts of; then half as many, and so on.
template <int P, int J, int X = tile_pixels(P* J)>
void count_pixels(Operands at, int n, int32_t* ones) {
    for (; n >= X; n -= X, at.input += X * at.pixel, ones += X * P * J * Lanes::count)
        count_ones<P, J, X>(at, ones);
    if constexpr (X > 1)
        if (n > 0) count_pixels<P, J, X / 2>(at, n, ones);
}

using Count = void (*)(Operands, int, int32_t*);
constexpr int MOST_P = 4, MOST_J = 4;
constexpr Count COUNT[MOST_P][MOST_J] = {
    {count_pixels<1, 1>, count_pixels<1, 2>, count_pixels<1, 3>, count_pixels<1, 4>},
    {count_pixels<2, 1>, count_pixels<2, 2>, count_pixels<2, 3>, count_pixels<2, 4>},
    {count_pixels<3, 1>, count_pixels<3, 2>, nullptr, nullptr},
    {count_pixels<4, 1>, count_pixels<4, 2>, nullptr, nullptr},
};

typedef int32_t Sums __attribute__((vector_size(4 * Lanes::count)));

// counts += 2 x multiplier x ones, of P and J planes from p0 and j0; counts of the sub-block.
void add_ones(const Layer& layer, int n, int p0, int P, int j0, int J, const int32_t* ones, int32_t* counts) {
    const Step& s = layer.step;
    const int terms = layer.a_terms(), planes = P * J;
    int32_t factor[MOST_PAIRS];
    int place[MOST_PAIRS];
    for (int k = 0; k < planes; k++) {
        const int p = p0 + k / J, j = j0 + k % J;
        factor[k] = 2 * s.w_multiplier[p] * s.a_multiplier[j];
        place[k] = (s.w_group[p] * terms + s.a_group[j]) * BLOCK;
    }
    for (int x = 0; x < n; x++, counts += s.w_groups * terms * BLOCK)
        for (int k = 0; k < planes; k++, ones += Lanes::count) {
            int32_t* to = counts + place[k];
            const Sums sum = read<Sums>(to) + read<Sums>(ones) * factor[k];
            std::memcpy(to, &sum, sizeof sum);
        }
}

void tile(const Layer& layer, const uint8_t* packed, Tile t, const int32_t* sums, int32_t* counts) {
    const Step& s = layer.step;
    const int terms = layer.a_terms(), bytes = channel_bytes(s);
    const size_t plane = row_bytes(layer), row = plane * s.a_planes;
    int32_t each[64] = {};  // the sum of all multipliers of a group of weights
    for (int p = 0; p < s.w_planes; p++) each[s.w_group[p]] += s.w_multiplier[p];
    int32_t* to = counts;
    for (int x = 0; x < t.n; x++, sums += terms)
        for (int g = 0; g < s.w_groups; g++)
            for (int h = 0; h < terms; h++)
                for (int lane = 0; lane < BLOCK; lane += Lanes::count, to += Lanes::count) {
                    const Sums first = Sums{} - each[g] * sums[h];
                    std::memcpy(to, &first, sizeof first);
                }
    int32_t ones[MOST_PIXELS * MOST_PAIRS * Lanes::count];
    const int used = std::min(SUBBLOCKS, (s.outputs - t.block * BLOCK + Lanes::count - 1) / Lanes::count);
    const size_t sub_size = size_t(s.kernel_high) * words(s) * s.w_planes * Lanes::count;
    const uint8_t* input = packed + row * t.y * s.stride_high + size_t(t.x) * s.stride_wide * bytes;
    for (int sub = 0; sub < used; sub++) {
        const uint32_t* weights = layer.packed.data() + sub_size * (t.block * SUBBLOCKS + sub);
        for (int p0 = 0; p0 < s.w_planes; p0 += MOST_P) {
            const int P = std::min(MOST_P, s.w_planes - p0);
            const int most = P > 2 ? 2 : MOST_J;
            for (int j0 = 0; j0 < s.a_planes; j0 += most) {
                const int J = std::min(most, s.a_planes - j0);
                Operands at{weights + p0 * Lanes::count, input + j0 * plane, row, plane, s.w_planes,
                            s.stride_wide * bytes, s.kernel_high, words(s)};
                COUNT[P - 1][J - 1](at, t.n, ones);
                add_ones(layer, t.n, p0, P, j0, J, ones, counts + sub * Lanes::count);
            }
        }
    }
}

}  // namespace

const Kernel POPCOUNT{Lanes::name, serves,     pack_weights,    input_bytes,
                      pack_rows,   row_sums, MOST_PIXELS, tile, true, nullptr, nullptr, nullptr};
