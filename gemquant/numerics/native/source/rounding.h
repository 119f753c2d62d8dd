/* Rounding to integers and to half precision exactly as ggml does it. */
#ifndef GEMQUANT_ROUNDING_H
#define GEMQUANT_ROUNDING_H

#include <stdint.h>
#include <string.h>

/* 1.5 · 2^23: a sum with it has no fraction bits, so that adding it rounds to the nearest integer,
   halves to even, for magnitudes below 2^22. */
#define ROUND_MAGIC 12582912.f

static inline uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ggml's nearest_int, outside of its range too, where the result is what is left in the bits. */
static inline int32_t nearest_int(float value) {
    return (int32_t)(float_bits(value + ROUND_MAGIC) & 0x007fffff) - 0x00400000;
}

static inline int32_t nearest_code(float value, int32_t top) {
    const int32_t code = nearest_int(value);
    return code < 0 ? 0 : code > top ? top : code;
}

/* Half precision, to the nearest, halves to even; every NaN becomes the quiet one of its sign. */
static inline uint16_t half_of(float value) {
    const uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffff;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x477ff000) return sign | 0x7c00; /* 65520 and above round to infinity */
    if (magnitude < 0x38800000)                        /* below 2^-14: a multiple of 2^-24 */
        return (uint16_t)(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000));
    const uint32_t even = magnitude >> 13 & 1;
    return (uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + even) >> 13));
}

static inline float half_value(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
    if (magnitude < 0x0400) return bits_float(sign | float_bits((float)magnitude * 0x1p-24f));
    const uint32_t special = magnitude >= 0x7c00 ? 0x38000000 : 0;
    return bits_float(sign | ((magnitude << 13) + 0x38000000 + special));
}

static inline void store_half(uint8_t *to, uint16_t half) { memcpy(to, &half, sizeof half); }

#endif
