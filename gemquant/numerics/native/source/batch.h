/* Rows of weights, flattened to blocks, a batch of blocks at a time. */
#ifndef GEMQUANT_BATCH_H
#define GEMQUANT_BATCH_H

#include "tiles.h"

/* Blocks that are searched together. A batch that is not full repeats its last block; only ``used``
   of them are written. */
struct batch {
    const float *x[TILE], *importance[TILE];
    int64_t first;
    int used;
};

/* The blocks from ``first`` on. size: weights in a block. importance: of a row's columns, or NULL. */
static inline struct batch take_batch(
    const float *x, const float *importance, int size, int64_t first, int64_t total, int64_t per_row
) {
    struct batch batch = {.first = first, .used = total - first < TILE ? (int)(total - first) : TILE};
    for (int n = 0; n < TILE; ++n) {
        const int64_t block = first + (n < batch.used ? n : batch.used - 1);
        batch.x[n] = x + size * block;
        batch.importance[n] = importance ? importance + size * (block % per_row) : NULL;
    }
    return batch;
}

/* Σ x² of TILE runs of weights, each one weight after the other. length: a multiple of 16. */
static inline void sums_of_squares(const float *const *x, int64_t length, float *sums) {
    ALIGNED float tile[16][TILE];
    lanes sum[TILE / LANES] = {0};
    for (int64_t part = 0; part < length; part += 16) {
        const float *parts[TILE];
        for (int n = 0; n < TILE; ++n) parts[n] = x[n] + part;
        gather_tile(16, parts, tile);
        for (int i = 0; i < 16; ++i)
            for (int k = 0; k < TILE / LANES; ++k) {
                const lanes value = lanes_load(&tile[i][k * LANES]);
                sum[k] += value * value;
            }
    }
    memcpy(sums, sum, sizeof sum);
}

/* Importances in a tile become weights: importance · √(variance + x²). Returns their sum. */
ALWAYS_INLINE lanes weigh(int length, lanes variance, const float *x, float *importance) {
    lanes sum = lanes_all(0.f);
    for (int i = 0; i < length; ++i) {
        const lanes value = lanes_load(x + i * TILE);
        const lanes weight = lanes_load(importance + i * TILE) * lanes_sqrt(variance + value * value);
        lanes_store(importance + i * TILE, weight);
        sum += weight;
    }
    return sum;
}

#endif
