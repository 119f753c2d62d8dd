/* The search for one scale a block (ggml-quants.c: make_qx_quants with rmse_type 1), in lanes. */
#ifndef GEMQUANT_SCALE_SEARCH_H
#define GEMQUANT_SCALE_SEARCH_H

#include "tiles.h"

/* Below this a block counts as zero (GROUP_MAX_EPS). */
#define ZERO_BLOCK 1e-15f

/* Scales tried in one pass over a block, so that the sums of one wait less for each other. */
#define TRIES 3

struct scale_fit {
    lanes scale;    /* x ≈ scale · code, codes from −levels to levels − 1 */
    lanes inverse;  /* codes are x · inverse, rounded and clamped */
    int_lanes zero; /* whether the block counts as zero: scale is 0, and code + levels is 0 too */
};

/* What the codes of a try need. Weights are finite, so that |x · inverse| is below levels + 1: below
   levels + ½ codes pass only the upper end, below levels − ½ neither. The scales of blocks may be
   infinite or NaN: for them ggml's integers are followed bit by bit. */
enum ends { ANY_NUMBER = -1, NO_END, UPPER_END, BOTH_ENDS };

ALWAYS_INLINE lanes code_of(lanes value, float levels, enum ends ends) {
    if (ends == ANY_NUMBER) return lanes_clamp(lanes_nearest_int(value), -levels, levels - 1);
    lanes code = lanes_round(value);
    if (ends >= UPPER_END) code = lanes_min(code, lanes_all(levels - 1));
    if (ends >= BOTH_ENDS) code = lanes_max(code, lanes_all(-levels));
    return code;
}

/* Σ w·x·code and Σ w·code², one element after the other, for TRIES inverse scales. */
ALWAYS_INLINE void sums_of_tries(
    int length, float levels, enum ends ends, const float *x, const lanes *w, const lanes *wx,
    const lanes *inverse, lanes *sumlx, lanes *suml2
) {
    lanes lx[TRIES], l2[TRIES];
    for (int k = 0; k < TRIES; ++k) lx[k] = l2[k] = lanes_all(0.f);
    for (int i = 0; i < length; ++i) {
        const lanes xi = lanes_load(x + i * TILE), wi = w[i], wxi = wx[i];
        for (int k = 0; k < TRIES; ++k) {
            const lanes code = code_of(inverse[k] * xi, levels, ends);
            lx[k] += wxi * code;
            l2[k] += wi * code * code;
        }
    }
    memcpy(sumlx, lx, sizeof lx);
    memcpy(suml2, l2, sizeof l2);
}

/* The scale with the least weighted error of 19 tried, for LANES blocks of a tile.

   length: elements of a block, at most 32. levels: 4, 8, 16 or 32. weights: a tile like x; NULL
   weighs every element by its own square. any: x may be infinite or NaN (sums always may). */
ALWAYS_INLINE struct scale_fit search_scale(
    int length, float levels, const float *x, const float *weights, int any
) {
    lanes w[32], wx[32];
    lanes largest = lanes_all(0.f), size = lanes_all(0.f);
    for (int i = 0; i < length; ++i) {
        const lanes xi = lanes_load(x + i * TILE), absolute = lanes_abs(xi);
        const int_lanes more = absolute > size;
        size = lanes_select(more, absolute, size);
        largest = lanes_select(more, xi, largest);
        w[i] = weights ? lanes_load(weights + i * TILE) : xi * xi;
        wx[i] = w[i] * xi;
    }
    const lanes first = lanes_all(-levels) / largest;
    lanes sumlx = lanes_all(0.f), suml2 = lanes_all(0.f);
    for (int i = 0; i < length; ++i) {
        const lanes value = first * lanes_load(x + i * TILE);
        const lanes code = code_of(value, levels, any ? ANY_NUMBER : UPPER_END);
        sumlx += wx[i] * code;
        suml2 += w[i] * code * code;
    }
    /* suml2 ? sumlx / suml2 : 0, which a NaN passes */
    struct scale_fit found = {
        lanes_select(suml2 == 0.f, lanes_all(0.f), sumlx / suml2), first, size < ZERO_BLOCK,
    };
    lanes best = found.scale * sumlx;

#pragma GCC unroll 6
    for (int group = 0; group < 6; ++group) { /* −9 … −7, −6 … −4, −3 … −1, 1 … 3, 4 … 6, 7 … 9 */
        const int step = group < 3 ? 3 * group - 9 : 3 * group - 8;
        lanes inverse[TRIES], lx[TRIES], l2[TRIES];
        for (int k = 0; k < TRIES; ++k)
            inverse[k] = lanes_all(-(levels + 0.1f * (float)(step + k))) / largest;
        const enum ends usual = group == 0 ? NO_END : group < 4 ? UPPER_END : BOTH_ENDS;
        const enum ends ends = any ? ANY_NUMBER : usual;
        sums_of_tries(length, levels, ends, x, w, wx, inverse, lx, l2);
        for (int k = 0; k < TRIES; ++k) {
            const int_lanes better = (l2[k] > 0.f) & (lx[k] * lx[k] > best * l2[k]);
            const lanes scale = lx[k] / l2[k];
            found.scale = lanes_select(better, scale, found.scale);
            found.inverse = lanes_select(better, inverse[k], found.inverse);
            best = lanes_select(better, scale * lx[k], best);
        }
    }
    found.scale = lanes_select(found.zero, lanes_all(0.f), found.scale);
    return found;
}

#endif
