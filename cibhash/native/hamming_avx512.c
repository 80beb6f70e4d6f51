/* Hamming kernels for AVX-512 with VPOPCNTDQ. */
#include "library.h"

#if X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vpopcntdq,avx2,popcnt")))
#define VECTOR_BYTES 64
#include "hamming_planes.h"

TARGET INLINE __m512i differences(const void *lanes, __m512i query)
{
    return _mm512_xor_si512(_mm512_loadu_si512(lanes), query);
}

/* Distances of the 8 codes from `number` on, of 16 where codes are narrow. */
TARGET INLINE __m512i vector_of(const struct block *block, size_t number, const __m512i *query, size_t words)
{
    if (words == NARROW)
        return _mm512_popcnt_epi32(differences((const uint32_t *)block->lanes + number, query[0]));
    const uint64_t *lanes = (const uint64_t *)block->lanes + number;
    __m512i distances = _mm512_popcnt_epi64(differences(lanes, query[0]));
    for (size_t word = 1; word < words; word++) {
        __m512i more = _mm512_popcnt_epi64(differences(lanes + word * block->stride, query[word]));
        distances = _mm512_add_epi64(distances, more);
    }
    return distances;
}

TARGET INLINE void broadcast(const uint64_t *query, __m512i *vectors, size_t words)
{
    if (words == NARROW)
        vectors[0] = _mm512_set1_epi32((int32_t)query[0]);
    else
        for (size_t word = 0; word < words; word++)
            vectors[word] = _mm512_set1_epi64((int64_t)query[word]);
}

TARGET INLINE __m512i splat(uint32_t limit, size_t words)
{
    return words == NARROW ? _mm512_set1_epi32((int32_t)limit) : _mm512_set1_epi64(limit);
}

/* Writes the keys of 8 codes, those in the mask first. Returns how many are in it. */
TARGET INLINE size_t write_keys(__m512i distances, uint32_t mask, size_t position, uint64_t *keys)
{
    const __m512i numbers = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    __m512i positions = _mm512_add_epi64(_mm512_set1_epi64((int64_t)position), numbers);
    __m512i made = _mm512_or_si512(_mm512_slli_epi64(distances, DISTANCE_SHIFT), positions);
    _mm512_storeu_si512(keys, _mm512_maskz_compress_epi64((__mmask8)mask, made));
    return (size_t)__builtin_popcount(mask);
}

/* The same for the whole of a vector: of the codes from `number` on, those within the limit and not of the padding. */
TARGET INLINE size_t write_within(
    const struct block *block, size_t number, __m512i distances, __m512i limit, uint64_t *keys, size_t words)
{
    size_t left = block->count > number ? block->count - number : 0;
    if (words == NARROW) {
        uint32_t mask = _mm512_cmple_epu32_mask(distances, limit);
        mask &= left < 16 ? (1u << left) - 1 : 0xffff;
        __m512i low = _mm512_cvtepu32_epi64(_mm512_castsi512_si256(distances));
        __m512i high = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(distances, 1));
        size_t written = write_keys(low, mask & 0xff, block->first + number, keys);
        return written + write_keys(high, mask >> 8, block->first + number + 8, keys + written);
    }
    uint32_t mask = _mm512_cmple_epu64_mask(distances, limit);
    mask &= left < 8 ? (1u << left) - 1 : 0xff;
    return write_keys(distances, mask, block->first + number, keys);
}

/* The same for several vectors, by the numbers of their first codes. */
TARGET INLINE size_t write_hits(const struct block *given, const uint16_t *hits, size_t num_hits,
    const __m512i *vectors, __m512i limit, uint64_t *keys, size_t words)
{
    const struct block copy = *given, *block = &copy; /* which no write can change */
    size_t found = 0;
    for (size_t hit = 0; hit < num_hits; hit++) {
        __m512i distances = vector_of(block, hits[hit], vectors, words);
        found += write_within(block, hits[hit], distances, limit, keys + found, words);
    }
    return found;
}

/* Whether any of a vector's distances is within the limit. Distances are small: lower halves of lanes tell all. */
TARGET INLINE size_t any_within(__m512i distances, __m512i limit, size_t words)
{
    if (words == NARROW)
        return _mm512_cmple_epu32_mask(distances, limit) != 0;
    return _mm512_cmple_epu64_mask(distances, limit) != 0;
}

/* Finds the groups of `fold` vectors whose least distance is within the limit, then their vectors that have such, then
 * the codes: without branches, as what is found is of no pattern that a CPU could learn. */
TARGET INLINE size_t within(
    const struct block *given, const struct query *query, uint32_t limit, uint64_t *keys, size_t words, size_t fold)
{
    const struct block copy = *given, *block = &copy; /* which no write can change */
    const size_t lanes = words == NARROW ? 16 : 8;
    __m512i vectors[MAX_WORDS], bound = splat(limit, words);
    uint16_t groups[MAX_HITS], hits[MAX_HITS];
    size_t num_groups = 0, num_hits = 0;
    broadcast(query->words, vectors, words);
    for (size_t at = 0; at < block->count; at += fold * lanes) {
        __m512i least = vector_of(block, at, vectors, words);
#pragma GCC unroll 16
        for (size_t vector = 1; vector < fold; vector++)
            least = _mm512_min_epu32(least, vector_of(block, at + vector * lanes, vectors, words));
        groups[num_groups] = (uint16_t)at;
        num_groups += any_within(least, bound, words);
    }
    for (size_t group = 0; group < num_groups; group++)
#pragma GCC unroll 4
        for (size_t vector = 0; vector < fold; vector++) {
            size_t at = groups[group] + vector * lanes;
            hits[num_hits] = (uint16_t)at;
            num_hits += any_within(vector_of(block, at, vectors, words), bound, words);
        }
    return write_hits(block, hits, num_hits, vectors, bound, keys, words);
}

TARGET INLINE size_t write_in_planes(
    const struct block *block, const struct query *query, uint32_t limit, uint64_t *keys, size_t words)
{
    uint16_t hits[MAX_HITS];
    size_t num_hits = hits_in_planes(block, query, limit, hits, words);
    __m512i vectors[MAX_WORDS];
    broadcast(query->words, vectors, words);
    return write_hits(block, hits, num_hits, vectors, splat(limit, words), keys, words);
}

TARGET INLINE void distances_of(const struct block *block, const uint64_t *query, uint16_t *distances, size_t words)
{
    const size_t lanes = words == NARROW ? 16 : 8;
    __m512i vectors[MAX_WORDS];
    broadcast(query, vectors, words);
    for (size_t at = 0; at < block->count; at += lanes) {
        __m512i found = vector_of(block, at, vectors, words);
        if (words == NARROW)
            _mm256_storeu_si256((__m256i *)(distances + at), _mm512_cvtepi32_epi16(found));
        else
            _mm_storeu_si128((__m128i *)(distances + at), _mm512_cvtepi64_epi16(found));
    }
}

#define WITHIN(name, words, fold) \
    TARGET static size_t name(const struct block *block, const struct query *query, uint32_t limit, uint64_t *keys) \
    { \
        return within(block, query, limit, keys, words, fold); \
    }

#define KERNELS(name, words) \
    TARGET static void distances_##name(const struct block *block, const uint64_t *query, uint16_t *distances) \
    { \
        distances_of(block, query, distances, words); \
    } \
    WITHIN(few_within_##name, words, 16) \
    WITHIN(some_within_##name, words, 4) \
    WITHIN(many_within_##name, words, 1) \
    TARGET static size_t in_planes_##name( \
        const struct block *block, const struct query *query, uint32_t limit, uint64_t *keys) \
    { \
        return write_in_planes(block, query, limit, keys, words); \
    }

EVERY_WIDTH(KERNELS)

#define STEP 32 /* labels that are compared before their values change, those being so many in a vector */

TARGET INLINE void shift(uint16_t *values, uint32_t mask, uint16_t by)
{
    __m512i before = _mm512_loadu_si512(values);
    _mm512_storeu_si512(values, _mm512_mask_add_epi16(before, mask, before, _mm512_set1_epi16((int16_t)by)));
}

TARGET static void shift_equal(uint16_t *values, size_t count, const int64_t *labels, int64_t label, uint16_t by)
{
    const __m512i wanted = _mm512_set1_epi64(label);
    size_t i = 0;
    for (; i + STEP <= count; i += STEP) {
        uint32_t mask = 0;
        for (size_t part = 0; part < STEP; part += 8)
            mask |= (uint32_t)_mm512_cmpeq_epi64_mask(_mm512_loadu_si512(labels + i + part), wanted) << part;
        shift(values + i, mask, by);
    }
    add_equal(values + i, count - i, labels + i, label, by);
}

TARGET static void shift_sharing(uint16_t *values, size_t count, const int64_t *masks, size_t stride,
    const int64_t *mask, size_t mask_stride, size_t mask_words, uint16_t by)
{
    size_t i = 0;
    for (; i + STEP <= count; i += STEP) {
        uint32_t sharing = 0;
        for (size_t word = 0; word < mask_words; word++) {
            const __m512i wanted = _mm512_set1_epi64(mask[word * mask_stride]);
            const int64_t *at = masks + word * stride + i;
            for (size_t part = 0; part < STEP; part += 8)
                sharing |= (uint32_t)_mm512_test_epi64_mask(_mm512_loadu_si512(at + part), wanted) << part;
        }
        shift(values + i, sharing, by);
    }
    add_sharing(values + i, count - i, masks + i, stride, mask, mask_stride, mask_words, by);
}

TARGET static void slice(const struct block *block, size_t words, void *planes)
{
    slice_block(block, words, planes);
}

struct kernels hamming_avx512(size_t words)
{
    static const struct kernels choices[] = CHOICES(few_within, some_within, many_within, 32);
    return choices[words];
}
#endif
