// Quantizers given by the pieces of the real line (piecewise.py).

#include <atomic>

#include "many_pieces.h"
#include "vectors.h"

namespace {

constexpr int RELU_BIT = 128;  // the highest bit of a code, as in piecewise.py
constexpr int MAX_PIECES = 128;
constexpr int FORWARD_TILE = 4;  // vectors that share one reading of the table

// Calls body(count) with `pieces`: as an integral_constant for the numbers that quantizers of one
// and two bits have, so that tables and sums stay in registers; else as an int.
template <class Body>
void with_count(int pieces, Body body) {
    if (pieces == 3) return body(std::integral_constant<int, 3>{});
    if (pieces == 4) return body(std::integral_constant<int, 4>{});
    if (pieces == 5) return body(std::integral_constant<int, 5>{});
    if (pieces == 6) return body(std::integral_constant<int, 6>{});
    if (pieces == 8) return body(std::integral_constant<int, 8>{});
    body(pieces);
}

template <int COUNT>
constexpr int room_for(std::integral_constant<int, COUNT>) { return COUNT; }
constexpr int room_for(int) { return MAX_PIECES; }

// Calls body(whole, i, lanes, n) with n vectors at i, i + LANES, ...: FORWARD_TILE of them while
// there are so many, then one by one.
template <class Body>
inline void for_each_tile(int64_t begin, int64_t end, Body body) {
    const std::integral_constant<int, FORWARD_TILE> tile;
    const std::integral_constant<int, 1> one;
    int64_t i = begin;
    for (; i + tile * LANES <= end; i += tile * LANES) body(std::true_type{}, i, LANES, tile);
    for_each_vector(i, end,
                    [=](auto whole, int64_t i, int64_t lanes) { body(whole, i, lanes, one); });
}

template <bool CODES, class Count, class T>
void quantize_all(Count count, const T* x, int64_t size, const float* edges, const float* levels,
                  bool is_signed, float ceiling, T* y, T* relu, uint8_t* codes,
                  uint8_t* not_finite) {
    float stored[room_for(Count{})];  // the levels as they are stored in y
    for (int p = 0; p < count; p++) stored[p] = as_stored(levels[p], T{});
    const float* level_of = stored;
    std::atomic<bool> found{false};
    parallel_for((size + CHUNK - 1) / CHUNK, size, [=, &found](int64_t chunk) {
        Floats sum{};
        const int64_t end = std::min(size, (chunk + 1) * CHUNK);
        for_each_tile(chunk * CHUNK, end, [=, &sum](auto whole, int64_t i, int64_t lanes, auto n) {
            constexpr int N = decltype(n)::value;
            Floats value[N], level[N];
            Flags code[N];
            for (int j = 0; j < N; j++) {
                value[j] = load(whole, x + i + j * LANES, lanes);
                code[j] = Flags{};
                if (CODES) code[j] = passes_relu(value[j], is_signed, ceiling) & RELU_BIT;
                if (!is_signed) value[j] = rectified(value[j], ceiling);
                level[j] = select(value[j] != value[j], value[j], broadcast(level_of[0]));
            }
            for (int p = 1; p < count; p++) {
                const Floats edge = broadcast(edges[p - 1]), above = broadcast(level_of[p]);
                for (int j = 0; j < N; j++) {
                    level[j] = value[j] > edge ? above : level[j];
                    if (CODES) code[j] = value[j] > edge ? code[j] + 1 : code[j];
                }
            }
            for (int j = 0; j < N; j++) {
                store_exact(whole, y + i + j * LANES, level[j], lanes);
                sum += value[j];
                if (CODES) store_as(whole, codes + i + j * LANES, lowest_bytes(code[j]), lanes);
                if (relu) store(whole, relu + i + j * LANES, value[j], lanes);
            }
        });
        if (not_finite && !std::isfinite(total(sum))) found = true;
    });
    if (not_finite) *not_finite = found;
}

// The gradient of x in piece s, with g that of Q(x): g (a + b x) for slope (a, b) = slope[s], and
// |g| (a + b x) for bend (a, b) = bend[s] on top of it.
struct Line {
    float a = 0, b = 0;
};
struct Gradients {
    std::vector<Line> slope, bend;

    Gradients(const float* slopes, int columns, const float* bends, int pieces)
        : slope(pieces), bend(pieces) {
        for (int p = 0; p < pieces; p++) {
            slope[p].a = slopes[p * columns];
            if (columns == 2) slope[p].b = slopes[2 * p + 1];
            if (bends) bend[p] = {bends[2 * p], bends[2 * p + 1]};
        }
    }
};

inline Floats line_at(const std::vector<Line>& lines, Flags piece, Floats x, bool tilted) {
    const float* each = &lines[0].a;  // a and b in turns
    const Floats a = looked_up(each, piece * 2);
    return tilted ? a + looked_up(each + 1, piece * 2) * x : a;
}

// sums[p]: that over piece p, from those of each chunk over piece p and all above it.
inline void add_chunks(const float* each, int64_t chunks, int64_t width, int64_t count, float* sums) {
    double above = 0;  // the sum over all pieces above p
    for (int64_t p = count - 1; p >= 0; p--) {
        double from = 0;
        for (int64_t chunk = 0; chunk < chunks; chunk++) from += each[chunk * width + p];
        sums[p] = from - above, above = from;
    }
}

// TILTED: slope depends on x (1), and there is a bend (2). CODES: the pieces are read from `codes`;
// else they are found from x and `edges`. SQUARES: sums of g x^2 are wanted, too.
template <int TILTED, bool READS_X, bool CODES, bool SQUARES, class Count, class T>
void gradient_all(Count count, const T* g, const T* g_relu, const uint8_t* codes,
                  const float* edges, const T* x, int64_t size, const Gradients& of,
                  bool is_signed, float ceiling, T* to, float* sums, float* sums_x,
                  float* sums_xx) {
    const int64_t chunks = (size + CHUNK - 1) / CHUNK, width = (1 + READS_X + SQUARES) * count;
    std::vector<float> partial(chunks * width);
    float* each = partial.data();
    parallel_for(chunks, size, [=, &of](int64_t chunk) {
        constexpr int ROOM = room_for(Count{});
        // Sums over piece p and all above it: one comparison tells whether a value belongs there.
        Floats of_g[ROOM][PARTS], of_gx[READS_X ? ROOM : 1][PARTS];
        Floats of_gxx[SQUARES ? ROOM : 1][PARTS];
        for (int p = 0; p < count; p++)
            for (int part = 0; part < PARTS; part++) {
                of_g[p][part] = Floats{};
                if (READS_X) of_gx[p][part] = Floats{};
                if (SQUARES) of_gxx[p][part] = Floats{};
            }
        const int64_t end = std::min(size, (chunk + 1) * CHUNK);
        for_each_part(chunk * CHUNK, end, [=, &of, &of_g, &of_gx, &of_gxx](
                                              auto whole, int64_t i, int64_t lanes, int part) {
            const Floats grad = load(whole, g + i, lanes);
            Floats value{}, product{}, square{};
            Flags code{}, passes;
            if (READS_X) value = load(whole, x + i, lanes);
            if (CODES) {
                code = widened(load_as<Bytes>(whole, codes + i, lanes));
                passes = code >= RELU_BIT, code &= RELU_BIT - 1;
            } else {
                passes = passes_relu(value, is_signed, ceiling);
            }
            if (READS_X) {
                if (!is_signed) value = rectified(value, ceiling);
                product = grad * value;
            }
            if (SQUARES) square = product * value;
            of_g[0][part] += grad;
            if (READS_X) of_gx[0][part] += product;
            if (SQUARES) of_gxx[0][part] += square;
            Floats slope = broadcast(of.slope[0].a), slope_x = broadcast(of.slope[0].b);
            Floats bend = broadcast(of.bend[0].a), bend_x = broadcast(of.bend[0].b);
            for (int p = 1; p < count; p++) {
                const Flags from = CODES ? code >= p : value > broadcast(edges[p - 1]);
                of_g[p][part] = from ? of_g[p][part] + grad : of_g[p][part];
                if (READS_X) of_gx[p][part] = from ? of_gx[p][part] + product : of_gx[p][part];
                if (SQUARES) of_gxx[p][part] = from ? of_gxx[p][part] + square : of_gxx[p][part];
                slope = from ? broadcast(of.slope[p].a) : slope;
                if (TILTED & 1) slope_x = from ? broadcast(of.slope[p].b) : slope_x;
                if (TILTED & 2) bend = from ? broadcast(of.bend[p].a) : bend;
                if (TILTED & 2) bend_x = from ? broadcast(of.bend[p].b) : bend_x;
            }
            if (TILTED & 1) slope += slope_x * value;
            Floats all = grad * slope;
            if (TILTED & 2) all += select(grad < 0.0f, -grad, grad) * (bend + bend_x * value);
            if (g_relu) all += load(whole, g_relu + i, lanes);
            store(whole, to + i, zero_unless(passes, all), lanes);
        });
        for (int p = 0; p < count; p++) {
            each[chunk * width + p] = total(of_g[p]);
            if (READS_X) each[chunk * width + count + p] = total(of_gx[p]);
            if (SQUARES) each[chunk * width + 2 * count + p] = total(of_gxx[p]);
        }
    });
    float* const all_sums[] = {sums, sums_x, sums_xx};
    for (int64_t first = 0; first < width; first += count)
        add_chunks(each + first, chunks, width, count, all_sums[first / count]);
}

}  // namespace

extern "C" {

// edges (pieces - 1), levels (pieces). relu, codes, not_finite: null where they are not wanted; there
// are no codes for more than MAX_PIECES.
void quantize_in_pieces(const void* x, int is_bfloat16, int64_t size, const float* edges,
                        const float* levels, int pieces, int is_signed, float ceiling, void* y,
                        void* relu, uint8_t* codes, uint8_t* not_finite) {
    with_type(is_bfloat16, [=](auto value) {
        using T = decltype(value);
        if (pieces > MAX_PIECES)
            return quantize_many((const T*)x, size, edges, levels, pieces, is_signed, ceiling,
                                 (T*)y, (T*)relu, not_finite);
        with_count(pieces, [=](auto count) {
            using Count = decltype(count);
            auto pass = codes ? quantize_all<true, Count, T> : quantize_all<false, Count, T>;
            pass(count, (const T*)x, size, edges, levels, is_signed, ceiling, (T*)y, (T*)relu,
                 codes, not_finite);
        });
    });
}

// slope (pieces, slope_columns) and bend (pieces, 2), or null: see Gradients. codes: null to find the
// pieces from x and edges. x: null where nothing depends on it. sums (pieces): of g, and sums_x
// (pieces): of g x unless x is null. sums_xx (pieces): of g x^2, or null; not with codes.
void pieces_gradient(const void* g, int is_bfloat16, const void* g_relu, const uint8_t* codes,
                     const void* x, int64_t size, const float* edges, const float* slope,
                     int slope_columns, const float* bend, int pieces, int is_signed, float ceiling,
                     void* to, float* sums, float* sums_x, float* sums_xx) {
    const Gradients of(slope, slope_columns, bend, pieces);
    with_type(is_bfloat16, [=, &of](auto value) {
        using T = decltype(value);
        if (pieces > MAX_PIECES) {
            std::vector<float*> all_sums{sums, sums_x};
            if (sums_xx) all_sums.push_back(sums_xx);
            const auto factors = [&, bend](Flags piece, Floats x) {
                return std::pair(line_at(of.slope, piece, x, slope_columns == 2),
                                 bend ? line_at(of.bend, piece, x, true) : Floats{});
            };
            return gradient_many((const T*)g, (const T*)g_relu, (const T*)x, size,
                                 Edges(edges, pieces - 1), pieces, factors, is_signed, ceiling,
                                 (T*)to, all_sums);
        }
        auto run = [=, &of](auto pass, auto count) {
            pass(count, (const T*)g, (const T*)g_relu, codes, edges, (const T*)x, size, of,
                 is_signed, ceiling, (T*)to, sums, sums_x, sums_xx);
        };
        if (!x)
            return with_count(pieces, [=](auto count) {
                run(gradient_all<0, false, true, false, decltype(count), T>, count);
            });
        if (codes) return run(gradient_all<3, true, true, false, int, T>, pieces);
        if (sums_xx && pieces == 4 && !bend) {  // AdaBin
            const std::integral_constant<int, 4> four;
            return run(gradient_all<1, true, false, true, decltype(four), T>, four);
        }
        if (sums_xx) return run(gradient_all<3, true, false, true, int, T>, pieces);
        if (slope_columns == 2) return run(gradient_all<3, true, false, false, int, T>, pieces);
        with_count(pieces, [=](auto count) {
            using Count = decltype(count);
            run(bend ? gradient_all<2, true, false, false, Count, T>
                     : gradient_all<0, true, false, false, Count, T>, count);
        });
    });
}

}  // extern "C"
