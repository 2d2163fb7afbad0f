// Vectors of bytes that look numbers up in tables of sixteen bytes.
//
// A vector holds TABLES parts of sixteen lanes: lane i of part t reads part t of the tables.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512BW__)
constexpr int TABLES = 4;
#define LOOKUP_NAME "tables (AVX-512)"
#elif defined(__AVX2__)
constexpr int TABLES = 2;
#define LOOKUP_NAME "tables (AVX2)"
#else
constexpr int TABLES = 1;
#if defined(__SSSE3__)
#define LOOKUP_NAME "tables (SSSE3)"
#elif defined(__aarch64__)
#define LOOKUP_NAME "tables (NEON)"
#else
#define LOOKUP_NAME "tables (portable)"
#endif
#endif

typedef uint8_t Bytes __attribute__((vector_size(16 * TABLES)));
typedef uint16_t Words __attribute__((vector_size(16 * TABLES)));

inline Bytes look_up(Bytes tables, Bytes index) {
#if defined(__AVX512BW__)
    return (Bytes)_mm512_shuffle_epi8((__m512i)tables, (__m512i)index);
#elif defined(__AVX2__)
    return (Bytes)_mm256_shuffle_epi8((__m256i)tables, (__m256i)index);
#elif defined(__SSSE3__)
    return (Bytes)_mm_shuffle_epi8((__m128i)tables, (__m128i)index);
#elif defined(__aarch64__)
    return (Bytes)vqtbl1q_u8((uint8x16_t)tables, (uint8x16_t)index);
#else
    uint8_t from[16], at[16], to[16];
    std::memcpy(from, &tables, 16);
    std::memcpy(at, &index, 16);
    for (int i = 0; i < 16; i++) to[i] = from[at[i]];
    std::memcpy(&tables, to, 16);
    return tables;
#endif
}

// Keep a vector in a register: the compiler would rather load it again for each use.
inline void keep(Bytes& v) {
#if defined(__AVX512BW__)
    asm("" : "+v"(v));
#elif defined(__x86_64__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
}

// Of each pair of bytes a, b: multiplier[0] a + multiplier[1] b, at most 32767.
inline Words weighted(Bytes pairs, const int* multiplier) {
    const uint16_t pair = uint16_t(multiplier[0] | multiplier[1] << 8);
    const Words both = Words{} + pair;
#if defined(__AVX512BW__)
    return (Words)_mm512_maddubs_epi16((__m512i)pairs, (__m512i)both);
#elif defined(__AVX2__)
    return (Words)_mm256_maddubs_epi16((__m256i)pairs, (__m256i)both);
#elif defined(__SSSE3__)
    return (Words)_mm_maddubs_epi16((__m128i)pairs, (__m128i)both);
#else
    return ((Words)pairs & 255) * (both & 255) + ((Words)pairs >> 8) * (both >> 8);
#endif
}
