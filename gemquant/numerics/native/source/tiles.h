/* Blocks of weights side by side: tiles of 16 blocks, [element][block], and rounding in lanes. */
#ifndef GEMQUANT_TILES_H
#define GEMQUANT_TILES_H

#include "lanes.h"
#include "rounding.h"

/* Blocks in a tile: a multiple of LANES at every level. */
enum { TILE = 16 };

#define ALIGNED __attribute__((aligned(64)))

typedef float four __attribute__((vector_size(16)));

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLED(left, right, ...) __builtin_shufflevector(left, right, __VA_ARGS__)
#else
#define SHUFFLED(left, right, ...) \
    __builtin_shuffle(left, right, (int32_t __attribute__((vector_size(16)))){__VA_ARGS__})
#endif

/* Four numbers from each of four places to one column of a tile each. */
ALWAYS_INLINE void transpose_four(const float *const from[4], float *to) {
    four a, b, c, d;
    memcpy(&a, from[0], sizeof a);
    memcpy(&b, from[1], sizeof b);
    memcpy(&c, from[2], sizeof c);
    memcpy(&d, from[3], sizeof d);
    const four ab = SHUFFLED(a, b, 0, 4, 1, 5), cd = SHUFFLED(c, d, 0, 4, 1, 5);
    const four ab_high = SHUFFLED(a, b, 2, 6, 3, 7), cd_high = SHUFFLED(c, d, 2, 6, 3, 7);
    const four columns[4] = {
        SHUFFLED(ab, cd, 0, 1, 4, 5), SHUFFLED(ab, cd, 2, 3, 6, 7),
        SHUFFLED(ab_high, cd_high, 0, 1, 4, 5), SHUFFLED(ab_high, cd_high, 2, 3, 6, 7),
    };
    for (int k = 0; k < 4; ++k) memcpy(to + k * TILE, &columns[k], sizeof columns[k]);
}

/* TILE blocks of ``length`` numbers, a multiple of 4: the start of each block. */
ALWAYS_INLINE void gather_tile(int length, const float *const *blocks, float (*tile)[TILE]) {
    for (int i = 0; i < length; i += 4)
        for (int block = 0; block < TILE; block += 4) {
            const float *const places[4] = {
                blocks[block] + i, blocks[block + 1] + i, blocks[block + 2] + i, blocks[block + 3] + i,
            };
            transpose_four(places, &tile[i][block]);
        }
}

/* TILE blocks of ``length`` numbers that follow one another. */
ALWAYS_INLINE void to_tile(int length, const float *from, float (*tile)[TILE]) {
    const float *blocks[TILE];
    for (int block = 0; block < TILE; ++block) blocks[block] = from + block * length;
    gather_tile(length, blocks, tile);
}

/* The nearest integer, halves to even, where the magnitude is known to be below 2^22; zero may have
   any sign. */
ALWAYS_INLINE lanes lanes_round(lanes value) {
#if LANES == 16
    return (lanes)_mm512_roundscale_ps((__m512)value, _MM_FROUND_TO_NEAREST_INT);
#elif LANES == 8
    return (lanes)_mm256_round_ps((__m256)value, _MM_FROUND_TO_NEAREST_INT);
#else
    return (value + ROUND_MAGIC) - ROUND_MAGIC;
#endif
}

/* nearest_int in every lane, for any number at all, as a number: whatever the sum became, ggml reads
   its last 23 bits, which are here read with the exponent that makes them a number again. */
ALWAYS_INLINE lanes lanes_nearest_int(lanes value) {
    const int_lanes bits = (int_lanes)(value + ROUND_MAGIC);
    return (lanes)((bits & 0x007fffff) | 0x4b000000) - ROUND_MAGIC;
}

/* Between two ends; ``value`` is a number. */
ALWAYS_INLINE lanes lanes_clamp(lanes value, float low, float high) {
    return lanes_min(lanes_max(value, lanes_all(low)), lanes_all(high));
}

/* value < limit ? value : limit. */
ALWAYS_INLINE int_lanes lanes_least(int_lanes value, int32_t limit) {
    const int_lanes below = value < limit;
    return (below & value) | (~below & limit);
}

/* The sign bits of all lanes, the first lane's last. */
ALWAYS_INLINE uint32_t lanes_signs(int_lanes value) {
#if LANES == 16
    return (uint32_t)_mm512_movepi32_mask((__m512i)value);
#elif LANES == 8
    return (uint32_t)_mm256_movemask_ps((__m256)value);
#elif defined(__x86_64__)
    return (uint32_t)_mm_movemask_ps((__m128)value);
#else
    uint32_t signs = 0;
    for (int lane = 0; lane < LANES; ++lane) signs |= ((uint32_t)value[lane] >> 31) << lane;
    return signs;
#endif
}

/* Integers from 0 to 2^22 to the last bytes of 32-bit integers. */
ALWAYS_INLINE void store_codes(int32_t *to, lanes code) {
    code += ROUND_MAGIC;
    memcpy(to, &code, sizeof code);
}

static inline int32_t clamp(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

#endif
