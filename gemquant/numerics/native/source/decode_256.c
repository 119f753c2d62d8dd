/* Types with super-blocks of 256 weights back to numbers: dequantize_row_q4_K and its like in
   ggml-quants.c. */
#include "decode.h"

/* scales: a pair of 4 bits for 16 weights each; codes of 2 bits, 32 weights apart. */
static void q2_k(const uint8_t *restrict block, float *restrict out) {
    const uint8_t *restrict packed = block + 16;
    const float d = half_at(block + 80), d_low = half_at(block + 82);
    int8_t codes[256];
    for (int half = 0; half < 2; ++half)
        for (int pair = 0; pair < 4; ++pair)
            for (int i = 0; i < 32; ++i)
                codes[128 * half + 32 * pair + i] = (int8_t)(packed[32 * half + i] >> 2 * pair & 3);
    for (int k = 0; k < 16; ++k) {
        const float scale = d * (float)(block[k] & 15), low = d_low * (float)(block[k] >> 4);
        times_plus(scale, -low, codes + 16 * k, 16, out + 16 * k);
    }
}

/* As written by q3_k.c: third bits, two bits each, scales of 6 bits. */
static void q3_k(const uint8_t *restrict block, float *restrict out) {
    const uint8_t *restrict packed = block + 32, *restrict scales = block + 96;
    const float d = half_at(block + 108);
    int8_t codes[256];
    for (int half = 0; half < 2; ++half)
        for (int pair = 0; pair < 4; ++pair)
            for (int i = 0; i < 32; ++i) {
                const int low = packed[32 * half + i] >> 2 * pair & 3;
                const int high = block[i] >> (4 * half + pair) & 1;
                codes[128 * half + 32 * pair + i] = (int8_t)(low + 4 * high - 4);
            }
    for (int k = 0; k < 16; ++k) {
        const int low = scales[k % 8] >> 4 * (k / 8) & 15, high = scales[8 + k % 4] >> 2 * (k / 4) & 3;
        times(d * (float)(low + 16 * high - 32), codes + 16 * k, 16, out + 16 * k);
    }
}

/* 8 pairs of a scale and a minimum, six bits each, in 12 bytes. */
ALWAYS_INLINE void sixes(const uint8_t *restrict from, uint8_t *restrict scale, uint8_t *restrict low) {
    for (int k = 0; k < 4; ++k) {
        scale[k] = from[k] & 63;
        low[k] = from[k + 4] & 63;
        scale[k + 4] = (uint8_t)((from[k + 8] & 15) | from[k] >> 6 << 4);
        low[k + 4] = (uint8_t)(from[k + 8] >> 4 | from[k + 4] >> 6 << 4);
    }
}

ALWAYS_INLINE void with_sixes(const uint8_t *block, const int8_t *codes, float *out) {
    const float d = half_at(block), d_low = half_at(block + 2);
    uint8_t scale[8], low[8];
    sixes(block + 4, scale, low);
    for (int k = 0; k < 8; ++k)
        times_plus(
            d * (float)scale[k], -(d_low * (float)low[k]), codes + 32 * k, 32, out + 32 * k
        );
}

static void q4_k(const uint8_t *restrict block, float *restrict out) {
    const uint8_t *restrict packed = block + 16;
    int8_t codes[256];
    for (int pair = 0; pair < 4; ++pair)
        for (int i = 0; i < 32; ++i) {
            codes[64 * pair + i] = (int8_t)(packed[32 * pair + i] & 15);
            codes[64 * pair + 32 + i] = (int8_t)(packed[32 * pair + i] >> 4);
        }
    with_sixes(block, codes, out);
}

static void q5_k(const uint8_t *restrict block, float *restrict out) {
    const uint8_t *restrict fifths = block + 16, *restrict packed = block + 48;
    int8_t codes[256];
    for (int pair = 0; pair < 4; ++pair)
        for (int i = 0; i < 32; ++i) {
            const int two = fifths[i] >> 2 * pair;
            codes[64 * pair + i] = (int8_t)((packed[32 * pair + i] & 15) | (two & 1) << 4);
            codes[64 * pair + 32 + i] = (int8_t)(packed[32 * pair + i] >> 4 | (two & 2) << 3);
        }
    with_sixes(block, codes, out);
}

/* As written by q6_k.c. */
static void q6_k(const uint8_t *restrict block, float *restrict out) {
    const int8_t *restrict scales = (const int8_t *)block + 192;
    const float d = half_at(block + 208);
    int8_t codes[256];
    for (int half = 0; half < 2; ++half) {
        const uint8_t *restrict low = block + 64 * half, *restrict high = block + 128 + 32 * half;
        int8_t *restrict to = codes + 128 * half;
        for (int i = 0; i < 32; ++i) {
            to[i] = (int8_t)(((low[i] & 15) | (high[i] & 3) << 4) - 32);
            to[i + 32] = (int8_t)(((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4) - 32);
            to[i + 64] = (int8_t)((low[i] >> 4 | (high[i] >> 4 & 3) << 4) - 32);
            to[i + 96] = (int8_t)((low[i + 32] >> 4 | (high[i] >> 6) << 4) - 32);
        }
    }
    for (int k = 0; k < 16; ++k) times(d * (float)scales[k], codes + 16 * k, 16, out + 16 * k);
}

/* As written by iq4.c. */
static void iq4_xs(const uint8_t *restrict block, float *restrict out) {
    const float d = half_at(block);
    for (int k = 0; k < 8; ++k) {
        const int low = block[4 + k / 2] >> 4 * (k % 2) & 15;
        const int high = block[2 + k / 4] >> 2 * (k % 4) & 3;
        int8_t codes[32];
        unpack_values(block + 8 + 16 * k, codes);
        times(d * (float)(low + 16 * high - 32), codes, 32, out + 32 * k);
    }
}

GQ_API void gq_dequantize_q2_k(const uint8_t *blocks, float *out, int64_t rows, int64_t columns) {
    FOR_EVERY_BLOCK(256, 84, q2_k);
}

GQ_API void gq_dequantize_q3_k(const uint8_t *blocks, float *out, int64_t rows, int64_t columns) {
    FOR_EVERY_BLOCK(256, 110, q3_k);
}

GQ_API void gq_dequantize_q4_k(const uint8_t *blocks, float *out, int64_t rows, int64_t columns) {
    FOR_EVERY_BLOCK(256, 144, q4_k);
}

GQ_API void gq_dequantize_q5_k(const uint8_t *blocks, float *out, int64_t rows, int64_t columns) {
    FOR_EVERY_BLOCK(256, 176, q5_k);
}

GQ_API void gq_dequantize_q6_k(const uint8_t *blocks, float *out, int64_t rows, int64_t columns) {
    FOR_EVERY_BLOCK(256, 210, q6_k);
}

GQ_API void gq_dequantize_iq4_xs(const uint8_t *blocks, float *out, int64_t rows, int64_t columns) {
    FOR_EVERY_BLOCK(256, 136, iq4_xs);
}
