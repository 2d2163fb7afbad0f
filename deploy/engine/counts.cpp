// A convolution on codes: packs the input, has a kernel count, and makes floats of the counts.
//
// y = shift + sum_g w_value[g] (sum_h a_value[h] T[g][h] + a_offset S[g]) + w_offset (the same sum
// over the input alone), where T[g][h] is the kernel's integer and S[g] the sum of W_g over the taps
// that lie inside the image: padding is with zero, which need not be a level. Where a_offset is a
// whole number k of halves of the only a_value, both are one integer, a_value / 2 (2 T[g] + k S[g]):
// signed inputs would otherwise lose digits, since the two terms are large and nearly cancel.
#include <algorithm>
#include <memory>
#include <numeric>

#include "kernel.h"
#include "lanes.h"

constexpr int L1_COUNTS = 2048;  // counts of a tile, for which the L1 data cache has room

void prepare_counts(Layer& layer) {
    const Step& s = layer.step;
    const int outputs = layer.blocks() * BLOCK;
    layer.shift.assign(outputs, 0);
    layer.w_value.assign(size_t(outputs) * s.w_groups, 0);
    if (s.w_offset) layer.w_offset.assign(outputs, 0);
    for (int o = 0; o < s.outputs; o++) {
        layer.shift[o] = s.shift[o];
        if (s.w_offset) layer.w_offset[o] = s.w_offset[o];
        for (int g = 0; g < s.w_groups; g++)
            layer.w_value[size_t(g) * outputs + o] = s.w_value[size_t(o) * s.w_groups + g];
    }
    const int parts = (s.out_wide + layer.kernel->pixels - 1) / layer.kernel->pixels;
    layer.tile_wide = (s.out_wide + parts - 1) / parts;  // equal parts of a row
    layer.kernel->pack_weights(layer);
    const int pixel = s.w_groups * layer.a_terms() * BLOCK * layer.tile_blocks;
    if (layer.kernel->rows > 0) {
        const int most = std::max(1, std::min({L1_COUNTS / (pixel * layer.tile_wide), layer.kernel->rows, s.out_high}));
        const int tiles = (s.out_high + most - 1) / most;
        layer.tile_high = (s.out_high + tiles - 1) / tiles;  // equal parts of the image
    }
    if (s.a_offset == 0) return;
    // prefix[y][x][g][o]: the sum of W_g over the taps above y and left of x.
    const int wide = s.kernel_wide + 1;
    const size_t cell = size_t(s.w_groups) * outputs;
    layer.prefix.assign(cell * (s.kernel_high + 1) * wide, 0);
    const uint8_t* code = s.w_codes;
    for (int o = 0; o < s.outputs; o++)
        for (int y = 0; y < s.kernel_high; y++)
            for (int x = 0; x < s.kernel_wide; x++)
                for (int c = 0; c < s.channels; c++, code++)
                    for (int p = 0; p < s.w_planes; p++)
                        layer.prefix[cell * ((y + 1) * wide + x + 1) + size_t(s.w_group[p]) * outputs + o] +=
                            s.w_multiplier[p] * (2 * s.w_bits[p * s.w_levels + *code] - 1);
    for (int y = 1; y <= s.kernel_high; y++)
        for (int x = 1; x <= s.kernel_wide; x++)
            for (size_t i = 0; i < cell; i++)
                layer.prefix[cell * (y * wide + x) + i] +=
                    layer.prefix[cell * ((y - 1) * wide + x) + i] +
                    layer.prefix[cell * (y * wide + x - 1) + i] -
                    layer.prefix[cell * ((y - 1) * wide + x - 1) + i];
}

namespace {

constexpr int MOST_TERMS = 16;  // more than the planes of inputs that any kernel serves

// The taps of an output row or column that lie inside the image: [first, end). at: where the first tap lies.
struct Inside {
    int first, end;
    Inside(int at, int taps, int side) : first(std::max(0, -at)), end(std::max(first, std::min(taps, side - at))) {}
    int count() const { return end - first; }
};

Inside inside_rows(const Step& s, int y) { return {y * s.stride_high - s.pad_high, s.kernel_high, s.high}; }
Inside inside_columns(const Step& s, int x) { return {x * s.stride_wide - s.pad_wide, s.kernel_wide, s.wide}; }

// S[g], the last of the terms of each group of weights, from the prefix sums. Most pixels read all taps of a row.
void add_offset_terms(const Layer& layer, const Tile& t, int32_t* counts) {
    const Step& s = layer.step;
    const int outputs = layer.blocks() * BLOCK, line = s.kernel_wide + 1, end = t.x + t.n;
    const size_t cell = size_t(s.w_groups) * outputs, group = size_t(layer.a_terms()) * BLOCK;
    const int whole = std::min(end, std::max(t.x, (s.pad_wide + s.stride_wide - 1) / s.stride_wide));
    const int room = s.wide + s.pad_wide - s.kernel_wide;  // behind the taps of the column that begins at 0
    const int whole_end = room < 0 ? whole : std::max(whole, std::min(end, room / s.stride_wide + 1));
    for (int row = 0; row < t.rows; row++) {
        const Inside y = inside_rows(s, t.y + row);
        for (int i = 0; i < s.w_groups * BLOCK; i += FLOATS) {
            const int g = i / BLOCK, lane = i % BLOCK;
            const int32_t* const prefix = layer.prefix.data() + size_t(g) * outputs + t.block * BLOCK + lane;
            const auto above = [&](int y, int x) { return read<Integers>(prefix + cell * (y * line + x)); };
            const auto sum = [&](const Inside& x) {
                return above(y.end, x.end) - above(y.first, x.end) - above(y.end, x.first) + above(y.first, x.first);
            };
            const size_t pixel = group * s.w_groups;
            int32_t* to = counts + pixel * row * t.n + group * (g + 1) - BLOCK + lane;
            const auto put = [&](const Integers& sum) { std::memcpy(to, &sum, sizeof sum), to += pixel; };
            int column = t.x;
            for (; column < whole; column++) put(sum(inside_columns(s, column)));
            if (column < whole_end) {
                const Integers all = sum(inside_columns(s, column));
                for (; column < whole_end; column++) put(all);
            }
            for (; column < end; column++) put(sum(inside_columns(s, column)));
        }
    }
}

// What `finish` needs of a layer for one block of outputs.
struct Values {
    const float *shift, *w_value, *w_offset;  // of the block's first output; w_offset may be null
    float a_value[MOST_TERMS];                // of each term, the offset last; the first is halved if halves != 0
    int terms, groups, outputs, used;         // outputs: floats between groups; used: of the block
    int halves;  // Step::a_halves: if not 0, both terms are added as one integer
    bool relu;
    float ceiling;
};

Values values_of(const Layer& layer, int block) {
    const Step& s = layer.step;
    const int first = block * BLOCK;
    Values v{layer.shift.data() + first, layer.w_value.data() + first,
             s.w_offset ? layer.w_offset.data() + first : nullptr, {}, layer.a_terms(), s.w_groups,
             layer.blocks() * BLOCK, std::min(BLOCK, s.outputs - first), s.a_halves, s.relu != 0, s.ceiling};
    std::copy(s.a_value, s.a_value + s.a_groups, v.a_value);
    v.a_value[s.a_groups] = s.a_offset;
    if (s.a_halves) v.a_value[0] /= 2;
    return v;
}

// The outputs of n neighbouring pixels; null for what is not added.
struct Row {
    int n;
    const int32_t *counts, *sums;  // of the kernel; of the input over the taps, (terms, wide)
    int wide;
    const float* other;
    float* y;
    size_t outputs;  // values between pixels of y, of other and of codes
    uint8_t* codes;  // null, or where codes go instead of floats to y
    const Reached* reached;  // by which thresholds
};

inline Floats floats_of(const int32_t* counts) {
    return __builtin_convertvector(read<Integers>(counts), Floats);
}

// Call store(outputs, place of the first) for a vector of outputs of each pixel, of which the first `left`
// are of use. The order of the additions is that of the formula at the top. TERMS, GROUPS: 0 for any
// number. HALVES: the offset of the input is a number of halves, and there are two terms.
template <int TERMS, int GROUPS, bool HALVES, class Store>
inline void each_output(const Values& v, const Row& row, int lane, int left, Store store) {
    // Copies, which stay in registers: the compiler cannot know that no output lies where these do.
    const int terms = TERMS ? TERMS : v.terms, groups = GROUPS ? GROUPS : v.groups, n = row.n, wide = row.wide;
    const float a_value = v.a_value[0], *other = row.other;
    const float* w_value = v.w_value + lane;
    const float* w_offset = v.w_offset ? v.w_offset + lane : nullptr;
    const Floats shift = read<Floats>(v.shift + lane), first = read<Floats>(w_value), ceiling = spread(v.ceiling);
    const bool relu = v.relu;
    const size_t outputs = row.outputs;
    const int32_t *term = row.counts + lane, *sums = row.sums;
    size_t at = lane;
    for (int i = 0; i < n; i++, at += outputs) {
        Floats total = shift;
        for (int g = 0; g < groups; g++, term += terms * BLOCK) {
            Floats sum;
            if (HALVES) {
                const Integers both = 2 * read<Integers>(term) + v.halves * read<Integers>(term + BLOCK);
                sum = __builtin_convertvector(both, Floats) * a_value;
            } else {
                sum = floats_of(term) * a_value;
                for (int h = 1; h < terms; h++) sum += floats_of(term + h * BLOCK) * v.a_value[h];
            }
            total += (g == 0 ? first : read<Floats>(w_value + size_t(g) * v.outputs)) * sum;
        }
        if (w_offset) {
            float base = float(HALVES ? 2 * sums[i] + v.halves * sums[wide + i] : sums[i]) * a_value;
            for (int h = 1; h < terms && !HALVES; h++) base += float(sums[h * wide + i]) * v.a_value[h];
            total += read<Floats>(w_offset) * base;
        }
        if (other) total += read_few(other + at, left);
        if (relu) total = limited(total, ceiling);
        store(total, at);
    }
}

template <int TERMS, int GROUPS, bool HALVES = false>
void finish(const Values& v, const Row& row) {
    for (int lane = 0; lane < v.used; lane += FLOATS) {
        const int left = std::min(FLOATS, v.used - lane);
        float* const y = row.y;
        uint8_t* const codes = row.codes;
        const auto each = [&](auto store) { each_output<TERMS, GROUPS, HALVES>(v, row, lane, left, store); };
        if (codes)
            row.reached->visit([&](auto count) {
                each([=](Floats total, size_t at) {
                    const FewBytes few = bytes_of(count(total));
                    std::memcpy(codes + at, &few, sizeof few);
                });
            });
        else if (left == FLOATS)
            each([=](Floats total, size_t at) { std::memcpy(y + at, &total, sizeof total); });
        else
            each([=](Floats total, size_t at) { std::memcpy(y + at, &total, sizeof(float) * left); });
    }
}

using Finish = void (*)(const Values&, const Row&);

Finish finish_for(int terms, int groups, bool halves) {
    if (halves) return groups == 1 ? finish<2, 1, true> : finish<2, 0, true>;
    if (groups == 1) return terms == 1 ? finish<1, 1> : terms == 2 ? finish<2, 1> : finish<0, 1>;
    if (groups == 2 && terms <= 2) return terms == 1 ? finish<1, 2> : finish<2, 2>;
    return terms == 3 && groups == 3 ? finish<3, 3> : finish<0, 0>;
}

// to[i] = from[i] + from[i + step] + ... (`numbers` terms), for i < n. Up to a vector behind `from` is read as well,
// and, with `room`, up to a vector behind `to` is written.
void add_up(const int32_t* from, size_t step, int numbers, int n, int32_t* to, bool room) {
    for (int i = 0; i < n; i += FLOATS) {
        Integers sum = {};
        for (int k = 0; k < numbers; k++) sum += read<Integers>(from + step * k + i);
        if (room || n - i >= FLOATS) {
            std::memcpy(to + i, &sum, sizeof sum);
        } else {
            const Integers last = sum;  // a copy, so that the sum itself stays in a register
            std::memcpy(to + i, &last, sizeof(int32_t) * (n - i));
        }
    }
}

// Sums of the input's integers over the taps of every output pixel of row y: (terms, OW).
// columns: memory for the sums of each column, W + 2 pw and a vector.
void patch_sums(const Layer& layer, const int32_t* pixels, int y, int32_t* columns, int32_t* to) {
    const Step& s = layer.step;
    const int wide = layer.padded_wide(), row = wide * s.a_groups;
    pixels += size_t(row) * y * s.stride_high;
    for (int h = 0; h < s.a_groups; h++, to += s.out_wide) {
        add_up(pixels + h * wide, row, s.kernel_high, wide, columns, true);
        if (s.stride_wide == 1) {
            add_up(columns, 1, s.kernel_wide, s.out_wide, to, false);
            continue;
        }
        for (int x = 0; x < s.out_wide; x++)
            to[x] = std::accumulate(columns + x * s.stride_wide, columns + x * s.stride_wide + s.kernel_wide, 0);
    }
    const int rows = inside_rows(s, y).count();
    for (int x = 0; x < s.out_wide && s.a_offset != 0; x++) to[x] = rows * inside_columns(s, x).count() * s.channels;
}

void store_counts(const Layer& layer, const Tile& t, const int32_t* counts, int32_t* to) {
    const Step& s = layer.step;
    const int each = s.w_groups * layer.a_terms();
    for (int i = 0; i < t.pixels(); i++)
        for (int k = 0; k < each; k++)
            for (int lane = 0; lane < std::min(BLOCK, s.outputs - t.block * BLOCK); lane++) {
                const size_t pixel = size_t(t.y + i / t.n) * s.out_wide + t.x + i % t.n;
                to[(pixel * s.outputs + t.block * BLOCK + lane) * each + k] =
                    counts[(size_t(i) * each + k) * BLOCK + lane];
            }
}

// What the parts of one call of run_counts have in common. counts: as there.
struct Call {
    const Layer& layer;
    const float *x, *other;
    float* y;
    int threads;
    int32_t* counts;
    const Joined& joined;
    uint8_t* packed;            // the rows of the padded input, as the kernel has them
    int32_t *pixels, *patches;  // sums of each pixel of the padded input, and over the taps
    const Finish finish;
    const Reached reached;
    const Step& s = layer.step;
    const Kernel& kernel = *layer.kernel;
    const int terms = layer.a_terms(), wide = layer.padded_wide();
    const size_t each = size_t(s.w_groups) * terms * BLOCK;
    const bool needs_sums = kernel.needs_sums || s.w_offset;

    // Pack rows [first, end) of the padded input. One call a thread, since each prepares tables.
    void pack(int first, int end) const {
        if (joined.codes_in)
            kernel.pack_codes(layer, (const uint8_t*)x, packed, first, end);
        else
            kernel.pack_rows(layer, x, packed, first, end);
        for (int row = first; row < end && needs_sums; row++)
            if (s.kernel_high > 1 || row % s.stride_high == 0)
                kernel.row_sums(layer, packed, row, pixels + size_t(row) * wide * s.a_groups);
    }

    // The outputs of a tile of one block, from its counts.
    void finish_tile(const Tile& t, int32_t* made) const {
        if (terms > s.a_groups) add_offset_terms(layer, t, made);
        if (counts) store_counts(layer, t, made, counts);
        const Values values = values_of(layer, t.block);
        // Whole rows follow one another, but their sums do not.
        const bool whole = t.n == s.out_wide && !s.w_offset;
        const int n = whole ? t.pixels() : t.n;
        for (int r = 0; r < (whole ? 1 : t.rows); r++) {
            const size_t row = size_t(t.y + r) * s.out_wide, at = (row + t.x) * s.outputs + t.block * BLOCK;
            finish(values, {n, made + size_t(r) * t.n * each, patches + row * terms + t.x, s.out_wide,
                            other ? other + at : nullptr, y + at, size_t(s.outputs),
                            joined.quantizer ? (uint8_t*)y + at : nullptr, &reached});
        }
    }

    // The outputs of a tile: `high` rows at most, and the blocks that are computed together.
    void make_tile(int block, int row, int column, int high, int32_t* made) const {
        const int rows = std::min(high, s.out_high - row);
        const int blocks = std::min(layer.tile_blocks, layer.blocks() - block);
        Tile t{row, column, std::min(layer.tile_wide, s.out_wide - column), block, rows};
        kernel.tile(layer, packed, t, patches + size_t(row) * s.out_wide * terms + column, made);
        for (int32_t* own = made; t.block < block + blocks; t.block++, own += each * t.pixels())
            finish_tile(t, own);
    }

    // Output rows of a tile: halved, if there are several threads, until there are two tiles for each.
    int tile_rows(int blocks) const {
        int rows = layer.tile_high;
        while (kernel.rows > 0 && rows > 1 && threads > 1 && blocks * ((s.out_high + rows - 1) / rows) < 2 * threads)
            rows = (rows + 1) / 2;
        return rows;
    }

    // The part of one thread. columns: memory for patch_sums; made: for the counts of a tile.
    void run(int32_t* columns, int32_t* made) const {
        const int blocks = (layer.blocks() + layer.tile_blocks - 1) / layer.tile_blocks, high = tile_rows(blocks);
        const Order order{blocks, (s.out_high + high - 1) / high, (s.out_wide + layer.tile_wide - 1) / layer.tile_wide,
                          !layer.by_block && layer.packed.size() * sizeof(uint32_t) <
                                                 size_t(s.out_high) * s.out_wide * s.outputs * sizeof(float)};
#pragma omp for
        for (int part = 0; part < threads; part++) {
            const int64_t rows = layer.padded_high();
            pack(int(rows * part / threads), int(rows * (part + 1) / threads));
        }
        if (needs_sums) {
#pragma omp for
            for (int row = 0; row < s.out_high; row++)
                patch_sums(layer, pixels, row, columns, patches + size_t(row) * s.out_wide * terms);
        }
        if (kernel.begin) kernel.begin(layer);
#pragma omp for nowait  // the end of the parallel part waits
        for (int i = 0; i < order.count(); i++)
            make_tile(order.block(i) * layer.tile_blocks, order.row(i) * high, order.column(i) * layer.tile_wide, high,
                      made);
        if (kernel.end) kernel.end();
    }
};

}  // namespace

// counts: null, or (OH, OW, O, groups of weights, terms), to which the integers are copied.
void run_counts(const Layer& layer, const float* x, const float* other, float* y, Scratch& scratch,
                int threads, int32_t* counts, const Joined& joined) {
    const Step& s = layer.step;
    const Step* next = joined.quantizer;
    int32_t* pixels = scratch.sums.data();
    const Call call{layer, x, other, y, threads, counts, joined, (uint8_t*)scratch.packed.data(), pixels,
                    pixels + layer.pixel_sums(),
                    finish_for(layer.a_terms(), s.w_groups, s.a_halves != 0),
                    Reached(next ? next->threshold : nullptr, next ? next->thresholds : 0)};
    on_threads(threads, [&] {
        const size_t most = call.each * (size_t(layer.tile_wide) * layer.tile_high * layer.tile_blocks + MARGIN);
        const auto made = unfilled<int32_t>(most);
        const std::unique_ptr<int32_t[]> columns(new int32_t[call.wide + FLOATS]());
        call.run(columns.get(), made.get());
    });
}
