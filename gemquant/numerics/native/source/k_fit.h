/* The search for scale and minimum of each sub-block of a K-quant, many sub-blocks side by side.

   A lane does what make_qkx2_quants and make_qkx3_quants of ggml-quants.c do, in their order; both
   do the same once their weights are given. The codes are not kept: ggml computes them again from
   the final scales, except where those are zero; for these, what the best codes were made of is
   kept (see fitted_codes). */
#ifndef GEMQUANT_K_FIT_H
#define GEMQUANT_K_FIT_H

#include <float.h>

#include "tiles.h"

/* Weights in a super-block; super-blocks in a batch; sub-blocks of a batch, at most. */
enum { SUPER = 256, BATCH = 8, BATCH_SUB_BLOCKS = BATCH * 16 };

/* Vectors in one search, at most: while a sum of one waits for its last addition, the other's goes
   on. ``vectors`` is how many there are. */
enum { VECTORS = 2 };
#define EACH_VECTOR for (int k = 0; k < vectors; ++k)

/* What is tried: (top + first + step · s) codes over the sub-block's range, s = 0 … steps.
   width: weights in a sub-block. absolute: the error is Σ w·|difference|, otherwise squared.
   limits_first: make_qkx3_quants, which limits before it rounds (as xllamacpp 2026.10.11549 does). */
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

ALWAYS_INLINE lanes code_in_grid(lanes value, float top, enum rounding rounding) {
    if (rounding == LIMITS_FIRST) return lanes_round(lanes_clamp(value, 0, top));
    if (rounding == IN_RANGE) return lanes_clamp(lanes_round(value), 0, top);
    return lanes_clamp(lanes_nearest_int(value), 0, top);
}

/* Element i of the sub-blocks of vector k; x and w hold a tile's column for each. */
ALWAYS_INLINE lanes element(const float *const *from, int i, int k) {
    return lanes_load(from[k] + TILE * i);
}

ALWAYS_INLINE void weighted_errors(
    int vectors, struct grid grid, const float *const *x, const float *const *w,
    lanes (*codes)[VECTORS], const lanes *scale, const lanes *low, lanes *errors
) {
    lanes sums[VECTORS] = {{0}};
    for (int i = 0; i < grid.width; ++i)
        EACH_VECTOR {
            const lanes difference = scale[k] * codes[i][k] + low[k] - element(x, i, k);
            const lanes measure = grid.absolute ? lanes_abs(difference) : difference * difference;
            sums[k] += element(w, i, k) * measure;
        }
    EACH_VECTOR errors[k] = sums[k];
}

/* Σ w·code, Σ w·code², Σ w·code·x. */
struct sums {
    lanes l[VECTORS], l2[VECTORS], xl[VECTORS];
};

ALWAYS_INLINE struct sums code_sums(
    int vectors, struct grid grid, const float *const *x, const float *const *w,
    lanes (*codes)[VECTORS], const lanes *code_scale, const lanes *low, enum rounding rounding
) {
    struct sums sums = {0};
    for (int i = 0; i < grid.width; ++i)
        EACH_VECTOR {
            const lanes value = element(x, i, k);
            const lanes code = code_in_grid(code_scale[k] * (value - low[k]), grid.top, rounding);
            const lanes weighted = element(w, i, k) * code;
            codes[i][k] = code;
            sums.l[k] += weighted;
            sums.l2[k] += weighted * code;
            sums.xl[k] += weighted * value;
        }
    return sums;
}

/* Fit ``vectors`` · LANES sub-blocks; x and w: columns of tiles with their weights and with the
   weights of their errors. Results go to the sub-blocks from ``at`` on. */
ALWAYS_INLINE void fit_vectors(
    int vectors, struct grid grid, const float *const *x, const float *const *w, struct fits *fits,
    int at
) {
    const lanes none = {0};
    lanes low[VECTORS], high[VECTORS], sum_w[VECTORS], sum_x[VECTORS];
    EACH_VECTOR {
        low[k] = high[k] = element(x, 0, k);
        sum_w[k] = element(w, 0, k);
        sum_x[k] = sum_w[k] * low[k];
    }
    for (int i = 1; i < grid.width; ++i)
        EACH_VECTOR {
            const lanes value = element(x, i, k), weight = element(w, i, k);
            low[k] = lanes_min(value, low[k]);
            high[k] = lanes_max(value, high[k]);
            sum_w[k] += weight;
            sum_x[k] += weight * value;
        }
    lanes lowest[VECTORS], flat_low[VECTORS], code_scale[VECTORS], scale[VECTORS];
    int_lanes flat[VECTORS];
    EACH_VECTOR {
        lowest[k] = low[k];
        low[k] = flat_low[k] = lanes_select(low[k] > 0, none, low[k]);
        flat[k] = high[k] == low[k];
        code_scale[k] = grid.top / (high[k] - low[k]);
        scale[k] = 1.f / code_scale[k];
    }

    lanes codes[32][VECTORS], best[VECTORS], best_code_scale[VECTORS], best_code_low[VECTORS];
    code_sums(vectors, grid, x, w, codes, code_scale, low, BITS);
    weighted_errors(vectors, grid, x, w, codes, scale, low, best);
    EACH_VECTOR {
        /* Infinite for ranges near the smallest numbers, and its codes zeros: said so that every
           rounding finds them. */
        best_code_scale[k] = lanes_select(code_scale[k] > FLT_MAX, none, code_scale[k]);
        best_code_low[k] = low[k];
    }

    for (int step = 0; step <= grid.steps; ++step) {
        const float tried = grid.first + grid.step * (float)step + grid.top;
        int_lanes in_range = ~(int_lanes){0};
        EACH_VECTOR {
            const lanes range = high[k] - low[k];
            const lanes reach = lanes_max(lanes_abs(range), lanes_abs(lowest[k] - low[k]));
            code_scale[k] = tried / range;
            in_range &= (lanes_abs(code_scale[k]) * reach < 4e6f) | flat[k];
        }
        struct sums sums;
        if (grid.limits_first)
            sums = code_sums(vectors, grid, x, w, codes, code_scale, low, LIMITS_FIRST);
        else if (lanes_any(~in_range))
            sums = code_sums(vectors, grid, x, w, codes, code_scale, low, BITS);
        else
            sums = code_sums(vectors, grid, x, w, codes, code_scale, low, IN_RANGE);

        lanes determinant[VECTORS], new_low[VECTORS], new_scale[VECTORS], errors[VECTORS];
        EACH_VECTOR {
            const lanes l = sums.l[k], l2 = sums.l2[k], xl = sums.xl[k];
            determinant[k] = sum_w[k] * l2 - l * l;
            const lanes free_scale = (sum_w[k] * xl - sum_x[k] * l) / determinant[k];
            const lanes free_low = (l2 * sum_x[k] - l * xl) / determinant[k];
            const int_lanes above = free_low > 0;
            new_low[k] = lanes_select(above, none, free_low);
            new_scale[k] = lanes_select(above, xl / l2, free_scale);
        }
        weighted_errors(vectors, grid, x, w, codes, new_scale, new_low, errors);
        EACH_VECTOR {
            const int_lanes better = (determinant[k] > 0) & (errors[k] < best[k]) & ~flat[k];
            best[k] = lanes_select(better, errors[k], best[k]);
            best_code_scale[k] = lanes_select(better, code_scale[k], best_code_scale[k]);
            best_code_low[k] = lanes_select(better, low[k], best_code_low[k]);
            scale[k] = lanes_select(better, new_scale[k], scale[k]);
            low[k] = lanes_select(better, new_low[k], low[k]);
        }
    }
    EACH_VECTOR {
        const int to = at + LANES * k;
        lanes_store(fits->scale + to, lanes_select(flat[k], none, scale[k]));
        lanes_store(fits->minimum + to, -lanes_select(flat[k], flat_low[k], low[k]));
        lanes_store(fits->sum_weights + to, sum_w[k] + none); /* from zero in ggml: never −0 */
        lanes_store(fits->code_scale + to, lanes_select(flat[k], none, best_code_scale[k]));
        lanes_store(fits->code_low + to, best_code_low[k]);
    }
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

#endif
