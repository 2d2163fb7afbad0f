// The quantizers' passes on a processor. Every function here is the Python function of the same
// name (kernels.py), whose eager form is the reference: same arithmetic, in one pass over memory.
//
// float32, dense. Work is cut into pieces that do not depend on the number of threads, and every
// sum is taken in a fixed order, so results are the same with any number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int64_t LANES = 8;
constexpr int64_t CHUNK = 4096;         // elements that one thread takes at a time
constexpr int64_t PARALLEL = 1 << 15;   // fewer elements than this are not worth a second thread
constexpr int MAX_BITS = 8;

// Of the Python modules, by the same names (tests/test_kernels.py holds them together).
constexpr double RIDGE = 1e-4, MOMENTUM = 0.9, VARIANCE_FLOOR = 1e-3;
constexpr float MIN_STEP = 1e-4f;

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Mask __attribute__((vector_size(32)));  // a lane is -1 where true, else 0
typedef uint8_t Bytes __attribute__((vector_size(8)));

// Bits of a gate (see quantizer.py).
constexpr int PASSES = 1, ABOVE = 2, POSITIVE = 4, BELOW = 8;

template <bool WHOLE>
inline Floats load(const float* from, int64_t lanes) {
    Floats x{};
    std::memcpy(&x, from, WHOLE ? sizeof x : lanes * sizeof(float));
    return x;
}

template <bool WHOLE, class T>
inline void store(T* to, const void* from, int64_t lanes) {
    std::memcpy(to, from, (WHOLE ? LANES : lanes) * sizeof(T));
}

// A flag of each lane to a byte of each lane.
inline Bytes packed(Mask flags) {
#if __has_builtin(__builtin_shufflevector)
    typedef uint8_t All __attribute__((vector_size(32)));
    const All bytes = (All)flags;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return __builtin_shufflevector(bytes, bytes, 0, 4, 8, 12, 16, 20, 24, 28);
#else
    return __builtin_shufflevector(bytes, bytes, 3, 7, 11, 15, 19, 23, 27, 31);
#endif
#else
    return __builtin_convertvector(flags, Bytes);
#endif
}

inline Floats select(Mask m, Floats a, Floats b) { return m ? a : b; }
inline Floats where(Mask m, Floats a) { return (Floats)(m & (Mask)a); }  // a, or 0
inline Floats all(float value) { return Floats{} + value; }
inline float total(Floats x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}
inline int64_t total(Mask x) {
    int64_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

// To the nearest whole number, ties to even: valid below 2^22, as codes are.
inline Floats rounded(Floats x) { return (x + 12582912.0f) - 12582912.0f; }

constexpr int pairs(int bits) { return bits * (bits + 1) / 2; }

// Nearest level of x and its code's bits by successive approximation (basis.successive).
template <int K, bool SIGNED>
inline Floats successive(Floats x, const Floats* v, Floats all_v, Mask* bit) {
    Floats rest = SIGNED ? x : x + x - all_v;
    Floats y = 0.0f * x;
    for (int k = K - 1; k >= 0; k--) {
        bit[k] = rest > 0.0f;
        rest -= select(bit[k], v[k], -v[k]);
        y += SIGNED ? select(bit[k], v[k], -v[k]) : where(bit[k], v[k]);
    }
    return y;
}

// What a least-squares fit needs of the values seen: sum x b_k, counts of b_k b_m.
template <int K>
struct CodeSums {
    Floats products[K] = {};
    Mask counts[pairs(K)] = {};

    inline void add(Floats x, const Mask* bit) {
        for (int k = 0, p = 0; k < K; k++) {
            products[k] += where(bit[k], x);
            for (int m = k; m < K; m++, p++) counts[p] -= bit[k] & bit[m];
        }
    }
};

template <int K, bool SIGNED, bool TRAIN, bool WHOLE>
void basis_tile(const float* x, int64_t rows, int64_t stride, int64_t lanes, const float* basis,
                float ceiling, float* y, float* relu, uint8_t* gate, float* sums,
                int64_t sums_stride) {
    Floats v[K], all_v = all(0), top = all(0);
    for (int k = 0; k < K; k++) v[k] = all(basis[k]), all_v += v[k];
    for (int k = K - 1; k >= 0; k--) top += v[k];
    Floats sum{}, square{};
    CodeSums<K> code;
    for (int64_t row = 0; row < rows; row++, x += stride, y += stride) {
        Floats c = load<WHOLE>(x, lanes);
        if (!SIGNED) c = select(c < 0.0f, all(0), c), c = select(c > ceiling, all(ceiling), c);
        Mask bit[K];
        const Floats level = successive<K, SIGNED>(c, v, all_v, bit);
        store<WHOLE>(y, &level, lanes);
        if (!TRAIN) continue;
        sum += c, square += c * c;
        code.add(c, bit);
        Mask flags;
        if (SIGNED) {
            flags = (c <= top) & (c >= -top) & PASSES;
        } else {
            const Mask positive = (c > 0.0f) & (c < ceiling);
            flags = positive & (((c <= top) & PASSES) | POSITIVE);
        }
        const Bytes gates = packed(flags);
        store<WHOLE>(gate, &gates, lanes), gate += stride;
        if (relu) store<WHOLE>(relu, &c, lanes), relu += stride;
    }
    if (!TRAIN) return;
    auto keep = [&](Floats value) { store<WHOLE>(sums, &value, lanes), sums += sums_stride; };
    keep(sum), keep(square);
    for (int k = 0; k < K; k++) keep(code.products[k]);
    for (int p = 0; p < pairs(K); p++) keep(__builtin_convertvector(code.counts[p], Floats));
}

template <int K, bool SIGNED, bool TRAIN>
void basis_blocks(const float* x, int64_t blocks, int64_t rows, int64_t columns, const float* v,
                  float ceiling, float* y, float* relu, uint8_t* gate, float* sums) {
#pragma omp parallel for schedule(static) if (blocks * rows * columns > PARALLEL)
    for (int64_t block = 0; block < blocks; block++) {
        for (int64_t column = 0; column < columns; column += LANES) {
            const int64_t at = block * rows * columns + column, lanes = columns - column;
            auto tile = lanes >= LANES ? basis_tile<K, SIGNED, TRAIN, true>
                                       : basis_tile<K, SIGNED, TRAIN, false>;
            tile(x + at, rows, columns, lanes, v, ceiling, y + at, relu ? relu + at : nullptr,
                 gate + at, sums + block * columns + column, blocks * columns);
        }
    }
}

template <bool SIGNED, bool TRAIN, bool WHOLE>
inline Floats uniform_lanes(const float* x, int64_t lanes, float top, float bottom, float step,
                            float ceiling, float* y, float* relu, uint8_t* gate) {
    Floats c = load<WHOLE>(x, lanes);
    if (!SIGNED) c = select(c < 0.0f, all(0), c), c = select(c > ceiling, all(ceiling), c);
    Floats inside = select(c < bottom, all(bottom), c);
    inside = select(inside > top, all(top), inside);
    const Floats level = rounded((inside - bottom) / step) * step + bottom;
    store<WHOLE>(y, &level, lanes);
    if (!TRAIN) return c;
    Mask flags = (c >= top) & ABOVE;
    const Mask passes = (c < top) & (c >= bottom);
    if (SIGNED) {
        flags |= (passes & PASSES) | ((c <= bottom) & BELOW);
    } else {
        flags |= (c > 0.0f) & (c < ceiling) & ((passes & PASSES) | POSITIVE);
    }
    const Bytes gates = packed(flags);
    store<WHOLE>(gate, &gates, lanes);
    if (relu) store<WHOLE>(relu, &c, lanes);
    return c;
}

template <bool SIGNED, bool TRAIN>
void uniform(const float* x, int64_t size, float top, float bottom, float step, float ceiling,
             float* y, float* relu, uint8_t* gate, uint8_t* bad) {
    const int64_t chunks = (size + CHUNK - 1) / CHUNK;
    int64_t found = 0;
#pragma omp parallel for schedule(static) reduction(| : found) if (size > PARALLEL)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        Floats sum{};
        const int64_t end = std::min(size, (chunk + 1) * CHUNK);
        int64_t i = chunk * CHUNK;
        for (; i + LANES <= end; i += LANES)
            sum += uniform_lanes<SIGNED, TRAIN, true>(x + i, LANES, top, bottom, step, ceiling,
                                                      y + i, relu ? relu + i : nullptr, gate + i);
        if (i < end)
            sum += uniform_lanes<SIGNED, TRAIN, false>(x + i, end - i, top, bottom, step, ceiling,
                                                       y + i, relu ? relu + i : nullptr, gate + i);
        found |= !std::isfinite(total(sum));
    }
    if (TRAIN) *bad = found;
}

template <bool FORK, bool SUMS, bool WHOLE>
inline void gate_lanes(const float* g, const float* g_relu, const uint8_t* gate, int64_t lanes,
                       float* to, Floats& above, Floats& below) {
    Bytes bytes{};
    std::memcpy(&bytes, gate, WHOLE ? LANES : lanes);
    const Mask flags = __builtin_convertvector(bytes, Mask);
    const Floats own = load<WHOLE>(g, lanes);
    Floats sum = where(-(flags & PASSES), own);
    if (FORK) sum += where((flags & POSITIVE) != 0, load<WHOLE>(g_relu, lanes));
    store<WHOLE>(to, &sum, lanes);
    if (SUMS) {
        above += where((flags & ABOVE) != 0, own);
        below += where((flags & BELOW) != 0, own);
    }
}

template <bool FORK, bool SUMS>
void gate_all(const float* g, const float* g_relu, const uint8_t* gate, int64_t size, float* to,
              float* sums) {
    const int64_t chunks = (size + CHUNK - 1) / CHUNK;
    std::vector<float> each(SUMS ? 2 * chunks : 0);
#pragma omp parallel for schedule(static) if (size > PARALLEL)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        Floats above{}, below{};
        const int64_t end = std::min(size, (chunk + 1) * CHUNK);
        int64_t i = chunk * CHUNK;
        for (; i + LANES <= end; i += LANES)
            gate_lanes<FORK, SUMS, true>(g + i, g_relu + i, gate + i, LANES, to + i, above, below);
        if (i < end)
            gate_lanes<FORK, SUMS, false>(g + i, g_relu + i, gate + i, end - i, to + i, above,
                                          below);
        if (SUMS) each[2 * chunk] = total(above), each[2 * chunk + 1] = total(below);
    }
    if (SUMS) {
        double above = 0, below = 0;
        for (int64_t c = 0; c < chunks; c++) above += each[2 * c], below += each[2 * c + 1];
        sums[0] = above, sums[1] = below;
    }
}

// The ordered basis of least squares from the normal equations (basis.solve_basis), one row.
void solve(double sum, double count, const double* products, const double* counts,
           const float* present, int bits, bool is_signed, double* fit) {
    double normal[MAX_BITS][MAX_BITS], right[MAX_BITS];
    const double ridge = std::max(RIDGE * count, 1e-12);
    for (int k = 0, p = 0; k < bits; k++)
        for (int m = k; m < bits; m++) normal[k][m] = counts[p++];
    double own[MAX_BITS];
    for (int k = 0; k < bits; k++) own[k] = normal[k][k];
    for (int k = 0; k < bits; k++) {
        if (is_signed)
            for (int m = k; m < bits; m++)
                normal[k][m] = 4 * normal[k][m] - 2 * own[k] - 2 * own[m] + count;
        right[k] = (is_signed ? 2 * products[k] - sum : products[k]) + ridge * present[k];
        normal[k][k] += ridge;
    }
    for (int k = 0; k < bits; k++)
        for (int i = k + 1; i < bits; i++) {
            const double factor = normal[k][i] / normal[k][k];
            for (int j = i; j < bits; j++) normal[i][j] -= factor * normal[k][j];
            right[i] -= factor * right[k];
        }
    for (int k = bits - 1; k >= 0; k--) {
        double known = 0;
        for (int m = k + 1; m < bits; m++) known += normal[k][m] * fit[m];
        fit[k] = (right[k] - known) / normal[k][k];
    }
}

// The nearest ordered basis (basis.ordered). NaN makes all of it NaN.
template <class T>
void order(T* v, int bits) {
    bool sound = true;
    for (int k = 0; k < bits; k++) v[k] = std::abs(v[k]), sound &= !std::isnan(v[k]);
    if (sound) {
        std::sort(v, v + bits);
    } else {
        std::fill(v, v + bits, std::numeric_limits<T>::quiet_NaN());
    }
    T below = 0;
    for (int k = 0; k < bits; k++) v[k] = std::max(v[k], below), below += v[k];
}

template <int K, bool FIT, bool WHOLE>
inline void basis_row(const float* x, int64_t lanes, const Floats* v, Floats all_v, float* y,
                      Floats& sum, CodeSums<K>& code) {
    Mask bit[K];
    const Floats c = load<WHOLE>(x, lanes);
    const Floats level = successive<K, true>(c, v, all_v, bit);
    store<WHOLE>(y, &level, lanes);
    if (!FIT) return;
    Floats seen = c;
    if (!WHOLE) {  // lanes beyond the row must not be counted
        const Mask index = {0, 1, 2, 3, 4, 5, 6, 7};
        const Mask valid = index < (int32_t)lanes;
        for (int k = 0; k < K; k++) bit[k] &= valid;
    }
    sum += seen;
    code.add(seen, bit);
}

template <int K, bool FIT>
void basis_rows(const float* x, int64_t rows, int64_t size, const float* v, float* y, float* fit) {
#pragma omp parallel for schedule(static) if (rows * size > PARALLEL)
    for (int64_t row = 0; row < rows; row++) {
        Floats basis[K], all_v = all(0), sum{};
        CodeSums<K> code;
        for (int k = 0; k < K; k++) basis[k] = all(v[row * K + k]);
        const float* from = x + row * size;
        float* to = y + row * size;
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES)
            basis_row<K, FIT, true>(from + i, LANES, basis, all_v, to + i, sum, code);
        if (i < size)
            basis_row<K, FIT, false>(from + i, size - i, basis, all_v, to + i, sum, code);
        if (!FIT) continue;
        double products[K], counts[pairs(K)], found[K];
        for (int k = 0; k < K; k++) products[k] = total(code.products[k]);
        for (int p = 0; p < pairs(K); p++) counts[p] = total(code.counts[p]);
        solve(total(sum), size, products, counts, v + row * K, K, true, found);
        for (int k = 0; k < K; k++) fit[row * K + k] = found[k];
        order(fit + row * K, K);
    }
}

// Bits of round(clip(z, 0, 2^K - 1)) (direct.code_bits).
template <int K>
inline void code_bits(Floats z, Mask* bit) {
    Floats rest = z - float((1 << K) - 1) / 2;
    for (int k = K - 1; k >= 0; k--) {
        const Floats half = all(float(1 << k) / 2);
        bit[k] = rest > 0.0f;
        rest -= select(bit[k], half, -half);
    }
}

template <int K>
void direct_rows(const float* z, int64_t rows, int64_t size, float* v, float* w) {
#pragma omp parallel for schedule(static) if (rows * size > PARALLEL)
    for (int64_t row = 0; row < rows; row++) {
        order(v + row * K, K);
        for (int64_t i = 0; i < size; i += LANES) {
            const int64_t lanes = size - i;
            const bool whole = lanes >= LANES;
            const float* from = z + row * size + i;
            const Floats codes = whole ? load<true>(from, lanes) : load<false>(from, lanes);
            Mask bit[K];
            code_bits<K>(codes, bit);
            Floats level{};
            for (int k = K - 1; k >= 0; k--) {
                const Floats step = all(v[row * K + k]);
                level += select(bit[k], step, -step);
            }
            level += 0.0f * codes;
            float* to = w + row * size + i;
            whole ? store<true>(to, &level, lanes) : store<false>(to, &level, lanes);
        }
    }
}

// Gradients of codes (DIRECT) and basis from that of the weight: direct_gradient, indirect_gradient.
template <int K, bool DIRECT>
void gradient_rows(const float* g, const float* x, const float* v, int64_t rows, int64_t size,
                   float* codes, float* basis) {
#pragma omp parallel for schedule(static) if (rows * size > PARALLEL)
    for (int64_t row = 0; row < rows; row++) {
        Floats levels[K], all_v = all(0), sums[K] = {};
        float span = 0;
        for (int k = 0; k < K; k++) {
            levels[k] = all(v[row * K + k]);
            span += std::abs(v[row * K + k]);
        }
        const float step = 2 * span / ((1 << K) - 1);
        const Floats distance = all(step < MIN_STEP ? MIN_STEP : step);
        for (int64_t i = 0; i < size; i += LANES) {
            const int64_t lanes = size - i, at = row * size + i;
            const bool whole = lanes >= LANES;
            const Floats value = whole ? load<true>(x + at, lanes) : load<false>(x + at, lanes);
            const Floats own = whole ? load<true>(g + at, lanes) : load<false>(g + at, lanes);
            Mask bit[K];
            if (DIRECT) {
                code_bits<K>(value, bit);
                const Mask outside = (value < -1.0f) | (value > float(1 << K));
                const Floats to = select(outside, all(0), own / distance);
                whole ? store<true>(codes + at, &to, lanes) : store<false>(codes + at, &to, lanes);
            } else {
                successive<K, true>(value, levels, all_v, bit);
            }
            for (int k = 0; k < K; k++) sums[k] += select(bit[k], own, -own);
        }
        for (int k = 0; k < K; k++) basis[row * K + k] = total(sums[k]);
    }
}

float largest(const float* u, int64_t size) {
    float top = 0;
    for (int64_t i = 0; i < size; i++) {
        const float own = std::abs(u[i]);
        if (!(own <= top)) top = own;  // NaN enters, and stays
        if (std::isnan(top)) break;
    }
    return std::isnan(top) ? top : std::max(top, 1e-12f);
}

// F<K>(...) for 1 to MAX_BITS bits.
#define FOR_BITS(bits, F, ...)                    \
    switch (bits) {                               \
        case 1: F(1, __VA_ARGS__); break;         \
        case 2: F(2, __VA_ARGS__); break;         \
        case 3: F(3, __VA_ARGS__); break;         \
        case 4: F(4, __VA_ARGS__); break;         \
        case 5: F(5, __VA_ARGS__); break;         \
        case 6: F(6, __VA_ARGS__); break;         \
        case 7: F(7, __VA_ARGS__); break;         \
        default: F(8, __VA_ARGS__); break;        \
    }

}  // namespace

extern "C" {

void quantize_and_sum(const float* x, int64_t blocks, int64_t rows, int64_t columns,
                      const float* v, int bits, int is_signed, float ceiling, float* y,
                      float* relu, uint8_t* gate, float* sums) {
#define SUM(K, S) basis_blocks<K, S, true>(x, blocks, rows, columns, v, ceiling, y, relu, gate, sums)
    if (is_signed) {
        FOR_BITS(bits, SUM, true)
    } else {
        FOR_BITS(bits, SUM, false)
    }
}

void quantize(const float* x, int64_t size, const float* v, int bits, int is_signed, float ceiling,
              float* y) {
    // As blocks of a column of lanes; what is left over as one narrow row.
    const int64_t blocks = size / CHUNK, rest = size % CHUNK, at = size - rest;
    const int64_t rows = rest / LANES, left = rest % LANES, last = size - left;
#define MAP(K, S)                                                                             \
    basis_blocks<K, S, false>(x, blocks, CHUNK / LANES, LANES, v, ceiling, y, nullptr, nullptr, \
                              nullptr);                                                       \
    basis_blocks<K, S, false>(x + at, 1, rows, LANES, v, ceiling, y + at, nullptr, nullptr,   \
                              nullptr);                                                       \
    basis_blocks<K, S, false>(x + last, 1, 1, left, v, ceiling, y + last, nullptr, nullptr, nullptr)
    if (is_signed) {
        FOR_BITS(bits, MAP, true)
    } else {
        FOR_BITS(bits, MAP, false)
    }
}

void clip_round(const float* x, int64_t size, const float* top, const float* bottom,
                const float* step, int is_signed, float ceiling, float* y, float* relu,
                uint8_t* gate, uint8_t* bad) {
    auto pass = is_signed ? (gate ? uniform<true, true> : uniform<true, false>)
                          : (gate ? uniform<false, true> : uniform<false, false>);
    pass(x, size, *top, *bottom, *step, ceiling, y, relu, gate, bad);
}

// sums: of g above and below the range, or null.
void through_gate(const float* g, const float* g_relu, const uint8_t* gate, int64_t size, float* to,
                  float* sums) {
    auto pass = g_relu ? (sums ? gate_all<true, true> : gate_all<true, false>)
                       : (sums ? gate_all<false, true> : gate_all<false, false>);
    pass(g, g_relu, gate, size, to, sums);
}

// weighting: 0 equal, 1 inverse_variance, 2 median (channel_aware.update_basis).
void update_basis(const float* sums, int64_t blocks, int64_t columns, int64_t channels,
                  int64_t size, const float* v, int bits, int is_signed, int weighting,
                  float* updated, uint8_t* bad) {
    const int count = 2 + bits + pairs(bits);
    std::vector<double> totals(count * channels, 0.0);
#pragma omp parallel for schedule(static) if (count * blocks * columns > PARALLEL)
    for (int s = 0; s < count; s++) {
        double* own = totals.data() + s * channels;
        const float* from = sums + s * blocks * columns;
        for (int64_t row = 0; row < blocks * columns / channels; row++, from += channels)
            for (int64_t c = 0; c < channels; c++) own[c] += from[c];
    }
    const double *sum = totals.data(), *square = sum + channels, *codes = square + channels;
    auto channel = [&](int64_t c, double weight, double& total, double* products, double* counts) {
        total += weight * sum[c];
        for (int k = 0; k < bits; k++) products[k] += weight * codes[k * channels + c];
        for (int p = 0; p < pairs(bits); p++)
            counts[p] += weight * codes[(bits + p) * channels + c];
    };
    bool sound = true;
    for (int64_t c = 0; c < channels; c++) sound &= std::isfinite(sum[c]);
    double fit[MAX_BITS];
    if (weighting == 2) {
        std::vector<double> fits(bits * channels);
        for (int64_t c = 0; c < channels; c++) {
            double total = 0, products[MAX_BITS] = {}, counts[pairs(MAX_BITS)] = {};
            channel(c, 1, total, products, counts);
            solve(total, size, products, counts, v, bits, is_signed, fit);
            float own[MAX_BITS];
            for (int k = 0; k < bits; k++) own[k] = fit[k];
            order(own, bits);
            for (int k = 0; k < bits; k++) fits[k * channels + c] = own[k];
        }
        for (int k = 0; k < bits && sound; k++) {
            auto begin = fits.begin() + k * channels, middle = begin + (channels - 1) / 2;
            std::nth_element(begin, middle, begin + channels);
            fit[k] = *middle;
        }
    } else {
        std::vector<double> weights(channels, 1.0);
        if (weighting == 1) {
            double mean = 0, all_weights = 0;
            for (int64_t c = 0; c < channels; c++) {
                const double average = sum[c] / size;
                weights[c] = std::max(square[c] / size - average * average, 0.0);
                mean += weights[c] / channels;
            }
            for (double& weight : weights) {
                weight = weight > 0 ? 1 / (weight + VARIANCE_FLOOR * mean + 1e-30) : 0.0;
                all_weights += weight / channels;
            }
            for (double& weight : weights) weight /= std::max(all_weights, 1e-30);
        }
        double total = 0, seen = 0, products[MAX_BITS] = {}, counts[pairs(MAX_BITS)] = {};
        for (int64_t c = 0; c < channels; c++) {
            channel(c, weights[c], total, products, counts);
            seen += weights[c] * size;
        }
        solve(total, seen, products, counts, v, bits, is_signed, fit);
    }
    float found[MAX_BITS];
    for (int k = 0; k < bits; k++) found[k] = fit[k];
    order(found, bits);
    for (int k = 0; k < bits; k++) sound &= std::isfinite(found[k]);
    for (int k = 0; k < bits; k++)
        updated[k] = sound ? float(MOMENTUM) * v[k] + float(1 - MOMENTUM) * found[k] : v[k];
    *bad = !sound;
}

// fit: the refitted bases, or null.
void quantize_rows(const float* x, int64_t rows, int64_t size, const float* v, int bits, float* y,
                   float* fit) {
#define ROWS(K, F) basis_rows<K, F>(x, rows, size, v, y, fit)
    if (fit) {
        FOR_BITS(bits, ROWS, true)
    } else {
        FOR_BITS(bits, ROWS, false)
    }
}

// v is put in order, in place.
void order_rows(float* v, int64_t rows, int bits) {
    for (int64_t row = 0; row < rows; row++) order(v + row * bits, bits);
}

// v is put in order, in place.
void direct_weight(const float* z, int64_t rows, int64_t size, float* v, int bits, float* w) {
#define DIRECT_ROWS(K, _) direct_rows<K>(z, rows, size, v, w)
    FOR_BITS(bits, DIRECT_ROWS, )
}

// codes: the gradient of z, or null for the gradient of the basis alone.
void basis_gradient(const float* g, const float* x, const float* v, int64_t rows, int64_t size,
                    int bits, float* codes, float* basis) {
#define GRADIENT(K, D) gradient_rows<K, D>(g, x, v, rows, size, codes, basis)
    if (codes) {
        FOR_BITS(bits, GRADIENT, true)
    } else {
        FOR_BITS(bits, GRADIENT, false)
    }
}

// u = tanh(w).
void dorefa_weight(const float* u, int64_t size, const float* steps, float* w) {
    const float twice = 2 * largest(u, size), n = *steps;
    for (int64_t i = 0; i < size; i += LANES) {
        const int64_t lanes = size - i;
        const bool whole = lanes >= LANES;
        const Floats own = whole ? load<true>(u + i, lanes) : load<false>(u + i, lanes);
        const Floats level = 2.0f * rounded((own / twice + 0.5f) * n) / n - 1.0f;
        whole ? store<true>(w + i, &level, lanes) : store<false>(w + i, &level, lanes);
    }
}

void dorefa_gradient(const float* g, const float* u, int64_t size, float* to) {
    const float top = largest(u, size);
    double sum = 0;
    int64_t ties = 0;
    for (int64_t i = 0; i < size; i++) sum += g[i] * u[i], ties += std::abs(u[i]) == top;
    const float share = -float(sum) / (top * top) / std::max<int64_t>(ties, 1);
    for (int64_t i = 0; i < size; i++) {
        const float own = std::abs(u[i]) == top ? std::copysign(share, share * u[i]) : 0.0f;
        to[i] = (g[i] / top + own) * (1 - u[i] * u[i]);
    }
}

}  // extern "C"
