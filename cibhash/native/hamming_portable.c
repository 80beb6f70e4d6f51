/* Hamming kernels for any CPU. */
#include "hamming_lanes.h"

#define KERNELS(name, words) \
    static void distances_##name(const struct block *block, const uint64_t *query, uint16_t *distances) \
    { \
        all_distances(block, query, distances, words); \
    } \
    static size_t within_##name(const struct block *block, const uint64_t *query, uint32_t limit, uint64_t *keys) \
    { \
        return append_within(block, 0, block->count, query, limit, keys, 0, words); \
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

struct kernels hamming_portable(size_t words)
{
    static const struct kernels choices[] = CHOICES(within, within, within);
    return choices[words];
}
