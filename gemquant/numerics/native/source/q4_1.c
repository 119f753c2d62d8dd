/* Q4_1 and Q5_1: blocks of 32 weights, w = d · code + minimum, codes from 0 to 15 or 31.
   ggml-quants.c: quantize_row_q4_1_ref, quantize_row_q4_1_impl and the same of q5_1. */
#include "blocks_32.h"
#include "gemquant.h"
#include "k_fit.h"

ALWAYS_INLINE struct ends_of_block first_ends(const float *x) {
    struct ends_of_block ends = ends_of_block(x);
    /* Of several zeros the first gives the sign, which is stored. */
    if (ends.least == 0.f || ends.most == 0.f) {
        ends = (struct ends_of_block){x[0], x[0]};
        for (int i = 1; i < 32; ++i) {
            if (x[i] < ends.least) ends.least = x[i];
            if (x[i] > ends.most) ends.most = x[i];
        }
    }
    return ends;
}

ALWAYS_INLINE void plain_block(const float *x, int top, uint8_t *out, int32_t *codes) {
    const struct ends_of_block ends = first_ends(x);
    const float d = (ends.most - ends.least) / (float)top;
    const float inverse = d != 0.f ? 1.f / d : 0.f;
    store_half(out, half_of(d));
    store_half(out + 2, half_of(ends.least));
    for (int i = 0; i < 32; i += LANES) {
        const lanes raised = (lanes_load(x + i) - ends.least) * inverse + 0.5f;
        int_lanes code = lanes_truncate(raised);
        if (top == 15) code = lanes_least(code, top); /* ggml has no limit for Q5_1 */
        memcpy(codes + i, &code, sizeof code);
    }
}

ALWAYS_INLINE void weighted_blocks(
    const struct weighted_batch *batch, float top, int block_bytes,
    void (*pack)(const int32_t *, uint8_t *), uint8_t *out
) {
    const struct grid grid = {32, top, -0.9f, 0.05f, .steps = 36, .limits_first = 1};
    struct fits fits;
    const int vectors = TILE / LANES < VECTORS ? TILE / LANES : VECTORS;
    for (int lane = 0; lane < TILE; lane += vectors * LANES) {
        const float *x[VECTORS], *weights[VECTORS];
        EACH_VECTOR {
            x[k] = &batch->x[0][lane + k * LANES];
            weights[k] = &batch->weights[0][lane + k * LANES];
        }
        fit_vectors(vectors, grid, x, weights, &fits, lane);
    }
    for (int n = 0; n < batch->blocks.used; ++n, out += block_bytes) {
        uint8_t narrow[32];
        ALIGNED int32_t codes[32];
        fitted_codes(grid, batch->blocks.x[n], &fits, n, narrow);
        for (int i = 0; i < 32; ++i) codes[i] = narrow[i];
        store_half(out, half_of(fits.scale[n]));
        store_half(out + 2, half_of(-fits.minimum[n]));
        pack(codes, out + 4);
    }
}

static void weighted_fours(const struct weighted_batch *batch, uint8_t *out) {
    weighted_blocks(batch, 15, 20, pack_fours, out);
}

static void weighted_fives(const struct weighted_batch *batch, uint8_t *out) {
    weighted_blocks(batch, 31, 24, pack_fives, out);
}

GQ_API void gq_quantize_q4_1(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance
) {
    if (importance) {
        in_weighted_batches(x, out, rows, columns, importance, 20, weighted_fours);
        return;
    }
    for (int64_t block = 0; block < rows * columns / 32; ++block, x += 32, out += 20) {
        ALIGNED int32_t codes[32];
        plain_block(x, 15, out, codes);
        pack_fours(codes, out + 4);
    }
}

GQ_API void gq_quantize_q5_1(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance
) {
    if (importance) {
        in_weighted_batches(x, out, rows, columns, importance, 24, weighted_fives);
        return;
    }
    for (int64_t block = 0; block < rows * columns / 32; ++block, x += 32, out += 24) {
        ALIGNED int32_t codes[32];
        plain_block(x, 31, out, codes);
        pack_fives(codes, out + 4);
    }
}
