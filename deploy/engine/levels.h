// What the quantizer of a step makes of its input, for steps that compute in float32: levels.
#pragma once
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "reached.h"
#include "step.h"

class Levels {
    const float* const level;
    const bool few;  // at most MOST_REACHED thresholds
    const Reached reached;
    float table[MOST_REACHED + 1] = {};  // the levels, if these are few
    std::vector<float> probes;  // if they are many: the thresholds, filled up to 2^n - 1 with some that none reaches

    Floats look_up(Integers codes) const {
#if defined(__AVX512F__)
        return (Floats)_mm512_permutexvar_ps((__m512i)codes, _mm512_loadu_ps(table));
#elif defined(__AVX2__)
        const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)codes);
        const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)codes);
        const __m256i above_seven = _mm256_slli_epi32((__m256i)codes, 28);  // in the highest bit
        return (Floats)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(above_seven));
#else
        return gathered(table, codes);
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

    // numbers[place] of each place.
    static Floats gathered(const float* numbers, Integers place) {
#if defined(__AVX512F__)
        return (Floats)_mm512_i32gather_ps((__m512i)place, numbers, sizeof(float));
#elif defined(__AVX2__)
        return (Floats)_mm256_i32gather_ps(numbers, (__m256i)place, sizeof(float));
#else
        Floats found = {};
        for (int i = 0; i < FLOATS; i++) found[i] = numbers[place[i]];
        return found;
#endif
    }

    // Of many levels, by halving; a number that is none reaches no threshold.
    Floats searched(Floats x) const {
        Integers code = {};
        for (int step = int(probes.size() + 1) / 2; step > 0; step /= 2)
            code += (Integers)(x >= gathered(probes.data() + step - 1, code)) & step;
        return gathered(level, code);
    }

    template <class F>
    static void each(const float* x, int64_t n, float* to, F level_of) {
        int64_t i = 0;
        for (; i + FLOATS <= n; i += FLOATS) {
            const Floats found = level_of(read<Floats>(x + i));
            std::memcpy(to + i, &found, sizeof found);
        }
        if (i == n) return;
        const Floats found = level_of(read_few(x + i, int(n - i)));
        std::memcpy(to + i, &found, sizeof(float) * (n - i));
    }

  public:
    explicit Levels(const Step& s)
        : level(s.level), few(s.thresholds <= MOST_REACHED), reached(s.threshold, few ? s.thresholds : 0) {
        if (few && level) std::copy_n(level, s.thresholds + 1, table);
        if (few) return;
        size_t size = 1;
        while (size <= size_t(s.thresholds)) size *= 2;
        probes.assign(size - 1, std::numeric_limits<float>::quiet_NaN());
        std::copy_n(s.threshold, s.thresholds, probes.begin());
    }

    // Of n floats.
    void of(const float* x, int64_t n, float* to) const {
        if (few)
            reached.visit([&](auto count) { each(x, n, to, [&](Floats x) { return look_up(count(x)); }); });
        else
            each(x, n, to, [&](Floats x) { return searched(x); });
    }

    // Of n codes of few levels, a multiple of BLOCK.
    void of(const uint8_t* codes, int64_t n, float* to) const {
        for (int64_t i = 0; i < n; i += FLOATS) {
            const Floats found = look_up(widened(codes + i));
            std::memcpy(to + i, &found, sizeof found);
        }
    }
};
