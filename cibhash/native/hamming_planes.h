/* Which codes lie within a limit, from planes of their bits: for a group of codes at once, by logic alone.
 *
 * Plane b is a vector with bit b of each code of the group. Numbers are kept alike: counter[i] has bit i of one number
 * per code. Adding a plane to them takes some five operations, few for so many codes, and the distance
 *
 *     |code| + |query| - 2 |code & query|  =  |query| - |code| + 2 |code & ~query|
 *
 * needs only the planes of the bits that the query has, or of those that it lacks: at most half of them. The rest
 * depends on the code alone and is counted once for all queries. With U = |~code| + 2 (the sum of those planes), the
 * distance is |query| + bits - U, or U - (bits - |query|), so that it is enough to compare U with a bound.
 *
 * Whoever includes this defines TARGET and VECTOR_BYTES.
 */
#ifndef CIBHASH_HAMMING_PLANES_H
#define CIBHASH_HAMMING_PLANES_H

#include <string.h>

#include "hamming_lanes.h"

typedef uint64_t vector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t loose_vector __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

#define ROWS 64 /* vectors of a group, as many as a word has bits */
#define WORDS_IN_VECTOR (VECTOR_BYTES / 8)
#define RADIX 8 /* vectors that are transposed in registers */
#define MAX_LEVELS 10
#define MAX_HITS (BLOCK_BYTES / VECTOR_BYTES)

INLINE size_t num_planes(size_t words)
{
    return words == NARROW ? 32 : 64 * words;
}

/* Bits of U, which is at most 3/2 of all bits. */
INLINE size_t num_levels(size_t words)
{
    return words == NARROW ? 6 : words == 1 ? 7 : words == 2 ? 8 : words <= 5 ? 9 : MAX_LEVELS;
}

/* A group's planes are followed by one that is zero, to fill up a sum, and by those of |~code|. */
INLINE size_t planes_stride(size_t words)
{
    return num_planes(words) + 1 + num_levels(words);
}

/* Narrow codes lie two in a word, and their even and odd ones make a set of planes each. */
INLINE size_t num_sets(size_t words)
{
    return words == NARROW ? 2 : 1;
}

INLINE size_t codes_in_vector(size_t words)
{
    return WORDS_IN_VECTOR * num_sets(words);
}

TARGET INLINE void full_add(vector a, vector b, vector c, vector *sum, vector *carry)
{
#if VECTOR_BYTES == 64
    *carry = (vector)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0xe8);
    *sum = (vector)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
    vector odd = a ^ b;
    *carry = (a & b) | (odd & c);
    *sum = odd ^ c;
#endif
}

/* Adds 8 planes. Seven full adders leave one carry, which alone goes through the higher levels. */
TARGET INLINE void add_planes(const vector planes[PLANES_AT_ONCE], vector *counter, size_t levels)
{
    vector twos[4], fours[2], carry;
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++)
        full_add(counter[0], planes[2 * i], planes[2 * i + 1], counter, twos + i);
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; i++)
        full_add(counter[1], twos[2 * i], twos[2 * i + 1], counter + 1, fours + i);
    full_add(counter[2], fours[0], fours[1], counter + 2, &carry);
#pragma GCC unroll 16
    for (size_t level = 3; level < levels; level++) {
        vector next = counter[level] & carry;
        counter[level] ^= carry;
        carry = next;
    }
}

/* Three steps of transposing ROWS x ROWS bits, on rows that lie `distance` from each other. */
TARGET INLINE void transpose_steps(vector rows[RADIX], size_t distance)
{
#pragma GCC unroll 3
    for (size_t half = RADIX / 2; half; half /= 2) {
        const size_t shift = half * distance;
        const uint64_t low = UINT64_MAX / ((UINT64_C(1) << shift) + 1);
#pragma GCC unroll 8
        for (size_t row = 0; row < RADIX; row++)
            if (!(row & half)) {
                vector change = (rows[row] >> shift ^ rows[row + half]) & low;
                rows[row] ^= change << shift;
                rows[row + half] ^= change;
            }
    }
}

/* A group's lanes of one word to its planes: every word of the vectors is transposed with those above and below it. */
TARGET INLINE void transpose(const uint64_t *lanes, vector planes[ROWS])
{
    const size_t step = ROWS / RADIX;
    vector rows[RADIX];
    for (size_t first = 0; first < step; first++) {
        for (size_t row = 0; row < RADIX; row++)
            rows[row] = *(const loose_vector *)(lanes + (first + row * step) * WORDS_IN_VECTOR);
        transpose_steps(rows, step);
        for (size_t row = 0; row < RADIX; row++)
            planes[first + row * step] = rows[row];
    }
    for (size_t first = 0; first < ROWS; first += RADIX) {
        for (size_t row = 0; row < RADIX; row++)
            rows[row] = planes[first + row];
        transpose_steps(rows, 1);
        for (size_t row = 0; row < RADIX; row++)
            planes[first + row] = rows[row];
    }
}

/* Writes what follows the planes of a set. */
TARGET INLINE void count_missing(vector *planes, size_t words)
{
    vector counter[MAX_LEVELS] = {0};
    for (size_t plane = 0; plane < num_planes(words); plane += PLANES_AT_ONCE) {
        vector missing[PLANES_AT_ONCE];
        for (size_t i = 0; i < PLANES_AT_ONCE; i++)
            missing[i] = ~planes[plane + i];
        add_planes(missing, counter, MAX_LEVELS);
    }
    planes[num_planes(words)] = (vector){0};
    memcpy(planes + num_planes(words) + 1, counter, num_levels(words) * sizeof *counter);
}

TARGET INLINE void slice_block(const struct block *block, size_t words, void *made)
{
    const uint64_t *lanes = block->lanes;
    const size_t stride = planes_stride(words);
    vector *planes = made, both[ROWS];
    for (size_t at = 0; at < block->count; at += ROWS * codes_in_vector(words)) {
        if (words == NARROW) {
            transpose(lanes, both);
            memcpy(planes, both, sizeof both / 2);
            memcpy(planes + stride, both + ROWS / 2, sizeof both / 2);
        }
        for (size_t word = 0; word < words; word++)
            transpose(lanes + word * block->stride, planes + word * ROWS);
        for (size_t set = 0; set < num_sets(words); set++, planes += stride)
            count_missing(planes, words);
        lanes += ROWS * WORDS_IN_VECTOR;
    }
}

/* Bit r tells whether vector r of a group's lanes holds a code whose U is at least the bound, or is less where that is
 * `inverted`. `below` is the bound's complement. */
TARGET INLINE uint64_t rows_within(
    const vector *planes, const struct addends *addends, const vector *below, vector inverted, size_t words)
{
    const size_t levels = num_levels(words);
    const vector *missing = planes + num_planes(words) + 1;
    vector counter[MAX_LEVELS], enough = ~(vector){0}, ignored;
#pragma GCC unroll 16
    for (size_t level = 0; level < levels; level++)
        counter[level] = missing[level];
    for (size_t at = 0; at < addends->count; at += PLANES_AT_ONCE) {
        vector added[PLANES_AT_ONCE];
#pragma GCC unroll 8
        for (size_t i = 0; i < PLANES_AT_ONCE; i++)
            added[i] = *(const vector *)((const uint8_t *)planes + addends->planes[at + i] * (size_t)WORDS_IN_VECTOR);
        add_planes(added, counter + 1, levels - 1);
    }
#pragma GCC unroll 16
    for (size_t level = 0; level < levels; level++) /* U - bound, whose last carry tells all */
        full_add(enough, counter[level], below[level], &ignored, &enough);
    enough ^= inverted;
    uint64_t rows = 0;
#pragma GCC unroll 8
    for (size_t word = 0; word < WORDS_IN_VECTOR; word++)
        rows |= enough[word];
    return rows;
}

/* Numbers of the first codes of those vectors that hold one within the limit. */
TARGET INLINE size_t hits_in_planes(
    const struct block *block, const struct query *query, uint32_t limit, uint16_t hits[MAX_HITS], size_t words)
{
    const struct addends *addends = &query->addends;
    const size_t bits = num_planes(words), codes = codes_in_vector(words);
    const size_t bound = addends->of_zeros ? bits - addends->ones + limit + 1 : bits + addends->ones - limit;
    const vector zero = {0}, inverted = addends->of_zeros ? ~zero : zero, *planes = block->planes;
    vector below[MAX_LEVELS];
    uint64_t rows[MAX_HITS / ROWS];
    size_t num_groups = 0, num_hits = 0;
    for (size_t level = 0; level < num_levels(words); level++)
        below[level] = bound >> level & 1 ? zero : ~zero;
    for (size_t at = 0; at < block->count; at += ROWS * codes) {
        uint64_t found = 0;
        for (size_t set = 0; set < num_sets(words); set++, planes += planes_stride(words))
            found |= rows_within(planes, addends, below, inverted, words);
        rows[num_groups++] = found;
    }
    for (size_t group = 0; group < num_groups; group++)
        for (uint64_t left = rows[group]; left; left &= left - 1)
            hits[num_hits++] = (uint16_t)((ROWS * group + (size_t)__builtin_ctzll(left)) * codes);
    return num_hits;
}

TARGET INLINE size_t append_in_planes(
    const struct block *block, const struct query *query, uint32_t limit, uint64_t *keys, size_t words)
{
    uint16_t hits[MAX_HITS];
    size_t num_hits = hits_in_planes(block, query, limit, hits, words), found = 0;
    for (size_t hit = 0; hit < num_hits; hit++) {
        size_t end = smaller(hits[hit] + codes_in_vector(words), block->count);
        found = append_within(block, hits[hit], end, query->words, limit, keys, found, words);
    }
    return found;
}

#endif
