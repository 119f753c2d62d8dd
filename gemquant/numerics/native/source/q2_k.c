/* Q2_K: 16 pairs of four bits, 256 codes of two bits, d and d of the minima (half precision).

   The same bytes as quantize_row_q2_K_ref and quantize_row_q2_K_impl of ggml-quants.c. */
#include "k_rows.h"

static void write_scales(struct scales *scales, uint8_t *out) {
    for (int j = 0; j < 16; ++j) {
        out[j] = (uint8_t)(scales->scale[j] | scales->minimum[j] << 4);
        scales->scale[j] = out[j] & 15;
        scales->minimum[j] = out[j] >> 4;
    }
    store_half(out + 80, scales->d);
    store_half(out + 82, scales->d_minimum);
}

static void write_codes(const uint8_t *codes, uint8_t *out) {
    for (int half = 0; half < 2; ++half)
        for (int i = 0; i < 32; ++i) {
            const uint8_t *four = codes + 128 * half + i;
            out[16 + 32 * half + i] =
                (uint8_t)(four[0] | four[32] << 2 | four[64] << 4 | four[96] << 6);
        }
}

GQ_API void gq_quantize_q2_k(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance
) {
    const struct k_type type = {
        .plain = {.width = 16, .top = 3, .first = -0.5f, .step = 0.1f, .steps = 15, .absolute = 1},
        .weighted = {16, 3, -0.9f, 0.05f, .steps = 36, .limits_first = 1},
        .variance_scale = 1,
        .scale_top = 15,
        .limit = 0,
        .limit_weighted = 0,
        .bytes = 84,
        .write_scales = write_scales,
        .write_codes = write_codes,
    };
    k_rows(type, x, out, rows, columns, importance);
}
