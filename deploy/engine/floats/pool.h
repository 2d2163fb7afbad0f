// Pools: rows of their output from rows of their input, wherever these lie in memory.
#pragma once
#include <algorithm>
#include <cstring>

#include "../lanes.h"
#include "../step.h"

// The pixels that one output pixel reads: [top, bottom) x [left, right).
struct Window {
    int top, bottom, left, right;
};

constexpr int MOST_KEPT = 4;  // rows that are kept for a pool that is computed with a convolution

// The rows that a window reads, at most.
inline int window_rows(const Step& s) {
    int most = 0;
    for (int oy = 0; oy < s.out_high; oy++) most = std::max(most, s.window[2 * oy + 1] - s.window[2 * oy]);
    return most;
}

// N neighbouring vectors of channels of a pool's output, to y. row(y): the input's row y, from the first channel on.
template <class V, int N, class F>
inline void pooled(const Step& s, const Window& in, F row, float* y) {
    const bool mean = s.kind == MEAN_POOL;
    constexpr int each = sizeof(V) / sizeof(float);
    V all[N];
    const float* first = row(in.top) + size_t(in.left) * s.channels;
#pragma GCC unroll 4
    for (int k = 0; k < N; k++) all[k] = read<V>(first + k * each);
    for (int iy = in.top; iy < in.bottom; iy++) {
        const float* x = row(iy);
        for (int ix = in.left + (iy == in.top); ix < in.right; ix++)
#pragma GCC unroll 4
            for (int k = 0; k < N; k++) {
                const V one = read<V>(x + size_t(ix) * s.channels + k * each);
                all[k] = mean ? all[k] + one : one > all[k] ? one : all[k];
            }
    }
#pragma GCC unroll 4
    for (int k = 0; k < N; k++) {
        V one = all[k];
        if (mean) one = one / float((in.bottom - in.top) * (in.right - in.left));
        if (s.relu) {
            one = one > 0 ? one : V{};
            one = one < s.ceiling ? one : V{} + s.ceiling;
        }
        std::memcpy(y + k * each, &one, sizeof one);
    }
}

// Row oy of a pool's output, to y. row(iy): row iy of its input, (W, C).
template <class F>
inline void pool_row(const Step& s, int oy, F row, float* y) {
    const int32_t *rows = s.window, *columns = s.window + 2 * s.out_high;
    for (int ox = 0; ox < s.out_wide; ox++, y += s.channels) {
        const Window in{rows[2 * oy], rows[2 * oy + 1], columns[2 * ox], columns[2 * ox + 1]};
        int c = 0;
        const auto from = [&](int iy) { return row(iy) + c; };
        for (; c + 4 * FLOATS <= s.channels; c += 4 * FLOATS) pooled<Floats, 4>(s, in, from, y + c);
        for (; c + FLOATS <= s.channels; c += FLOATS) pooled<Floats, 1>(s, in, from, y + c);
        for (; c < s.channels; c++) pooled<float, 1>(s, in, from, y + c);
    }
}
