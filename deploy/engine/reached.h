// How many of the rising thresholds of a quantizer numbers reach, where these are few.
#pragma once
#include "lanes.h"

constexpr int MOST_REACHED = 15;

// Counts at most MOST_REACHED thresholds; a number that is none (NaN) reaches none of them.
class Reached {
#if defined(__AVX512F__)
    // By halving: one look-up for each bit of the count is less than a comparison with each threshold.
    __m512 probe[4];  // of each bit, the lowest first: the threshold to reach, by the bits above it
    int bits = 0;

  public:
    Reached(const float* threshold, int count) {
        for (; count >> bits; bits++) {
            float next[16];
            for (int reached = 0; reached < 16; reached++) {
                const int at = reached + (1 << bits) - 1;
                next[reached] = at < count ? threshold[at] : __builtin_nanf("");  // which none reaches
            }
            probe[bits] = _mm512_loadu_ps(next);
        }
    }
    Integers operator()(Floats x) const { return counted(x, bits); }
    // Call f(count), where count(x) counts as this object does, with the number of bits known to the compiler.
    template <class F>
    void visit(F f) const {
        switch (bits) {
            case 0: return f([](Floats) { return Integers{}; });
            case 1: return f([own = *this](Floats x) { return own.counted(x, 1); });
            case 2: return f([own = *this](Floats x) { return own.counted(x, 2); });
            case 3: return f([own = *this](Floats x) { return own.counted(x, 3); });
            default: return f([own = *this](Floats x) { return own.counted(x, 4); });
        }
    }

  private:
    Integers counted(Floats x, int bits) const {
        __m512i count = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int bit = bits - 1; bit >= 0; bit--) {
            const __m512 next = _mm512_permutexvar_ps(count, probe[bit]);
            const __mmask16 reached = _mm512_cmp_ps_mask((__m512)x, next, _CMP_GE_OQ);
            count = _mm512_mask_add_epi32(count, reached, count, _mm512_set1_epi32(1 << bit));
        }
        return (Integers)count;
    }
#else
    const float* threshold;
    int count;

  public:
    Reached(const float* threshold, int count) : threshold(threshold), count(count) {}
    Integers operator()(Floats x) const {
        Integers reached = {};
        for (int i = 0; i < count; i++) reached -= (Integers)(x >= threshold[i]);
        return reached;
    }
    template <class F>
    void visit(F f) const {
        f(*this);
    }
#endif
};

typedef uint8_t FewBytes __attribute__((vector_size(FLOATS)));

inline FewBytes bytes_of(Integers numbers) { return __builtin_convertvector(numbers, FewBytes); }
