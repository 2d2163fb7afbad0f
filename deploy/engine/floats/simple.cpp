// Steps without weights: pools, sums, ReLUs, and codes turned back into levels.
#include <algorithm>

#include "../kernel.h"
#include "../levels.h"
#include "pool.h"

void run_dequantize(const Layer& layer, const float* x, float* y, int threads) {
    const Step& s = layer.step;
    const Levels levels(s);
    const int64_t row = int64_t(s.wide) * s.channels;
    share(threads, s.high, [&](int64_t iy) { levels.of(x + row * iy, row, y + row * iy); });
}

void run_pool(const Layer& layer, const float* x, float* y, int threads) {
    const Step& s = layer.step;
    share(threads, s.out_high, [&](int64_t oy) {
        pool_row(s, int(oy), [&](int iy) { return x + size_t(iy) * s.wide * s.channels; },
                 y + size_t(oy) * s.out_wide * s.channels);
    });
}

void run_elementwise(const Layer& layer, const float* x, const float* other, float* y, int threads) {
    const Step& s = layer.step;
    const int64_t size = int64_t(s.high) * s.wide * s.channels;
    share(threads, size, [&](int64_t i) { y[i] = limited(s, other ? x[i] + other[i] : x[i]); });
}
