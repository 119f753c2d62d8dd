/* How much each weight's error counts in the search of the K-quants, and the search of a batch. */
#ifndef GEMQUANT_K_WEIGHTS_H
#define GEMQUANT_K_WEIGHTS_H

#include "k_fit.h"

/* One to BATCH super-blocks, with their columns' importances or without; the array is full, and
   ``used`` of it count. */
struct batch {
    const float *blocks[BATCH];
    const float *importance[BATCH];
    int used;
};

/* |w|, which quantize_row_q2_K_ref takes. */
ALWAYS_INLINE void magnitudes(int width, const float *x, float *w) {
    for (int i = 0; i < width; ++i)
        lanes_store(w + GROUP * i, lanes_abs(lanes_load(x + GROUP * i)));
}

/* Root mean square of the sub-block + |w|: quantize_row_q4_K_ref, quantize_row_q5_K_ref. */
ALWAYS_INLINE void spread_magnitudes(int width, const float *x, float *w) {
    lanes squares = {0};
    for (int i = 0; i < width; ++i)
        squares += lanes_load(x + GROUP * i) * lanes_load(x + GROUP * i);
    const lanes spread = lanes_sqrt(squares / (float)width);
    for (int i = 0; i < width; ++i)
        lanes_store(w + GROUP * i, spread + lanes_abs(lanes_load(x + GROUP * i)));
}

/* importance · √(variance + w²): the *_impl functions. w holds the importances before. */
ALWAYS_INLINE void scale_importances(int width, const float *variance, const float *x, float *w) {
    const lanes mean = lanes_load(variance);
    for (int i = 0; i < width; ++i) {
        const lanes value = lanes_load(x + GROUP * i);
        lanes_store(w + GROUP * i, lanes_load(w + GROUP * i) * lanes_sqrt(mean + value * value));
    }
}

/* Σ w² of each super-block, in the order of the weights: side by side to hide the additions. */
static inline void sums_of_squares(const float *const *blocks, float *sums) {
    for (int block = 0; block < BATCH; ++block) sums[block] = 0;
    for (int i = 0; i < SUPER; ++i)
        for (int block = 0; block < BATCH; ++block)
            sums[block] += blocks[block][i] * blocks[block][i];
}

/* Search a batch without importances. */
ALWAYS_INLINE void fit_plain(struct grid grid, const struct batch *batch, struct fits *fits) {
    const int blocks = GROUP * grid.width / SUPER;
    float x[32 * GROUP], w[32 * GROUP];
    for (int first = 0; first < batch->used; first += blocks) {
        transpose(grid.width, batch->blocks + first, x);
        for (int lane = 0; lane < GROUP; lane += LANES) {
            if (grid.absolute)
                magnitudes(grid.width, x + lane, w + lane);
            else
                spread_magnitudes(grid.width, x + lane, w + lane);
            fit_lanes(grid, x + lane, w + lane, fits, first * (SUPER / grid.width) + lane);
        }
    }
}

/* Search a batch with importances. variance_scale: of Σ w²; ggml has 1 or 2 over 256. */
ALWAYS_INLINE void fit_weighted(
    struct grid grid, float variance_scale, const struct batch *batch, struct fits *fits
) {
    const int blocks = GROUP * grid.width / SUPER;
    float x[32 * GROUP], w[32 * GROUP], squares[BATCH], variance[GROUP];
    sums_of_squares(batch->blocks, squares);
    for (int first = 0; first < batch->used; first += blocks) {
        transpose(grid.width, batch->blocks + first, x);
        transpose(grid.width, batch->importance + first, w);
        for (int lane = 0; lane < GROUP; ++lane) {
            const int block = first + lane / (SUPER / grid.width);
            variance[lane] = variance_scale * squares[block] / SUPER;
        }
        for (int lane = 0; lane < GROUP; lane += LANES) {
            scale_importances(grid.width, variance + lane, x + lane, w + lane);
            fit_lanes(grid, x + lane, w + lane, fits, first * (SUPER / grid.width) + lane);
        }
    }
}

#endif
