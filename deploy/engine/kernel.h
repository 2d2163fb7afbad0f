// What a kernel of counts is: a way to compute the integers of a convolution on codes.
//
// All kernels give the same integers, so any of them may be chosen for a layer.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "reached.h"
#include "step.h"

struct Kernel;

// Memory that begins at a cache line, so that no vector lies in two of them.
template <class T>
struct Lines {
    using value_type = T;
    static constexpr std::align_val_t LINE{64};
    Lines() = default;
    template <class U>
    Lines(const Lines<U>&) {}
    T* allocate(size_t n) { return (T*)::operator new(n * sizeof(T), LINE); }
    void deallocate(T* p, size_t) { ::operator delete(p, LINE); }
    bool operator==(const Lines&) const { return true; }
    bool operator!=(const Lines&) const { return false; }
};

template <class T>
using InLines = std::vector<T, Lines<T>>;

// n numbers in such memory, which nothing fills first.
template <class T>
auto unfilled(size_t n) {
    const auto release = [](T* p) { Lines<T>().deallocate(p, 0); };
    return std::unique_ptr<T[], decltype(release)>(Lines<T>().allocate(n), release);
}

// A plane p of the weights' group g with a plane or group of the input's group h. Since
// W_g = sum_p m_p (2 bit_p - 1), W_g A_h = sum_p 2 m_p bit_p A_h - (sum_p m_p) A_h. Each pair adds factor x its sum
// to counts[place]; the first one of (g, h) sets it instead, and subtracts weights x sums[term]: weights = sum_p m_p,
// term = h. The kernel popcount needs no sums, and has a factor for (2 bit_p - 1) A_h: see there.
struct Pair {
    int place, factor, weights, term;
    bool first;
};

inline int padded_wide(const Step& s) { return s.wide + 2 * s.pad_wide; }
inline int padded_high(const Step& s) { return s.high + 2 * s.pad_high; }

// A step with what was made from it at load.
struct Layer {
    Step step;
    const Kernel* kernel = nullptr;
    InLines<uint32_t> packed;  // COUNTS: weights in the kernel's layout
    std::vector<Pair> pairs;          // popcount.cpp: all pairs of planes, a chunk after the other
    std::vector<int32_t> offsets;     // popcount: of the words of the taps in the packed input; products:
                                      // of their groups of codes; tables: of their tables;
                                      // DENSE: of each tap and channel in the padded input, in floats
    InLines<float> weight; // in blocks of output channels, filled up with zeros
    InLines<float> shift;   // likewise
    InLines<float> columns;  // winograd.cpp: what each column of a tile adds to its points
    InLines<float> w_value, w_offset;
    std::vector<int32_t> prefix;      // sums of W_g over taps, for inputs with an offset
    int padded_high() const { return ::padded_high(step); }
    int padded_wide() const { return ::padded_wide(step); }
    int tile_wide = 1, tile_high = 1;  // output pixels of a tile, at most
    int tile_blocks = 1;               // blocks of outputs of a tile; there may be fewer
    int unit_pixels = 1, unit_rows = 1;  // of a matrix of inputs: its rows (one a pixel), the output rows it joins
    bool by_block = false;  // a block's weights are made ready once: its tiles must follow one another
    int blocks() const { return (step.outputs + BLOCK - 1) / BLOCK; }
    // Groups of the input's integers, and one more for its offset.
    int a_terms() const { return step.a_groups + (step.a_offset != 0); }
    // offsets: row x ky + distance x i for each kernel row ky and each i < count.
    void set_offsets(int row, int count, int distance) {
        offsets.clear();
        for (int ky = 0; ky < step.kernel_high; ky++)
            for (int i = 0; i < count; i++) offsets.push_back(row * ky + distance * i);
    }
    // Numbers in Scratch::sums: of each pixel of the padded input, a vector, and of each output pixel.
    size_t pixel_sums() const { return size_t(padded_high()) * padded_wide() * step.a_groups + FLOATS; }
    size_t sums() const { return pixel_sums() + size_t(step.out_high) * step.out_wide * a_terms(); }
};

// Where a tile lies: n output pixels (y, x) to (y, x + n - 1), the same of the rows below it, and its
// first block of output channels.
struct Tile {
    int y, x, n, block, rows;
    int pixels() const { return n * rows; }
};

// Call part(X) for parts of n pixels, of at most `most` each and as equal as can be.
template <class F>
inline void in_equal_parts(int n, int most, F part) {
    for (int parts = (n + most - 1) / most; parts > 0; parts--) {
        const int X = (n + parts - 1) / parts;
        part(X);
        n -= X;
    }
}

// Call row(padded, y) for the rows of the padded input in [first, end) that a tap reads; y is the row of
// the image, or -1 for padding.
template <class F>
inline void each_padded_row(const Step& s, int first, int end, F row) {
    for (int padded = first; padded < end; padded++) {
        if (s.kernel_high == 1 && padded % s.stride_high) continue;
        const int y = padded - s.pad_high;
        row(padded, y < s.high ? std::max(y, -1) : -1);
    }
}

// Run part() on all threads; with one, without a team of threads, whose start takes most of a microsecond. A
// caller that is in a team of its own needs one here, or the loops of part() would be shared among that.
template <class F>
inline void on_threads(int threads, F part) {
    if (threads == 1 && omp_get_num_threads() == 1) return part();
#pragma omp parallel num_threads(threads)
    part();
}

// Call part(i) for all i below n, shared among the threads.
template <class F>
inline void share(int threads, int64_t n, F part) {
    on_threads(threads, [&] {
#pragma omp for
        for (int64_t i = 0; i < n; i++) part(i);
    });
}

constexpr int MARGIN = 16;
constexpr int MOST_HANDED = MOST_REACHED;  // thresholds of a quantizer whose codes one step hands to another

// What a step does beside its own work, where only one other step reads its output.
struct Joined {
    // Tensors that are codes, one byte each, in place of floats: numbers of the thresholds reached.
    bool codes_in = false;            // the input
    const Step* quantizer = nullptr;  // the output: the step that quantizes it; else null
    const Step* pool = nullptr;       // the pool that is computed with it; else null
    bool done = false;                // a pool that the step before computes
};

struct Kernel {
    const char* name;
    bool (*serves)(const Step&);
    void (*pack_weights)(Layer&);
    size_t (*input_bytes)(const Layer&);
    // Pack rows [first, end) of the padded input (H + 2 ph rows) from x (H, W, C).
    void (*pack_rows)(const Layer&, const float* x, uint8_t* packed, int first, int end);
    // A_h of each pixel of a row of the padded input, summed over its channels: (a_groups, W + 2 pw).
    void (*row_sums)(const Layer&, const uint8_t* packed, int row, int32_t* sums);
    // At most, of a tile: the pixels of a row, and rows (0: pack_weights sets tile_high). pack_weights may set
    // tile_wide, tile_blocks and by_block.
    int pixels, rows;
    // counts[b][i][g][h][lane] = sum of W_g A_h over the taps of the tile's pixel i, for the outputs of
    // its block b. sums[(r * a_terms() + h) * OW + i]: sum of A_h over the taps of pixel i of the tile's row r.
    // h runs over a_terms(); only the counts of a_groups are written. What lies behind the counts of the tile may
    // be overwritten, as far as counts of MARGIN pixels.
    void (*tile)(const Layer&, const uint8_t* packed, Tile, const int32_t* sums, int32_t* counts);
    bool needs_sums;  // whether tile reads sums
    // Called by each thread before its first and after its last tile; null for nothing.
    void (*begin)(const Layer&);
    void (*end)();
    // As pack_rows, from codes of levels.
    void (*pack_codes)(const Layer&, const uint8_t* codes, uint8_t* packed, int first, int end);
};

extern const Kernel POPCOUNT;

const Kernel* choose_kernel(const Step&);

// In which order the tiles of an output are made, numbered along its blocks, rows and columns. The blocks of
// one place follow one another, since their inputs are then in the L1 data cache; where the weights are large,
// the places of one block do.
struct Order {
    int blocks, rows, columns;
    bool by_place;
    int count() const { return blocks * rows * columns; }
    int block(int i) const { return by_place ? i % blocks : i / columns / rows; }
    int column(int i) const { return by_place ? i / blocks % columns : i % columns; }
    int row(int i) const { return by_place ? i / blocks / columns : i / columns % rows; }
};

struct Scratch {
    InLines<uint64_t> packed;
    InLines<int32_t> sums;
    InLines<float> padded;
    InLines<float> rows;  // of the input of a depthwise convolution, for each thread
};

void prepare_counts(Layer&);
void run_counts(const Layer&, const float* x, const float* other, float* y, Scratch&, int threads,
                int32_t* counts, const Joined& = {});
void prepare_dense(Layer&);
void run_dense(const Layer&, const float* x, const float* other, float* y, Scratch&, int threads);
void run_pooled(const Layer&, const float* x, const Step& pool, float* y, Scratch&, int threads);
void prepare_depthwise(Layer&);
void run_depthwise(const Layer&, const float* x, const float* other, float* y, Scratch&, int threads, const Joined&);
void run_dequantize(const Layer&, const float* x, float* y, int threads);
void run_pool(const Layer&, const float* x, float* y, int threads);
void run_elementwise(const Layer&, const float* x, const float* other, float* y, int threads);
