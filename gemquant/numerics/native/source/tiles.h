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

/* TILE blocks of ``length`` numbers, a multiple of 4, that follow one another. */
ALWAYS_INLINE void to_tile(int length, const float *from, float (*tile)[TILE]) {
    for (int i = 0; i < length; i += 4)
        for (int block = 0; block < TILE; block += 4) {
            const float *at = from + block * length + i;
            const float *const places[4] = {at, at + length, at + 2 * length, at + 3 * length};
            transpose_four(places, &tile[i][block]);
        }
}

/* The nearest integer, halves to even, where the magnitude is known to be below 2^22. */
ALWAYS_INLINE lanes lanes_round(lanes value) { return (value + ROUND_MAGIC) - ROUND_MAGIC; }

/* nearest_int in every lane, for any number at all. */
ALWAYS_INLINE int_lanes lanes_nearest(lanes value) {
    return ((int_lanes)(value + ROUND_MAGIC) & 0x007fffff) - 0x00400000;
}

/* Between two ends. */
ALWAYS_INLINE int_lanes lanes_clamp(int_lanes value, int32_t low, int32_t high) {
    const int_lanes below = value < low, above = value > high;
    value = (below & low) | (~below & value);
    return (above & high) | (~above & value);
}

static inline int32_t clamp(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

#endif
