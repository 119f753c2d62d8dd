/* What every kernel file includes. Kernels take rows: callers split them over threads. */
#ifndef GEMQUANT_H
#define GEMQUANT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define GQ_API __declspec(dllexport)
#else
#define GQ_API __attribute__((visibility("default")))
#endif

#endif
