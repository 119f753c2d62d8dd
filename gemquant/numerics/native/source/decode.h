/* Blocks back to numbers: codes are unpacked to bytes, then multiplied out. */
#ifndef GEMQUANT_DECODE_H
#define GEMQUANT_DECODE_H

#include "gemquant.h"
#include "lanes.h"
#include "rounding.h"

ALWAYS_INLINE float half_at(const uint8_t *from) {
    uint16_t half;
    memcpy(&half, from, sizeof half);
    return half_value(half);
}

ALWAYS_INLINE void times(float scale, const int8_t *restrict codes, int count, float *restrict out) {
    for (int i = 0; i < count; ++i) out[i] = scale * (float)codes[i];
}

ALWAYS_INLINE void times_plus(
    float scale, float low, const int8_t *restrict codes, int count, float *restrict out
) {
    for (int i = 0; i < count; ++i) out[i] = scale * (float)codes[i] + low;
}

/* 16 bytes to 32 codes: the lower halves first, then the upper ones. */
ALWAYS_INLINE void unpack_fours(const uint8_t *restrict from, int offset, int8_t *restrict codes) {
    for (int i = 0; i < 16; ++i) {
        codes[i] = (int8_t)((from[i] & 15) - offset);
        codes[i + 16] = (int8_t)((from[i] >> 4) - offset);
    }
}

/* The values that IQ4's codes stand for (kvalues_iq4nl). */
static const int8_t IQ4_VALUES[16] = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
};

ALWAYS_INLINE void unpack_values(const uint8_t *restrict from, int8_t *restrict codes) {
    for (int i = 0; i < 16; ++i) {
        codes[i] = IQ4_VALUES[from[i] & 15];
        codes[i + 16] = IQ4_VALUES[from[i] >> 4];
    }
}

/* Calls decode(block, out) for every block of rows. */
#define FOR_EVERY_BLOCK(size, bytes, decode)                       \
    for (int64_t block = 0; block < rows * columns / (size); ++block) \
        decode(blocks + (bytes) * block, out + (size) * block)

#endif
