// Vectors of 32-bit words that count bits, one output channel a lane, for each instruction set.
//
// differ(w, a, bits): the bits in which w and a differ, of those that `bits` has, or of all without it.
// To take numbers of ones from the numbers `all`: counts = begin(all), then counts = less(counts, d) for each d, at
// most `most` times, and left(counts, all) is the result, with the same `all`. What counts are between these differs:
// with AVX-512 they are what is left, elsewhere what is to be taken, in parts of a lane.
// halves(low, high, 0xffff): words with the lower halves of the one and the upper halves of the other.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512VPOPCNTDQ__)

struct Lanes {
    using V = __m512i;
    static constexpr const char* name = "popcount (AVX-512)";
    static constexpr int count = 16, most = 1 << 20, registers = 28;
    static V zero() { return _mm512_setzero_si512(); }
    static V load(const uint32_t* p) { return _mm512_loadu_si512(p); }
    static V broadcast(uint32_t word) { return _mm512_set1_epi32(int(word)); }
    static V differ(V w, V a) { return _mm512_xor_si512(w, a); }
    static V differ(V w, V a, V bits) { return _mm512_ternarylogic_epi32(a, w, bits, 0x28); }  // (a ^ w) & bits
    static V halves(V low, V high, V bits) { return _mm512_ternarylogic_epi32(low, high, bits, 0xe4); }
    static V begin(V all) { return all; }
    static V less(V counts, V different) {
        counts = _mm512_sub_epi32(counts, _mm512_popcnt_epi32(different));
        asm volatile("" : "+v"(counts));  // one after the other: else the compiler runs out of registers
        return counts;
    }
    static V left(V counts, V) { return counts; }
};

#elif defined(__AVX2__)

struct Lanes {
    using V = __m256i;
    static constexpr const char* name = "popcount (AVX2)";
    static constexpr int count = 8, most = 31, registers = 8;  // 31 words of at most 8 a byte
    static V zero() { return _mm256_setzero_si256(); }
    static V load(const uint32_t* p) { return _mm256_loadu_si256((const V*)p); }
    static V broadcast(uint32_t word) { return _mm256_set1_epi32(int(word)); }
    static V differ(V w, V a) { return _mm256_xor_si256(w, a); }
    static V differ(V w, V a, V bits) { return _mm256_and_si256(_mm256_xor_si256(w, a), bits); }
    static V halves(V low, V high, V) { return _mm256_blend_epi16(low, high, 0xaa); }
    static V begin(V) { return zero(); }
    static V less(V counts, V different) {
        const V ones = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                                        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
        const V low = _mm256_set1_epi8(15);
        V part = _mm256_shuffle_epi8(ones, _mm256_and_si256(different, low));
        V rest = _mm256_and_si256(_mm256_srli_epi16(different, 4), low);
        return _mm256_add_epi8(_mm256_add_epi8(counts, part), _mm256_shuffle_epi8(ones, rest));
    }
    static V left(V counts, V all) {
        V pairs = _mm256_maddubs_epi16(counts, _mm256_set1_epi8(1));
        return _mm256_sub_epi32(all, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
};

#elif defined(__SSSE3__)

struct Lanes {
    using V = __m128i;
    static constexpr const char* name = "popcount (SSSE3)";
    static constexpr int count = 4, most = 31, registers = 8;
    static V zero() { return _mm_setzero_si128(); }
    static V load(const uint32_t* p) { return _mm_loadu_si128((const V*)p); }
    static V broadcast(uint32_t word) { return _mm_set1_epi32(int(word)); }
    static V differ(V w, V a) { return _mm_xor_si128(w, a); }
    static V differ(V w, V a, V bits) { return _mm_and_si128(_mm_xor_si128(w, a), bits); }
    static V halves(V low, V high, V bits) {
        return _mm_or_si128(_mm_and_si128(bits, low), _mm_andnot_si128(bits, high));
    }
    static V begin(V) { return zero(); }
    static V less(V counts, V different) {
        const V ones = _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
        const V low = _mm_set1_epi8(15);
        V part = _mm_shuffle_epi8(ones, _mm_and_si128(different, low));
        V rest = _mm_and_si128(_mm_srli_epi16(different, 4), low);
        return _mm_add_epi8(_mm_add_epi8(counts, part), _mm_shuffle_epi8(ones, rest));
    }
    static V left(V counts, V all) {
        V pairs = _mm_maddubs_epi16(counts, _mm_set1_epi8(1));
        return _mm_sub_epi32(all, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
    }
};

#else

struct Lanes {
    typedef uint32_t V __attribute__((vector_size(16)));
    static constexpr const char* name = "popcount (portable)";
    static constexpr int count = 4, most = 31, registers = 4;
    static V zero() { return V{}; }
    static V load(const uint32_t* p) {
        V v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
    static V broadcast(uint32_t word) { return V{} + word; }
    static V differ(V w, V a) { return w ^ a; }
    static V differ(V w, V a, V bits) { return (w ^ a) & bits; }
    static V halves(V low, V high, V bits) { return (low & bits) | (high & ~bits); }
    static V begin(V) { return zero(); }
    static V less(V counts, V x) {
        x -= (x >> 1) & 0x55555555u;
        x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
        return counts + ((x + (x >> 4)) & 0x0f0f0f0fu);
    }
    static V left(V counts, V all) {
        V pairs = (counts & 0x00ff00ffu) + ((counts >> 8) & 0x00ff00ffu);
        return all - (pairs & 0xffffu) - (pairs >> 16);
    }
};

#endif

// The widest float vector; arithmetic on it is that of each lane.
#if defined(__AVX512F__)
constexpr int FLOATS = 16;
#elif defined(__AVX__)
constexpr int FLOATS = 8;
#else
constexpr int FLOATS = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * FLOATS)));
typedef int32_t Integers __attribute__((vector_size(4 * FLOATS)));

template <class V, class T>
inline V read(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// A vector of which only the first `count` numbers may be read; the others are zero.
inline Floats read_few(const float* p, int count) {
    if (count >= FLOATS) return read<Floats>(p);
    float few[FLOATS] = {};
    std::memcpy(few, p, sizeof(float) * count);
    return read<Floats>(few);
}

inline Floats spread(float x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_set1_ps(x);
#elif defined(__AVX__)
    return (Floats)_mm256_set1_ps(x);
#else
    return Floats{x, x, x, x};
#endif
}

// y in [0, ceiling], as the scalar `limited` of step.h.
inline Floats limited(Floats y, Floats ceiling) {
    y = y > 0 ? y : Floats{};
    return y < ceiling ? y : ceiling;
}

// a x b + c, rounded once. Without an instruction for it, by arithmetic in double: the product is exact
// there, and a sum whose last bit is one wherever it was rounded becomes the right float32.
inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX__) && defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    for (int i = 0; i < FLOATS; i++) {
        const double product = double(a[i]) * b[i], more = c[i];
        double sum = product + more;
        const double part = sum - product;
        const double lost = (product - (sum - part)) + (more - part);
        int64_t bits;
        std::memcpy(&bits, &sum, sizeof bits);
        // lost is NaN where sum is NaN or infinite: both comparisons are false then, and sum stays as it is.
        if ((lost > 0 || lost < 0) && !(bits & 1)) bits += (lost > 0) == (sum > 0) ? 1 : -1;
        std::memcpy(&sum, &bits, sizeof sum);
        c[i] = float(sum);
    }
    return c;
#endif
}

// Eight bits: bit i says whether x[i] >= t. False for a NaN.
inline uint32_t reaches(const float* x, float t) {
#if defined(__AVX__)
    return uint32_t(_mm256_movemask_ps(
        _mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_set1_ps(t), _CMP_GE_OQ)));
#elif defined(__x86_64__)
    __m128 limit = _mm_set1_ps(t);
    int low = _mm_movemask_ps(_mm_cmpge_ps(_mm_loadu_ps(x), limit));
    return uint32_t(low | _mm_movemask_ps(_mm_cmpge_ps(_mm_loadu_ps(x + 4), limit)) << 4);
#else
    uint32_t bits = 0;
    for (int i = 0; i < 8; i++) bits |= uint32_t(x[i] >= t) << i;
    return bits;
#endif
}
