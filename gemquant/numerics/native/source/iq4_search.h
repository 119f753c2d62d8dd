/* The search for the scale of a block whose codes stand for a table's values, in lanes
   (ggml-quants.c: quantize_row_iq4_nl_impl, best_index_int8). */
#ifndef GEMQUANT_IQ4_SEARCH_H
#define GEMQUANT_IQ4_SEARCH_H

#include "scale_search.h"

/* kvalues_iq4nl, and half-way between them. Near those points ggml's comparison of two differences
   is exact, elsewhere it is far from undecided: a value's place is how many of them it reaches. */
static const float TABLE[16] = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
};
static const float BETWEEN[15] = {
    -115.5f, -93.5f, -74, -57, -42, -28.5f, -16, -4.5f, 7, 19, 31.5f, 45.5f, 61, 79, 101,
};

/* The place of the nearest value, from 0 to 15; NaN gets 15, as in ggml. */
ALWAYS_INLINE int_lanes table_index(lanes value) {
    int_lanes index = (int_lanes){0} + 15;
    for (int k = 0; k < 15; ++k) index += value < BETWEEN[k];
    return index;
}

#if LANES == 16
/* 0.115 · value, rounded, is a bucket in which at most one half-way point lies; for magnitudes up to
   134, 0 … 15 and then −16 … −1. */
#define NONE __builtin_inff()
static const float BUCKET_POINT[32] = {
    NONE, 7, 19, NONE, 31.5f, 45.5f, NONE, 61, NONE, 79, NONE, NONE, 101, NONE, NONE, NONE,
    NONE, NONE, NONE, -115.5f, NONE, -93.5f, NONE, -74, NONE, -57, NONE, -42, NONE, -28.5f, -16, -4.5f,
};
static const float BUCKET_BELOW[32] = {
    1, 1, 13, 25, 25, 38, 53, 53, 69, 69, 89, 89, 89, 113, 113, 113,
    -127, -127, -127, -127, -104, -104, -83, -83, -65, -65, -49, -49, -35, -35, -22, -10,
};
static const float BUCKET_ABOVE[32] = {
    1, 13, 25, 25, 38, 53, 53, 69, 69, 89, 89, 89, 113, 113, 113, 113,
    -127, -127, -127, -104, -104, -83, -83, -65, -65, -49, -49, -35, -35, -22, -10, 1,
};

ALWAYS_INLINE lanes in_bucket(const float *table, int_lanes bucket) {
    return (lanes)_mm512_permutex2var_ps(
        (__m512)lanes_load(table), (__m512i)bucket, (__m512)lanes_load(table + 16)
    );
}

/* The nearest value, for magnitudes up to 134. */
ALWAYS_INLINE lanes table_value(lanes value) {
    const int_lanes bucket = (int_lanes)(value * 0.115f + ROUND_MAGIC); /* its last 5 bits count */
    return lanes_select(
        value >= in_bucket(BUCKET_POINT, bucket), in_bucket(BUCKET_ABOVE, bucket),
        in_bucket(BUCKET_BELOW, bucket)
    );
}
#elif LANES == 8
/* Half-way points and values by the last 3 bits of −n, where n is the place found so far. */
static const float THIRD_POINT[8] = {-93.5f, 0, 0, 0, 0, 79, 19, -28.5f};
static const float FOURTH_POINT[8] = {-115.5f, 101, 61, 31.5f, 7, -16, -42, -74};
static const float LOWER_HALF[8] = {-127, -10, -22, -35, -49, -65, -83, -104};
static const float UPPER_HALF[8] = {1, 113, 89, 69, 53, 38, 25, 13};

ALWAYS_INLINE lanes entry(const float *table, int_lanes place) {
    return (lanes)_mm256_permutevar8x32_ps((__m256)lanes_load(table), (__m256i)place);
}

/* The nearest value, by halving: masks are −1 where a point is reached. */
ALWAYS_INLINE lanes table_value(lanes value) {
    const int_lanes first = value >= BETWEEN[7];
    int_lanes place = first + first;
    place += value >= lanes_select(first, lanes_all(BETWEEN[11]), lanes_all(BETWEEN[3]));
    place += place + (value >= entry(THIRD_POINT, place));
    place += place + (value >= entry(FOURTH_POINT, place));
    return lanes_select(first, entry(UPPER_HALF, place), entry(LOWER_HALF, place));
}
#else
/* The nearest value. */
ALWAYS_INLINE lanes table_value(lanes value) {
    lanes nearest = lanes_all(TABLE[0]);
#pragma GCC unroll 15
    for (int k = 0; k < 15; ++k) {
        const lanes step = lanes_all(TABLE[k + 1] - TABLE[k]);
        nearest += (lanes)((int_lanes)step & (value >= BETWEEN[k]));
    }
    return nearest;
}
#endif

struct table_sums {
    lanes qx, q2; /* Σ w·value·x, Σ w·value² */
};

ALWAYS_INLINE struct table_sums table_sums(lanes inverse, const float *x, const lanes *w) {
    struct table_sums sums = {lanes_all(0.f), lanes_all(0.f)};
    for (int i = 0; i < 32; ++i) {
        const lanes xi = lanes_load(x + i * TILE), value = table_value(inverse * xi);
        const lanes weighted = w[i] * value;
        sums.qx += weighted * xi;
        sums.q2 += weighted * value;
    }
    return sums;
}

/* The scale with the least weighted error, of LANES blocks of a tile; 0 for a block that counts as
   zero. weights: a tile like x; NULL weighs every element by its own square. */
ALWAYS_INLINE lanes search_table_scale(const float *x, const float *weights) {
    lanes w[32], largest = lanes_all(0.f), size = lanes_all(0.f);
    for (int i = 0; i < 32; ++i) {
        const lanes xi = lanes_load(x + i * TILE), absolute = lanes_abs(xi);
        const int_lanes more = absolute > size;
        size = lanes_select(more, absolute, size);
        largest = lanes_select(more, xi, largest);
        w[i] = weights ? lanes_load(weights + i * TILE) : xi * xi;
    }
    const struct table_sums first = table_sums(1.f / (-largest / TABLE[0]), x, w);
    lanes scale = lanes_select(first.q2 > 0.f, first.qx / first.q2, lanes_all(0.f));
    lanes best = scale * first.qx;
    for (int step = -7; step <= 7; ++step) {
        const struct table_sums sums = table_sums(lanes_all((float)step + TABLE[0]) / largest, x, w);
        const int_lanes better = (sums.q2 > 0.f) & (sums.qx * sums.qx > best * sums.q2);
        const lanes candidate = sums.qx / sums.q2;
        scale = lanes_select(better, candidate, scale);
        best = lanes_select(better, candidate * sums.qx, best);
    }
    return lanes_select(size < ZERO_BLOCK, lanes_all(0.f), scale);
}

#endif
