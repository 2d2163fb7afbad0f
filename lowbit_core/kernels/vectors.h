// Vectors of eight float32 values, and loops over memory that use them.
//
// Tensors are float32 and dense. Work is cut into pieces that do not depend on the number of
// threads, and every sum is taken in a fixed order, so results are the same with any number of
// threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t LANES = 8;
constexpr int64_t CHUNK = 4096;        // elements that one thread takes at a time
constexpr int64_t PARALLEL = 1 << 15;  // fewer elements than this are not worth a second thread

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Flags __attribute__((vector_size(32)));  // a lane is -1 where true, else 0
typedef uint8_t Bytes __attribute__((vector_size(8)));

// `Whole` is std::true_type for a full vector and std::false_type for the first `lanes` lanes.
template <class Vector = Floats, class Whole, class T>
inline Vector load(Whole, const T* from, int64_t lanes) {
    Vector x{};
    std::memcpy(&x, from, (Whole::value ? LANES : lanes) * sizeof(T));
    return x;
}

template <class Whole, class T, class Vector>
inline void store(Whole, T* to, const Vector& from, int64_t lanes) {
    std::memcpy(to, &from, (Whole::value ? LANES : lanes) * sizeof(T));
}

// The lowest byte of each lane.
inline Bytes packed(Flags flags) {
#if __has_builtin(__builtin_shufflevector) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    typedef uint8_t All __attribute__((vector_size(32)));
    return __builtin_shufflevector((All)flags, (All)flags, 0, 4, 8, 12, 16, 20, 24, 28);
#else
    return __builtin_convertvector(flags, Bytes);
#endif
}

inline Floats broadcast(float value) { return Floats{} + value; }
inline Floats select(Flags flags, Floats a, Floats b) { return flags ? a : b; }
inline Floats zero_unless(Flags flags, Floats a) { return (Floats)(flags & (Flags)a); }

template <class Sum = float, class Vector>
inline Sum total(Vector x) {
    Sum sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
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
