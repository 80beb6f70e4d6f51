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

KERNELS(narrow, NARROW)
KERNELS(1, 1)
KERNELS(2, 2)
KERNELS(3, 3)
KERNELS(4, 4)
KERNELS(5, 5)
KERNELS(6, 6)
KERNELS(7, 7)
KERNELS(8, 8)

static void shift_equal(uint16_t *values, size_t count, const int64_t *labels, int64_t label, uint16_t shift)
{
    add_equal(values, count, labels, label, shift);
}

static void shift_sharing(uint16_t *values, size_t count, const int64_t *masks, size_t stride, const int64_t *mask,
    size_t mask_stride, size_t mask_words, uint16_t shift)
{
    add_sharing(values, count, masks, stride, mask, mask_stride, mask_words, shift);
}

#define CHOICE(name) \
    { \
        distances_##name, {within_##name, within_##name, within_##name}, shift_equal, shift_sharing \
    }

struct kernels hamming_portable(size_t words)
{
    static const struct kernels choices[] = {
        CHOICE(narrow), CHOICE(1), CHOICE(2), CHOICE(3), CHOICE(4), CHOICE(5), CHOICE(6), CHOICE(7), CHOICE(8)};
    return choices[words];
}
