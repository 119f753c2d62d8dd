/* IQ4_NL and IQ4_XS: blocks of 32 weights, w = scale · value[code], from a fixed table of 16 values.
   IQ4_NL stores each block's scale, IQ4_XS 8 of them in 6 bits for a super-block of 256.
   ggml-quants.c: quantize_row_iq4_nl_impl with 7 tries to either side. */
#include "gemquant.h"
#include "batch.h"
#include "iq4_search.h"

#include <math.h>

struct iq4_nl {
    uint8_t d[2];
    uint8_t codes[16]; /* of weights i and i + 16 in byte i */
};

struct iq4_xs {
    uint8_t d[2];
    uint8_t high[2]; /* upper 2 bits of the scales + 32 */
    uint8_t low[4];  /* lower 4 bits */
    uint8_t codes[8][16];
};

static void store_block(const float *x, float inverse, uint8_t *out) {
    ALIGNED int32_t codes[32];
    for (int i = 0; i < 32; i += LANES) {
        const int_lanes code = table_index(lanes_load(x + i) * inverse);
        memcpy(codes + i, &code, sizeof code);
    }
    for (int i = 0; i < 16; ++i) out[i] = (uint8_t)(codes[i] | codes[i + 16] << 4);
}

static void store_super_block(const float *x, const float *scales, struct iq4_xs *out) {
    float largest = 0.f, size = 0.f;
    for (int block = 0; block < 8; ++block) {
        const float absolute = fabsf(scales[block]);
        if (absolute > size) size = absolute, largest = scales[block];
    }
    const float d = -largest / 32;
    const float inverse = d != 0.f ? 1 / d : 0.f;
    uint32_t high = 0;
    memset(out->low, 0, sizeof out->low);
    for (int block = 0; block < 8; ++block) {
        const int32_t scale = clamp(nearest_int(inverse * scales[block]), -32, 31);
        const float final = d * (float)scale;
        store_block(x + 32 * block, final != 0.f ? 1 / final : 0.f, out->codes[block]);
        out->low[block / 2] |= (uint8_t)(((scale + 32) & 15) << 4 * (block % 2));
        high |= (uint32_t)((scale + 32) >> 4) << 2 * block;
    }
    out->high[0] = (uint8_t)high;
    out->high[1] = (uint8_t)(high >> 8);
    store_half(out->d, half_of(d));
}

/* The scales of a batch of blocks. span: weights that share a variance, 32 or 256. */
ALWAYS_INLINE void search_batch(const struct batch *batch, int span, float *scales) {
    ALIGNED float tile[32][TILE], weights[32][TILE], sums[TILE], spread[TILE];
    gather_tile(32, batch->x, tile);
    if (batch->importance[0]) {
        gather_tile(32, batch->importance, weights);
        if (span == 256) {
            const float *starts[TILE];
            /* A block that repeats the last one is not the first of a whole super-block. */
            for (int n = 0; n < TILE; ++n) starts[n] = batch->x[n < batch->used ? n / 8 * 8 : 0];
            sums_of_squares(starts, 256, sums);
        } else {
            sums_of_squares(batch->x, 32, sums);
        }
        for (int n = 0; n < TILE; ++n) spread[n] = sums[n] * (2.f / (float)span);
    }
    for (int lane = 0; lane < TILE; lane += LANES) {
        const float *x = &tile[0][lane];
        float *weight = batch->importance[0] ? &weights[0][lane] : NULL;
        if (weight) weigh(32, lanes_load(spread + lane), x, weight);
        lanes_store(scales + lane, search_table_scale(x, weight));
    }
}

GQ_API void gq_quantize_iq4_nl(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance
) {
    const int64_t per_row = columns / 32, total = rows * per_row;
    struct iq4_nl *blocks = (struct iq4_nl *)out;
    for (int64_t first = 0; first < total; first += TILE) {
        const struct batch batch = take_batch(x, importance, 32, first, total, per_row);
        ALIGNED float scales[TILE];
        search_batch(&batch, 32, scales);
        for (int n = 0; n < batch.used; ++n) {
            store_half(blocks[first + n].d, half_of(scales[n]));
            store_block(
                batch.x[n], scales[n] != 0.f ? 1 / scales[n] : 0.f, blocks[first + n].codes
            );
        }
    }
}

GQ_API void gq_quantize_iq4_xs(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance
) {
    const int64_t per_row = columns / 32, total = rows * per_row;
    struct iq4_xs *blocks = (struct iq4_xs *)out;
    for (int64_t first = 0; first < total; first += TILE) {
        const struct batch batch = take_batch(x, importance, 32, first, total, per_row);
        ALIGNED float scales[TILE];
        search_batch(&batch, 256, scales);
        for (int n = 0; n < batch.used; n += 8)
            store_super_block(batch.x[n], scales + n, &blocks[(first + n) / 8]);
    }
}
