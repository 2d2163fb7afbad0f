// Quantizers of more pieces than a code of one byte can name (piecewise.py): those of eight bits.
//
// The piece of a value is looked up, and looked up again for the gradient.
#pragma once

#include <atomic>

#include "vectors.h"

namespace {

constexpr int64_t LONG_CHUNK = 1 << 15;  // elements that share tables of sums
constexpr int BUCKETS = 4;  // for each edge
constexpr int TURNS = 2;  // tables that neighbouring elements take in turns, so that none waits

// The edges, of which several buckets of equal width tell where to begin: the number of edges in all
// buckets before that of x. Edges of its own bucket are compared with x, by halving. An x has the
// bucket of an edge by the same rising function, so rounding in it changes no result.
class Edges {
    std::vector<float> at;  // with infinities behind them, which halving may read
    std::vector<float> first;
    float low, scale, last;
    int half = 1;  // the largest step of halving

    Floats bucket(Floats x) const {
        const Floats place = (x - low) * scale;
        const Floats inside = less(broadcast(last), greater(broadcast(0), place));
        return select(inside == inside, inside, Floats{});
    }

public:
    Edges(const float* edges, int count) : low(edges[0]), last(BUCKETS * count - 1) {
        scale = (last + 1) / (edges[count - 1] - low);
        if (!std::isfinite(scale)) scale = 0;
        std::vector<int> each(int(last) + 2);  // edges of the bucket before
        int most = 0;
        for (int i = 0; i < count; i++)
            most = std::max(most, ++each[int(bucket(broadcast(edges[i]))[0]) + 1]);
        first.assign(each.begin(), each.end());
        for (size_t b = 1; b < first.size(); b++) first[b] += first[b - 1];
        while (2 * half <= most) half *= 2;
        at.assign(count + 2 * half, INFINITY);
        std::copy(edges, edges + count, at.begin());
    }

    // The number of edges below each x; 0 for a NaN.
    Flags below(Floats x) const {
        const Flags bucket_of = __builtin_convertvector(bucket(x), Flags);
        Flags piece = __builtin_convertvector(looked_up(first.data(), bucket_of), Flags);
        for (int step = half; step > 0; step /= 2)
            piece = x > looked_up(at.data() + step - 1, piece) ? piece + step : piece;
        return piece;
    }
};

template <class T>
void quantize_many(const T* x, int64_t size, const float* edges, const float* levels,
                         int pieces, bool is_signed, float ceiling, T* y, T* relu,
                         uint8_t* not_finite) {
    const Edges sorted(edges, pieces - 1);
    std::vector<float> stored(pieces);  // the levels as they are stored in y
    for (int p = 0; p < pieces; p++) stored[p] = as_stored(levels[p], T{});
    std::atomic<bool> found{false};
    parallel_for((size + CHUNK - 1) / CHUNK, size, [&](int64_t chunk) {
        Floats sum{};
        const int64_t end = std::min(size, (chunk + 1) * CHUNK);
        for_each_vector(chunk * CHUNK, end, [&](auto whole, int64_t i, int64_t lanes) {
            Floats value = load(whole, x + i, lanes);
            if (!is_signed) value = rectified(value, ceiling);
            const Floats level = looked_up(stored.data(), sorted.below(value));
            store_exact(whole, y + i, select(value != value, value, level), lanes);
            sum += value;
            if (relu) store(whole, relu + i, value, lanes);
        });
        if (not_finite && !std::isfinite(total(sum))) found = true;
    });
    if (not_finite) *not_finite = found;
}

// of(piece, value): the factors of g and of |g| in the gradient of x. sums: one table of `pieces` for
// each power of x that is wanted, the first of g alone.
template <class T, class Factors>
void gradient_many(const T* g, const T* g_relu, const T* x, int64_t size, const Edges& sorted,
                         int pieces, Factors of, bool is_signed, float ceiling, T* to,
                         const std::vector<float*>& sums) {
    const int64_t chunks = (size + LONG_CHUNK - 1) / LONG_CHUNK, powers = int64_t(sums.size());
    const int64_t width = powers * pieces;
    std::vector<double> partial(chunks * TURNS * width);
    parallel_for(chunks, size, [&](int64_t chunk) {
        double* tables = partial.data() + chunk * TURNS * width;
        const int64_t end = std::min(size, (chunk + 1) * LONG_CHUNK);
        for_each_vector(chunk * LONG_CHUNK, end, [&](auto whole, int64_t i, int64_t lanes) {
            const Floats grad = load(whole, g + i, lanes);
            Floats value = load(whole, x + i, lanes);
            const Flags passes = passes_relu(value, is_signed, ceiling);
            if (!is_signed) value = rectified(value, ceiling);
            const Flags piece = sorted.below(value);
            const auto [factor, bend] = of(piece, value);
            Floats all = grad * factor + select(grad < 0.0f, -grad, grad) * bend;
            if (g_relu) all += load(whole, g_relu + i, lanes);
            store(whole, to + i, zero_unless(passes, all), lanes);
            Floats product = grad;
            for (int64_t power = 0; power < powers; power++, product *= value)
                for (int lane = 0; lane < lanes; lane++)
                    tables[(lane % TURNS * powers + power) * pieces + piece[lane]] += product[lane];
        });
    });
    for (int64_t power = 0; power < powers; power++)
        for (int p = 0; p < pieces; p++) {
            double sum = 0;
            for (int64_t table = 0; table < chunks * TURNS; table++)
                sum += partial[(table * powers + power) * pieces + p];
            sums[power][p] = float(sum);
        }
}

}  // namespace
