/* As many single-precision numbers as one register holds, and what GCC's vectors lack.

   Every operation is the scalar one in each lane: nothing is fused, reordered or approximated. */
#ifndef GEMQUANT_LANES_H
#define GEMQUANT_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t int_lanes __attribute__((vector_size(4 * LANES)));

ALWAYS_INLINE lanes lanes_load(const float *from) {
    lanes read;
    memcpy(&read, from, sizeof read);
    return read;
}

ALWAYS_INLINE void lanes_store(float *to, lanes value) { memcpy(to, &value, sizeof value); }

ALWAYS_INLINE lanes lanes_all(float value) {
    lanes made;
    for (int lane = 0; lane < LANES; ++lane) made[lane] = value;
    return made;
}

/* mask ? yes : no, with masks of comparisons: 0 or -1. */
ALWAYS_INLINE lanes lanes_select(int_lanes mask, lanes yes, lanes no) {
    return (lanes)((mask & (int_lanes)yes) | (~mask & (int_lanes)no));
}

/* a > b ? a : b, so b where either is NaN. */
ALWAYS_INLINE lanes lanes_max(lanes a, lanes b) {
#if LANES == 16
    return (lanes)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (lanes)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
    return (lanes)_mm_max_ps((__m128)a, (__m128)b);
#else
    return lanes_select(a > b, a, b);
#endif
}

/* a < b ? a : b, so b where either is NaN. */
ALWAYS_INLINE lanes lanes_min(lanes a, lanes b) {
#if LANES == 16
    return (lanes)_mm512_min_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (lanes)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
    return (lanes)_mm_min_ps((__m128)a, (__m128)b);
#else
    return lanes_select(a < b, a, b);
#endif
}

ALWAYS_INLINE lanes lanes_sqrt(lanes value) {
#if LANES == 16
    return (lanes)_mm512_sqrt_ps((__m512)value);
#elif LANES == 8
    return (lanes)_mm256_sqrt_ps((__m256)value);
#elif defined(__x86_64__)
    return (lanes)_mm_sqrt_ps((__m128)value);
#else
    for (int lane = 0; lane < LANES; ++lane) value[lane] = sqrtf(value[lane]);
    return value;
#endif
}

ALWAYS_INLINE lanes lanes_abs(lanes value) { return (lanes)((int_lanes)value & 0x7fffffff); }

/* Without the fraction; INT32_MIN for NaN and what 32 bits do not hold. A plain conversion of those
   is undefined, and differs from processor to processor. */
ALWAYS_INLINE int_lanes lanes_truncate(lanes value) {
#if LANES == 16
    return (int_lanes)_mm512_cvttps_epi32((__m512)value);
#elif LANES == 8
    return (int_lanes)_mm256_cvttps_epi32((__m256)value);
#elif defined(__x86_64__)
    return (int_lanes)_mm_cvttps_epi32((__m128)value);
#else
    const int_lanes held = (value >= -0x1p31f) & (value < 0x1p31f);
    const lanes safe = (lanes)(held & (int_lanes)value);
    return (__builtin_convertvector(safe, int_lanes) & held) | (~held & INT32_MIN);
#endif
}

ALWAYS_INLINE int lanes_any(int_lanes mask) {
#if LANES == 16
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif LANES == 8
    return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__x86_64__)
    return _mm_movemask_ps((__m128)mask) != 0;
#else
    int any = 0;
    for (int lane = 0; lane < LANES; ++lane) any |= mask[lane];
    return any;
#endif
}

#endif
