/* Hamming kernels for AVX2: where there are no planes, bits are counted by looking up half bytes. */
#include "library.h"

#if X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,popcnt")))
#define VECTOR_BYTES 32
#include "hamming_planes.h"

#define FOLD 8 /* vectors of which only the least distance is compared with the limit */

TARGET INLINE __m256i counts_of_bytes(__m256i bits)
{
    const __m256i table = _mm256_setr_epi8(
        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i half = _mm256_set1_epi8(15);
    __m256i low = _mm256_and_si256(bits, half), high = _mm256_and_si256(_mm256_srli_epi16(bits, 4), half);
    return _mm256_add_epi8(_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high));
}

TARGET INLINE __m256i differences(const void *lanes, __m256i query)
{
    return counts_of_bytes(_mm256_xor_si256(_mm256_loadu_si256((const __m256i *)lanes), query));
}

/* Distances of the 4 codes from `number` on, of 8 where codes are narrow. The byte counts of 8 words fit a byte. */
TARGET INLINE __m256i vector_of(const struct block *block, size_t number, const __m256i *query, size_t words)
{
    if (words == NARROW) {
        __m256i bytes = differences((const uint32_t *)block->lanes + number, query[0]);
        __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
        return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
    const uint64_t *lanes = (const uint64_t *)block->lanes + number;
    __m256i bytes = differences(lanes, query[0]);
    for (size_t word = 1; word < words; word++)
        bytes = _mm256_add_epi8(bytes, differences(lanes + word * block->stride, query[word]));
    return _mm256_sad_epu8(bytes, _mm256_setzero_si256());
}

TARGET INLINE size_t within(
    const struct block *block, const struct query *query, uint32_t limit, uint64_t *keys, size_t words)
{
    const size_t lanes = words == NARROW ? 8 : 4;
    __m256i vectors[MAX_WORDS], beyond;
    uint16_t groups[MAX_BLOCK / FOLD / 4];
    size_t num_groups = 0, found = 0;
    if (words == NARROW) {
        vectors[0] = _mm256_set1_epi32((int32_t)query->words[0]);
        beyond = _mm256_set1_epi32((int32_t)limit + 1);
    } else {
        for (size_t word = 0; word < words; word++)
            vectors[word] = _mm256_set1_epi64x((int64_t)query->words[word]);
        beyond = _mm256_set1_epi64x((int64_t)limit + 1);
    }
    for (size_t at = 0; at < block->count; at += FOLD * lanes) {
        __m256i least = vector_of(block, at, vectors, words);
        for (size_t vector = 1; vector < FOLD; vector++)
            least = _mm256_min_epu16(least, vector_of(block, at + vector * lanes, vectors, words));
        groups[num_groups] = (uint16_t)at;
        num_groups += _mm256_movemask_epi8(_mm256_cmpgt_epi32(beyond, least)) != 0;
    }
    for (size_t group = 0; group < num_groups; group++) {
        size_t begin = groups[group], end = smaller(begin + FOLD * lanes, block->count);
        found = append_within(block, begin, end, query->words, limit, keys, found, words);
    }
    return found;
}

#define KERNELS(name, words) \
    TARGET static void distances_##name(const struct block *block, const uint64_t *query, uint16_t *distances) \
    { \
        all_distances(block, query, distances, words); \
    } \
    TARGET static size_t within_##name( \
        const struct block *block, const struct query *query, uint32_t limit, uint64_t *keys) \
    { \
        return within(block, query, limit, keys, words); \
    } \
    TARGET static size_t many_within_##name( \
        const struct block *block, const struct query *query, uint32_t limit, uint64_t *keys) \
    { \
        return all_within(block, query, limit, keys, words); \
    } \
    TARGET static size_t in_planes_##name( \
        const struct block *block, const struct query *query, uint32_t limit, uint64_t *keys) \
    { \
        return append_in_planes(block, query, limit, keys, words); \
    }

EVERY_WIDTH(KERNELS)

TARGET static void shift_equal(uint16_t *values, size_t count, const int64_t *labels, int64_t label, uint16_t shift)
{
    add_equal(values, count, labels, label, shift);
}

TARGET static void shift_sharing(uint16_t *values, size_t count, const int64_t *masks, size_t stride,
    const int64_t *mask, size_t mask_stride, size_t mask_words, uint16_t shift)
{
    add_sharing(values, count, masks, stride, mask, mask_stride, mask_words, shift);
}

TARGET static void slice(const struct block *block, size_t words, void *planes)
{
    slice_block(block, words, planes);
}

struct kernels hamming_avx2(size_t words)
{
    static const struct kernels choices[] = CHOICES(within, within, many_within, 8);
    return choices[words];
}
#endif
