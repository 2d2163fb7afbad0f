// Weights that stay in memory as codes of two or four bits, and become bytes when they are needed.
//
// All weights of a deep network do not fit into the caches near a core. Read as codes, they are a
// quarter or a half of the bytes of one group of planes, however many groups are made of them.
#pragma once
#include <cstdint>
#include <cstring>

#include <immintrin.h>

constexpr int MOST_LEVELS = 16;  // that a look-up distinguishes

// Bits of a code for so many levels.
inline int code_bits(int levels) { return levels <= 4 ? 2 : 4; }

// codes (n,), n a multiple of 256, to n bits / 8 bytes. A vector of 64 bytes holds the codes of
// several vectors: byte j has those at j, 64 + j and so on, the first in the lowest bits.
inline void join_codes(const uint8_t* codes, size_t n, int bits, uint8_t* to) {
    const size_t vectors = 8 / bits, part = 64 * vectors;
    for (size_t i = 0; i < n; i++) {
        const size_t in = i % part;
        to[i / part * 64 + in % 64] |= uint8_t(codes[i] << in / 64 * bits);
    }
}

// The integers of each group: to[g] (n,), `between` bytes apart, from table[g] (MOST_LEVELS,).
inline void split_codes(const uint8_t* packed, size_t n, int bits, const int8_t* table, int groups,
                         int8_t* to, size_t between) {
    const __m512i mask = _mm512_set1_epi8(char((1 << bits) - 1));
    for (size_t at = 0; at < n; packed += 64) {
        __m512i codes = _mm512_loadu_si512(packed);
        for (int i = 0; i < 8 / bits; i++, at += 64) {
            const __m512i code = _mm512_and_si512(codes, mask);
            codes = _mm512_srli_epi16(codes, bits);
            for (int g = 0; g < groups; g++) {
                const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(table + MOST_LEVELS * g)));
                _mm512_storeu_si512(to + between * g + at, _mm512_shuffle_epi8(all, code));
            }
        }
    }
}
