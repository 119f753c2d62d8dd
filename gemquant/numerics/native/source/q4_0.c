/* Q4_0 and Q5_0: blocks of 32 weights, w = d · code, codes from −8 to 7 or −16 to 15.
   ggml-quants.c: quantize_row_q4_0_ref, quantize_row_q4_0_impl and the same of q5_0. */
#include "blocks_32.h"
#include "gemquant.h"
#include "super_block.h"

/* The weight of the greatest magnitude, the first of several; 0 for a block of zeros. */
ALWAYS_INLINE float farthest_from_zero(const float *x) {
    const struct ends_of_block ends = ends_of_block(x);
    if (ends.most > -ends.least) return ends.most;
    if (ends.most < -ends.least) return ends.least;
    if (ends.most == 0.f) return 0.f;
    for (int i = 0; i < 32; ++i)
        if (x[i] == ends.most || x[i] == ends.least) return x[i];
    return 0.f; /* where there are NaNs */
}

ALWAYS_INLINE void plain_block(const float *x, int levels, uint8_t *d_out, int32_t *codes) {
    const float d = farthest_from_zero(x) / (float)-levels;
    const float inverse = d != 0.f ? 1.f / d : 0.f;
    store_half(d_out, half_of(d));
    for (int i = 0; i < 32; i += LANES) {
        const lanes raised = lanes_load(x + i) * inverse + ((float)levels + 0.5f);
        const int_lanes code = lanes_least(lanes_truncate(raised), 2 * levels - 1);
        memcpy(codes + i, &code, sizeof code);
    }
}

ALWAYS_INLINE void weighted_blocks(
    const struct weighted_batch *batch, float levels, int block_bytes,
    void (*pack)(const int32_t *, uint8_t *), uint8_t *out
) {
    ALIGNED float scales[TILE], inverses[TILE];
    ALIGNED int32_t zero[TILE], codes[32];
    for (int lane = 0; lane < TILE; lane += LANES) {
        const struct scale_fit fit =
            search_scale(32, levels, &batch->x[0][lane], &batch->weights[0][lane], 0);
        lanes_store(scales + lane, fit.scale);
        lanes_store(inverses + lane, fit.inverse);
        memcpy(zero + lane, &fit.zero, sizeof fit.zero);
    }
    for (int n = 0; n < batch->blocks.used; ++n, out += block_bytes) {
        const float *x = batch->blocks.x[n];
        codes_of_search(x, inverses[n], zero[n], levels, codes);
        codes_of_search(x + 16, inverses[n], zero[n], levels, codes + 16);
        store_half(out, half_of(scales[n]));
        pack(codes, out + 2);
    }
}

static void weighted_fours(const struct weighted_batch *batch, uint8_t *out) {
    weighted_blocks(batch, 8, 18, pack_fours, out);
}

static void weighted_fives(const struct weighted_batch *batch, uint8_t *out) {
    weighted_blocks(batch, 16, 22, pack_fives, out);
}

GQ_API void gq_quantize_q4_0(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance
) {
    if (importance) {
        in_weighted_batches(x, out, rows, columns, importance, 18, weighted_fours);
        return;
    }
    for (int64_t block = 0; block < rows * columns / 32; ++block, x += 32, out += 18) {
        ALIGNED int32_t codes[32];
        plain_block(x, 8, out, codes);
        pack_fours(codes, out + 2);
    }
}

GQ_API void gq_quantize_q5_0(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance
) {
    if (importance) {
        in_weighted_batches(x, out, rows, columns, importance, 22, weighted_fives);
        return;
    }
    for (int64_t block = 0; block < rows * columns / 32; ++block, x += 32, out += 22) {
        ALIGNED int32_t codes[32];
        plain_block(x, 16, out, codes);
        pack_fives(codes, out + 2);
    }
}
