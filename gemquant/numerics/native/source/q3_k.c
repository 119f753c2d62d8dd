/* Q3_K: 256 weights in 16 blocks of 16, w = d · scale · code, code from −4 to 3, scale from −32 to 31.
   ggml-quants.c: quantize_row_q3_K_ref, quantize_row_q3_K_impl. */
#include "batch.h"
#include "gemquant.h"
#include "q3_refine.h"
#include "super_block.h"

#include <math.h>

struct q3_k {
    uint8_t high[32];   /* third bit of the codes + 4: of weight i in byte i % 32, bit i / 32 */
    uint8_t low[64];    /* two bits each */
    uint8_t scales[12]; /* scales + 32: 16 times 4 lower bits, then 16 times 2 upper bits */
    uint8_t d[2];
};

static void pack_scales(const uint8_t *restrict scales, uint8_t *restrict out) {
    for (int i = 0; i < 8; ++i) out[i] = (uint8_t)((scales[i] & 15) | scales[i + 8] << 4);
    for (int i = 0; i < 4; ++i)
        out[8 + i] = (uint8_t)(scales[i] >> 4 | (scales[i + 4] >> 4) << 2 |
                               (scales[i + 8] >> 4) << 4 | (scales[i + 12] >> 4) << 6);
}

static void pack_codes(const uint8_t *restrict codes, struct q3_k *restrict out) {
    for (int i = 0; i < 32; ++i) {
        uint8_t high = 0;
        for (int bit = 0; bit < 8; ++bit) high |= (uint8_t)(codes[32 * bit + i] >> 2 << bit);
        out->high[i] = high;
    }
    for (int half = 0; half < 2; ++half) {
        const uint8_t *restrict q = codes + 128 * half;
        for (int i = 0; i < 32; ++i)
            out->low[32 * half + i] = (uint8_t)((q[i] & 3) | (q[i + 32] & 3) << 2 |
                                                (q[i + 64] & 3) << 4 | (q[i + 96] & 3) << 6);
    }
}

/* Whether a block's final scale is zero: ggml then leaves the codes that its search ended with. */
ALWAYS_INLINE int is_zero(uint16_t d, uint8_t scale) {
    return half_value(d) * (float)(scale - 32) == 0.f;
}

/* Write a super-block whose scales are known. scales: + 32, from 0 to 63. codes: those of the search
   where a block's final scale is zero; the others are filled in. */
static void finish(
    const float *x, const uint8_t *scales, uint16_t half, int32_t *codes, struct q3_k *out
) {
    const float d = half_value(half);
    for (int block = 0; block < 16; ++block) {
        const float final = d * (float)(scales[block] - 32);
        if (final != 0.f) codes_of_scale(x + 16 * block, final, 4, codes + 16 * block);
    }
    ALIGNED uint8_t narrow[256];
    for (int i = 0; i < 256; ++i) narrow[i] = (uint8_t)codes[i];
    pack_scales(scales, out->scales);
    pack_codes(narrow, out);
    store_half(out->d, half);
}

/* ---------------------------------------------------------------- without importances */

static void plain_super_block(
    const float *x, const float *fitted, float (*search_codes)[TILE], struct q3_k *out
) {
    float largest = 0.f, size = 0.f;
    for (int block = 0; block < 16; ++block) {
        const float absolute = fabsf(fitted[block]);
        if (absolute > size) size = absolute, largest = fitted[block];
    }
    uint8_t scales[16] = {0};
    uint16_t half = 0;
    if (largest != 0.f) {
        const float inverse = -32.f / largest;
        for (int block = 0; block < 16; ++block) {
            const int8_t scale = (int8_t)nearest_int(inverse * fitted[block]);
            scales[block] = (uint8_t)(clamp(scale, -32, 31) + 32);
        }
        half = half_of(1.f / inverse);
    }
    ALIGNED int32_t codes[256];
    for (int block = 0; block < 16; ++block)
        for (int i = 0; is_zero(half, scales[block]) && i < 16; ++i)
            codes[16 * block + i] = (int32_t)search_codes[i][block];
    finish(x, scales, half, codes, out);
}

static void plain_batch(const struct batch *batch, struct q3_k *out) {
    ALIGNED float tiles[TILE][16][TILE], codes[TILE][16][TILE], scales[TILE][TILE];
    for (int n = 0; n < batch->used; ++n) to_tile(16, batch->x[n], tiles[n]);
    const int vectors = batch->used * TILE / LANES;
    for (int first = 0; first < vectors; first += POOL) {
        const int count = vectors - first < POOL ? vectors - first : POOL;
        const float *x[POOL];
        float *code[POOL], *scale[POOL];
        for (int k = 0; k < count; ++k) {
            const int n = (first + k) * LANES / TILE, lane = (first + k) * LANES % TILE;
            x[k] = &tiles[n][0][lane], code[k] = &codes[n][0][lane], scale[k] = &scales[n][lane];
        }
        refine_scales(count, x, code, scale);
    }
    for (int n = 0; n < batch->used; ++n)
        plain_super_block(batch->x[n], scales[n], codes[n], out + n);
}

/* ---------------------------------------------------------------- with importances */

/* What the search of the blocks of a batch found, of every block of every super-block. */
struct found {
    float scale[TILE][16], sum_weights[TILE][16], inverse[TILE][16];
    int32_t zero[TILE][16];
};

static void search_blocks(
    const struct batch *batch, int n, float sum_of_squares, struct found *found
) {
    ALIGNED float tile[16][TILE], weights[16][TILE];
    to_tile(16, batch->x[n], tile);
    to_tile(16, batch->importance[n], weights);
    const lanes variance = lanes_all(2 * sum_of_squares / 256);
    for (int lane = 0; lane < TILE; lane += LANES) {
        const lanes sum = weigh(16, variance, &tile[0][lane], &weights[0][lane]);
        const struct scale_fit fit = search_scale(16, 4.f, &tile[0][lane], &weights[0][lane], 0);
        lanes_store(found->scale[n] + lane, fit.scale);
        lanes_store(found->sum_weights[n] + lane, sum);
        lanes_store(found->inverse[n] + lane, fit.inverse);
        memcpy(found->zero[n] + lane, &fit.zero, sizeof fit.zero);
    }
}

static void weighted_batch(const struct batch *batch, struct q3_k *out) {
    ALIGNED struct found found;
    ALIGNED float squares[TILE], scales[16][TILE], sum_weights[16][TILE];
    ALIGNED float d[TILE], inverses[TILE];
    ALIGNED int32_t zero[TILE], codes[256];
    sums_of_squares(batch->x, 256, squares);
    memset(&found, 0, sizeof found);
    for (int n = 0; n < batch->used; ++n) search_blocks(batch, n, squares[n], &found);

    to_tile(16, found.scale[0], scales);
    to_tile(16, found.sum_weights[0], sum_weights);
    for (int lane = 0; lane < TILE; lane += LANES) {
        const struct scale_fit fit =
            search_scale(16, 32.f, &scales[0][lane], &sum_weights[0][lane], 1);
        lanes_store(d + lane, fit.scale);
        lanes_store(inverses + lane, fit.inverse);
        memcpy(zero + lane, &fit.zero, sizeof fit.zero);
    }
    for (int n = 0; n < batch->used; ++n) {
        const uint16_t half = half_of(d[n]);
        int32_t wide[16];
        uint8_t final[16];
        codes_of_search(found.scale[n], inverses[n], zero[n], 32, wide);
        for (int block = 0; block < 16; ++block) {
            final[block] = (uint8_t)wide[block];
            if (is_zero(half, final[block]))
                codes_of_search(
                    batch->x[n] + 16 * block, found.inverse[n][block], found.zero[n][block], 4,
                    codes + 16 * block
                );
        }
        finish(batch->x[n], final, half, codes, out + n);
    }
}

GQ_API void gq_quantize_q3_k(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance
) {
    const int64_t per_row = columns / 256, total = rows * per_row;
    for (int64_t first = 0; first < total; first += TILE) {
        const struct batch batch = take_batch(x, importance, 256, first, total, per_row);
        struct q3_k *to = (struct q3_k *)out + first;
        if (importance)
            weighted_batch(&batch, to);
        else
            plain_batch(&batch, to);
    }
}
