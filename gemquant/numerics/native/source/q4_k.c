/* Q4_K: d, d of the minima (half precision), 8 pairs of six bits, 256 codes of four bits.

   The same bytes as quantize_row_q4_K_ref and quantize_row_q4_K_impl of ggml-quants.c. */
#include "k_rows.h"

static void write_scales(struct scales *scales, uint8_t *out) { write_sixes(scales, out); }

static void write_codes(const uint8_t *codes, uint8_t *out) {
    for (int pair = 0; pair < 4; ++pair)
        for (int i = 0; i < 32; ++i) {
            const uint8_t *two = codes + 64 * pair + i;
            out[16 + 32 * pair + i] = (uint8_t)(two[0] | two[32] << 4);
        }
}

GQ_API void gq_quantize_q4_k(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance
) {
    const struct k_type type = {
        .plain = {.width = 32, .top = 15, .first = -1.f, .step = 0.1f, .steps = 20},
        .weighted = {32, 15, -0.9f, 0.05f, .steps = 36, .limits_first = 1},
        .variance_scale = 2,
        .scale_top = 63,
        .limit = 1,
        .limit_weighted = 0,
        .bytes = 144,
        .write_scales = write_scales,
        .write_codes = write_codes,
    };
    k_rows(type, x, out, rows, columns, importance);
}
