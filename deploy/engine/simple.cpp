// Steps without weights: pools, sums, ReLUs, and codes turned back into levels.
#include <algorithm>
#include <cstring>

#include "kernel.h"

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

void run_pool(const Layer& layer, const float* x, float* y, int threads) {
    const Step& s = layer.step;
    const int32_t *rows = s.window, *columns = s.window + 2 * s.out_high;
    const bool mean = s.kind == MEAN_POOL;
#pragma omp parallel for num_threads(threads)
    for (int oy = 0; oy < s.out_high; oy++)
        for (int ox = 0; ox < s.out_wide; ox++) {
            float* to = y + (size_t(oy) * s.out_wide + ox) * s.channels;
            const int top = rows[2 * oy], bottom = rows[2 * oy + 1];
            const int left = columns[2 * ox], right = columns[2 * ox + 1];
            for (int iy = top; iy < bottom; iy++)
                for (int ix = left; ix < right; ix++) {
                    const float* from = x + (size_t(iy) * s.wide + ix) * s.channels;
                    if (iy == top && ix == left)
                        std::memcpy(to, from, sizeof(float) * s.channels);
                    else if (mean)
                        for (int c = 0; c < s.channels; c++) to[c] += from[c];
                    else
                        for (int c = 0; c < s.channels; c++) to[c] = from[c] > to[c] ? from[c] : to[c];
                }
            const float count = float((bottom - top) * (right - left));
            for (int c = 0; c < s.channels; c++) to[c] = limited(s, mean ? to[c] / count : to[c]);
        }
}

void run_elementwise(const Layer& layer, const float* x, const float* other, float* y, int threads) {
    const Step& s = layer.step;
    const int64_t size = int64_t(s.high) * s.wide * s.channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < size; i++) y[i] = limited(s, other ? x[i] + other[i] : x[i]);
}
