// Weights, one basis a row, and their gradients; DoReFa's weights. Each function does what the
// Python function of the same name does.

#define EIGHT_LANES  // sums over the lanes of a row
#include "basis.h"

#include <initializer_list>
#include <numeric>

namespace {

constexpr float MIN_STEP = 1e-4f;   // as in direct.py
constexpr float MIN_ALPHA = 1e-5f;  // as in adabin.py

// Rows of x (rows, size) to the nearest levels of v (rows, K), signed; and the refitted bases.
template <int K, bool FIT>
void basis_rows(const float* x, int64_t rows, int64_t size, const float* v, float* y, float* fit) {
    parallel_for(rows, rows * size, [=](int64_t row) {
        Floats basis[K], sum_v = broadcast(0), sum{}, products[K] = {};
        PairCounts<K> code;
        for (int k = 0; k < K; k++) basis[k] = broadcast(v[row * K + k]);
        for_each_vector(row * size, (row + 1) * size, [&](auto whole, int64_t i, int64_t lanes) {
            Flags bit[K];
            const Floats value = load(whole, x + i, lanes);
            const Floats level = nearest_level<K, true>(value, basis, sum_v, bit);
            store(whole, y + i, level, lanes);
            if (!FIT) return;
            if (!whole) {  // lanes beyond the row must not be counted
                const Flags index = {0, 1, 2, 3, 4, 5, 6, 7};
                for (int k = 0; k < K; k++) bit[k] &= index < (int32_t)lanes;
            }
            sum += value;
            for (int k = 0; k < K; k++) products[k] += zero_unless(bit[k], value);
            code.add(bit);
        });
        if (!FIT) return;
        FitSums sums;
        sums.sum = total(sum), sums.count = size;
        for (int k = 0; k < K; k++) sums.products[k] = total(products[k]);
        for (int p = 0; p < pairs(K); p++) sums.counts[p] = total<int64_t>(code.counts[p]);
        fit_ordered(sums, v + row * K, K, true, fit + row * K);
    });
}

// The bits of round(clip(z, 0, 2^K - 1)) (direct.code_bits).
template <int K>
inline void code_bits(Floats z, Flags* bit) {
    Floats rest = z - float((1 << K) - 1) / 2;
    for (int k = K - 1; k >= 0; k--) {
        const Floats half = broadcast(float(1 << k) / 2);
        bit[k] = rest > 0.0f;
        rest -= select(bit[k], half, -half);
    }
}

template <int K>
void direct_rows(const float* z, int64_t rows, int64_t size, float* v, float* w) {
    parallel_for(rows, rows * size, [=](int64_t row) {
        order(v + row * K, K);
        for_each_vector(row * size, (row + 1) * size, [=](auto whole, int64_t i, int64_t lanes) {
            const Floats codes = load(whole, z + i, lanes);
            Flags bit[K];
            code_bits<K>(codes, bit);
            Floats level{};
            for (int k = K - 1; k >= 0; k--) {
                const Floats step = broadcast(v[row * K + k]);
                level += select(bit[k], step, -step);
            }
            store(whole, w + i, level + 0.0f * codes, lanes);
        });
    });
}

// The gradients of codes (where DIRECT) and basis from that of the weight, g.
template <int K, bool DIRECT>
void gradient_rows(const float* g, const float* x, const float* v, int64_t rows, int64_t size,
                   float* codes, float* basis) {
    parallel_for(rows, rows * size, [=](int64_t row) {
        Floats levels[K], sums[K] = {};
        float span = 0;
        for (int k = 0; k < K; k++) {
            levels[k] = broadcast(v[row * K + k]);
            span += std::abs(v[row * K + k]);
        }
        const float step = 2 * span / ((1 << K) - 1);
        const Floats distance = broadcast(step < MIN_STEP ? MIN_STEP : step);
        for_each_vector(row * size, (row + 1) * size, [&](auto whole, int64_t i, int64_t lanes) {
            const Floats value = load(whole, x + i, lanes), slope = load(whole, g + i, lanes);
            Flags bit[K];
            if (DIRECT) {
                code_bits<K>(value, bit);
                const Flags outside = (value < -1.0f) | (value > float(1 << K));
                store(whole, codes + i, select(outside, broadcast(0), slope / distance), lanes);
            } else {
                nearest_level<K, true>(value, levels, broadcast(0), bit);
            }
            for (int k = 0; k < K; k++) sums[k] += select(bit[k], slope, -slope);
        });
        for (int k = 0; k < K; k++) basis[row * K + k] = total(sums[k]);
    });
}

// max |u|, at least 1e-12; NaN where u holds one.
float largest(const float* u, int64_t count) {
    Floats top = broadcast(1e-12f), zero{};
    for_each_vector(0, count, [=, &top, &zero](auto whole, int64_t i, int64_t lanes) {
        const Floats x = load(whole, u + i, lanes);
        top = greater(greater(x, -x), top);
        zero += 0.0f * x;  // NaN where x is
    });
    if (std::isnan(total(zero))) return std::numeric_limits<float>::quiet_NaN();
    float found = top[0];
    for (int i = 1; i < LANES; i++) found = std::max(found, top[i]);
    return found;
}

// exp(x) for x <= 0, within two units in the last place (the polynomial of Cephes' expf).
inline Floats exponential(Floats x) {
    x = greater(broadcast(-87.0f), x);
    const Floats n = rounded(x * 1.44269504f);
    const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = broadcast(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                          5.0000001201e-1f})
        p = p * r + c;
    const Words power = ((Words)__builtin_convertvector(n, Flags) + 127) << 23;  // 2^n
    return (p * r * r + r + 1.0f) * (Floats)power;
}

// The sum of |w| (of those above the threshold, if ABOVE) and, if so, their count.
template <bool ABOVE>
std::pair<double, double> sum_of_magnitudes(const float* w, int64_t size, float threshold) {
    const int64_t chunks = (size + CHUNK - 1) / CHUNK;
    std::vector<float> sums(chunks), counts(chunks);
    parallel_for(chunks, size, [=, &sums, &counts](int64_t chunk) {
        const int64_t end = std::min(size, (chunk + 1) * CHUNK);
        Floats sum{}, count{};
        for_each_vector(chunk * CHUNK, end, [=, &sum, &count](auto whole, int64_t i, int64_t lanes) {
            const Floats x = load(whole, w + i, lanes), magnitude = greater(x, -x);
            const Flags above = magnitude > threshold;
            sum += ABOVE ? zero_unless(above, magnitude) : magnitude;
            if (ABOVE) count += zero_unless(above, broadcast(1));
        });
        sums[chunk] = total(sum), counts[chunk] = total(count);
    });
    return {std::accumulate(sums.begin(), sums.end(), 0.0),
            std::accumulate(counts.begin(), counts.end(), 0.0)};
}

}  // namespace

extern "C" {

// fit: the refitted bases (basis.refit_rows), or null.
void quantize_rows(const float* x, int64_t rows, int64_t size, const float* v, int bits, float* y,
                   float* fit) {
    with_bits(bits, fit, [=](auto K, auto FIT) { basis_rows<K, FIT>(x, rows, size, v, y, fit); });
}

// Every row of v becomes the nearest ordered basis.
void order_rows(float* v, int64_t rows, int bits) {
    for (int64_t row = 0; row < rows; row++) order(v + row * bits, bits);
}

// Every row of v becomes the nearest ordered basis, too.
void direct_weight(const float* z, int64_t rows, int64_t size, float* v, int bits, float* w) {
    with_bits(bits, true, [=](auto K, auto) { direct_rows<K>(z, rows, size, v, w); });
}

// codes: the gradient of z, or null: then x holds weights, and only the basis gets a gradient.
void basis_gradient(const float* g, const float* x, const float* v, int64_t rows, int64_t size,
                    int bits, float* codes, float* basis) {
    with_bits(bits, codes, [=](auto K, auto DIRECT) {
        gradient_rows<K, DIRECT>(g, x, v, rows, size, codes, basis);
    });
}

// PARQ's weights. levels (rows, count), rising; rho: one number.
void relaxed_rows(const float* w, int64_t rows, int64_t size, const float* levels, int count,
                  const float* rho, float* used) {
    const float divisor = std::max(*rho, std::numeric_limits<float>::min());
    const bool relaxes = *rho > 0;
    parallel_for(rows, rows * size, [=](int64_t row) {
        const float* level = levels + row * count;
        for_each_vector(row * size, (row + 1) * size, [=](auto whole, int64_t i, int64_t lanes) {
            const Floats x = load(whole, w + i, lanes);
            Floats low = broadcast(level[0]), high = low, nearest = low;
            for (int l = 0; l < count; l++) {  // the levels below x and, but for ties, above it
                const float next = level[std::min(l + 1, count - 1)];
                low = x > broadcast(level[l]) ? broadcast(level[l]) : low;
                high = x > broadcast(level[l]) ? broadcast(next) : high;
                nearest = x > broadcast((next + level[l]) / 2) ? broadcast(next) : nearest;
            }
            const Floats middle = (low + high) / 2.0f;
            const Floats steep = middle + (x - middle) / divisor;
            const Floats clipped = less(high, greater(low, steep));
            store(whole, used + i, relaxes ? clipped : nearest, lanes);
        });
    });
}

// beta, alpha (rows): the mean and the deviation of each row.
void two_levels(const float* w, int64_t rows, int64_t size, float* y, float* beta, float* alpha) {
    parallel_for(rows, rows * size, [=](int64_t row) {
        const auto each = [=](auto body) { for_each_vector(row * size, (row + 1) * size, body); };
        Floats sum{}, squares{};
        each([=, &sum](auto whole, int64_t i, int64_t lanes) { sum += load(whole, w + i, lanes); });
        const float mean = total(sum) / float(size);
        each([=, &squares](auto whole, int64_t i, int64_t lanes) {
            const Floats rest = load(whole, w + i, lanes) - mean;
            const Flags index = {0, 1, 2, 3, 4, 5, 6, 7};
            squares += zero_unless(index < (int32_t)lanes, rest * rest);
        });
        const float found = std::sqrt(total(squares) / float(size));
        const float spread = found < MIN_ALPHA ? MIN_ALPHA : found;
        each([=](auto whole, int64_t i, int64_t lanes) {
            const Flags above = load(whole, w + i, lanes) >= broadcast(mean);
            store(whole, y + i, select(above, broadcast(mean + spread), broadcast(mean - spread)),
                  lanes);
        });
        beta[row] = mean, alpha[row] = spread;
    });
}

// sharpness: t, one number.
void two_levels_gradient(const float* g, const float* w, const float* beta, const float* alpha,
                         const float* sharpness, int64_t rows, int64_t size, float* to) {
    const float t = *sharpness;
    parallel_for(rows, rows * size, [=](int64_t row) {
        const auto each = [=](auto body) { for_each_vector(row * size, (row + 1) * size, body); };
        const Floats mean = broadcast(beta[row]), spread = broadcast(alpha[row]);
        Floats of_beta{}, of_alpha{};  // 0 in lanes beyond the row, as g is
        each([=, &of_beta, &of_alpha](auto whole, int64_t i, int64_t lanes) {
            const Floats grad = load(whole, g + i, lanes);
            const Floats u = (load(whole, w + i, lanes) - mean) / spread;
            const Floats decay = exponential(-2.0f * t * greater(u, -u));
            const Floats bell = 4.0f * decay / ((1.0f + decay) * (1.0f + decay));  // 1 - tanh^2
            const Floats through = grad * bell * std::max(t, 1.0f);
            of_beta += grad - through;
            of_alpha += select(u >= 0.0f, grad, -grad) - through * u;
            store(whole, to + i, through, lanes);
        });
        const float shift = total(of_beta) / float(size);
        const float tilt = alpha[row] > MIN_ALPHA ? total(of_alpha) / float(size) : 0;
        each([=](auto whole, int64_t i, int64_t lanes) {
            const Floats u = (load(whole, w + i, lanes) - mean) / spread;
            store(whole, to + i, load(whole, to + i, lanes) + shift + tilt * u, lanes);
        });
    });
}

// threshold: `share` of the mean |w|; above: the mean of the |w| above it, 0 if there are none.
void threshold_and_mean_above(const float* w, int64_t size, float share, float* threshold,
                              float* above) {
    *threshold = share * float(sum_of_magnitudes<false>(w, size, 0).first / double(size));
    const auto [sum, count] = sum_of_magnitudes<true>(w, size, *threshold);
    *above = float(sum / std::max(count, 1.0));
}

// u = tanh(w). steps: 2^bits - 1.
void dorefa_weight(const float* u, int64_t size, const float* steps, float* w) {
    const float twice = 2 * largest(u, size), n = *steps;
    for_each_vector(0, size, [=](auto whole, int64_t i, int64_t lanes) {
        const Floats position = (load(whole, u + i, lanes) / twice + 0.5f) * n;
        store(whole, w + i, 2.0f * rounded(position) / n - 1.0f, lanes);
    });
}

void dorefa_gradient(const float* g, const float* u, int64_t size, float* to) {
    const float top = largest(u, size);
    double sums[LANES] = {}, sum = 0;
    int64_t ties = 0;
    const int64_t whole = size / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int64_t lane = 0; lane < LANES; lane++) sums[lane] += g[i + lane] * u[i + lane];
    for (double part : sums) sum += part;
    for (int64_t i = whole; i < size; i++) sum += g[i] * u[i];
    for (int64_t i = 0; i < size; i++) ties += (u[i] == top) + (u[i] == -top);
    const float share = -float(sum) / (top * top) / std::max<int64_t>(ties, 1);
    for_each_vector(0, size, [=](auto whole, int64_t i, int64_t lanes) {
        const Floats x = load(whole, u + i, lanes);
        const Floats through_max = select(x == top, broadcast(share), broadcast(0)) -
                                   select(x == -top, broadcast(share), broadcast(0));
        const Floats slope = load(whole, g + i, lanes) / top + through_max;
        store(whole, to + i, slope * (1.0f - x * x), lanes);
    });
}

}  // extern "C"
