/* What the types with blocks of 32 weights and no super-blocks share. */
#ifndef GEMQUANT_BLOCKS_32_H
#define GEMQUANT_BLOCKS_32_H

#include "batch.h"

/* ---------------------------------------------------------------- storing codes */

/* Codes of four bits: i and i + 16 in byte i. */
ALWAYS_INLINE void pack_fours(const int32_t *codes, uint8_t *out) {
    for (int i = 0; i < 16; ++i) out[i] = (uint8_t)((codes[i] & 15) | (uint32_t)codes[i + 16] << 4);
}

/* Codes of five bits: the fifth bits of all 32 first, then the others. */
ALWAYS_INLINE void pack_fives(const int32_t *codes, uint8_t *out) {
    uint32_t fifths = 0;
    for (int i = 0; i < 32; i += LANES) {
        int_lanes code;
        memcpy(&code, codes + i, sizeof code);
        fifths |= lanes_signs(code << 27) << i;
    }
    for (int byte = 0; byte < 4; ++byte) out[byte] = (uint8_t)(fifths >> 8 * byte);
    pack_fours(codes, out + 4);
}

/* ---------------------------------------------------------------- a block across lanes */

ALWAYS_INLINE float largest_of(lanes value) {
    float all[LANES];
    memcpy(all, &value, sizeof all);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) all[i] = all[i] > all[i + width] ? all[i] : all[i + width];
    return all[0];
}

struct ends_of_block {
    float least, most;
};

ALWAYS_INLINE struct ends_of_block ends_of_block(const float *x) {
    lanes least = lanes_load(x), most = least;
    for (int i = LANES; i < 32; i += LANES) {
        least = lanes_min(lanes_load(x + i), least);
        most = lanes_max(lanes_load(x + i), most);
    }
    return (struct ends_of_block){-largest_of(-least), largest_of(most)};
}

/* ---------------------------------------------------------------- with importances */

/* Blocks as tiles, ready to be searched. weights: importance · √(variance of the row + x²). */
struct weighted_batch {
    struct batch blocks;
    ALIGNED float x[32][TILE], weights[32][TILE];
};

/* Call ``quantize`` with batches that together are all rows; it writes from ``out`` on. */
ALWAYS_INLINE void in_weighted_batches(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance,
    int block_bytes, void (*quantize)(const struct weighted_batch *, uint8_t *)
) {
    const int64_t per_row = columns / 32;
    ALIGNED struct weighted_batch batch;
    ALIGNED float squares[TILE], variances[TILE];
    for (int64_t row = 0; row < rows; row += TILE) {
        const int64_t used = rows - row < TILE ? rows - row : TILE, total = used * per_row;
        const float *starts[TILE];
        for (int n = 0; n < TILE; ++n)
            starts[n] = x + columns * (row + (n < used ? n : used - 1));
        sums_of_squares(starts, columns, squares);
        for (int64_t first = 0; first < total; first += TILE) {
            batch.blocks = take_batch(starts[0], importance, 32, first, total, per_row);
            for (int n = 0; n < TILE; ++n) {
                const int64_t block = first + n < total ? first + n : total - 1;
                variances[n] = squares[block / per_row] / (float)columns;
            }
            gather_tile(32, batch.blocks.x, batch.x);
            gather_tile(32, batch.blocks.importance, batch.weights);
            for (int lane = 0; lane < TILE; lane += LANES)
                weigh(32, lanes_load(variances + lane), &batch.x[0][lane], &batch.weights[0][lane]);
            quantize(&batch, out + block_bytes * (row * per_row + first));
        }
    }
}

#endif
