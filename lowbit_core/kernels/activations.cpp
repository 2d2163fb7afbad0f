// Activations: nearest level or uniform grid, the ReLU before it, and the STE mask of both passes.
// Each function does what the Python function of the same name does, in one pass over memory.

#include <atomic>

#include "basis.h"

namespace {

// Bits of the STE mask, as in ste_mask.py.
constexpr int QUANTIZER_PASSES = 1, ABOVE_RANGE = 2, RELU_PASSES = 4, BELOW_RANGE = 8;

constexpr int MAX_ROWS = 255;  // of a block, as in blocks.py: its counts fit a byte
constexpr int MANY_BITS = 4;   // from here on pairs of bits are counted afterwards, from the codes

// 32 counters, a byte each, added up to one for each lane. Not inlined: g++ would take the vector
// of counters apart byte by byte.
__attribute__((noinline)) Floats folded(const uint8_t* counters) {
    Flags sum{};
    for (int i = 0; i < 32; i += LANES)
        sum += widened(load_as<Bytes>(std::true_type{}, counters + i, LANES));
    return __builtin_convertvector(sum, Floats);
}

// The codes of one vector of columns, a byte each, and the counts of their pairs of bits: 32 codes
// are compared by one instruction, and the counters of each pass stay in registers.
template <int K>
struct CodesOfTile {
    typedef uint8_t Many __attribute__((vector_size(32)));
    static constexpr int64_t CODES = (MAX_ROWS * LANES + 31) / 32 * 32;
    alignas(32) uint8_t codes[CODES], counters[32];
    int64_t count = 0;

    inline void add(const Flags* bit) {
        Flags code{};
        for (int k = 0; k < K; k++) code |= bit[k] & (1 << k);
        store_as(std::true_type{}, codes + count, lowest_bytes(code), LANES);
        count += LANES;
    }

    // Calls keep(counts of b_k b_m in each lane) for k <= m, row by row.
    template <class Keep>
    inline void count_pairs(Keep keep) {
        const int64_t whole = (count + 31) / 32 * 32;
        std::fill(codes + count, codes + whole, 0);  // no bit is set: counts nothing
        each_bit<0>(whole, keep);
    }

  private:
    template <int BIT, class Keep>
    inline void each_bit(int64_t whole, Keep keep) {
        if constexpr (BIT < K) {
            Many counts[K - BIT] = {};
            for (int64_t i = 0; i < whole; i += 32) {
                const Many code = *(const Many*)(codes + i);
                for (int m = BIT; m < K; m++) {
                    const uint8_t both = 1 << BIT | 1 << m;
                    counts[m - BIT] -= (Many)((code & both) == both);
                }
            }
            for (int m = BIT; m < K; m++) {
                std::memcpy(counters, &counts[m - BIT], 32);
                keep(folded(counters));
            }
            each_bit<BIT + 1>(whole, keep);
        }
    }
};

// One vector of columns through all rows of a block. y, relu and mask lie in memory as x does;
// relu may be null. sums (S): one vector each, `sums_stride` apart.
template <int K, bool SIGNED, bool TRAIN, class Whole, class T>
void basis_tile(Whole whole, const T* x, int64_t rows, int64_t stride, int64_t lanes,
                const float* basis, float ceiling, T* y, T* relu, uint8_t* mask, float* sums,
                int64_t sums_stride) {
    Floats v[K], sum_v = broadcast(0), top = broadcast(0);
    for (int k = 0; k < K; k++) v[k] = broadcast(basis[k]), sum_v += v[k];
    for (int k = K - 1; k >= 0; k--) top += v[k];
    Floats sum{}, square{}, products[K] = {};
    constexpr bool FEW = K < MANY_BITS;
    std::conditional_t<FEW, PairCounts<K>, CodesOfTile<K>> code;
    for (int64_t row = 0; row < rows; row++, x += stride, y += stride) {
        Floats c = load(whole, x, lanes);
        if (!SIGNED) c = rectified(c, ceiling);
        Flags bit[K];
        const Floats level = nearest_level<K, SIGNED>(c, v, sum_v, bit);
        store(whole, y, level, lanes);
        if (!TRAIN) continue;
        sum += c, square += c * c;
        for (int k = 0; k < K; k++) products[k] += zero_unless(bit[k], c);
        code.add(bit);
        Flags flags;
        if (SIGNED) {
            flags = (c <= top) & (c >= -top) & QUANTIZER_PASSES;
        } else {
            const Flags positive = (c > 0.0f) & (c < ceiling);
            flags = positive & (((c <= top) & QUANTIZER_PASSES) | RELU_PASSES);
        }
        store_as(whole, mask, lowest_bytes(flags), lanes), mask += stride;
        if (relu) store(whole, relu, c, lanes), relu += stride;
    }
    if (!TRAIN) return;
    auto keep = [&](Floats value) { store(whole, sums, value, lanes), sums += sums_stride; };
    keep(sum), keep(square);
    for (int k = 0; k < K; k++) keep(products[k]);
    code.count_pairs(keep);
}

template <int K, bool SIGNED, bool TRAIN, class T>
void basis_blocks(const T* x, int64_t blocks, int64_t rows, int64_t columns, const float* v,
                  float ceiling, T* y, T* relu, uint8_t* mask, float* sums) {
    parallel_for(blocks, blocks * rows * columns, [=](int64_t block) {
        for_each_vector(0, columns, [=](auto whole, int64_t column, int64_t lanes) {
            const int64_t at = block * rows * columns + column;
            basis_tile<K, SIGNED, TRAIN>(whole, x + at, rows, columns, lanes, v, ceiling, y + at,
                                         relu ? relu + at : nullptr, TRAIN ? mask + at : nullptr,
                                         TRAIN ? sums + block * columns + column : nullptr,
                                         blocks * columns);
        });
    });
}

template <bool SIGNED, bool TRAIN, class T>
void uniform(const T* x, int64_t size, float top, float bottom, float step, float ceiling, T* y,
             T* relu, uint8_t* mask, uint8_t* not_finite) {
    std::atomic<bool> found{false};
    parallel_for((size + CHUNK - 1) / CHUNK, size, [=, &found](int64_t chunk) {
        Floats sum{};
        const int64_t end = std::min(size, (chunk + 1) * CHUNK);
        for_each_vector(chunk * CHUNK, end, [=, &sum](auto whole, int64_t i, int64_t lanes) {
            Floats c = load(whole, x + i, lanes);
            if (!SIGNED) c = rectified(c, ceiling);
            Floats inside = select(c < bottom, broadcast(bottom), c);
            inside = select(inside > top, broadcast(top), inside);
            const Floats level = rounded((inside - bottom) / step) * step + bottom;
            store(whole, y + i, level, lanes);
            sum += c;
            if (!TRAIN) return;
            Flags flags = (c >= top) & ABOVE_RANGE;
            const Flags passes = (c < top) & (c >= bottom) & QUANTIZER_PASSES;
            if (SIGNED) {
                flags |= passes | ((c <= bottom) & BELOW_RANGE);
            } else {
                flags |= (c > 0.0f) & (c < ceiling) & (passes | RELU_PASSES);
            }
            store_as(whole, mask + i, lowest_bytes(flags), lanes);
            if (relu) store(whole, relu + i, c, lanes);
        });
        if (!std::isfinite(total(sum))) found = true;
    });
    if (TRAIN) *not_finite = found;
}

template <bool RELU, bool SUMS, class T>
void mask_gradient(const T* g, const T* g_relu, const uint8_t* mask, int64_t size, T* to,
                   float* sums) {
    const int64_t chunks = (size + CHUNK - 1) / CHUNK;
    std::vector<float> partial(SUMS ? 2 * chunks : 0);
    float* each = partial.data();
    parallel_for(chunks, size, [=](int64_t chunk) {
        Eight above{}, below{};
        const int64_t end = std::min(size, (chunk + 1) * CHUNK);
        for_each_vector(chunk * CHUNK, end,
                        [=, &above, &below](auto whole, int64_t i, int64_t lanes) {
            const Bytes bytes = load_as<Bytes>(whole, mask + i, lanes);
            const Flags flags = widened(bytes);
            const Floats value = load(whole, g + i, lanes);
            Floats sum = zero_unless(-(flags & QUANTIZER_PASSES), value);
            if (RELU)
                sum += zero_unless((flags & RELU_PASSES) != 0, load(whole, g_relu + i, lanes));
            store(whole, to + i, sum, lanes);
            if (!SUMS) return;
            accumulate(above, zero_unless((flags & ABOVE_RANGE) != 0, value));
            accumulate(below, zero_unless((flags & BELOW_RANGE) != 0, value));
        });
        if (SUMS) each[2 * chunk] = total(above), each[2 * chunk + 1] = total(below);
    });
    if (!SUMS) return;
    double above = 0, below = 0;
    for (int64_t c = 0; c < chunks; c++) above += each[2 * c], below += each[2 * c + 1];
    sums[0] = above, sums[1] = below;
}

}  // namespace

// x, y, relu, g and to point to float32 values, or to bfloat16 values where `is_bfloat16`.
extern "C" {

int lanes() { return LANES; }

void quantize_and_sum(const void* x, int is_bfloat16, int64_t blocks, int64_t rows,
                      int64_t columns, const float* v, int bits, int is_signed, float ceiling,
                      void* y, void* relu, uint8_t* mask, float* sums) {
    with_type(is_bfloat16, [=](auto value) {
        using T = decltype(value);
        with_bits(bits, is_signed, [=](auto K, auto SIGNED) {
            basis_blocks<K, SIGNED, true>((const T*)x, blocks, rows, columns, v, ceiling, (T*)y,
                                          (T*)relu, mask, sums);
        });
    });
}

void quantize(const void* x, int is_bfloat16, int64_t size, const float* v, int bits,
              int is_signed, float ceiling, void* y) {
    // As blocks of a column of lanes; then the rest, whose last elements are one narrow row.
    const int64_t blocks = size / CHUNK, rest = size % CHUNK, at = size - rest;
    const int64_t rows = rest / LANES, left = rest % LANES, last = size - left;
    with_type(is_bfloat16, [=](auto value) {
        using T = decltype(value);
        with_bits(bits, is_signed, [=](auto K, auto SIGNED) {
            auto pass = [=](int64_t from, int64_t blocks, int64_t rows, int64_t columns) {
                basis_blocks<K, SIGNED, false>((const T*)x + from, blocks, rows, columns, v,
                                               ceiling, (T*)y + from, (T*)nullptr, nullptr,
                                               nullptr);
            };
            pass(0, blocks, CHUNK / LANES, LANES);
            pass(at, 1, rows, LANES);
            pass(last, 1, 1, left);
        });
    });
}

// mask, relu, not_finite: null where they are not wanted.
void clip_round(const void* x, int is_bfloat16, int64_t size, const float* top,
                const float* bottom, const float* step, int is_signed, float ceiling, void* y,
                void* relu, uint8_t* mask, uint8_t* not_finite) {
    with_type(is_bfloat16, [=](auto value) {
        using T = decltype(value);
        auto pass = is_signed ? (mask ? uniform<true, true, T> : uniform<true, false, T>)
                              : (mask ? uniform<false, true, T> : uniform<false, false, T>);
        pass((const T*)x, size, *top, *bottom, *step, ceiling, (T*)y, (T*)relu, mask, not_finite);
    });
}

// g_relu: the gradient of the ReLU, or null. sums: of g above and below the range, or null.
void apply_ste_mask(const void* g, int is_bfloat16, const void* g_relu, const uint8_t* mask,
                    int64_t size, void* to, float* sums) {
    with_type(is_bfloat16, [=](auto value) {
        using T = decltype(value);
        auto pass = g_relu ? (sums ? mask_gradient<true, true, T> : mask_gradient<true, false, T>)
                           : (sums ? mask_gradient<false, true, T> : mask_gradient<false, false, T>);
        pass((const T*)g, (const T*)g_relu, mask, size, (T*)to, sums);
    });
}

}  // extern "C"
