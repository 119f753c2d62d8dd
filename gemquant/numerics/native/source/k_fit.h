/* The search for scale and minimum of each sub-block of a K-quant, many sub-blocks side by side.

   A lane does what make_qkx2_quants and make_qkx3_quants of ggml-quants.c do, in their order; both
   do the same once their weights are given. The codes are not kept: ggml computes them again from
   the final scales, except where those are zero; for these, what the best codes were made of is
   kept (see fitted_codes). */
#ifndef GEMQUANT_K_FIT_H
#define GEMQUANT_K_FIT_H

#include <float.h>

#include "tiles.h"

/* Weights in a super-block; sub-blocks that are searched together; super-blocks in a batch. */
enum { SUPER = 256, GROUP = TILE, BATCH = 8, BATCH_SUB_BLOCKS = 128 };

/* What is tried: (top + first + step · s) codes over the sub-block's range, s = 0 … steps.
   width: weights in a sub-block. absolute: the error is Σ w·|difference|, otherwise squared.
   limits_first: make_qkx3_quants, which limits before it rounds (llama.cpp b11549). */
struct grid {
    int width;
    float top, first, step;
    int steps, absolute, limits_first;
};

/* Of every sub-block of a batch: weight ≈ scale · code − minimum. */
struct fits {
    float scale[BATCH_SUB_BLOCKS], minimum[BATCH_SUB_BLOCKS];
    float sum_weights[BATCH_SUB_BLOCKS];
    float code_scale[BATCH_SUB_BLOCKS], code_low[BATCH_SUB_BLOCKS];
};

/* How a value becomes a code. BITS is ggml's nearest_int and then the limits; IN_RANGE the same for
   |value| < 2^22 in all lanes; LIMITS_FIRST limits the value, which differs for the others. */
enum rounding { BITS, IN_RANGE, LIMITS_FIRST };

ALWAYS_INLINE lanes codes_of(lanes value, float top, enum rounding rounding) {
    const lanes zero = {0};
    if (rounding == LIMITS_FIRST)
        return lanes_min(lanes_max(value, zero), lanes_all(top)) + ROUND_MAGIC - ROUND_MAGIC;
    lanes rounded = value + ROUND_MAGIC;
    if (rounding == IN_RANGE)
        rounded -= ROUND_MAGIC;
    else
        rounded = __builtin_convertvector(((int_lanes)rounded & 0x007fffff) - 0x00400000, lanes);
    return lanes_min(lanes_max(rounded, zero), lanes_all(top));
}

ALWAYS_INLINE lanes weighted_error(
    struct grid grid, const float *x, const float *w, const lanes *codes, lanes scale, lanes low
) {
    lanes error = {0};
    for (int i = 0; i < grid.width; ++i) {
        const lanes difference = scale * codes[i] + low - lanes_load(x + GROUP * i);
        const lanes measure = grid.absolute ? lanes_abs(difference) : difference * difference;
        error += lanes_load(w + GROUP * i) * measure;
    }
    return error;
}

struct sums {
    lanes l, l2, xl;
};

ALWAYS_INLINE struct sums code_sums(
    struct grid grid, const float *x, const float *w, lanes *codes, lanes code_scale, lanes low,
    enum rounding rounding
) {
    struct sums sums = {{0}, {0}, {0}};
    for (int i = 0; i < grid.width; ++i) {
        const lanes value = lanes_load(x + GROUP * i);
        const lanes code = codes_of(code_scale * (value - low), grid.top, rounding);
        const lanes weighted = lanes_load(w + GROUP * i) * code;
        codes[i] = code;
        sums.l += weighted;
        sums.l2 += weighted * code;
        sums.xl += weighted * value;
    }
    return sums;
}

/* Fit LANES sub-blocks: x and w are (width, GROUP), from the first lane on; results go to the
   sub-blocks from ``at`` on. */
ALWAYS_INLINE void fit_lanes(
    struct grid grid, const float *x, const float *w, struct fits *fits, int at
) {
    lanes codes[32];
    lanes low = lanes_load(x), high = low;
    lanes sum_w = lanes_load(w), sum_x = sum_w * low;
    for (int i = 1; i < grid.width; ++i) {
        const lanes value = lanes_load(x + GROUP * i), weight = lanes_load(w + GROUP * i);
        low = lanes_min(value, low);
        high = lanes_max(value, high);
        sum_w += weight;
        sum_x += weight * value;
    }
    const lanes none = {0}, lowest = low;
    low = lanes_select(low > 0, none, low);
    const int_lanes flat = high == low;
    const lanes flat_low = low;

    lanes code_scale = grid.top / (high - low), scale = 1.f / code_scale;
    for (int i = 0; i < grid.width; ++i)
        codes[i] = codes_of(code_scale * (lanes_load(x + GROUP * i) - low), grid.top, BITS);
    lanes best = weighted_error(grid, x, w, codes, scale, low);
    /* Infinite for ranges near the smallest numbers, and its codes zeros: said so that every
       rounding finds them. */
    lanes best_code_scale = lanes_select(code_scale > FLT_MAX, none, code_scale);
    lanes best_code_low = low;

    for (int step = 0; step <= grid.steps; ++step) {
        code_scale = (grid.first + grid.step * (float)step + grid.top) / (high - low);
        struct sums sums;
        if (grid.limits_first) {
            sums = code_sums(grid, x, w, codes, code_scale, low, LIMITS_FIRST);
        } else {
            const lanes reach = lanes_max(lanes_abs(high - low), lanes_abs(lowest - low));
            const int_lanes in_range = (lanes_abs(code_scale) * reach < 4e6f) | flat;
            if (lanes_any(~in_range))
                sums = code_sums(grid, x, w, codes, code_scale, low, BITS);
            else
                sums = code_sums(grid, x, w, codes, code_scale, low, IN_RANGE);
        }
        const lanes determinant = sum_w * sums.l2 - sums.l * sums.l;
        const lanes free_scale = (sum_w * sums.xl - sum_x * sums.l) / determinant;
        const lanes free_low = (sums.l2 * sum_x - sums.l * sums.xl) / determinant;
        const int_lanes above = free_low > 0;
        const lanes new_low = lanes_select(above, none, free_low);
        const lanes new_scale = lanes_select(above, sums.xl / sums.l2, free_scale);
        const lanes error = weighted_error(grid, x, w, codes, new_scale, new_low);
        const int_lanes better = (determinant > 0) & (error < best) & ~flat;
        best = lanes_select(better, error, best);
        best_code_scale = lanes_select(better, code_scale, best_code_scale);
        best_code_low = lanes_select(better, low, best_code_low);
        scale = lanes_select(better, new_scale, scale);
        low = lanes_select(better, new_low, low);
    }
    lanes_store(fits->scale + at, lanes_select(flat, none, scale));
    lanes_store(fits->minimum + at, -lanes_select(flat, flat_low, low));
    lanes_store(fits->sum_weights + at, sum_w + none); /* ggml sums from zero: never −0 */
    lanes_store(fits->code_scale + at, lanes_select(flat, none, best_code_scale));
    lanes_store(fits->code_low + at, best_code_low);
}

/* The codes with which the search of a sub-block ended; x: its weights. */
ALWAYS_INLINE void fitted_codes(
    struct grid grid, const float *x, const struct fits *fits, int sub_block, uint8_t *codes
) {
    const float code_scale = fits->code_scale[sub_block], low = fits->code_low[sub_block];
    for (int i = 0; i < grid.width; ++i) {
        float value = code_scale * (x[i] - low);
        if (grid.limits_first) value = !(value > 0) ? 0 : value < grid.top ? value : grid.top;
        codes[i] = (uint8_t)nearest_code(value, (int32_t)grid.top);
    }
}

/* GROUP sub-blocks to (width, GROUP). blocks: the super-blocks that hold them. */
ALWAYS_INLINE void transpose(int width, const float *const *blocks, float *to) {
    const int per_block = SUPER / width;
    for (int lane = 0; lane < GROUP; lane += 4) {
        const float *at = blocks[lane / per_block] + lane % per_block * width;
        for (int i = 0; i < width; i += 4, at += 4) {
            const float *const places[4] = {at, at + width, at + 2 * width, at + 3 * width};
            transpose_four(places, to + GROUP * i + lane);
        }
    }
}

#endif
