/* What the types with super-blocks of 16 blocks of 16 weights share. */
#ifndef GEMQUANT_SUPER_BLOCK_H
#define GEMQUANT_SUPER_BLOCK_H

#include "scale_search.h"

/* The final codes + levels of 16 weights, from 0 on, in the last bytes of ``codes``. */
ALWAYS_INLINE void codes_of_scale(const float *x, float scale, float levels, int32_t *codes) {
    for (int i = 0; i < 16; i += LANES) {
        const lanes code = lanes_nearest_int(lanes_load(x + i) / lanes_all(scale));
        store_codes(codes + i, lanes_clamp(code, -levels, levels - 1) + levels);
    }
}

/* The same with the search's inverse scale: ggml leaves these where the final scale became zero.
   zero: the block counts as zero. */
ALWAYS_INLINE void codes_of_search(
    const float *x, float inverse, int32_t zero, float levels, int32_t *codes
) {
    for (int i = 0; i < 16; i += LANES) {
        const lanes code = lanes_nearest_int(lanes_load(x + i) * inverse);
        const lanes raised = lanes_clamp(code, -levels, levels - 1) + levels;
        store_codes(codes + i, zero ? lanes_all(0.f) : raised);
    }
}

#endif
