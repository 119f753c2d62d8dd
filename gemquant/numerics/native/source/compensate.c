/* A block of columns rounded one after the other, each making up for the errors before it.

   Matrices come columns first: x[j * stride + r] is column j of row r, so that 16 rows are one
   vector, and every row is worked on alone: runs of rows may go to different threads. The sum over
   earlier columns goes in their order, without fused operations. */
#include <math.h>
#include <string.h>

#include "gemquant.h"

enum { TILE = 64, COLUMNS = 128, CANDIDATES = 16 };

/* The affine format, and the group's parameters of every row. biased: zero points are not whole. */
struct rounding {
    const float *scales;      /* (rows) */
    const float *zero_points; /* (rows) */
    float largest_code;
    int32_t biased;
};

/* Loads a tile of rows; rows beyond the last repeat a value that is harmless. */
static void load(float *tile, const float *from, int count, float filler) {
    if (count == TILE) {
        memcpy(tile, from, TILE * sizeof(float));
        return;
    }
    for (int r = 0; r < count; ++r) tile[r] = from[r];
    for (int r = count; r < TILE; ++r) tile[r] = filler;
}

/* Codes of a tile of target values, and the values that they stand for, both divided back by the
   column's scale. */
static void round_tile(const float *restrict target, float column_scale,
                       const float *restrict scales, const float *restrict zero_points,
                       float largest_code, int biased, float *restrict codes,
                       float *restrict values) {
    if (biased) {
        for (int r = 0; r < TILE; ++r)
            codes[r] = rintf(target[r] * column_scale / scales[r] + zero_points[r]);
    } else {
        for (int r = 0; r < TILE; ++r)
            codes[r] = rintf(target[r] * column_scale / scales[r]) + zero_points[r];
    }
    for (int r = 0; r < TILE; ++r) {
        float code = codes[r];
        code = code >= 0.0f ? code : 0.0f; /* also for NaN, which has no integer */
        code = code > largest_code ? largest_code : code;
        codes[r] = code;
        values[r] = (code - zero_points[r]) * scales[r] / column_scale;
    }
}

/* sum[r] += Σ_{k < count} weights[k * step] · columns[k][r], in the order of k. */
static void add_products(float *restrict sum, const float *restrict weights, int64_t step,
                         float (*restrict columns)[TILE], int64_t count) {
    float total[TILE];
    for (int r = 0; r < TILE; ++r) total[r] = sum[r];
    for (int64_t k = 0; k < count; ++k) {
        const float weight = weights[k * step];
        for (int r = 0; r < TILE; ++r) total[r] += weight * columns[k][r];
    }
    for (int r = 0; r < TILE; ++r) sum[r] = total[r];
}

/* price[r] += Σⱼ metric[j] · error², in the order of j; an error is in units of the scale. */
static void add_price(float *restrict price, float (*restrict values)[TILE],
                      const float *restrict metric, int64_t columns, const float *restrict scales,
                      const float *restrict zero_points, float largest_code, int biased) {
    for (int64_t j = 0; j < columns; ++j) {
        const float weight = metric[j];
        for (int r = 0; r < TILE; ++r) {
            const float units = values[j][r] / scales[r];
            float code = biased ? rintf(units + zero_points[r]) : rintf(units) + zero_points[r];
            code = code < 0.0f ? 0.0f : code;
            code = code > largest_code ? largest_code : code;
            const float error = code - zero_points[r] - units;
            price[r] += error * error * weight;
        }
    }
}

/* LDLQ within a block of at most 128 columns.

   wanted, feedback: the weights, and where they should go for the errors before this block.
   triangle: (columns, columns), [k, j] what an error in column k < j asks of column j.
   column_scales: (columns), rounding happens in units of weight times this.
   errors, codes: written. */
GQ_API void gq_compensate(const float *wanted, const float *feedback, const float *triangle,
                          const float *column_scales, const struct rounding *rounding,
                          int64_t columns, int64_t stride, int64_t first, int64_t last,
                          float *errors, uint8_t *codes) {
    float done[COLUMNS][TILE], scales[TILE], zero_points[TILE];
    float target[TILE], code[TILE], value[TILE], want[TILE];
    for (int64_t row = first; row < last; row += TILE) {
        const int count = last - row < TILE ? (int)(last - row) : TILE;
        load(scales, rounding->scales + row, count, 1.0f);
        load(zero_points, rounding->zero_points + row, count, 0.0f);
        for (int64_t j = 0; j < columns; ++j) {
            load(target, feedback + j * stride + row, count, 0.0f);
            load(want, wanted + j * stride + row, count, 0.0f);
            add_products(target, triangle + j, columns, done, j);
            round_tile(target, column_scales[j], scales, zero_points, rounding->largest_code,
                       rounding->biased, code, value);
            for (int r = 0; r < TILE; ++r) done[j][r] = want[r] - value[r];
            for (int r = 0; r < count; ++r) errors[j * stride + row + r] = done[j][r];
            for (int r = 0; r < count; ++r) codes[j * stride + row + r] = (uint8_t)code[r];
        }
    }
}

/* Coordinate descent over a block of at most 128 columns: every code to its best value with all
   the others fixed.

   gradient: what the errors, as they come in, ask of each column. gram: (columns, columns) of the
   block. curvature: (columns). errors: in and out. codes: written. */
GQ_API void gq_refine(const float *wanted, const float *gradient, const float *gram,
                      const float *curvature, const float *column_scales,
                      const struct rounding *rounding, int64_t columns, int64_t stride,
                      int64_t first, int64_t last, float *errors, uint8_t *codes) {
    float change[COLUMNS][TILE], scales[TILE], zero_points[TILE];
    float slope[TILE], target[TILE], code[TILE], value[TILE], before[TILE], want[TILE];
    for (int64_t row = first; row < last; row += TILE) {
        const int count = last - row < TILE ? (int)(last - row) : TILE;
        load(scales, rounding->scales + row, count, 1.0f);
        load(zero_points, rounding->zero_points + row, count, 0.0f);
        for (int64_t j = 0; j < columns; ++j) {
            load(slope, gradient + j * stride + row, count, 0.0f);
            load(want, wanted + j * stride + row, count, 0.0f);
            load(before, errors + j * stride + row, count, 0.0f);
            add_products(slope, gram + j * columns, 1, change, j);
            for (int r = 0; r < TILE; ++r) {
                before[r] = want[r] - before[r];
                target[r] = before[r] + slope[r] / curvature[j];
            }
            round_tile(target, column_scales[j], scales, zero_points, rounding->largest_code,
                       rounding->biased, code, value);
            for (int r = 0; r < TILE; ++r) change[j][r] = before[r] - value[r];
            for (int r = 0; r < count; ++r) errors[j * stride + row + r] = want[r] - value[r];
            for (int r = 0; r < count; ++r) codes[j * stride + row + r] = (uint8_t)code[r];
        }
    }
}

/* What rounding a group would cost each row: Σⱼ metric[j] · (code − zero point − x / scale)².

   values: columns first, any number of them. scales and zero_points of at most 16 candidates are
   (candidates, stride); prices are written alike, in units of the metric. */
GQ_API void gq_price(const float *values, const float *metric, const float *scales,
                     const float *zero_points, float largest_code, int32_t biased,
                     int64_t candidates, int64_t columns, int64_t stride, int64_t first,
                     int64_t last, float *prices) {
    float scale[CANDIDATES][TILE], zero[CANDIDATES][TILE], price[CANDIDATES][TILE];
    float x[COLUMNS][TILE];
    for (int64_t row = first; row < last; row += TILE) {
        const int count = last - row < TILE ? (int)(last - row) : TILE;
        for (int64_t c = 0; c < candidates; ++c) {
            load(scale[c], scales + c * stride + row, count, 1.0f);
            load(zero[c], zero_points + c * stride + row, count, 0.0f);
            for (int r = 0; r < TILE; ++r) price[c][r] = 0.0f;
        }
        for (int64_t begin = 0; begin < columns; begin += COLUMNS) {
            const int64_t width = columns - begin < COLUMNS ? columns - begin : COLUMNS;
            for (int64_t j = 0; j < width; ++j)
                load(x[j], values + (begin + j) * stride + row, count, 0.0f);
            for (int64_t c = 0; c < candidates; ++c)
                add_price(price[c], x, metric + begin, width, scale[c], zero[c], largest_code,
                          biased);
        }
        for (int64_t c = 0; c < candidates; ++c)
            for (int r = 0; r < count; ++r)
                prices[c * stride + row + r] = price[c][r] * (scale[c][r] * scale[c][r]);
    }
}
