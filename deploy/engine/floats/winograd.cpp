// Winograd's method (A. Lavin and S. Gray, 2016, "Fast Algorithms for Convolutional Neural Networks"), along rows.
//
// A row of a kernel with stride s is a sum of s kernels with stride 1, its phases, each on every s-th column of the
// input, with r = 2 to 4 taps. Three neighbouring outputs of a phase, a tile, need r + 2 inputs d. They are the middle
// of a product of polynomials, which is known from its values at r + 2 points:
//
//     y_j = sum over points p of p^j w_p x_p,     w_p = sum_k g_k p^k / prod_q (p - q),
//
// with q over the other finite points, and x_p = sum_i b_i d_i with b the coefficients of prod_q (x - q). At infinity,
// w is g_{r-1}, b has all finite points, and the product is added to y_2 alone. These are r + 2 products instead of
// 3 r. All kernel rows, phases and channels share the last sum, so the products of a point are summed first.
//
// Partial sums of about PART products keep the error near that of the direct sum; of the sets of points that were
// tried, this one has the least. An input that is infinite or no number makes all outputs of its tile NaN.
#include "winograd.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "dense.h"

namespace {

constexpr int OUTPUTS = 3;  // of a tile
constexpr int POINTS = 6;   // infinity is the last one; r taps use the first r + 1 and that
constexpr double POINT[] = {0, 1, -1, 2, -0.5};
constexpr int PART = 24;  // products of a partial sum
constexpr int READ = 4;   // tiles that are transformed together
constexpr int64_t MOST_ROWS = 1 << 17;    // numbers of the transformed rows of a thread: they stay in the L2 cache
constexpr int64_t MOST_WEIGHTS = 1 << 12;  // of a block: they stay in the L1 data cache

int taps(const Step& s, int phase) { return (s.kernel_wide - phase + s.stride_wide - 1) / s.stride_wide; }
int points(const Step& s) { return s.kernel_wide + 2 * s.stride_wide; }  // of all phases
// The same, filled up to whole blocks: the numbers of a transformed tile and channel.
int width(const Step& s) { return (points(s) + BLOCK - 1) / BLOCK * BLOCK; }
int columns(const Step& s) { return (OUTPUTS - 1) * s.stride_wide + s.kernel_wide; }  // of the input, that a tile reads
int tiles(const Step& s) { return (s.out_wide + OUTPUTS - 1) / OUTPUTS; }
int filled_tiles(const Step& s) { return (tiles(s) + READ - 1) / READ * READ; }  // with tiles of zeros behind
int64_t row_floats(const Step& s) { return int64_t(filled_tiles(s)) * s.channels * width(s); }

// Whether the method serves, and at most three quarters of the multiplications of the direct sum are left.
bool worth_while(const Step& s) {
    const int64_t wide = s.kernel_wide, stride = s.stride_wide, sums = int64_t(s.kernel_high) * s.channels;
    if (wide < 2 * stride || wide > 4 * stride || stride * s.channels > PART) return false;
    if (row_floats(s) > MOST_ROWS / s.kernel_high || sums * points(s) * BLOCK > MOST_WEIGHTS) return false;
    const int64_t blocks = (s.outputs + BLOCK - 1) / BLOCK;
    const int64_t inputs = int64_t(columns(s)) * s.channels * s.stride_high * width(s) / BLOCK;
    const int64_t mine = blocks * (sums * points(s) + 2 * POINTS) * tiles(s) + inputs * filled_tiles(s);
    return 4 * mine <= 3 * blocks * sums * wide * s.out_wide;
}

// What each of r taps adds to w_p, and each of r + 2 inputs to x_p. Infinity is row r + 1.
struct Transform {
    double weight[POINTS][4] = {}, input[POINTS][POINTS] = {};

    explicit Transform(int r) {
        for (int p = 0; p <= r + 1; p++) {
            double scale = 1;
            double* product = input[p];
            product[0] = 1;
            for (int q = 0; q <= r; q++) {
                if (q == p) continue;
                for (int i = r + 1; i > 0; i--) product[i] = product[i - 1] - POINT[q] * product[i];
                product[0] *= -POINT[q];
                if (p <= r) scale *= POINT[p] - POINT[q];
            }
            double power = 1 / scale;
            for (int k = 0; k < r && p <= r; k++, power *= POINT[p]) weight[p][k] = power;
        }
        weight[r + 1][r - 1] = 1;
    }
};

// FLOATS points of READ tiles of a channel, from column to column of the input as `column` says.
inline void transform_tiles(const Step& s, const float* column, const float* from, size_t between, float* to) {
    const size_t wide = width(s);
    Floats sum[READ] = {};
    for (int i = 0; i < columns(s); i++, column += wide, from += s.channels) {
        const Floats all = read<Floats>(column);
#pragma GCC unroll 4
        for (int t = 0; t < READ; t++) sum[t] = fused(all, spread(from[t * between]), sum[t]);
    }
#pragma GCC unroll 4
    for (int t = 0; t < READ; t++) std::memcpy(to + t * s.channels * wide, &sum[t], sizeof sum[t]);
}

// So many tiles, points and vectors of outputs at a time: their sums fill the registers, and what is read of the
// weights and of the inputs enters several products.
#if defined(__AVX512F__)
constexpr int TILES = 4, AT_ONCE = POINTS, VECTORS = 1;
#else
constexpr int TILES = 2, AT_ONCE = POINTS / 2, VECTORS = 2;
#endif

template <int T>
using Sums = Floats[AT_ONCE][T][VECTORS];

// Call f(k, t, v, place) for each sum; place: where it lies in memory.
template <int T, class F>
inline void each_sum(F f) {
#pragma GCC unroll 6
    for (int k = 0; k < AT_ONCE; k++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) f(k, t, v, ((k * T + t) * VECTORS + v) * FLOATS);
}

// The place of point p among those of a phase with R taps; -1: they do without it.
constexpr int place_of(int R, int p) { return p == POINTS - 1 ? R + 1 : p <= R ? p : -1; }

// x, which the compiler does not read from memory again for each use.
inline Floats in_register(Floats x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#endif
    return x;
}

// Adds the products of one phase with R taps, of the points from P on. x: its inputs in T tiles, `wide` numbers
// between channels.
template <int R, int P, int T>
inline const float* multiply(const float* weight, int channels, const float* const (&x)[T], size_t wide, Sums<T>& sum) {
    for (size_t c = 0; c < channels * wide; c += wide, weight += (R + 2) * BLOCK)
#pragma GCC unroll 6
        for (int k = 0; k < AT_ONCE; k++) {
            const int place = place_of(R, P + k);
            if (place < 0) continue;
            Floats w[VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) w[v] = in_register(read<Floats>(weight + place * BLOCK + v * FLOATS));
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) {
                const Floats all = spread(x[t][c + place]);
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++) sum[k][t][v] = fused(w[v], all, sum[k][t][v]);
            }
        }
    return weight;
}

// What a group of T tiles reads.
struct Operands {
    const Step& step;
    const float* weight;       // of VECTORS vectors of outputs, from the first kernel row on
    const float* const* rows;  // the transformed rows
    size_t first;              // where the first tile begins in each of them
};

// Adds the products of kernel rows [ky, end), of the points from P on.
template <int P, int T>
inline void add_rows(const Operands& at, int ky, int end, Sums<T>& sum) {
    const Step& s = at.step;
    const size_t wide = width(s), tile = s.channels * wide;
    const float* weight = at.weight + size_t(ky) * s.channels * points(s) * BLOCK;
    for (; ky < end; ky++) {
        const float* x[T];
        for (int t = 0; t < T; t++) x[t] = at.rows[ky] + at.first + t * tile;
        for (int phase = 0; phase < s.stride_wide; phase++) {
            const int r = taps(s, phase);
            weight = r == 4   ? multiply<4, P>(weight, s.channels, x, wide, sum)
                     : r == 3 ? multiply<3, P>(weight, s.channels, x, wide, sum)
                              : multiply<2, P>(weight, s.channels, x, wide, sum);
            for (int t = 0; t < T; t++) x[t] += r + 2;
        }
    }
}

template <int T>
inline void add(const float* from, Sums<T>& sum) {
    each_sum<T>([&](int k, int t, int v, int place) { sum[k][t][v] += read<Floats>(from + place); });
}

// The products of kernel rows [0, end) in partial sums of `together` rows each, to `total`.
// Not inlined: else the compiler keeps the total in registers, and a partial sum no longer fits in.
template <int P, int T>
[[gnu::noinline]] void first_rows(const Operands& at, int together, int end, float* total) {
    for (int ky = 0; ky < end; ky += together) {
        Sums<T> sum = {};
        add_rows<P, T>(at, ky, ky + together, sum);
        if (ky > 0) add<T>(total, sum);
        each_sum<T>([&](int k, int t, int v, int place) {
            const Floats one = sum[k][t][v];
            std::memcpy(total + place, &one, sizeof one);
        });
    }
}

// The sums of the points from P on.
template <int P, int T>
inline void sum_points(const Operands& at, Floats (&sums)[POINTS][T][VECTORS]) {
    const Step& s = at.step;
    const int together = std::max(1, PART / (s.channels * s.stride_wide));  // rows of a partial sum
    const int last = (s.kernel_high - 1) / together * together;             // the first row of the last one
    float total[AT_ONCE * T * VECTORS * FLOATS];
    if (last > 0) first_rows<P, T>(at, together, last, total);
    Sums<T> sum = {};
    add_rows<P, T>(at, last, s.kernel_high, sum);
    if (last > 0) add<T>(total, sum);
    each_sum<T>([&](int k, int t, int v, int) { sums[P + k][t][v] = sum[k][t][v]; });
}

// The outputs of a tile, from the sums of its points, BLOCK numbers apart.
inline void write_outputs(Floats zero, Floats one, Floats minus, Floats two, Floats half, Floats infinity, float* y) {
    const Floats even = one + minus, odd = one - minus;
    const Floats out[] = {zero + even + (two + half), odd + (2 * two - 0.5f * half),
                          even + (4 * two + 0.25f * half) + infinity};
    for (int j = 0; j < OUTPUTS; j++) std::memcpy(y + j * BLOCK, &out[j], sizeof out[j]);
}

// VECTORS vectors of outputs of the pixels of T tiles, BLOCK numbers apart, to y.
template <int T>
void make_tiles(const Operands& at, float* y) {
    Floats sums[POINTS][T][VECTORS];
    sum_points<0, T>(at, sums);
    if constexpr (AT_ONCE < POINTS) sum_points<AT_ONCE, T>(at, sums);
#pragma GCC unroll 4
    for (int t = 0; t < T; t++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++)
            write_outputs(sums[0][t][v], sums[1][t][v], sums[2][t][v], sums[3][t][v], sums[4][t][v], sums[5][t][v],
                          y + t * OUTPUTS * BLOCK + v * FLOATS);
}

using MakeTiles = void (*)(const Operands&, float*);

template <int... T>
constexpr std::array<MakeTiles, sizeof...(T)> up_to(std::integer_sequence<int, T...>) {
    return {make_tiles<T + 1>...};
}

constexpr auto MAKE_TILES = up_to(std::make_integer_sequence<int, TILES>{});

// first: the place of the phase among the points.
void fill_columns(Layer& layer, int phase, int first, const Transform& of) {
    const Step& s = layer.step;
    for (int p = 0; p < taps(s, phase) + 2; p++)
        for (int i = 0; i < taps(s, phase) + 2; i++)
            layer.columns[size_t(phase + i * s.stride_wide) * width(s) + first + p] = float(of.input[p][i]);
}

// Of output o, kernel row ky and channel c: weight is (blocks, kernel rows, phases, channels, points, BLOCK).
void fill_weights(Layer& layer, int phase, int first, const Transform& of, int o, int ky, int c) {
    const Step& s = layer.step;
    const int r = taps(s, phase);
    const float* row = s.weight + (size_t(o) * s.kernel_high + ky) * s.kernel_wide * s.channels;
    const size_t block_row = (size_t(o / BLOCK) * s.kernel_high + ky) * points(s) * s.channels;
    for (int p = 0; p < r + 2; p++) {
        double w = 0;
        for (int k = 0; k < r; k++) w += of.weight[p][k] * row[(phase + k * s.stride_wide) * s.channels + c];
        const size_t place = block_row + size_t(first) * s.channels + c * (r + 2) + p;
        layer.weight[place * BLOCK + o % BLOCK] = float(w);
    }
}

}  // namespace

void prepare_winograd(Layer& layer) {
    const Step& s = layer.step;
    if (!worth_while(s)) return;
    layer.columns.assign(size_t(columns(s)) * width(s), 0);
    layer.weight.assign(size_t(layer.blocks()) * s.kernel_high * s.channels * points(s) * BLOCK, 0);
    for (int phase = 0, first = 0; phase < s.stride_wide; first += taps(s, phase++) + 2) {
        const Transform of(taps(s, phase));
        fill_columns(layer, phase, first, of);
        for (int o = 0; o < s.outputs; o++)
            for (int ky = 0; ky < s.kernel_high; ky++)
                for (int c = 0; c < s.channels; c++) fill_weights(layer, phase, first, of, o, ky, c);
    }
}

WinogradRows::WinogradRows(const Layer& layer, const float* x) : layer(layer), x(x) {
    const Step& s = layer.step;
    if (layer.columns.empty()) return;
    const size_t read = (size_t(OUTPUTS) * s.stride_wide * (filled_tiles(s) - 1) + columns(s)) * s.channels;
    line.reset(new float[std::max(read, size_t(layer.padded_wide()) * s.channels)]());
    rows.resize(s.kernel_high);
    ring.reset(new float[s.kernel_high * row_floats(s)]);
}

float* WinogradRows::in_ring(int row) const {
    return ring.get() + row % layer.step.kernel_high * row_floats(layer.step);
}

// A row of the padded input, into the ring: (tiles, channels, width). Beyond the end of the row are zeros.
void WinogradRows::transform(int row) {
    const Step& s = layer.step;
    const size_t length = size_t(layer.padded_wide()) * s.channels;
    std::memcpy(line.get(), x + length * row, sizeof(float) * length);
    const size_t wide = width(s), between = size_t(OUTPUTS) * s.stride_wide * s.channels;
    for (int tile = 0; tile < filled_tiles(s); tile += READ)
        for (int c = 0; c < s.channels; c++) {
            const float* from = line.get() + tile * between + c;
            float* to = in_ring(row) + (size_t(tile) * s.channels + c) * wide;
            for (size_t lane = 0; lane < wide; lane += FLOATS)
                transform_tiles(s, &layer.columns[lane], from, between, to + lane);
        }
}

void WinogradRows::make(int oy, const float* other, float* y) {
    const Step& s = layer.step;
    const int first = oy * s.stride_high;
    for (made = std::max(made, first); made < first + s.kernel_high; made++) transform(made);
    const size_t tile = size_t(s.channels) * width(s), block_weights = layer.weight.size() / layer.blocks();
    for (int ky = 0; ky < s.kernel_high; ky++) rows[ky] = in_ring(first + ky);
    for (int block = 0; block < layer.blocks(); block++) {
        int at = 0;
        in_equal_parts(tiles(s), TILES, [&](int n) {
            float sums[TILES * OUTPUTS * BLOCK];
            for (int lane = 0; lane < BLOCK; lane += FLOATS * VECTORS) {
                const float* weight = &layer.weight[block * block_weights + lane];
                MAKE_TILES[n - 1]({s, weight, rows.data(), at * tile}, sums + lane);
            }
            const size_t to = size_t(at) * OUTPUTS * s.outputs + block * BLOCK;
            finish(layer, block, std::min(n * OUTPUTS, s.out_wide - at * OUTPUTS), sums, BLOCK,
                   other ? other + to : nullptr, y + to);
            at += n;
        });
    }
}
