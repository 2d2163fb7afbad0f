// The bit planes of a row of the input, one of all pixels after the other; the channels of a pixel fill bytes.
#pragma once
#include <vector>

#include "../kernel.h"

constexpr int MOST_PLANES = 8;

inline int channel_bytes(const Step& s) { return (s.channels + 7) / 8; }

constexpr int MANY = 64;  // codes whose bits are taken together

// Bit i of the result: the highest bit of table[numbers[i]], for i below MANY.
inline uint64_t bits_of(const uint8_t* numbers, const uint8_t* table) {
#if defined(__AVX512BW__)
    const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
    return _mm512_movepi8_mask(_mm512_shuffle_epi8(all, _mm512_loadu_si512(numbers)));
#else
    uint64_t bits = 0;
#if defined(__SSSE3__)
    const __m128i all = _mm_loadu_si128((const __m128i*)table);
    for (int i = 0; i < MANY; i += 16) {
        const __m128i some = _mm_shuffle_epi8(all, _mm_loadu_si128((const __m128i*)(numbers + i)));
        bits |= uint64_t(_mm_movemask_epi8(some)) << i;
    }
#else
    for (int i = 0; i < MANY; i++) bits |= uint64_t(table[numbers[i]] >> 7) << i;
#endif
    return bits;
#endif
}

// The planes of a row of n codes, a multiple of eight, each `row` bytes behind the one before it.
inline void pack_numbers(const Step& s, const uint8_t* numbers, int n, uint8_t* to, size_t row) {
    uint8_t table[MOST_PLANES][MOST_HANDED + 1] = {};
    for (int j = 0; j < s.a_planes; j++)
        for (int q = 0; q <= s.thresholds; q++) table[j][q] = s.a_bits[j * (s.thresholds + 1) + q] << 7;
    for (int i = 0; i < n; i += MANY, numbers += MANY, to += MANY / 8) {
        uint8_t last[MANY] = {};
        const bool whole = n - i >= MANY;
        if (!whole) std::memcpy(last, numbers, n - i);
        for (int j = 0; j < s.a_planes; j++) {
            const uint64_t bits = bits_of(whole ? numbers : last, table[j]);
            std::memcpy(to + j * row, &bits, whole ? 8 : (n - i) / 8);
        }
    }
}

#if defined(__AVX512F__)
constexpr int FEW = 3;

// The same from floats, with at most FEW thresholds: bit j of a code is an XOR of "x >= t" over those t where
// it changes, for sixteen numbers at a time.
template <int T>
void pack_few(const Step& s, const float* x, int n, uint8_t* to, size_t row) {
    __m512 t[T];
    uint16_t changes[MOST_PLANES][T];  // all ones where bit j changes at threshold i
    for (int i = 0; i < T; i++) {
        t[i] = _mm512_set1_ps(s.threshold[i]);
        for (int j = 0; j < s.a_planes; j++) {
            const uint8_t* bits = s.a_bits + j * (T + 1);
            changes[j][i] = uint16_t(-(bits[i] ^ bits[i + 1]));
        }
    }
    const auto pack = [&](__m512 some, auto store) {
        uint32_t reached[T];
#pragma GCC unroll 3
        for (int k = 0; k < T; k++) reached[k] = _cvtmask16_u32(_mm512_cmp_ps_mask(some, t[k], _CMP_GE_OQ));
        for (int j = 0; j < s.a_planes; j++) {
            uint32_t bits = 0;
#pragma GCC unroll 3
            for (int k = 0; k < T; k++) bits ^= reached[k] & changes[j][k];
            store(to + j * row, bits);
        }
    };
    int i = 0;
    for (; i + 16 <= n; i += 16, to += 2)
        pack(_mm512_loadu_ps(x + i), [](uint8_t* to, uint32_t bits) { std::memcpy(to, &bits, 2); });
    if (i < n)  // eight are left
        pack(_mm512_maskz_loadu_ps(255, x + i), [](uint8_t* to, uint32_t bits) { *to = uint8_t(bits); });
}
constexpr void (*PACK_FEW[FEW])(const Step&, const float*, int, uint8_t*, size_t) = {pack_few<1>, pack_few<2>,
                                                                                     pack_few<3>};
#else
constexpr int FEW = 0;
constexpr void (*PACK_FEW[1])(const Step&, const float*, int, uint8_t*, size_t) = {nullptr};
#endif

// The same from floats, of any number of channels and thresholds: the bits of a code are an XOR of
// "x >= t", since bit j changes at those t where its value does.
inline void pack_row(const Step& s, const float* x, uint8_t* to, size_t row) {
    const int bytes = channel_bytes(s);
    std::vector<uint64_t> changes(s.thresholds);
    for (int i = 0; i < s.thresholds; i++)
        for (int j = 0; j < s.a_planes; j++) {
            const uint8_t* bits = s.a_bits + j * (s.thresholds + 1);
            changes[i] |= uint64_t(bits[i] ^ bits[i + 1]) << 8 * j;
        }
    for (int pixel = 0; pixel < s.wide; pixel++, x += s.channels)
        for (int b = 0; b < bytes; b++, to++) {
            const int left = s.channels - 8 * b;
            float few[8] = {};
            const float* eight = x + 8 * b;
            if (left < 8) eight = (float*)std::memcpy(few, eight, 4 * left);
            uint64_t planes = 0;
            for (int i = 0; i < s.thresholds; i++) planes ^= reaches(eight, s.threshold[i]) * changes[i];
            const uint8_t mask = left < 8 ? uint8_t((1 << left) - 1) : 255;
            for (int j = 0; j < s.a_planes; j++) to[j * row] = uint8_t(planes >> 8 * j) & mask;
        }
}
