// Quantizers given by the pieces of the real line (piecewise.py).

#define EIGHT_LANES  // sums over lanes are taken in the same order on every processor
#include <atomic>

#include "vectors.h"

namespace {

constexpr int RELU_BIT = 128;  // the highest bit of a code, as in piecewise.py
constexpr int MAX_PIECES = 128;
constexpr int FORWARD_TILE = 4, BACKWARD_TILE = 2;  // vectors that share one reading of the table

// Calls body(whole, i, lanes, count) with `count` vectors at i, i + LANES, ...: TILE of them while
// there are so many, then one by one.
template <int TILE, class Body>
inline void for_each_tile(int64_t begin, int64_t end, Body body) {
    int64_t i = begin;
    const std::integral_constant<int, TILE> tile;
    const std::integral_constant<int, 1> one;
    for (; i + TILE * LANES <= end; i += TILE * LANES) body(std::true_type{}, i, LANES, tile);
    for_each_vector(i, end, [=](auto whole, int64_t i, int64_t lanes) { body(whole, i, lanes, one); });
}

template <bool TRAIN, class T>
void quantize_all(const T* x, int64_t size, const float* edges, const float* levels, int pieces,
                  bool is_signed, float ceiling, T* y, T* relu, uint8_t* codes,
                  uint8_t* not_finite) {
    std::atomic<bool> found{false};
    parallel_for((size + CHUNK - 1) / CHUNK, size, [=, &found](int64_t chunk) {
        Floats sum{};
        const int64_t end = std::min(size, (chunk + 1) * CHUNK);
        for_each_tile<FORWARD_TILE>(chunk * CHUNK, end, [=, &sum](auto whole, int64_t i, int64_t lanes, auto n) {
            constexpr int N = decltype(n)::value;
            Floats value[N], level[N];
            Flags code[N];
            for (int j = 0; j < N; j++) {
                value[j] = load(whole, x + i + j * LANES, lanes);
                code[j] = Flags{};
                if (TRAIN) code[j] = is_signed ? code[j] + RELU_BIT
                                               : (value[j] > 0.0f) & (value[j] < ceiling) & RELU_BIT;
                if (!is_signed) value[j] = rectified(value[j], ceiling);
                level[j] = select(value[j] != value[j], value[j], broadcast(levels[0]));
            }
            for (int p = 1; p < pieces; p++) {
                const Floats edge = broadcast(edges[p - 1]), above = broadcast(levels[p]);
                for (int j = 0; j < N; j++) {
                    const Flags beyond = value[j] > edge;
                    level[j] = select(beyond, above, level[j]);
                    if (TRAIN) code[j] -= beyond;
                }
            }
            for (int j = 0; j < N; j++) {
                store(whole, y + i + j * LANES, level[j], lanes);
                if (!TRAIN) continue;
                sum += value[j];
                store_as(whole, codes + i + j * LANES, packed(code[j]), lanes);
                if (relu) store(whole, relu + i + j * LANES, value[j], lanes);
            }
        });
        if (TRAIN && !std::isfinite(total(sum))) found = true;
    });
    if (TRAIN) *not_finite = found;
}

// TILTED: slope depends on x (1), and there is a bend (2).
template <int TILTED, bool SUMS_X, class T>
void gradient_all(const T* g, const T* g_relu, const uint8_t* codes, const T* x, int64_t size,
                  const float* table, int pieces, bool is_signed, float ceiling, T* to,
                  float* sums) {
    const int64_t chunks = (size + CHUNK - 1) / CHUNK, width = SUMS_X ? 2 * pieces : pieces;
    std::vector<float> partial(chunks * width);
    float* each = partial.data();
    const float *slope = table, *slope_x = table + pieces, *bend = slope_x + pieces,
                *bend_x = bend + pieces;
    parallel_for(chunks, size, [=](int64_t chunk) {
        Eight of_g[MAX_PIECES], of_gx[SUMS_X ? MAX_PIECES : 1];
        std::fill(of_g, of_g + pieces, Eight{});
        if (SUMS_X) std::fill(of_gx, of_gx + pieces, Eight{});
        const int64_t end = std::min(size, (chunk + 1) * CHUNK);
        for_each_tile<BACKWARD_TILE>(chunk * CHUNK, end, [=, &of_g, &of_gx](auto whole, int64_t i, int64_t lanes,
                                                             auto n) {
            constexpr int N = decltype(n)::value;
            Floats grad[N], value[N], product[N], factor[N], curve[N];
            Flags code[N];
            for (int j = 0; j < N; j++) {
                const Bytes bytes = load_as<Bytes>(whole, codes + i + j * LANES, lanes);
                code[j] = __builtin_convertvector(bytes, Flags);
                code[j] &= RELU_BIT - 1;
                grad[j] = load(whole, g + i + j * LANES, lanes);
                factor[j] = curve[j] = value[j] = Floats{};
                if (!SUMS_X) continue;
                value[j] = load(whole, x + i + j * LANES, lanes);
                if (!is_signed) value[j] = rectified(value[j], ceiling);
                product[j] = grad[j] * value[j];
            }
            for (int p = 0; p < pieces; p++) {
                Floats sum{}, sum_x{};
                for (int j = 0; j < N; j++) {
                    const Flags here = code[j] == p;
                    sum += zero_unless(here, grad[j]);
                    if (SUMS_X) sum_x += zero_unless(here, product[j]);
                    Floats at = broadcast(slope[p]);
                    if (TILTED & 1) at += broadcast(slope_x[p]) * value[j];
                    factor[j] = select(here, at, factor[j]);
                    if (TILTED & 2)
                        curve[j] = select(here, bend[p] + bend_x[p] * value[j], curve[j]);
                }
                of_g[p] += sum;
                if (SUMS_X) of_gx[p] += sum_x;
            }
            for (int j = 0; j < N; j++) {
                Floats all = grad[j] * factor[j];
                if (TILTED & 2) all += select(grad[j] < 0.0f, -grad[j], grad[j]) * curve[j];
                if (g_relu) all += load(whole, g_relu + i + j * LANES, lanes);
                const Bytes bytes = load_as<Bytes>(whole, codes + i + j * LANES, lanes);
                all = zero_unless(__builtin_convertvector(bytes, Flags) >= RELU_BIT, all);
                store(whole, to + i + j * LANES, all, lanes);
            }
        });
        for (int p = 0; p < pieces; p++) {
            each[chunk * width + p] = total(of_g[p]);
            if (SUMS_X) each[chunk * width + pieces + p] = total(of_gx[p]);
        }
    });
    for (int64_t k = 0; k < width; k++) {
        double sum = 0;
        for (int64_t chunk = 0; chunk < chunks; chunk++) sum += each[chunk * width + k];
        sums[k] = sum;
    }
}

}  // namespace

extern "C" {

// edges (pieces - 1), levels (pieces). relu, codes, not_finite: null where they are not wanted.
void quantize_in_pieces(const void* x, int is_bfloat16, int64_t size, const float* edges,
                        const float* levels, int pieces, int is_signed, float ceiling, void* y,
                        void* relu, uint8_t* codes, uint8_t* not_finite) {
    with_type(is_bfloat16, [=](auto value) {
        using T = decltype(value);
        auto pass = codes ? quantize_all<true, T> : quantize_all<false, T>;
        pass((const T*)x, size, edges, levels, pieces, is_signed, ceiling, (T*)y, (T*)relu, codes,
             not_finite);
    });
}

// table (4, pieces): slope = table[0] + table[1] x, and table[2] + table[3] x for |g|. tilted: 1 if
// the slope depends on x, plus 2 if there is the part for |g|. x: null where nothing depends on it.
// sums: of g, and of g x unless x is null, each (pieces).
void pieces_gradient(const void* g, int is_bfloat16, const void* g_relu, const uint8_t* codes,
                     const void* x, int64_t size, const float* table, int pieces, int tilted,
                     int is_signed, float ceiling, void* to, float* sums) {
    with_type(is_bfloat16, [=](auto value) {
        using T = decltype(value);
        auto pass = tilted == 3   ? gradient_all<3, true, T>
                    : tilted == 2 ? gradient_all<2, true, T>
                    : tilted == 1 ? gradient_all<1, true, T>
                    : x           ? gradient_all<0, true, T>
                                  : gradient_all<0, false, T>;
        pass((const T*)g, (const T*)g_relu, codes, (const T*)x, size, table, pieces, is_signed,
             ceiling, (T*)to, sums);
    });
}

}  // extern "C"
