/* Rows to super-blocks of a K-quant with scales and minima: fit, round the scales, then codes. */
#ifndef GEMQUANT_K_ROWS_H
#define GEMQUANT_K_ROWS_H

#include "gemquant.h"
#include "k_scales.h"
#include "k_weights.h"

/* How a type differs from its siblings. */
struct k_type {
    struct grid plain, weighted;
    float variance_scale; /* see fit_batch */
    int scale_top, limit, limit_weighted;
    int bytes;
    /* Write scales to a super-block, and leave in them what a reader will find. */
    void (*write_scales)(struct scales *, uint8_t *);
    void (*write_codes)(const uint8_t *, uint8_t *);
};

/* The final codes of a super-block, ggml's nearest_int((w + minimum) / scale); where a scale is
   zero those of the search. */
ALWAYS_INLINE void final_codes(
    struct grid grid, const float *x, const struct scales *scales, const struct fits *fits,
    int sub_block, uint8_t *codes
) {
    const float factor = half_value(scales->d), low_factor = half_value(scales->d_minimum);
    for (int j = 0; j < SUPER / grid.width; ++j, x += grid.width, codes += grid.width) {
        const float scale = factor * (float)scales->scale[j];
        const float low = low_factor * (float)scales->minimum[j];
        if (scale == 0)
            fitted_codes(grid, x, fits, sub_block + j, codes);
        else
            for (int i = 0; i < grid.width; ++i)
                codes[i] = (uint8_t)nearest_code((x[i] + low) / scale, (int32_t)grid.top);
    }
}

ALWAYS_INLINE void encode_batch(
    struct k_type type, struct grid grid, int weighted, const struct batch *batch,
    const struct fits *fits, uint8_t *out
) {
    const int count = SUPER / grid.width, top = type.scale_top;
    for (int n = 0; n < batch->used; ++n, out += type.bytes) {
        const float *scale = fits->scale + n * count, *minimum = fits->minimum + n * count;
        const float *w = fits->sum_weights + n * count;
        struct scales scales;
        if (weighted) {
            scales.d = least_squares(count, top, scale, w, scales.scale);
            scales.d_minimum = least_squares(count, top, minimum, w, scales.minimum);
            for (int j = 0; type.limit_weighted && j < count; ++j) {
                if (scales.scale[j] > top) scales.scale[j] = (uint8_t)top;
                if (scales.minimum[j] > top) scales.minimum[j] = (uint8_t)top;
            }
        } else {
            scales.d = largest_to_top(count, top, type.limit, scale, scales.scale);
            scales.d_minimum = largest_to_top(count, top, type.limit, minimum, scales.minimum);
        }
        uint8_t codes[SUPER];
        type.write_scales(&scales, out);
        final_codes(grid, batch->blocks[n], &scales, fits, n * count, codes);
        type.write_codes(codes, out);
    }
}

ALWAYS_INLINE void k_rows(
    struct k_type type, const float *x, uint8_t *out, int64_t rows, int64_t columns,
    const float *importance
) {
    const int64_t per_row = columns / SUPER, total = rows * per_row;
    struct fits fits;
    for (int64_t first = 0; first < total; first += BATCH) {
        struct batch batch = {.used = total - first < BATCH ? (int)(total - first) : BATCH};
        for (int n = 0; n < BATCH; ++n) {
            const int64_t block = first + (n < batch.used ? n : batch.used - 1);
            batch.blocks[n] = x + SUPER * block;
            batch.importance[n] = importance ? importance + SUPER * (block % per_row) : NULL;
        }
        uint8_t *to = out + first * type.bytes;
        if (importance) {
            fit_batch(type.weighted, 1, type.variance_scale, &batch, &fits);
            encode_batch(type, type.weighted, 1, &batch, &fits, to);
        } else {
            fit_batch(type.plain, 0, 0, &batch, &fits);
            encode_batch(type, type.plain, 0, &batch, &fits, to);
        }
    }
}

#endif
