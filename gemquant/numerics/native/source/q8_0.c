/* Q8_0: blocks of 32 weights, w = d · code, code int8; importances do not count.
   ggml-quants.c: quantize_row_q8_0_ref. */
#include "blocks_32.h"
#include "gemquant.h"

GQ_API void gq_quantize_q8_0(
    const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance
) {
    (void)importance;
    for (int64_t block = 0; block < rows * columns / 32; ++block, x += 32, out += 34) {
        lanes most = lanes_abs(lanes_load(x));
        for (int i = LANES; i < 32; i += LANES) most = lanes_max(lanes_abs(lanes_load(x + i)), most);
        const float d = largest_of(most) / 127;
        const float inverse = d != 0.f ? 1.f / d : 0.f;
        store_half(out, half_of(d));
        ALIGNED int32_t codes[32];
        for (int i = 0; i < 32; i += LANES) {
            /* roundf, halves away from zero: the number below ½ does not lift what is below a half */
            const lanes value = lanes_load(x + i) * inverse;
            const int_lanes half = (int_lanes)lanes_all(0x1.fffffep-2f);
            const lanes away = value + (lanes)(((int_lanes)value & INT32_MIN) | half);
            const int_lanes code = lanes_truncate(away);
            memcpy(codes + i, &code, sizeof code);
        }
        for (int i = 0; i < 32; ++i) out[2 + i] = (uint8_t)codes[i];
    }
}
