// Depthwise convolutions in float32, of a tensor or of what a quantizer makes of it.
//
// A vector holds neighbouring channels. An output is a sum of products in the order of the taps; a product and the
// sum before it are rounded once. A tap beyond a side reads a zero, which changes no sum: none is the negative zero.
#include <algorithm>
#include <cstring>
#include <vector>

#include "../kernel.h"
#include "../levels.h"

namespace {

constexpr int PIXELS = 4;  // at a time: a weight is read once for them

// How many rows of the input are kept: those that a row of the output reads, at most.
int kept_rows(const Step& s) { return std::min(s.kernel_high, s.high); }

// The numbers of the kept rows. A vector at the end: the last one of a pixel may reach behind its channels.
size_t kept_size(const Step& s) { return size_t(padded_wide(s)) * s.channels * kept_rows(s) + FLOATS; }

// The rows of the input that a row of the output reads, padded with zeros at their sides.
class Rows {
    const Step& s;
    const Levels& levels;
    const void* const x;  // (H, W, C), floats or codes
    const bool is_codes;
    float* const kept;  // kept_size numbers
    const size_t row = size_t(s.wide) * s.channels, side = size_t(s.pad_wide) * s.channels, all = row + 2 * side;
    int made = 0;  // the first row of the input that is not made
    std::vector<const float*> read = std::vector<const float*>(s.kernel_high);  // by each row of the kernel

    float* at(int iy) const { return kept + all * (iy % kept_rows(s)); }

    void make(int iy) const {
        float* const to = at(iy) + side;
        if (is_codes)
            levels.of((const uint8_t*)x + row * iy, int64_t(row), to);
        else if (s.threshold)
            levels.of((const float*)x + row * iy, int64_t(row), to);
        else
            std::memcpy(to, (const float*)x + row * iy, sizeof(float) * row);
    }

  public:
    Rows(const Step& s, const Levels& levels, const void* x, bool is_codes, float* kept)
        : s(s), levels(levels), x(x), is_codes(is_codes), kept(kept) {
        for (int k = 0; k < kept_rows(s); k++) {
            std::fill_n(kept + all * k, side, 0.0f);
            std::fill_n(kept + all * (k + 1) - side, side, 0.0f);
        }
        std::fill_n(kept + all * kept_rows(s), FLOATS, 0.0f);
    }

    // Those that each row of the kernel reads for output row oy, null outside the image. oy rises from call to call.
    const float* const* of(int oy) {
        const int top = oy * s.stride_high - s.pad_high, bottom = std::min(s.high, top + s.kernel_high);
        for (made = std::max({made, top, 0}); made < bottom; made++) make(made);
        for (int ky = 0; ky < s.kernel_high; ky++)
            read[ky] = top + ky < 0 || top + ky >= s.high ? nullptr : at(top + ky);
        return read.data();
    }
};

// Sums of P output pixels from ox on, of a vector of channels from c on. rows: of the input, for each row of the kernel.
template <int P>
inline void add_up(const Layer& layer, const float* const* rows, int ox, int c, Floats* sums) {
    const Step& s = layer.step;
    const size_t channels = s.channels, pixel = channels * s.stride_wide;
    Floats sum[P] = {};
    const float* weight = layer.weight.data() + c;
    for (int ky = 0; ky < s.kernel_high; ky++) {
        const float* x = rows[ky];
        if (!x) {
            weight += channels * s.kernel_wide;
            continue;
        }
        x += pixel * ox + c;
        for (int kx = 0; kx < s.kernel_wide; kx++, x += channels, weight += channels) {
            const Floats w = read<Floats>(weight);
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) sum[p] = fused(w, read<Floats>(x + pixel * p), sum[p]);
        }
    }
    for (int p = 0; p < P; p++) sums[p] = sum[p];
}

// Row oy of the output: store(outputs, their place, how many of them) for each vector. other: null or the tensor.
template <class Store>
void make_row(const Layer& layer, const float* const* rows, int oy, const float* other, Store store) {
    const Step& s = layer.step;
    const Floats ceiling = spread(s.ceiling);
    const size_t first = size_t(oy) * s.out_wide * s.channels;
    for (int ox = 0; ox < s.out_wide; ox += PIXELS) {
        const int n = std::min(PIXELS, s.out_wide - ox);
        for (int c = 0; c < s.channels; c += FLOATS) {
            const int left = std::min(FLOATS, s.channels - c);
            Floats sums[PIXELS];
            if (n == PIXELS)
                add_up<PIXELS>(layer, rows, ox, c, sums);
            else
                for (int p = 0; p < n; p++) add_up<1>(layer, rows, ox + p, c, sums + p);
            const Floats shift = read<Floats>(layer.shift.data() + c);
            for (int p = 0; p < n; p++) {
                const size_t at = first + size_t(ox + p) * s.channels + c;
                Floats total = sums[p] + shift;
                if (other) total += read_few(other + at, left);
                if (s.relu) total = limited(total, ceiling);
                store(total, at, left);
            }
        }
    }
}

}  // namespace

// Weights (taps, C), and a vector behind them and behind the shifts.
void prepare_depthwise(Layer& layer) {
    const Step& s = layer.step;
    const int taps = s.kernel_high * s.kernel_wide;
    layer.weight.assign(size_t(taps) * s.channels + FLOATS, 0);
    for (int c = 0; c < s.channels; c++)
        for (int tap = 0; tap < taps; tap++)
            layer.weight[size_t(tap) * s.channels + c] = s.weight[size_t(c) * taps + tap];
    layer.shift.assign(s.channels + FLOATS, 0);
    std::copy_n(s.shift, s.channels, layer.shift.begin());
}

void run_depthwise(const Layer& layer, const float* x, const float* other, float* y, Scratch& scratch, int threads,
                   const Joined& joined) {
    const Step& s = layer.step;
    const Step* next = joined.quantizer;
    const Levels levels(s);
    const Reached reached(next ? next->threshold : nullptr, next ? next->thresholds : 0);
    const size_t size = (kept_size(s) + BLOCK - 1) / BLOCK * BLOCK;
    if (scratch.rows.size() < size * threads) scratch.rows.resize(size * threads);
    on_threads(threads, [&] {
        Rows rows(s, levels, x, joined.codes_in, scratch.rows.data() + size * omp_get_thread_num());
#pragma omp for schedule(static)
        for (int oy = 0; oy < s.out_high; oy++) {
            const float* const* read = rows.of(oy);
            if (!next) {
                make_row(layer, read, oy, other, [=](Floats total, size_t at, int left) {
                    std::memcpy(y + at, &total, left == FLOATS ? sizeof total : sizeof(float) * left);
                });
                continue;
            }
            reached.visit([&](auto count) {
                make_row(layer, read, oy, other, [&](Floats total, size_t at, int) {
                    const FewBytes few = bytes_of(count(total));
                    std::memcpy((uint8_t*)y + at, &few, sizeof few);
                });
            });
        }
    });
}
