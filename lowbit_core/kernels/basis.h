// Ordered bases (basis.py): the nearest level of a value, and the least-squares fit of a basis.
#pragma once

#include <limits>

#include "vectors.h"

namespace {

constexpr int MAX_BITS = 8;
constexpr double RIDGE = 1e-4;  // as in basis.py

constexpr int pairs(int bits) { return bits * (bits + 1) / 2; }

// Calls body(K, FLAG) with the bit-width, 1 to MAX_BITS, and the flag as compile-time constants.
template <int K = 1, class Body>
void with_bits(int bits, bool flag, Body body) {
    if constexpr (K < MAX_BITS)
        if (bits > K) return with_bits<K + 1>(bits, flag, body);
    const std::integral_constant<int, K> constant;
    flag ? body(constant, std::true_type{}) : body(constant, std::false_type{});
}

// The nearest level of x and the bits of its code (basis.nearest_level).
template <int K, bool SIGNED>
inline Floats nearest_level(Floats x, const Floats* v, Floats sum_v, Flags* bit) {
    Floats rest = SIGNED ? x : x + x - sum_v;
    Floats y = 0.0f * x;
    for (int k = K - 1; k >= 0; k--) {
        bit[k] = rest > 0.0f;
        rest -= select(bit[k], v[k], -v[k]);
        y += SIGNED ? select(bit[k], v[k], -v[k]) : zero_unless(bit[k], v[k]);
    }
    return y;
}

// Counts of b_k b_m for the values seen (basis.code_sums).
template <int K>
struct PairCounts {
    Flags counts[pairs(K)] = {};

    inline void add(const Flags* bit) {
        for (int k = 0, p = 0; k < K; k++)
            for (int m = k; m < K; m++, p++) counts[p] -= bit[k] & bit[m];
    }

    // Calls keep(counts of b_k b_m in each lane) for k <= m, row by row.
    template <class Keep>
    inline void count_pairs(Keep keep) {
        for (const Flags& count : counts) keep(__builtin_convertvector(count, Floats));
    }
};

// The sums of a least-squares fit: of x, of values, of x b_k and of b_k b_m.
struct FitSums {
    double sum = 0, count = 0, products[MAX_BITS] = {}, counts[pairs(MAX_BITS)] = {};
};

// The basis of least squares, not yet ordered (basis.solve_basis for one row).
inline void solve(const FitSums& sums, const float* present, int bits, bool is_signed,
                  double* fit) {
    double normal[MAX_BITS][MAX_BITS], right[MAX_BITS], ones[MAX_BITS];
    const double ridge = std::max(RIDGE * sums.count, 1e-12);
    for (int k = 0, p = 0; k < bits; k++)
        for (int m = k; m < bits; m++) normal[k][m] = sums.counts[p++];
    for (int k = 0; k < bits; k++) ones[k] = normal[k][k];
    for (int k = 0; k < bits; k++) {
        if (is_signed)
            for (int m = k; m < bits; m++)
                normal[k][m] = 4 * normal[k][m] - 2 * ones[k] - 2 * ones[m] + sums.count;
        right[k] = is_signed ? 2 * sums.products[k] - sums.sum : sums.products[k];
        right[k] += ridge * present[k];
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

// Replaces v by the nearest ordered basis (basis.ordered). One NaN makes every number NaN.
inline void order(float* v, int bits) {
    bool has_nan = false;
    for (int k = 0; k < bits; k++) v[k] = std::abs(v[k]), has_nan |= std::isnan(v[k]);
    if (has_nan) {
        std::fill(v, v + bits, std::numeric_limits<float>::quiet_NaN());
    } else {
        std::sort(v, v + bits);
    }
    float below = 0;
    for (int k = 0; k < bits; k++) v[k] = std::max(v[k], below), below += v[k];
}

// The ordered basis of least squares, float32.
inline void fit_ordered(const FitSums& sums, const float* present, int bits, bool is_signed,
                        float* v) {
    double fit[MAX_BITS];
    solve(sums, present, bits, is_signed, fit);
    std::copy(fit, fit + bits, v);
    order(v, bits);
}

}  // namespace
