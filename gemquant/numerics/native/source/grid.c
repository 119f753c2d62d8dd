/* Groups of weights that lie on a 4-bit grid: each weight is scale · code with a code from -8 to 7,
   rounded to the type that stores it. numerics/grid.py has the rule, and the same in torch. */
#include "gemquant.h"
#include "tiles.h"

#define LARGEST_GROUP 256

enum { OFF_GRID, PROVES_NOTHING, ON_GRID };

/* How a type rounds: half the gap between its numbers is 2^exponent · half, but ``least`` at least.
   odd: the last bit of its numbers as float32, since a product between two goes to the even one. */
struct stored_type {
    float half, least;
    int32_t odd;
};

/* Codes, if the scale 1 / inverse explains every weight by the rounding of it and of the largest. */
static int codes_at(
    const float *x, int64_t size, float inverse, struct stored_type type, float *codes
) {
    const float relative = 2.0625f * type.half, absolute = 2.f * type.least * inverse;
    for (int64_t i = 0; i < size; i += 32) {
        int_lanes off = {0};
        for (int j = 0; j < 32; j += LANES) {
            const lanes steps = lanes_load(x + i + j) * inverse;
            const lanes code = steps + ROUND_MAGIC - ROUND_MAGIC;
            off |= ~(lanes_abs(steps - code) <= lanes_abs(code) * relative + absolute);
            lanes_store(codes + i + j, code);
        }
        if (lanes_any(off)) return 0;
    }
    return 1;
}

/* The scales whose products with the codes all round to the weights; none: high < low. */
static void bounds(
    const float *x, const float *codes, int64_t size, struct stored_type type, float *low,
    float *high
) {
    lanes least = lanes_all(0.f), most = lanes_all(INFINITY);
    for (int64_t i = 0; i < size; i += LANES) {
        const lanes weight = lanes_abs(lanes_load(x + i)), code = lanes_abs(lanes_load(codes + i));
        const lanes edge = lanes_select(
            ((int_lanes)weight & type.odd) != 0, lanes_all(1.f - 0x1p-12f), lanes_all(1.f + 0x1p-12f)
        );
        const lanes unit = (lanes)((int_lanes)weight & 0x7f800000) * type.half * edge;
        /* Below a power of two numbers lie twice as close. */
        const int_lanes power = ((int_lanes)weight & 0x007fffff) == 0;
        const lanes under = lanes_max(lanes_select(power, unit * .5f, unit), lanes_all(type.least));
        const lanes over = lanes_max(unit, lanes_all(type.least));
        const int_lanes used = code > 0.f;
        least = lanes_max(least, lanes_select(used, (weight - under) / code, lanes_all(0.f)));
        most = lanes_min(most, lanes_select(used, (weight + over) / code, lanes_all(INFINITY)));
        most = lanes_select(~used & (weight > 0.f), lanes_all(-1.f), most);
    }
    *low = 0.f, *high = INFINITY;
    for (int lane = 0; lane < LANES; ++lane) {
        if (least[lane] > *low) *low = least[lane];
        if (most[lane] < *high) *high = most[lane];
    }
}

/* The scale of least squares within its bounds. All sums are exact, so that their order is free. */
static float fitted(const float *x, const float *codes, int64_t size, float low, float high) {
    double products[8] = {0}, squares[8] = {0};
    for (int64_t i = 0; i < size; i += 8)
        for (int j = 0; j < 8; ++j) {
            products[j] += (double)x[i + j] * codes[i + j];
            squares[j] += (double)codes[i + j] * codes[i + j];
        }
    for (int j = 1; j < 8; ++j) products[0] += products[j], squares[0] += squares[j];
    const float scale = (float)(products[0] / squares[0]);
    return scale < low ? low : scale > high ? high : scale;
}

static float largest_magnitude(const float *x, int64_t size) {
    lanes largest = lanes_all(0.f);
    for (int64_t i = 0; i < size; i += LANES)
        largest = lanes_max(lanes_abs(lanes_load(x + i)), largest);
    float all = 0.f;
    for (int lane = 0; lane < LANES; ++lane) all = largest[lane] > all ? largest[lane] : all;
    return all;
}

static int one_group(
    const float *x, int64_t size, struct stored_type type, int8_t *out, float *scale, float *low,
    float *high
) {
    ALIGNED float codes[LARGEST_GROUP];
    const float largest = largest_magnitude(x, size);
    memset(out, 0, (size_t)size);
    *scale = *low = *high = 0.f;
    if (largest == 0.f) return PROVES_NOTHING;
    for (int steps = 1; steps <= 8; ++steps) {
        if (!codes_at(x, size, (float)steps / largest, type, codes)) continue;
        bounds(x, codes, size, type, low, high);
        if (*high < *low) continue;
        unsigned magnitudes = 0, signs = 0;
        for (int64_t i = 0; i < size; ++i) {
            magnitudes |= 1u << (int)fabsf(codes[i]);
            signs |= (unsigned)(codes[i] == 8.f) | (unsigned)(codes[i] == -8.f) << 1;
        }
        if (signs == 3) continue; /* 17 codes */
        const int sign = signs == 1 ? -1 : 1; /* only a code of -8 has the magnitude 8 */
        *scale = (float)sign * fitted(x, codes, size, *low, *high);
        for (int64_t i = 0; i < size; ++i) out[i] = (int8_t)(sign * (int)codes[i]);
        return __builtin_popcount(magnitudes & ~1u) < 3 ? PROVES_NOTHING : ON_GRID;
    }
    *low = *high = 0.f;
    return OFF_GRID;
}

GQ_API void gq_find_grid(
    const float *x, int8_t *codes, float *scales, float *low, float *high, uint8_t *kinds,
    int64_t groups, int64_t size, float half, float least, int64_t odd
) {
    const struct stored_type type = {half, least, (int32_t)odd};
    for (int64_t n = 0; n < groups; ++n)
        kinds[n] = (uint8_t)one_group(
            x + n * size, size, type, codes + n * size, scales + n, low + n, high + n
        );
}
