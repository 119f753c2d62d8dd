/* What a library was built for, and what the processor offers. */
#include "gemquant.h"

#ifndef GQ_DIGEST
#error "GQ_DIGEST: the sources' digest, given by build.py"
#endif

/* SHA-256 of the sources this library was built from, in hexadecimal. */
GQ_API const char *gq_digest(void) { return GQ_DIGEST; }

/* The best x86-64 level that the processor has: 1, 2 (unused), 3 for AVX2 and FMA, 4 for AVX-512.
   0 on any other architecture. */
GQ_API int gq_processor_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const int three = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const int four = three && __builtin_cpu_supports("avx512f") &&
                     __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return four ? 4 : three ? 3 : 1;
#else
    return 0;
#endif
}
