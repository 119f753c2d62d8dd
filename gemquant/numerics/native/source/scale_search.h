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

/* Σ w·x·code and Σ w·code², one element after the other, for TRIES inverse scales.

   |x · inverse| is below levels + 1. Below levels + ½ only the upper end can be passed, below
   levels − ½ neither; ends: how many are looked after. */
ALWAYS_INLINE void sums_of_tries(
    int length, float levels, int ends, const float *x, const lanes *w, const lanes *wx,
    const lanes *inverse, lanes *sumlx, lanes *suml2
) {
    lanes lx[TRIES], l2[TRIES];
    for (int k = 0; k < TRIES; ++k) lx[k] = l2[k] = lanes_all(0.f);
    for (int i = 0; i < length; ++i) {
        const lanes xi = lanes_load(x + i * TILE), wi = w[i], wxi = wx[i];
        for (int k = 0; k < TRIES; ++k) {
            lanes code = lanes_round(inverse[k] * xi);
            if (ends > 0) code = lanes_min(code, lanes_all(levels - 1));
            if (ends > 1) code = lanes_max(code, lanes_all(-levels));
            lx[k] += wxi * code;
            l2[k] += wi * code * code;
        }
    }
    memcpy(sumlx, lx, sizeof lx);
    memcpy(suml2, l2, sizeof l2);
}

/* The scale with the least weighted error of 19 tried, for LANES blocks of a tile.

   length: elements of a block, at most 32. levels: 4, 8, 16 or 32. weights: a tile like x; NULL
   weighs every element by its own square. Everything finite; sums may overflow as ggml's do. */
ALWAYS_INLINE struct scale_fit search_scale(
    int length, float levels, const float *x, const float *weights
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
        const lanes code =
            lanes_min(lanes_round(first * lanes_load(x + i * TILE)), lanes_all(levels - 1));
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
        const int ends = group == 0 ? 0 : group < 4 ? 1 : 2;
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
