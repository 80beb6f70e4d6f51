/* Kernels in plain C, which every level compiles for itself: for what is no faster by hand. */
#ifndef CIBHASH_HAMMING_LANES_H
#define CIBHASH_HAMMING_LANES_H

#include "hamming.h"

#define INLINE static inline __attribute__((always_inline))

/* What every level compiles once for each width of a code: names end in `narrow` or the number of words. */
#define EVERY_WIDTH(each) \
    each(narrow, NARROW) each(1, 1) each(2, 2) each(3, 3) each(4, 4) each(5, 5) each(6, 6) each(7, 7) each(8, 8)

/* The table of a level's kernels by width, given what its functions are called where few, some or many lie within, and
 * from how many queries on planes pay. */
#define CHOICE(name, few, some, many, from) \
    { \
        distances_##name, {few##_##name, some##_##name, many##_##name, in_planes_##name}, slice, from, \
            shift_equal, shift_sharing \
    }
#define CHOICES(few, some, many, from) \
    { \
        CHOICE(narrow, few, some, many, from), CHOICE(1, few, some, many, from), CHOICE(2, few, some, many, from), \
            CHOICE(3, few, some, many, from), CHOICE(4, few, some, many, from), CHOICE(5, few, some, many, from), \
            CHOICE(6, few, some, many, from), CHOICE(7, few, some, many, from), CHOICE(8, few, some, many, from) \
    }

INLINE uint32_t distance_of(const struct block *block, size_t number, const uint64_t *query, size_t words)
{
    if (words == NARROW)
        return (uint32_t)__builtin_popcount(((const uint32_t *)block->lanes)[number] ^ (uint32_t)query[0]);
    const uint64_t *lanes = (const uint64_t *)block->lanes + number;
    uint32_t distance = 0;
    for (size_t word = 0; word < words; word++)
        distance += (uint32_t)__builtin_popcountll(lanes[word * block->stride] ^ query[word]);
    return distance;
}

/* Appends the keys of those from `begin` to `end` that lie within the limit. Returns how many there are then. */
INLINE size_t append_within(const struct block *block, size_t begin, size_t end, const uint64_t *query, uint32_t limit,
    uint64_t *keys, size_t found, size_t words)
{
    for (size_t i = begin; i < end; i++) {
        uint32_t distance = distance_of(block, i, query, words);
        keys[found] = (uint64_t)distance << DISTANCE_SHIFT | (block->first + i);
        found += distance <= limit;
    }
    return found;
}

INLINE size_t all_within(
    const struct block *block, const struct query *query, uint32_t limit, uint64_t *keys, size_t words)
{
    return append_within(block, 0, block->count, query->words, limit, keys, 0, words);
}

INLINE void all_distances(const struct block *block, const uint64_t *query, uint16_t *distances, size_t words)
{
    for (size_t i = 0; i < block->count; i++)
        distances[i] = (uint16_t)distance_of(block, i, query, words);
}

INLINE void add_equal(uint16_t *values, size_t count, const int64_t *labels, int64_t label, uint16_t shift)
{
    for (size_t i = 0; i < count; i++)
        values[i] = (uint16_t)(values[i] + (labels[i] == label ? shift : 0));
}

INLINE void add_sharing(uint16_t *values, size_t count, const int64_t *masks, size_t stride, const int64_t *mask,
    size_t mask_stride, size_t mask_words, uint16_t shift)
{
    enum { STEP = 64 };
    for (size_t begin = 0; begin < count; begin += STEP) {
        size_t length = smaller(STEP, count - begin);
        int64_t shared[STEP] = {0};
        for (size_t word = 0; word < mask_words; word++)
            for (size_t i = 0; i < length; i++)
                shared[i] |= masks[word * stride + begin + i] & mask[word * mask_stride];
        for (size_t i = 0; i < length; i++)
            values[begin + i] = (uint16_t)(values[begin + i] + (shared[i] ? shift : 0));
    }
}

#endif
