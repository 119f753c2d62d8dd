/* The scales of Q3_K's blocks without importances (ggml-quants.c: make_q3_quants), in lanes. */
#ifndef GEMQUANT_Q3_REFINE_H
#define GEMQUANT_Q3_REFINE_H

#include "scale_search.h"

/* Vectors that are refined together, until none of a vector's blocks changes; and in turn, because
   each element waits for a division, which the others fill. */
enum { POOL = 16, ABREAST = 4 };

struct refined {
    lanes sumlx, suml2; /* Σ w·x·code, Σ w·code², w = x² */
    int_lanes changed;
};

/* Move the code of one element to where it lessens the error, given all others. */
ALWAYS_INLINE void refine_element(const float *x, float *code_at, struct refined *state) {
    const lanes xi = lanes_load(x), code = lanes_load(code_at);
    const lanes w = xi * xi, wx = w * xi;
    lanes lx = state->sumlx - wx * code;
    lanes l2 = state->suml2 - w * code * code;
    const int_lanes defined = lx > 0.f;
    const lanes moved = lanes_clamp(lanes_nearest_int(xi * l2 / lx), -4.f, 3.f);
    lx += wx * moved;
    l2 += w * moved * moved;
    const int_lanes better = defined & (moved != code) & (l2 > 0.f) &
                             (lx * lx * state->suml2 > state->sumlx * state->sumlx * l2);
    lanes_store(code_at, lanes_select(better, moved, code));
    state->sumlx = lanes_select(better, lx, state->sumlx);
    state->suml2 = lanes_select(better, l2, state->suml2);
    state->changed |= better;
}

/* For up to POOL vectors of blocks, whose 16 elements and codes lie in tiles, from the first on.
   Stores scales, and codes from 0 to 7. */
static void refine_scales(
    int count, const float *const *x, float *const *codes, float *const *scales
) {
    struct refined state[POOL];
    int_lanes zero[POOL];
    for (int k = 0; k < count; ++k) {
        lanes largest = lanes_all(0.f), size = lanes_all(0.f);
        for (int i = 0; i < 16; ++i) {
            const lanes xi = lanes_load(x[k] + i * TILE), absolute = lanes_abs(xi);
            const int_lanes more = absolute > size;
            size = lanes_select(more, absolute, size);
            largest = lanes_select(more, xi, largest);
        }
        zero[k] = size < ZERO_BLOCK;
        const lanes inverse = lanes_all(-4.f) / largest;
        state[k].sumlx = state[k].suml2 = lanes_all(0.f);
        for (int i = 0; i < 16; ++i) {
            const lanes xi = lanes_load(x[k] + i * TILE), w = xi * xi;
            const lanes code = code_of(inverse * xi, 4.f, UPPER_END);
            lanes_store(codes[k] + i * TILE, code);
            state[k].sumlx += w * xi * code;
            state[k].suml2 += w * code * code;
        }
    }
    /* A block that one pass did not change is not changed by another: ggml stops there. */
    int left = count, order[POOL];
    for (int k = 0; k < count; ++k) order[k] = k;
    for (int pass = 0; pass < 5 && left > 0; ++pass) {
        for (int first = 0; first < left; first += ABREAST) {
            const int last = first + ABREAST < left ? first + ABREAST : left;
            for (int k = first; k < last; ++k) state[order[k]].changed = (int_lanes){0};
            for (int i = 0; i < 16; ++i)
                for (int k = first; k < last; ++k) {
                    const int at = order[k];
                    refine_element(x[at] + i * TILE, codes[at] + i * TILE, &state[at]);
                }
        }
        int still = 0;
        for (int k = 0; k < left; ++k)
            if (lanes_any(state[order[k]].changed & ~zero[order[k]])) order[still++] = order[k];
        left = still;
    }
    for (int k = 0; k < count; ++k) {
        const int_lanes none = zero[k] | ~(state[k].suml2 > 0.f);
        lanes_store(
            scales[k], lanes_select(none, lanes_all(0.f), state[k].sumlx / state[k].suml2)
        );
        for (int i = 0; i < 16; ++i) {
            float *code = codes[k] + i * TILE;
            lanes_store(code, lanes_select(zero[k], lanes_all(0.f), lanes_load(code) + 4.f));
        }
    }
}

#endif
