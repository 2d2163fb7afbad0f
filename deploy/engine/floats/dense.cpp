// Convolutions in float32: the first and last layer, and what is dequantized; some of them by winograd.cpp.
//
// A vector holds neighbouring outputs. Each output is a sum of products in one order: kernel rows,
// then columns, then channels, with a new partial sum after every PART products. A product and the sum
// before it are rounded once (fused multiply-add), on every instruction set.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>

#include "dense.h"
#include "pool.h"
#include "winograd.h"

namespace {

constexpr int PART = 64;
constexpr int VECTORS = BLOCK / FLOATS;
// Pixels at a time. With AVX-512 registers hold their totals and parts, with AVX2 the parts alone.
constexpr int PIXELS = FLOATS == 16 ? 6 : FLOATS == 8 ? 5 : 2;
constexpr int BLOCKS = FLOATS == 16 ? 2 : 1;  // at a time: with two, each input is read once for both

struct Operands {
    const float* x;       // the first tap of the first pixel
    const float* weight;  // of the block: (taps, BLOCK)
    const int32_t* offset;  // of each tap and channel, from x
    int taps;
    size_t pixel;         // floats between output pixels
};

// sums[x][block][output], of X pixels and B neighbouring blocks.
template <int X, int B>
void products(const Operands& at, float* sums) {
    constexpr int V = B * VECTORS;
    Floats total[X][V];
#pragma GCC unroll 12
    for (int k = 0; k < X; k++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) total[k][v] = Floats{};
    const float* weight = at.weight;
    const size_t block = size_t(at.taps) * BLOCK;
    for (int first = 0; first < at.taps; first += PART) {
        const int end = std::min(at.taps, first + PART);
        Floats part[X][V] = {};
        for (int i = first; i < end; i++, weight += BLOCK) {
            const float* x = at.x + at.offset[i];
            Floats w[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) w[v] = read<Floats>(weight + block * (v / VECTORS) + v % VECTORS * FLOATS);
#pragma GCC unroll 12
            for (int k = 0; k < X; k++) {
                const Floats all = spread(x[k * at.pixel]);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) part[k][v] = fused(w[v], all, part[k][v]);
            }
        }
#pragma GCC unroll 12
        for (int k = 0; k < X; k++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) total[k][v] += part[k][v];
    }
#pragma GCC unroll 12
    for (int k = 0; k < X; k++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const Floats one = total[k][v];
            std::memcpy(sums + (k * V + v) * FLOATS, &one, sizeof one);
        }
}

using Products = void (*)(const Operands&, float*);

template <int B, int... X>
constexpr std::array<Products, sizeof...(X)> up_to(std::integer_sequence<int, X...>) {
    return {products<X + 1, B>...};
}

// Of 1 to PIXELS pixels, for one block and for several.
constexpr std::array<Products, PIXELS> PRODUCTS_OF[] = {
    up_to<1>(std::make_integer_sequence<int, PIXELS>{}), up_to<BLOCKS>(std::make_integer_sequence<int, PIXELS>{})};

// Row oy of the output, of one block or BLOCKS. other, y: that row of the tensors.
void run_row(const Layer& layer, const float* x, int block, int blocks, int oy, const float* other, float* y) {
    const Step& s = layer.step;
    const size_t row = size_t(layer.padded_wide()) * s.channels;
    const int taps = int(layer.offsets.size());
    Operands at{x + row * oy * s.stride_high, layer.weight.data() + size_t(block) * taps * BLOCK,
                layer.offsets.data(), taps, size_t(s.stride_wide) * s.channels};
    float sums[PIXELS * BLOCKS * BLOCK];
    size_t to = size_t(block) * BLOCK;
    in_equal_parts(s.out_wide, PIXELS, [&](int n) {
        PRODUCTS_OF[blocks > 1][n - 1](at, sums);
        for (int b = 0; b < blocks; b++)
            finish(layer, block + b, n, sums + b * BLOCK, blocks * BLOCK, other ? other + to + b * BLOCK : nullptr,
                   y + to + b * BLOCK);
        at.x += n * at.pixel;
        to += size_t(n) * s.outputs;
    });
}

// Row oy of the output, of BLOCKS blocks from `block` on; at the end of the blocks, of each that is left.
void run_blocks(const Layer& layer, const float* x, int block, int oy, const float* other, float* y) {
    const int left = layer.blocks() - block;
    if (left >= BLOCKS) return run_row(layer, x, block, BLOCKS, oy, other, y);
    for (int b = 0; b < left; b++) run_row(layer, x, block + b, 1, oy, other, y);
}

// x (H, W, C) with its zero padding; x itself where there is none.
const float* padded(const Layer& layer, const float* x, Scratch& scratch, int threads) {
    const Step& s = layer.step;
    if (s.pad_high == 0 && s.pad_wide == 0) return x;
    const size_t row = size_t(s.wide) * s.channels, side = size_t(s.pad_wide) * s.channels, wide = row + 2 * side;
    float* padded = scratch.padded.data();
    share(threads, layer.padded_high(), [&](int64_t y) {
        float* to = padded + wide * y;
        const int64_t from = y - s.pad_high;
        if (from < 0 || from >= s.high) return void(std::fill_n(to, wide, 0.0f));
        std::fill_n(to, side, 0.0f);
        std::memcpy(to + side, x + row * from, sizeof(float) * row);
        std::fill_n(to + side + row, side, 0.0f);
    });
    return padded;
}

}  // namespace

void finish(const Layer& layer, int block, int n, const float* sums, int step, const float* other, float* y) {
    const Step& s = layer.step;
    const int first = block * BLOCK, used = std::min(BLOCK, s.outputs - first);
    const float* shifts = layer.shift.data() + first;
    if (used < BLOCK) {
        for (int k = 0; k < n; k++, sums += step)
            for (int lane = 0; lane < used; lane++) {
                const size_t at = size_t(k) * s.outputs + lane;
                const float sum = sums[lane] + shifts[lane];
                y[at] = limited(s, other ? sum + other[at] : sum);
            }
        return;
    }
    const Floats ceiling = spread(s.ceiling);
    const size_t outputs = s.outputs;  // copies: the compiler cannot know that no output lies where these do
    const bool relu = s.relu != 0;
#pragma GCC unroll 4
    for (int lane = 0; lane < BLOCK; lane += FLOATS) {
        const Floats shift = read<Floats>(shifts + lane);
        for (int k = 0; k < n; k++) {
            const size_t at = k * outputs + lane;
            Floats total = read<Floats>(sums + k * step + lane) + shift;
            if (other) total += read<Floats>(other + at);
            if (relu) total = limited(total, ceiling);
            std::memcpy(y + at, &total, sizeof total);
        }
    }
}

// Weights in blocks: (blocks, taps, BLOCK).
void prepare_dense(Layer& layer) {
    const Step& s = layer.step;
    const int run = s.kernel_wide * s.channels, taps = s.kernel_high * run;
    layer.shift.assign(size_t(layer.blocks()) * BLOCK, 0);
    std::copy(s.shift, s.shift + s.outputs, layer.shift.begin());
    prepare_winograd(layer);
    if (!layer.columns.empty()) return;
    layer.set_offsets(layer.padded_wide() * s.channels, run, 1);
    layer.weight.assign(size_t(taps) * layer.blocks() * BLOCK, 0);
    for (int o = 0; o < s.outputs; o++)
        for (int i = 0; i < taps; i++)
            layer.weight[(size_t(taps) * (o / BLOCK) + i) * BLOCK + o % BLOCK] = s.weight[size_t(taps) * o + i];
}

void run_dense(const Layer& layer, const float* x, const float* other, float* y, Scratch& scratch,
               int threads) {
    const Step& s = layer.step;
    x = padded(layer, x, scratch, threads);
    const size_t row = size_t(s.out_wide) * s.outputs;
    if (!layer.columns.empty())
        return on_threads(threads, [&] {
            WinogradRows rows(layer, x);
#pragma omp for schedule(static)
            for (int oy = 0; oy < s.out_high; oy++) rows.make(oy, other ? other + row * oy : nullptr, y + row * oy);
        });
    const Order order{(layer.blocks() + BLOCKS - 1) / BLOCKS, s.out_high, 1, layer.weight.size() < row * s.out_high};
    share(threads, order.count(), [&](int64_t i) {
        const int line = order.row(int(i));
        const size_t at = row * line;
        run_blocks(layer, x, order.block(int(i)) * BLOCKS, line, other ? other + at : nullptr, y + at);
    });
}

// The convolution with the pool that reads it, to y. A thread keeps the rows that a window of the pool reads,
// since the whole output of a first layer is larger than a cache.
void run_pooled(const Layer& layer, const float* x, const Step& pool, float* y, Scratch& scratch, int threads) {
    const Step& s = layer.step;
    x = padded(layer, x, scratch, threads);
    const size_t row = size_t(s.out_wide) * s.outputs;
    const auto top = [&](int oy) { return pool.window[2 * oy]; };
    const auto bottom = [&](int oy) { return pool.window[2 * oy + 1]; };
    const int most = window_rows(pool);
    on_threads(threads, [&] {
        const std::unique_ptr<float[]> kept(new float[row * most]);
        const auto row_at = [&](int iy) { return kept.get() + row * (iy % most); };
        WinogradRows rows(layer, x);
        const auto make = [&](int iy) {
            if (!layer.columns.empty()) return rows.make(iy, nullptr, row_at(iy));
            for (int block = 0; block < layer.blocks(); block += BLOCKS)
                run_blocks(layer, x, block, iy, nullptr, row_at(iy));
        };
        int made = 0;  // the first row that is not made
#pragma omp for schedule(static)
        for (int oy = 0; oy < pool.out_high; oy++) {
            for (made = std::max(made, top(oy)); made < bottom(oy); made++) make(made);
            pool_row(pool, oy, row_at, y + size_t(oy) * pool.out_wide * pool.channels);
        }
    });
}
