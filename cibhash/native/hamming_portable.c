/* Hamming kernels for any CPU. */
#define TARGET
#define VECTOR_BYTES 16
#include "hamming_planes.h"

#define KERNELS(name, words) \
    static void distances_##name(const struct block *block, const uint64_t *query, uint16_t *distances) \
    { \
        all_distances(block, query, distances, words); \
    } \
    static size_t within_##name( \
        const struct block *block, const struct query *query, uint32_t limit, uint64_t *keys) \
    { \
        return all_within(block, query, limit, keys, words); \
    } \
    static size_t in_planes_##name( \
        const struct block *block, const struct query *query, uint32_t limit, uint64_t *keys) \
    { \
        return append_in_planes(block, query, limit, keys, words); \
    }

EVERY_WIDTH(KERNELS)

static void shift_equal(uint16_t *values, size_t count, const int64_t *labels, int64_t label, uint16_t shift)
{
    add_equal(values, count, labels, label, shift);
}

static void shift_sharing(uint16_t *values, size_t count, const int64_t *masks, size_t stride, const int64_t *mask,
    size_t mask_stride, size_t mask_words, uint16_t shift)
{
    add_sharing(values, count, masks, stride, mask, mask_stride, mask_words, shift);
}

static void slice(const struct block *block, size_t words, void *planes)
{
    slice_block(block, words, planes);
}

struct kernels hamming_portable(size_t words)
{
    static const struct kernels choices[] = CHOICES(within, within, within, 2);
    return choices[words];
}
