// Steps without weights: pools, sums, ReLUs, and codes turned back into levels.
#include <algorithm>
#include <cstring>

#include "kernel.h"
#include "lanes.h"

void run_dequantize(const Layer& layer, const float* x, float* y, int threads) {
    const Step& s = layer.step;
    int top = 1;
    while (top <= s.thresholds) top *= 2;
    const int64_t size = int64_t(s.high) * s.wide * s.channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < size; i++) {
        int code = 0;
        for (int step = top / 2; step > 0; step /= 2)
            if (code + step <= s.thresholds && x[i] >= s.threshold[code + step - 1]) code += step;
        y[i] = s.level[code];
    }
}

namespace {

struct Window {
    int top, bottom, left, right;
};

// One channel of a pool's output, or a vector of neighbouring ones.
template <class V>
V pooled(const Step& s, const float* x, const Window& in) {
    const auto at = [&](int iy, int ix) { return read<V>(x + (size_t(iy) * s.wide + ix) * s.channels); };
    const bool mean = s.kind == MEAN_POOL;
    V all = at(in.top, in.left);
    for (int iy = in.top; iy < in.bottom; iy++)
        for (int ix = in.left + (iy == in.top); ix < in.right; ix++) {
            const V one = at(iy, ix);
            all = mean ? all + one : one > all ? one : all;
        }
    if (mean) all = all / float((in.bottom - in.top) * (in.right - in.left));
    if (s.relu) {
        all = all > 0 ? all : V{};
        all = all < s.ceiling ? all : V{} + s.ceiling;
    }
    return all;
}

}  // namespace

void run_pool(const Layer& layer, const float* x, float* y, int threads) {
    const Step& s = layer.step;
    const int32_t *rows = s.window, *columns = s.window + 2 * s.out_high;
#pragma omp parallel for num_threads(threads)
    for (int oy = 0; oy < s.out_high; oy++)
        for (int ox = 0; ox < s.out_wide; ox++) {
            const Window in{rows[2 * oy], rows[2 * oy + 1], columns[2 * ox], columns[2 * ox + 1]};
            float* to = y + (size_t(oy) * s.out_wide + ox) * s.channels;
            int c = 0;
            for (; c + FLOATS <= s.channels; c += FLOATS) {
                const Floats all = pooled<Floats>(s, x + c, in);
                std::memcpy(to + c, &all, sizeof all);
            }
            for (; c < s.channels; c++) to[c] = pooled<float>(s, x + c, in);
        }
}

void run_elementwise(const Layer& layer, const float* x, const float* other, float* y, int threads) {
    const Step& s = layer.step;
    const int64_t size = int64_t(s.high) * s.wide * s.channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < size; i++) y[i] = limited(s, other ? x[i] + other[i] : x[i]);
}
