/* What the library exports, and what its sources share. */
#ifndef CIBHASH_LIBRARY_H
#define CIBHASH_LIBRARY_H

#include <stddef.h>
#include <stdint.h>

/* Raised with every change of what is exported, together with ABI in library.py: a stale library is not called. */
#define CIBHASH_ABI 2

#if defined(__x86_64__)
#define X86 1
#else
#define X86 0
#endif

/* What a CPU has. A parameter `level` is the most that a function may use; it never uses more than there is. */
enum { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };

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

/* Packed codes have `width` bytes each, 1 to 64. The k nearest of `num_codes` >= k, ordered by (distance, position), to
 * positions and distances (num_queries, k). */
int32_t cibhash_hamming_search(
    const uint8_t *queries, int64_t num_queries, const uint8_t *database, int64_t num_codes, int32_t width, int64_t k,
    int64_t *positions, int32_t *distances, int32_t level);

/* How many codes lie within the radius of each query, to found (num_queries). */
int32_t cibhash_hamming_count(
    const uint8_t *queries, int64_t num_queries, const uint8_t *database, int64_t num_codes, int32_t width,
    int32_t radius, int64_t *found, int32_t level);

/* Those codes, ordered by (distance, position): of query q to limits[q] up to limits[q + 1]. */
int32_t cibhash_hamming_fill(
    const uint8_t *queries, int64_t num_queries, const uint8_t *database, int64_t num_codes, int32_t width,
    int32_t radius, const int64_t *limits, int64_t *positions, int32_t *distances, int32_t level);

/* How many codes lie at each distance of each query, and how many of them share a label with it, to (num_queries,
 * 8 width + 1) each. Labels are int64, one each, -1 for none; or `mask_words` > 0 words of a mask, (mask_words, n). */
int32_t cibhash_hamming_histogram(
    const uint8_t *queries, int64_t num_queries, const uint8_t *database, int64_t num_codes, int32_t width,
    const int64_t *query_labels, const int64_t *labels, int32_t mask_words, int64_t *total, int64_t *relevant,
    int32_t level);

#pragma GCC visibility pop

/* Whether to use a variant: this CPU has its level, and it is allowed. */
static inline int has(int32_t variant, int32_t allowed)
{
    return variant <= allowed && variant <= cibhash_level();
}

#endif
