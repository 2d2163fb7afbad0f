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

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// A source that adds up the lanes of a vector defines EIGHT_LANES, so that the order is fixed.
#if defined(__AVX512F__) && defined(__AVX512BW__) && !defined(EIGHT_LANES)
#define SIXTEEN_LANES
#endif

namespace {

#if defined(SIXTEEN_LANES)
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

// Conversions between lanes of different sizes. g++ would take the vectors apart, lane by lane: so
// each is written as the instruction that does it.
#if defined(SIXTEEN_LANES)
inline Flags widened(Bytes x) { return (Flags)_mm512_cvtepu8_epi32((__m128i)x); }
inline Words widened(Halves x) { return (Words)_mm512_cvtepu16_epi32((__m256i)x); }
inline Bytes lowest_bytes(Flags x) { return (Bytes)_mm512_cvtepi32_epi8((__m512i)x); }
inline Halves lower_halves(Words x) { return (Halves)_mm512_cvtepi32_epi16((__m512i)x); }
#elif defined(__AVX2__)
inline Flags widened(Bytes x) {
    return (Flags)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)x));
}
inline Words widened(Halves x) { return (Words)_mm256_cvtepu16_epi32((__m128i)x); }
inline Bytes lowest_bytes(Flags x) {
    const __m256i first = _mm256_setr_epi8(  // of each 16 bytes; -1: zero
        0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8((__m256i)x, first);
    const __m128i all = _mm256_castsi256_si128(bytes) | _mm256_extracti128_si256(bytes, 1);
    return (Bytes)_mm_cvtsi128_si64(all);
}
inline Halves lower_halves(Words x) {
    const __m256i halves = _mm256_packus_epi32((__m256i)(x & 0xffff), (__m256i)(x & 0xffff));
    return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0b1000));
}
#else
inline Flags widened(Bytes x) { return __builtin_convertvector(x, Flags); }
inline Words widened(Halves x) { return __builtin_convertvector(x, Words); }
inline Bytes lowest_bytes(Flags x) { return __builtin_convertvector(x, Bytes); }
inline Halves lower_halves(Words x) { return __builtin_convertvector(x, Halves); }
#endif

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
    return (Floats)(widened(bits) << 16);
}

template <class Whole>
inline void store(Whole whole, float* to, Floats x, int64_t lanes) {
    store_as(whole, to, x, lanes);
}

// To the nearest bfloat16, ties to even, as torch rounds. A NaN stays one: it was read from a
// bfloat16, or arithmetic made it, so its lower half is zero.
template <class Whole>
inline void store(Whole whole, bfloat16* to, Floats x, int64_t lanes) {
    const Words bits = (Words)x;
    const Words nearest = (bits & 0x10000) != 0 ? bits + 0x8000 : bits + 0x7fff;
    store_as(whole, to, lower_halves(nearest >> 16), lanes);
}

// As `store`, for values that are bfloat16 already.
template <class Whole>
inline void store_exact(Whole whole, bfloat16* to, Floats x, int64_t lanes) {
    store_as(whole, to, lower_halves((Words)x >> 16), lanes);
}

template <class Whole>
inline void store_exact(Whole whole, float* to, Floats x, int64_t lanes) {
    store_as(whole, to, x, lanes);
}

// x as `store` rounds it.
inline float as_stored(float x, float) { return x; }
inline float as_stored(float x, bfloat16 like) {
    store(std::false_type{}, &like, Floats{} + x, 1);
    return load(std::false_type{}, &like, 1)[0];
}

inline Floats broadcast(float value) { return value - Floats{}; }  // not +: of -0 it makes 0
inline Floats select(Flags flags, Floats a, Floats b) { return flags ? a : b; }
inline Floats zero_unless(Flags flags, Floats a) { return (Floats)(flags & (Flags)a); }

// Where the gradient of the ReLU passes; everywhere if there is none (`is_signed`).
inline Flags passes_relu(Floats x, bool is_signed, float ceiling) {
    return is_signed ? ~Flags{} : (x > 0.0f) & (x < ceiling);
}

// The first operand where it is greater (less) than the second, else the second: also for a NaN.
// One instruction, for which g++ makes two of a comparison and a choice.
#if defined(SIXTEEN_LANES)
inline Floats greater(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
inline Floats less(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
inline Floats greater(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
inline Floats less(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }
inline Floats less(Floats a, Floats b) { return a < b ? a : b; }
#endif

// table[at], lane by lane.
#if defined(SIXTEEN_LANES)
inline Floats looked_up(const float* table, Flags at) {
    return (Floats)_mm512_i32gather_ps((__m512i)at, table, sizeof(float));
}
#elif defined(__AVX2__)
inline Floats looked_up(const float* table, Flags at) {
    return (Floats)_mm256_i32gather_ps(table, (__m256i)at, sizeof(float));
}
#else
inline Floats looked_up(const float* table, Flags at) {
    Floats found;
    for (int i = 0; i < LANES; i++) found[i] = table[at[i]];
    return found;
}
#endif

// relu(x), at most `ceiling`; a NaN stays NaN.
inline Floats rectified(Floats x, float ceiling) {
    return less(broadcast(ceiling), greater(broadcast(0), x));
}

template <class Sum = float, class Vector>
inline Sum total(Vector x) {
    Sum sum = 0;
    for (size_t i = 0; i < sizeof x / 4; i++) sum += x[i];
    return sum;
}

// Sixteen partial sums of the elements of vectors are a `Floats` for each of PARTS vectors.
constexpr int PARTS = 16 / LANES;

inline float total(const Floats (&parts)[PARTS]) {
    float sum = 0;
    for (const Floats& part : parts)
        for (int i = 0; i < LANES; i++) sum += part[i];
    return sum;
}

// As `for_each_vector`; body(whole, i, lanes, part) learns to which part of such sums the vector
// belongs. So they are the same for vectors of any width.
template <class Body>
inline void for_each_part(int64_t begin, int64_t end, Body body) {
    int64_t i = begin;
    for (; i + PARTS * LANES <= end; i += PARTS * LANES)
        for (int part = 0; part < PARTS; part++)
            body(std::true_type{}, i + part * LANES, LANES, part);
    for (int part = 0; i + LANES <= end; i += LANES, part++)
        body(std::true_type{}, i, LANES, part);
    if (i < end) body(std::false_type{}, i, end - i, PARTS == 1 ? 0 : int(i / LANES) % PARTS);
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
