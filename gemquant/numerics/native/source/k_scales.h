/* Scales and minima of a super-block's sub-blocks to integers with a common factor each. */
#ifndef GEMQUANT_K_SCALES_H
#define GEMQUANT_K_SCALES_H

#include "k_fit.h"

/* Of one super-block: integers, and the factors in half precision. */
struct scales {
    uint8_t scale[16], minimum[16];
    uint16_t d, d_minimum;
};

/* The largest becomes ``top``: the *_ref functions. Negative ones, which a search can leave, wrap
   around in eight bits as in ggml; Q4_K and Q5_K limit what is left, ``limit``. */
ALWAYS_INLINE uint16_t
largest_to_top(int count, int top, int limit, const float *from, uint8_t *to) {
    float largest = 0;
    for (int j = 0; j < count; ++j)
        if (from[j] > largest) largest = from[j];
    const float inverse = largest > 0 ? (float)top / largest : 0.f;
    for (int j = 0; j < count; ++j) {
        const uint8_t wrapped = (uint8_t)nearest_int(inverse * from[j]);
        to[j] = limit && wrapped > top ? (uint8_t)top : wrapped;
    }
    return half_of(largest / (float)top);
}

/* Integers that minimize Σ w (value − factor · integer)²: make_qp_quants. */
ALWAYS_INLINE uint16_t
least_squares(int count, int top, const float *from, const float *w, uint8_t *to) {
    float largest = 0;
    for (int j = 0; j < count; ++j) largest = largest > from[j] ? largest : from[j];
    if (largest < 1e-15f) {
        memset(to, 0, (size_t)count);
        return 0;
    }
    float inverse = (float)top / largest;
    const float factor = 1.f / inverse;
    float best = 0;
    for (int j = 0; j < count; ++j) {
        const float difference = from[j] - factor * (float)(uint8_t)nearest_int(inverse * from[j]);
        best += w[j] * difference * difference;
    }
    for (int step = -4; step <= 4; ++step) {
        if (step == 0) continue;
        const float tried = (0.1f * (float)step + (float)top) / largest;
        const float tried_factor = 1.f / tried;
        float error = 0;
        for (int j = 0; j < count; ++j) {
            const int32_t code = nearest_int(tried * from[j]);
            const float difference = from[j] - tried_factor * (float)(code < top ? code : top);
            error += w[j] * difference * difference;
        }
        if (error < best) {
            best = error;
            inverse = tried;
        }
    }
    float sum_xl = 0, sum_l2 = 0;
    for (int j = 0; j < count; ++j) {
        const int32_t code = nearest_int(inverse * from[j]);
        const int32_t limited = code < top ? code : top;
        to[j] = (uint8_t)limited;
        sum_xl += w[j] * from[j] * (float)limited;
        sum_l2 += w[j] * (float)limited * (float)limited;
    }
    for (int round = 0; round < 5; ++round) {
        int changed = 0;
        for (int j = 0; j < count; ++j) {
            const float old = to[j], weighted = w[j] * from[j];
            float xl = sum_xl - weighted * old, l2 = sum_l2 - w[j] * old * old;
            if (!(xl > 0 && l2 > 0)) continue;
            const int32_t code = nearest_int(from[j] * l2 / xl);
            const int32_t limited = code < top ? code : top;
            if (limited == to[j]) continue;
            xl += weighted * (float)limited;
            l2 += w[j] * (float)limited * (float)limited;
            if (xl * xl * sum_l2 > sum_xl * sum_xl * l2) {
                to[j] = (uint8_t)limited;
                sum_xl = xl;
                sum_l2 = l2;
                changed = 1;
            }
        }
        if (!changed) break;
    }
    return half_of(sum_l2 > 0 ? sum_xl / sum_l2 : 0.f);
}

/* d, d of the minima, then eight pairs of six bits in twelve bytes, as get_scale_min_k4 reads them.
   Leaves in ``scales`` what that finds: bits mix where a scale had wrapped around. */
static inline void write_sixes(struct scales *scales, uint8_t *out) {
    uint8_t *to = out + 4;
    store_half(out, scales->d);
    store_half(out + 2, scales->d_minimum);
    memcpy(to, scales->scale, 4);
    memcpy(to + 4, scales->minimum, 4);
    for (int j = 4; j < 8; ++j) {
        const int scale = scales->scale[j], minimum = scales->minimum[j];
        to[j + 4] = (uint8_t)((scale & 15) | (minimum & 15) << 4);
        to[j - 4] |= (uint8_t)(scale >> 4 << 6);
        to[j] |= (uint8_t)(minimum >> 4 << 6);
    }
    for (int j = 0; j < 4; ++j) {
        scales->scale[j] = to[j] & 63;
        scales->minimum[j] = to[j + 4] & 63;
        scales->scale[j + 4] = (uint8_t)((to[j + 8] & 15) | to[j] >> 6 << 4);
        scales->minimum[j + 4] = (uint8_t)(to[j + 8] >> 4 | to[j + 4] >> 6 << 4);
    }
}

#endif
