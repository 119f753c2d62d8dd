/* Nearest of 16 values for every weight of a block, relative to the block's largest magnitude. */
#include <math.h>

#include "gemquant.h"

enum { RUN = 64, VALUES = 16 };

/* counts[i] = how many thresholds are below x[i] · inverse. */
static void count_below(const float *restrict x, float inverse, const float *restrict thresholds,
                        int32_t *restrict counts) {
    for (int i = 0; i < RUN; ++i) {
        const float scaled = x[i] * inverse;
        int32_t count = 0;
        for (int t = 0; t < VALUES - 1; ++t) count += scaled > thresholds[t];
        counts[i] = count;
    }
}

/* Whole blocks first to last of x, block_size (a multiple of 64) weights each.

   thresholds: (15) ascending. pairs: (256), two ranks → two codes. packed: half a byte a weight, the
   earlier one in the high half. scales: (blocks). smallest: what a block is divided by at least. */
GQ_API void gq_codebook(const float *x, int64_t block_size, const float *thresholds,
                        const uint8_t *pairs, float smallest, int64_t first, int64_t last,
                        uint8_t *packed, float *scales) {
    int32_t counts[RUN];
    for (int64_t block = first; block < last; ++block) {
        const float *from = x + block * block_size;
        float largest = 0.0f;
        for (int64_t i = 0; i < block_size; ++i) {
            const float magnitude = fabsf(from[i]);
            largest = magnitude > largest ? magnitude : largest;
        }
        scales[block] = largest;
        const float inverse = 1.0f / (largest < smallest ? smallest : largest);
        uint8_t *to = packed + block * (block_size / 2);
        for (int64_t run = 0; run < block_size; run += RUN) {
            count_below(from + run, inverse, thresholds, counts);
            for (int i = 0; i < RUN; i += 2)
                to[(run + i) / 2] = pairs[counts[i] << 4 | counts[i + 1]];
        }
    }
}
