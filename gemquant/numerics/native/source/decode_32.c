/* Types with blocks of 32 weights back to numbers: dequantize_row_q4_0 and its like in ggml-quants.c. */
#include "decode.h"

/* Codes of five bits: the fifth bits of all 32 first. */
static void unpack_fives(const uint8_t *restrict from, int offset, int8_t *restrict codes) {
    uint32_t fifths;
    memcpy(&fifths, from, sizeof fifths);
    unpack_fours(from + 4, offset, codes);
    for (int i = 0; i < 32; ++i) codes[i] = (int8_t)(codes[i] + (int8_t)((fifths >> i & 1) << 4));
}

static void q4_0(const uint8_t *restrict block, float *restrict out) {
    int8_t codes[32];
    unpack_fours(block + 2, 8, codes);
    times(half_at(block), codes, 32, out);
}

static void q4_1(const uint8_t *restrict block, float *restrict out) {
    int8_t codes[32];
    unpack_fours(block + 4, 0, codes);
    times_plus(half_at(block), half_at(block + 2), codes, 32, out);
}

static void q5_0(const uint8_t *restrict block, float *restrict out) {
    int8_t codes[32];
    unpack_fives(block + 2, 16, codes);
    times(half_at(block), codes, 32, out);
}

static void q5_1(const uint8_t *restrict block, float *restrict out) {
    int8_t codes[32];
    unpack_fives(block + 4, 0, codes);
    times_plus(half_at(block), half_at(block + 2), codes, 32, out);
}

static void q8_0(const uint8_t *restrict block, float *restrict out) {
    times(half_at(block), (const int8_t *)block + 2, 32, out);
}

static void iq4_nl(const uint8_t *restrict block, float *restrict out) {
    int8_t codes[32];
    unpack_values(block + 2, codes);
    times(half_at(block), codes, 32, out);
}

GQ_API void gq_dequantize_q4_0(const uint8_t *blocks, float *out, int64_t rows, int64_t columns) {
    FOR_EVERY_BLOCK(32, 18, q4_0);
}

GQ_API void gq_dequantize_q4_1(const uint8_t *blocks, float *out, int64_t rows, int64_t columns) {
    FOR_EVERY_BLOCK(32, 20, q4_1);
}

GQ_API void gq_dequantize_q5_0(const uint8_t *blocks, float *out, int64_t rows, int64_t columns) {
    FOR_EVERY_BLOCK(32, 22, q5_0);
}

GQ_API void gq_dequantize_q5_1(const uint8_t *blocks, float *out, int64_t rows, int64_t columns) {
    FOR_EVERY_BLOCK(32, 24, q5_1);
}

GQ_API void gq_dequantize_q8_0(const uint8_t *blocks, float *out, int64_t rows, int64_t columns) {
    FOR_EVERY_BLOCK(32, 34, q8_0);
}

GQ_API void gq_dequantize_iq4_nl(const uint8_t *blocks, float *out, int64_t rows, int64_t columns) {
    FOR_EVERY_BLOCK(32, 18, iq4_nl);
}
