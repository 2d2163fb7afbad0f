// The codes of a row of the input as bytes, for the kernels that do not read single bits.
//
// A code here is the integer A_h of step.h, of one group of planes: the level is a_offset + sum_h
// a_value[h] A_h. Channels are filled up to a multiple of four with zeros, so that a pixel is a whole
// number of groups of four codes.
#pragma once
#include <algorithm>
#include <cstring>

#include "../kernel.h"
#include "../reached.h"

constexpr int GROUP = 4;
constexpr int MOST_THRESHOLDS = 255;  // of a quantizer

inline int pixel_groups(const Step& s) { return (s.channels + GROUP - 1) / GROUP; }

// The largest code of a group of planes.
inline int top_code(const Step& s, int group = 0) {
    int sum = 0;
    for (int j = 0; j < s.a_planes; j++) sum += s.a_group[j] == group ? s.a_multiplier[j] : 0;
    return sum;
}

// The largest of all groups.
inline int largest_code(const Step& s) {
    int largest = 0;
    for (int h = 0; h < s.a_groups; h++) largest = std::max(largest, top_code(s, h));
    return largest;
}

// The largest W of a group of planes.
inline int top_weight(const Step& s, int group = 0) {
    int sum = 0;
    for (int p = 0; p < s.w_planes; p++) sum += s.w_group[p] == group ? s.w_multiplier[p] : 0;
    return sum;
}

// The pair of plane p and group h: it sums the codes of group h where bit p of the weight is one.
inline Pair pair_of(const Layer& layer, int p, int h) {
    const Step& s = layer.step;
    const int group = s.w_group[p];
    return {(group * layer.a_terms() + h) * BLOCK, 2 * s.w_multiplier[p], top_weight(s, group), h,
            p == 0 || s.w_group[p - 1] != group};
}

// Buffers come from std::vector; loads that cross a cache line would cost twice as much.
template <class T>
inline T* aligned(T* p) {
    return (T*)((uintptr_t(p) + 63) / 64 * 64);
}

inline size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

// The most bytes of a padded input as tables: offsets have 32 bits, and larger ones fit no cache.
constexpr size_t MOST_TABLES = size_t(1) << 31;

// The staircase from x to its code, which rises by rise[i] where x >= threshold[i].
struct Staircase {
    int thresholds;
    const float* threshold;
    int32_t rise[MOST_THRESHOLDS];
    // Of one group of planes.
    explicit Staircase(const Step& s, int group = 0) : thresholds(s.thresholds), threshold(s.threshold) {
        std::fill(rise, rise + thresholds, 0);
        for (int i = 0; i < thresholds; i++)
            for (int j = 0; j < s.a_planes; j++) {
                if (s.a_group[j] != group) continue;
                const uint8_t* bits = s.a_bits + j * (thresholds + 1);
                rise[i] += s.a_multiplier[j] * (bits[i + 1] - bits[i]);
            }
    }
};

inline FewBytes few_codes(const Staircase& stairs, const float* x) {
    Integers code = {};
    for (int i = 0; i < stairs.thresholds; i++)
        code += (Integers)(read<Floats>(x) >= stairs.threshold[i]) & stairs.rise[i];
    return bytes_of(code);
}

// The codes of n floats. The compiler's conversion of single vectors is slow, so 32 go together.
inline void codes_of(const Staircase& stairs, const float* x, int n, uint8_t* to) {
    int i = 0;
#if defined(__AVX512BW__)
    if (stairs.thresholds <= MOST_REACHED) {
        const Reached reached(stairs.threshold, stairs.thresholds);
        int32_t code[MOST_REACHED + 1] = {};
        for (int k = 0; k < stairs.thresholds; k++) code[k + 1] = code[k] + stairs.rise[k];
        const __m512i codes = _mm512_loadu_si512(code);
        const auto code_of = [&](const float* x) {
            return _mm512_cvtepi32_epi8(_mm512_permutexvar_epi32((__m512i)reached(read<Floats>(x)), codes));
        };
        for (; i + 32 <= n; i += 32) {
            _mm_storeu_si128((__m128i*)(to + i), code_of(x + i));
            _mm_storeu_si128((__m128i*)(to + i + 16), code_of(x + i + 16));
        }
    }
    for (; i + 64 <= n; i += 64) {
        __m512i code[4] = {};
        for (int k = 0; k < stairs.thresholds; k++) {
            const __m512 t = _mm512_set1_ps(stairs.threshold[k]);
            const __m512i rise = _mm512_set1_epi32(stairs.rise[k]);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                const __mmask16 reached = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i + 16 * v), t, _CMP_GE_OQ);
                code[v] = _mm512_mask_add_epi32(code[v], reached, code[v], rise);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            _mm_storeu_si128((__m128i*)(to + i + 16 * v), _mm512_cvtepi32_epi8(code[v]));
    }
#endif
#if defined(__AVX2__)
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (; i + 32 <= n; i += 32) {
        __m256i code[4] = {};
        for (int k = 0; k < stairs.thresholds; k++) {
            const __m256 t = _mm256_set1_ps(stairs.threshold[k]);
            const __m256i rise = _mm256_set1_epi32(stairs.rise[k]);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                const __m256 reached = _mm256_cmp_ps(_mm256_loadu_ps(x + i + 8 * v), t, _CMP_GE_OQ);
                code[v] = _mm256_add_epi32(code[v], _mm256_and_si256(_mm256_castps_si256(reached), rise));
            }
        }
        const __m256i low = _mm256_packs_epi32(code[0], code[1]), high = _mm256_packs_epi32(code[2], code[3]);
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
        _mm256_storeu_si256((__m256i*)(to + i), bytes);
    }
#endif
    for (; i + FLOATS <= n; i += FLOATS) {
        const FewBytes codes = few_codes(stairs, x + i);
        std::memcpy(to + i, &codes, sizeof codes);
    }
    if (i == n) return;
    float rest[FLOATS] = {};
    std::memcpy(rest, x + i, sizeof(float) * (n - i));
    const FewBytes codes = few_codes(stairs, rest);
    std::memcpy(to + i, &codes, n - i);
}

// The codes of row y of the image: (W, groups of the pixel x GROUP).
inline void row_codes(const Step& s, const Staircase& stairs, const float* x, int y, uint8_t* to) {
    const int each = pixel_groups(s) * GROUP;
    x += size_t(y) * s.wide * s.channels;
    if (each == s.channels) return codes_of(stairs, x, s.wide * s.channels, to);
    for (int pixel = 0; pixel < s.wide; pixel++, x += s.channels, to += each) {
        codes_of(stairs, x, s.channels, to);
        std::memset(to + s.channels, 0, each - s.channels);
    }
}

// The codes of every group of planes. With at most MOST_HANDED thresholds, the number of those reached is computed
// once, and a table of each group turns it into the group's code. With more, each group has its own staircase.
class GroupCodes {
    std::vector<Staircase> stairs;
    std::vector<uint8_t> table;  // (groups, 16)

  public:
    explicit GroupCodes(const Step& s) {
        stairs.reserve(s.a_groups);
        for (int h = 0; h < s.a_groups; h++) stairs.emplace_back(s, h);
        if (s.thresholds > MOST_HANDED) return;
        table.assign(16 * s.a_groups, 0);
        for (int h = 0; h < s.a_groups; h++)
            for (int i = 0, code = 0; i < s.thresholds; i++)
                table[16 * h + i + 1] = uint8_t(code += stairs[h].rise[i]);
        if (s.a_groups > 1) std::fill(stairs[0].rise, stairs[0].rise + s.thresholds, 1);
    }

    // Row y of the image; `bytes` lie between the rows of two groups.
    void row(const Step& s, const float* x, int y, uint8_t* to, size_t bytes) const {
        const int groups = int(stairs.size());
        row_codes(s, stairs[0], x, y, to);
        if (groups == 1) return;
        if (table.empty()) {
            for (int h = 1; h < groups; h++) row_codes(s, stairs[h], x, y, to + bytes * h);
            return;
        }
        const size_t n = size_t(s.wide) * pixel_groups(s) * GROUP;
        for (int h = groups - 1; h >= 0; h--) look_up(table.data() + 16 * h, to, n, to + bytes * h);
    }

    // The same from codes of levels (H, W, C), C a multiple of four.
    void row(const Step& s, const uint8_t* codes, int y, uint8_t* to, size_t bytes) const {
        const size_t n = size_t(s.wide) * s.channels;
        for (size_t h = 0; h < stairs.size(); h++) look_up(table.data() + 16 * h, codes + n * y, n, to + bytes * h);
    }

  private:
    static void look_up(const uint8_t* table, const uint8_t* codes, size_t n, uint8_t* to) {
        size_t i = 0;
#if defined(__AVX2__)
        const __m256i sixteen = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
        for (; i + 32 <= n; i += 32) {
            const __m256i index = _mm256_loadu_si256((const __m256i*)(codes + i));
            _mm256_storeu_si256((__m256i*)(to + i), _mm256_shuffle_epi8(sixteen, index));
        }
#endif
        for (; i < n; i++) to[i] = table[codes[i]];
    }
};

// The sums of the pixels of a padded row, for kernels that keep them behind what they pack of a group of
// planes: `bytes` lie between two groups, and `at` before the sums.
inline void copy_sums(const Layer& layer, const uint8_t* packed, size_t bytes, size_t at, int row, int32_t* sums) {
    const int groups = layer.step.a_groups, wide = layer.padded_wide();
    const uint8_t* from = packed + bytes * groups * row + at;
    for (int h = 0; h < groups; h++, from += bytes, sums += wide) std::memcpy(sums, from, sizeof(int32_t) * wide);
}

// The sum of n codes, a multiple of four.
inline int32_t sum_of_codes(const uint8_t* codes, int n) {
    const uint64_t mask = 0x00ff00ff00ff00ff;
    uint64_t total = 0;
    for (; n > 0; n -= 8, codes += 8) {
        const uint64_t eight = n >= 8 ? read<uint64_t>(codes) : read<uint32_t>(codes);
        total += (((eight & mask) + (eight >> 8 & mask)) * 0x0001000100010001) >> 48;
    }
    return int32_t(total);
}
