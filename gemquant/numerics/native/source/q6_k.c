/* Q6_K: 256 weights in 16 blocks of 16, w = d · scale · code, code from −32 to 31, scale int8.
   ggml-quants.c: quantize_row_q6_K_ref, quantize_row_q6_K_impl. */
#include "gemquant.h"
#include "super_block.h"

#include <math.h>

struct q6_k {
    uint8_t low[128]; /* lower 4 bits of the codes + 32 */
    uint8_t high[64]; /* upper 2 bits */
    int8_t scale[16];
    uint8_t d[2];
};

static void pack(const uint8_t *restrict codes, struct q6_k *restrict out) {
    for (int half = 0; half < 2; ++half) {
        const uint8_t *restrict q = codes + 128 * half;
        for (int i = 0; i < 32; ++i) {
            out->low[64 * half + i] = (uint8_t)((q[i] & 15) | q[i + 64] << 4);
            out->low[64 * half + i + 32] = (uint8_t)((q[i + 32] & 15) | q[i + 96] << 4);
            out->high[32 * half + i] = (uint8_t)(q[i] >> 4 | (q[i + 32] >> 4) << 2 |
                                                 (q[i + 64] >> 4) << 4 | (q[i + 96] >> 4) << 6);
        }
    }
}

static void super_block(const float *x, const float *importance, struct q6_k *out) {
    ALIGNED float tile[16][TILE], weights[16][TILE];
    ALIGNED float scales[16], inverses[16];
    ALIGNED int32_t zero[16], codes[256];
    to_tile(16, x, tile);
    if (importance) to_tile(16, importance, weights);
    for (int lane = 0; lane < 16; lane += LANES) {
        const struct scale_fit found =
            search_scale(16, 32.f, &tile[0][lane], importance ? &weights[0][lane] : NULL, 0);
        lanes_store(scales + lane, found.scale);
        lanes_store(inverses + lane, found.inverse);
        memcpy(zero + lane, &found.zero, sizeof found.zero);
    }

    float largest = 0.f, size = 0.f;
    for (int block = 0; block < 16; ++block) {
        const float absolute = fabsf(scales[block]);
        if (absolute > size) size = absolute, largest = scales[block];
    }
    if (size < ZERO_BLOCK) {
        memset(out, 0, sizeof *out);
        return;
    }
    const float inverse = -128.f / largest;
    const uint16_t half = half_of(1.f / inverse);
    store_half(out->d, half);
    const float d = half_value(half);
    for (int block = 0; block < 16; ++block) {
        const int32_t scale = nearest_int(inverse * scales[block]);
        out->scale[block] = (int8_t)(scale > 127 ? 127 : scale);
    }
    for (int block = 0; block < 16; ++block) {
        const float final = d * (float)out->scale[block];
        if (final == 0.f)
            codes_of_search(x + 16 * block, inverses[block], zero[block], 32, codes + 16 * block);
        else
            codes_of_scale(x + 16 * block, final, 32, codes + 16 * block);
    }
    ALIGNED uint8_t narrow[256];
    for (int i = 0; i < 256; ++i) narrow[i] = (uint8_t)codes[i];
    pack(narrow, out);
}

GQ_API void gq_quantize_q6_k(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance
) {
    const int64_t blocks = columns / 256;
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t block = 0; block < blocks; ++block) {
            super_block(x, importance ? importance + 256 * block : NULL, (struct q6_k *)out);
            x += 256;
            out += sizeof(struct q6_k);
        }
}
