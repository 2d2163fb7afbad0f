// Vectors of float32 values, as wide as the processor's registers, and loops over memory that use
// them.
//
// Tensors are dense, float32 or bfloat16. A bfloat16 value becomes float32 when it is loaded and is
// rounded when it is stored; all arithmetic between is float32. Work is cut into pieces that do not
// depend on the number of threads, and every sum is taken in an order that depends neither on the
// threads nor on the width of the vectors, so results are the same with any of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

// A source that adds up the lanes of a vector defines EIGHT_LANES, so that the order is fixed.
#if defined(__AVX512F__) && defined(__AVX512BW__) && !defined(EIGHT_LANES)
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif
constexpr int64_t CHUNK = 4096;        // elements that one thread takes at a time
constexpr int64_t PARALLEL = 1 << 15;  // fewer elements than this are not worth a second thread

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Flags __attribute__((vector_size(4 * LANES)));  // a lane is -1 where true, else 0
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

struct bfloat16 {
    uint16_t bits;  // the upper half of a float32
};

// `Whole` is std::true_type for a full vector and std::false_type for the first `lanes` lanes.
template <class Vector, class Whole>
inline Vector load_as(Whole, const void* from, int64_t lanes) {
    Vector x{};
    std::memcpy(&x, from, (Whole::value ? LANES : lanes) * (sizeof(Vector) / LANES));
    return x;
}

template <class Whole, class Vector>
inline void store_as(Whole, void* to, const Vector& from, int64_t lanes) {
    std::memcpy(to, &from, (Whole::value ? LANES : lanes) * (sizeof(Vector) / LANES));
}

template <class Whole>
inline Floats load(Whole whole, const float* from, int64_t lanes) {
    return load_as<Floats>(whole, from, lanes);
}

template <class Whole>
inline Floats load(Whole whole, const bfloat16* from, int64_t lanes) {
    const Halves bits = load_as<Halves>(whole, from, lanes);
    return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

template <class Whole>
inline void store(Whole whole, float* to, Floats x, int64_t lanes) {
    store_as(whole, to, x, lanes);
}

// To the nearest bfloat16, ties to even, as torch rounds; a NaN stays one.
template <class Whole>
inline void store(Whole whole, bfloat16* to, Floats x, int64_t lanes) {
    const Words bits = (Words)x, odd = (bits >> 16) & 1;
    const Words nearest = (bits + 0x7fff + odd) >> 16;
    const Words nan = bits >> 16 | 0x40;
    const Words kept = (Flags)(x != x) ? nan : nearest;
    store_as(whole, to, __builtin_convertvector(kept, Halves), lanes);
}

// The lowest byte of each lane.
inline Bytes packed(Flags flags) {
#if __has_builtin(__builtin_shufflevector) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if constexpr (LANES == 8) {
        typedef uint8_t All __attribute__((vector_size(32)));
        All bytes;
        std::memcpy(&bytes, &flags, sizeof bytes);
        const auto first = __builtin_shufflevector(bytes, bytes, 0, 4, 8, 12, 16, 20, 24, 28);
        Bytes lowest{};
        std::memcpy(&lowest, &first, sizeof first);
        return lowest;
    }
#endif
    return __builtin_convertvector(flags, Bytes);
}

inline Floats broadcast(float value) { return Floats{} + value; }
inline Floats select(Flags flags, Floats a, Floats b) { return flags ? a : b; }
inline Floats zero_unless(Flags flags, Floats a) { return (Floats)(flags & (Flags)a); }

// relu(x), at most `ceiling`; a NaN stays NaN.
inline Floats rectified(Floats x, float ceiling) {
    x = select(x < 0.0f, broadcast(0), x);
    return select(x > ceiling, broadcast(ceiling), x);
}

template <class Sum = float, class Vector>
inline Sum total(Vector x) {
    Sum sum = 0;
    for (size_t i = 0; i < sizeof x / 4; i++) sum += x[i];
    return sum;
}

// Eight partial sums of the elements of vectors, in the same order for vectors of any width.
typedef float Eight __attribute__((vector_size(32)));
inline void accumulate(Eight& sums, Floats x) {
    Eight parts[LANES / 8];
    std::memcpy(parts, &x, sizeof x);
    for (const Eight& part : parts) sums += part;
}

// Calls body(value) with a value of the tensors' element type.
template <class Body>
void with_type(bool is_bfloat16, Body body) {
    is_bfloat16 ? body(bfloat16{}) : body(0.0f);
}

// The nearest whole number, ties to even: valid below 2^22, as codes are.
inline Floats rounded(Floats x) { return (x + 12582912.0f) - 12582912.0f; }

// Calls body(i) for i = 0 to count - 1, on several threads where there are elements enough.
template <class Body>
void parallel_for(int64_t count, int64_t elements, Body body) {
#pragma omp parallel for schedule(static) if (elements > PARALLEL)
    for (int64_t i = 0; i < count; i++) body(i);
}

// Calls body(whole, i, lanes) for each vector of the elements begin to end - 1.
template <class Body>
inline void for_each_vector(int64_t begin, int64_t end, Body body) {
    int64_t i = begin;
    for (; i + LANES <= end; i += LANES) body(std::true_type{}, i, LANES);
    if (i < end) body(std::false_type{}, i, end - i);
}

}  // namespace
