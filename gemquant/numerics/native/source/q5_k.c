/* Q5_K: d, d of the minima (half precision), 8 pairs of six bits, the codes' highest bits, their
   lower four.

   The same bytes as quantize_row_q5_K_ref and quantize_row_q5_K_impl of ggml-quants.c. */
#include "k_rows.h"

static void write_scales(struct scales *scales, uint8_t *out) { write_sixes(scales, out); }

static void write_codes(const uint8_t *codes, uint8_t *out) {
    uint8_t high[32] = {0};
    for (int j = 0; j < 8; ++j)
        for (int i = 0; i < 32; ++i) high[i] |= (uint8_t)(codes[32 * j + i] >> 4 << j);
    memcpy(out + 16, high, sizeof high);
    for (int pair = 0; pair < 4; ++pair)
        for (int i = 0; i < 32; ++i) {
            const uint8_t *two = codes + 64 * pair + i;
            out[48 + 32 * pair + i] = (uint8_t)((two[0] & 15) | two[32] << 4);
        }
}

GQ_API void gq_quantize_q5_k(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance
) {
    const struct k_type type = {
        .plain = {.width = 32, .top = 31, .first = -0.5f, .step = 0.1f, .steps = 15},
        .weighted = {32, 31, -0.9f, 0.05f, .steps = 36, .limits_first = 1},
        .variance_scale = 2,
        .scale_top = 63,
        .limit = 1,
        .limit_weighted = 1,
        .bytes = 176,
        .write_scales = write_scales,
        .write_codes = write_codes,
    };
    k_rows(type, x, out, rows, columns, importance);
}
