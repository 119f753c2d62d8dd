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

/* The first ``count`` sub-blocks of a batch, whole tiles of them: sub-block n becomes column n % TILE
   of tile n / TILE. blocks: super-blocks. */
ALWAYS_INLINE void batch_to_tiles(int width, int count, const float *const *blocks, float *tiles) {
    const int per_block = SUPER / width;
    for (int first = 0; first < count; first += TILE) {
        const float *starts[TILE];
        for (int n = 0; n < TILE; ++n)
            starts[n] = blocks[(first + n) / per_block] + (first + n) % per_block * width;
        gather_tile(width, starts, (float(*)[TILE])(tiles + first * width));
    }
}

/* |w|, which quantize_row_q2_K_ref takes; x and w: columns of a tile. */
ALWAYS_INLINE void magnitudes(int width, const float *x, float *w) {
    for (int i = 0; i < width; ++i)
        lanes_store(w + TILE * i, lanes_abs(lanes_load(x + TILE * i)));
}

/* Root mean square of the sub-block + |w|: quantize_row_q4_K_ref, quantize_row_q5_K_ref. */
ALWAYS_INLINE void spread_magnitudes(int width, const float *x, float *w) {
    lanes squares = {0};
    for (int i = 0; i < width; ++i)
        squares += lanes_load(x + TILE * i) * lanes_load(x + TILE * i);
    const lanes spread = lanes_sqrt(squares / (float)width);
    for (int i = 0; i < width; ++i)
        lanes_store(w + TILE * i, spread + lanes_abs(lanes_load(x + TILE * i)));
}

/* importance · √(variance + w²): the *_impl functions. w holds the importances before. */
ALWAYS_INLINE void scale_importances(int width, lanes variance, const float *x, float *w) {
    for (int i = 0; i < width; ++i) {
        const lanes value = lanes_load(x + TILE * i), importance = lanes_load(w + TILE * i);
        lanes_store(w + TILE * i, importance * lanes_sqrt(variance + value * value));
    }
}

/* Σ w² of each super-block, in the order of the weights: side by side to hide the additions. */
static inline void sums_of_squares(const float *const *blocks, float *sums) {
    for (int block = 0; block < BATCH; ++block) sums[block] = 0;
    for (int i = 0; i < SUPER; ++i)
        for (int block = 0; block < BATCH; ++block)
            sums[block] += blocks[block][i] * blocks[block][i];
}

/* Search a batch, with importances where ``weighted``. variance_scale: of Σ w²; ggml has 1 or 2
   over 256. */
ALWAYS_INLINE void fit_batch(
    struct grid grid, int weighted, float variance_scale, const struct batch *batch,
    struct fits *fits
) {
    const int per_block = SUPER / grid.width, used = batch->used * per_block;
    const int count = (used + 31) / 32 * 32; /* whole tiles, and whole searches at every level */
    ALIGNED float x[BATCH * SUPER], w[BATCH * SUPER], variances[BATCH_SUB_BLOCKS];
    batch_to_tiles(grid.width, count, batch->blocks, x);
    if (weighted) {
        float squares[BATCH];
        batch_to_tiles(grid.width, count, batch->importance, w);
        sums_of_squares(batch->blocks, squares);
        for (int n = 0; n < count; ++n)
            variances[n] = variance_scale * squares[n / per_block] / SUPER;
    }
    const int vectors = VECTORS;
    for (int first = 0; first < count; first += vectors * LANES) {
        const float *columns[VECTORS], *weights[VECTORS];
        EACH_VECTOR {
            const int n = first + LANES * k, at = n / TILE * TILE * grid.width + n % TILE;
            if (weighted)
                scale_importances(grid.width, lanes_load(variances + n), x + at, w + at);
            else if (grid.absolute)
                magnitudes(grid.width, x + at, w + at);
            else
                spread_magnitudes(grid.width, x + at, w + at);
            columns[k] = x + at;
            weights[k] = w + at;
        }
        fit_vectors(vectors, grid, columns, weights, fits, first);
    }
}

#endif
