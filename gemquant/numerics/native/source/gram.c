/* Σ x xᵀ of bfloat16 inputs in float32, by the processor's own dot product of pairs (AVX512_BF16).

   Products of two bfloat16 numbers are exact in float32, so this loses nothing against a float32
   product of the same inputs but the order of the sum; numbers below 2^-126 count as zero. */
#include <string.h>

#include "gemquant.h"

#if defined(__x86_64__) && defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>
#define HAS_KERNEL 1
#else
#define HAS_KERNEL 0
#endif

enum {
    WIDTH = 64,  /* columns in a panel: four vectors of sums */
    HEIGHT = 4,  /* rows of a tile that are summed at once */
    PAIRS = 128, /* pairs of tokens that stay in the first cache */
};

/* Whether gq_gram_add may be called on this processor. */
GQ_API int gq_has_bfloat16_products(void) {
#if HAS_KERNEL
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") ? 1 : 0;
#else
    return 0;
#endif
}

/* Interleaves pairs of tokens, panel by panel: packed[panel][pair][column] holds two bfloat16
   numbers, zero beyond the last token and the last column. first, last: panels. */
GQ_API void gq_gram_pack(const uint16_t *inputs, int64_t tokens, int64_t columns, int64_t first,
                         int64_t last, uint32_t *packed) {
    const int64_t pairs = (tokens + 1) / 2;
    for (int64_t panel = first; panel < last; ++panel) {
        const int64_t begin = panel * WIDTH;
        const int64_t width = columns - begin < WIDTH ? columns - begin : WIDTH;
        for (int64_t pair = 0; pair < pairs; ++pair) {
            const uint16_t *even = inputs + 2 * pair * columns + begin;
            const int has_odd = 2 * pair + 1 < tokens;
            uint32_t *to = packed + (panel * pairs + pair) * WIDTH;
            for (int64_t c = 0; c < width; ++c)
                to[c] = even[c] | (has_odd ? (uint32_t)even[columns + c] << 16 : 0);
            for (int64_t c = width; c < WIDTH; ++c) to[c] = 0;
        }
    }
}

#if HAS_KERNEL
/* sums[row][column] += Σ over pairs of left[pair][row] · right[pair][column]. */
__attribute__((target("avx512bf16"))) static void add_tile(const uint32_t *left,
                                                           const uint32_t *right, int64_t pairs,
                                                           float *sums) {
    for (int row = 0; row < WIDTH; row += HEIGHT) {
        __m512 sum[HEIGHT][4];
        for (int r = 0; r < HEIGHT; ++r)
            for (int v = 0; v < 4; ++v)
                sum[r][v] = _mm512_loadu_ps(sums + (row + r) * WIDTH + 16 * v);
        for (int64_t pair = 0; pair < pairs; ++pair) {
            const uint32_t *a = left + pair * WIDTH + row, *b = right + pair * WIDTH;
            __m512bh columns[4];
            for (int v = 0; v < 4; ++v) columns[v] = (__m512bh)_mm512_loadu_si512(b + 16 * v);
            for (int r = 0; r < HEIGHT; ++r) {
                const __m512bh broadcast = (__m512bh)_mm512_set1_epi32((int)a[r]);
                for (int v = 0; v < 4; ++v)
                    sum[r][v] = _mm512_dpbf16_ps(sum[r][v], broadcast, columns[v]);
            }
        }
        for (int r = 0; r < HEIGHT; ++r)
            for (int v = 0; v < 4; ++v)
                _mm512_storeu_ps(sums + (row + r) * WIDTH + 16 * v, sum[r][v]);
    }
}
#endif

/* gram (columns, columns) += Σ x xᵀ, the upper half of panels alone. first, last: tiles of panels
   (left ≤ right), counted along the rows of the upper half. */
GQ_API void gq_gram_add(const uint32_t *packed, int64_t pairs, int64_t columns, int64_t first,
                        int64_t last, float *gram) {
#if HAS_KERNEL
    const int64_t panels = (columns + WIDTH - 1) / WIDTH;
    float sums[WIDTH * WIDTH] __attribute__((aligned(64)));
    int64_t left = 0, begin = 0;
    for (int64_t tile = first; tile < last; ++tile) {
        while (tile >= begin + panels - left) begin += panels - left++;
        const int64_t right = left + tile - begin;
        memset(sums, 0, sizeof sums);
        for (int64_t pair = 0; pair < pairs; pair += PAIRS) {
            const int64_t count = pairs - pair < PAIRS ? pairs - pair : PAIRS;
            add_tile(packed + (left * pairs + pair) * WIDTH, packed + (right * pairs + pair) * WIDTH,
                     count, sums);
        }
        const int64_t top = left * WIDTH, side = right * WIDTH;
        const int64_t height = columns - top < WIDTH ? columns - top : WIDTH;
        const int64_t width = columns - side < WIDTH ? columns - side : WIDTH;
        for (int64_t r = 0; r < height; ++r)
            for (int64_t c = 0; c < width; ++c)
                gram[(top + r) * columns + side + c] += sums[r * WIDTH + c];
    }
#else
    (void)packed, (void)pairs, (void)columns, (void)first, (void)last, (void)gram;
#endif
}
