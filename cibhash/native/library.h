/* What the library exports, and what its sources share. */
#ifndef CIBHASH_LIBRARY_H
#define CIBHASH_LIBRARY_H

#include <stddef.h>
#include <stdint.h>

/* Raised with every change of what is exported, together with ABI in library.py: a stale library is not called. */
#define CIBHASH_ABI 1

#if defined(__x86_64__)
#define X86 1
#else
#define X86 0
#endif

/* What a CPU has. A parameter `level` is the most that a function may use; it never uses more than there is. */
enum { PORTABLE = 0, AVX2 = 1 };

/* What a function returns that could not do its work; 0 where it could. */
enum { OUT_OF_RANGE = 1, NO_MEMORY = 2 };

#pragma GCC visibility push(default)

int32_t cibhash_abi(void);
int32_t cibhash_level(void);

/* Pixels (rows, width, 4) to narrowed (rows, size, 4). */
int32_t cibhash_resize_columns(
    const uint8_t *pixels, int32_t width, int32_t rows, int32_t size, uint8_t *narrowed, int32_t level);

/* Pixels (height, width, 4) to lowered (size, width, 4). */
int32_t cibhash_resize_rows(
    const uint8_t *pixels, int32_t height, int32_t width, int32_t size, uint8_t *lowered, int32_t level);

/* Pixels (count, 4) to planes (3, count). */
int32_t cibhash_planes(const uint8_t *pixels, int64_t count, uint8_t *planes, int32_t level);

#pragma GCC visibility pop

/* Whether to use a variant: this CPU has its level, and it is allowed. */
static inline int has(int32_t variant, int32_t allowed)
{
    return variant <= allowed && variant <= cibhash_level();
}

#endif
