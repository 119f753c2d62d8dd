/* A softmax over a vocabulary that arrives in runs, and its divergence from another model's.

   Rows are tokens. Sixteen partial sums at every level, in single precision over a short block and
   in double beyond it, so that all levels compute the same bits. */
#include "gemquant.h"
#include "tiles.h"

enum { TOP = 5, WIDE = 16, BLOCK = 256 };

/* What is known of one model's rows so far. best: the TOP largest logits, the largest first, -inf
   where fewer were seen. ids: of these. total: of exp(logit - best). target: the target's logit. */
struct softmax {
    float *best;
    int64_t *ids;
    double *total;
    float *target;
};

/* exp of what is not above 0, to 2e-7 of it; 0 below -87, where single precision ends. */
ALWAYS_INLINE lanes exp_below_zero(lanes x) {
    const int_lanes none = x < -87.f;
    x = lanes_select(none, lanes_all(-87.f), x);
    const lanes n = lanes_round(x * 1.44269504f);
    const lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.f;
    const lanes scaled = (lanes)((int_lanes)p + (lanes_truncate(n) << 23));
    return lanes_select(none, lanes_all(0.f), scaled);
}

static void insert(float logit, int64_t id, float *best, int64_t *ids) {
    int place = TOP - 1;
    for (; place > 0 && logit > best[place - 1]; --place) {
        best[place] = best[place - 1];
        ids[place] = ids[place - 1];
    }
    best[place] = logit;
    ids[place] = id;
}

/* Of equal logits the first stays in front. */
static void find_best(const float *x, int64_t run, int64_t start, float *best, int64_t *ids) {
    int64_t i = 0;
    for (; i + 4 * WIDE <= run; i += 4 * WIDE) {
        const lanes least = lanes_all(best[TOP - 1]);
        int_lanes over = {0};
        for (int j = 0; j < 4 * WIDE; j += LANES) over |= lanes_load(x + i + j) > least;
        if (!lanes_any(over)) continue;
        for (int j = 0; j < 4 * WIDE; ++j)
            if (x[i + j] > best[TOP - 1]) insert(x[i + j], start + i + j, best, ids);
    }
    for (; i < run; ++i)
        if (x[i] > best[TOP - 1]) insert(x[i], start + i, best, ids);
}

ALWAYS_INLINE void add_block(const float *part, double *sum) {
    for (int j = 0; j < WIDE; ++j) sum[j] += part[j];
}

static double added(const double *sum) {
    double all = 0.;
    for (int j = 0; j < WIDE; ++j) all += sum[j];
    return all;
}

/* Σ exp(x - peak) of a multiple of 16 numbers; Σ weights · (original - x) too, or the weights are
   written where no original is given. */
ALWAYS_INLINE double exponentials(
    const float *x, int64_t count, float peak, const float *original, float *weights, double *apart
) {
    double totals[WIDE] = {0}, products[WIDE] = {0};
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        const int64_t end = begin + BLOCK < count ? begin + BLOCK : count;
        ALIGNED float total[WIDE] = {0}, product[WIDE] = {0};
        for (int64_t i = begin; i < end; i += WIDE)
            for (int j = 0; j < WIDE; j += LANES) {
                const lanes logit = lanes_load(x + i + j), e = exp_below_zero(logit - peak);
                lanes_store(total + j, lanes_load(total + j) + e);
                if (original == NULL) {
                    lanes_store(weights + i + j, e);
                } else {
                    const lanes off = lanes_load(original + i + j) - logit;
                    const lanes more = lanes_load(weights + i + j) * off;
                    lanes_store(product + j, lanes_load(product + j) + more);
                }
            }
        add_block(total, totals);
        add_block(product, products);
    }
    *apart = added(products);
    return added(totals);
}

static double row(
    const float *x, int64_t run, float peak, const float *original, float *weights, double *apart
) {
    const int64_t whole = run / WIDE * WIDE;
    double rest_apart = 0., rest = 0.;
    const double sum = original == NULL ? exponentials(x, whole, peak, NULL, weights, apart)
                                        : exponentials(x, whole, peak, original, weights, apart);
    if (whole < run) { /* padded by logits without weight, equal in both models */
        ALIGNED float tail[WIDE], theirs[WIDE], ours[WIDE] = {0};
        for (int j = 0; j < WIDE; ++j) {
            const int inside = whole + j < run;
            tail[j] = inside ? x[whole + j] : -3e38f;
            theirs[j] = inside && original != NULL ? original[whole + j] : tail[j];
            if (inside && original != NULL) ours[j] = weights[whole + j];
        }
        rest = exponentials(tail, WIDE, peak, original == NULL ? NULL : theirs, ours, &rest_apart);
        if (original == NULL)
            for (int64_t i = whole; i < run; ++i) weights[i] = ours[i - whole];
    }
    *apart += rest_apart;
    return sum + rest;
}

/* Adds logits (rows, run) of the vocabulary entries from ``start`` on to the rows' state.

   Of the original, ``original`` is NULL: its weights exp(logit - best) and what its earlier sums
   were multiplied by are written. Of another model these are read, and Σ weights · (original -
   logit) is added to ``divergence``. first, last: rows of all the tensors but the logits and
   weights, whose first row is ``first`` - ``offset``. */
GQ_API void gq_softmax_add(
    const float *logits, int64_t run, int64_t start, int64_t offset, int64_t first, int64_t last,
    const int64_t *targets, const struct softmax *state, const float *original, float *weights,
    float *rescale, double *divergence
) {
    for (int64_t token = first; token < last; ++token) {
        const int64_t tile = (token - offset) * run, local = targets[token] - start;
        const float *x = logits + tile;
        float *best = state->best + token * TOP, before = *best;
        find_best(x, run, start, best, state->ids + token * TOP);
        const float scale = before == *best ? 1.f : expf(before - *best);
        double apart;
        const float *other = original == NULL ? NULL : original + tile;
        const double sum = row(x, run, *best, other, weights + tile, &apart);
        state->total[token] = state->total[token] * scale + sum;
        if (local >= 0 && local < run) state->target[token] = x[local];
        if (original == NULL) rescale[token] = scale;
        else divergence[token] = divergence[token] * rescale[token] + apart;
    }
}
