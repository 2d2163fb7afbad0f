// What the quantizer of a step makes of its input, for steps that compute in float32: levels.
#pragma once
#include <algorithm>
#include <cstring>

#include "reached.h"
#include "step.h"

class Levels {
    const int thresholds;
    const float *threshold, *level;
    const bool few;  // at most MOST_REACHED thresholds
    const Reached reached;
    float table[MOST_REACHED + 1] = {};  // the levels, if these are few

    Floats look_up(Integers codes) const {
#if defined(__AVX512F__)
        return (Floats)_mm512_permutexvar_ps((__m512i)codes, _mm512_loadu_ps(table));
#elif defined(__AVX2__)
        const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)codes);
        const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)codes);
        const __m256i above_seven = _mm256_slli_epi32((__m256i)codes, 28);  // in the highest bit
        return (Floats)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(above_seven));
#else
        Floats found = {};
        for (int i = 0; i < FLOATS; i++) found[i] = table[codes[i]];
        return found;
#endif
    }

    static Integers widened(const uint8_t* codes) {
#if defined(__AVX512F__)
        return (Integers)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)codes));
#elif defined(__AVX2__)
        return (Integers)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)codes));
#else
        return __builtin_convertvector(read<FewBytes>(codes), Integers);
#endif
    }

    // By halving; a number that is none reaches no threshold.
    float searched(float x) const {
        int top = 1, code = 0;
        while (top <= thresholds) top *= 2;
        for (int step = top / 2; step > 0; step /= 2)
            if (code + step <= thresholds && x >= threshold[code + step - 1]) code += step;
        return level[code];
    }

  public:
    explicit Levels(const Step& s)
        : thresholds(s.thresholds), threshold(s.threshold), level(s.level), few(thresholds <= MOST_REACHED),
          reached(threshold, few ? thresholds : 0) {
        if (few && level) std::copy_n(level, thresholds + 1, table);
    }

    // Of n floats.
    void of(const float* x, int64_t n, float* to) const {
        if (!few) {
            for (int64_t i = 0; i < n; i++) to[i] = searched(x[i]);
            return;
        }
        reached.visit([&](auto count) {
            int64_t i = 0;
            for (; i + FLOATS <= n; i += FLOATS) {
                const Floats found = look_up(count(read<Floats>(x + i)));
                std::memcpy(to + i, &found, sizeof found);
            }
            if (i == n) return;
            const Floats found = look_up(count(read_few(x + i, int(n - i))));
            std::memcpy(to + i, &found, sizeof(float) * (n - i));
        });
    }

    // Of n codes of few levels, a multiple of BLOCK.
    void of(const uint8_t* codes, int64_t n, float* to) const {
        for (int64_t i = 0; i < n; i += FLOATS) {
            const Floats found = look_up(widened(codes + i));
            std::memcpy(to + i, &found, sizeof found);
        }
    }
};
