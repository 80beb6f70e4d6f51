/* Codes cut into blocks, and the buffers that the Hamming functions share. */
#include <stdlib.h>
#include <string.h>

#include "hamming.h"

#define FIRST_BLOCK 256
#define LINE 64 /* bytes that the cache takes at once */
#define FEW_SHARE 1024
#define SOME_SHARE 64
#define FEW_QUERIES 4 /* for fewer it pays neither to fetch ahead nor to copy what only lies unevenly */

static size_t lane_bytes(size_t words)
{
    return words == NARROW ? 4 : 8;
}

static size_t num_lanes(size_t words)
{
    return words == NARROW ? 1 : words;
}

static size_t padded(size_t count)
{
    return (count + MAX_GROUP - 1) / MAX_GROUP * MAX_GROUP;
}

int32_t make_blocks(struct blocks *made, struct codes codes, size_t num_queries)
{
    size_t words = codes.width <= 4 ? NARROW : (codes.width + 7) / 8, bytes = lane_bytes(words) * num_lanes(words);
    int even = (uintptr_t)codes.bytes % LINE == 0;
    *made = (struct blocks){
        .codes = codes,
        .words = words,
        .capacity = BLOCK_BYTES / bytes / MAX_GROUP * MAX_GROUP,
        .direct = num_lanes(words) == 1 && codes.width == bytes && (even || num_queries < FEW_QUERIES)
            && (uintptr_t)codes.bytes % bytes == 0,
        .scratch = aligned_alloc(LINE, BLOCK_BYTES),
    };
    return made->scratch ? 0 : NO_MEMORY;
}

void free_blocks(struct blocks *blocks)
{
    free(blocks->scratch);
}

/* Codes whose width is that of their words: `words` is a constant where this is called, which makes it fast. */
static inline __attribute__((always_inline)) void separate(
    const uint8_t *bytes, size_t count, uint64_t *lanes, size_t stride, size_t words)
{
    for (size_t i = 0; i < count; i++)
        for (size_t word = 0; word < words; word++)
            memcpy(lanes + word * stride + i, bytes + 8 * (words * i + word), 8);
}

/* Codes of any width. */
static void separate_uneven(
    const uint8_t *bytes, size_t count, size_t width, uint8_t *lanes, size_t stride, size_t lane)
{
    for (size_t i = 0; i < count; i++)
        for (size_t at = 0; at < width; at += lane) {
            uint8_t *to = lanes + at * stride + lane * i;
            for (size_t byte = 0; byte < lane; byte++)
                to[byte] = at + byte < width ? bytes[width * i + at + byte] : 0;
        }
}

static void lay_out(const struct blocks *blocks, const uint8_t *bytes, size_t count)
{
    size_t width = blocks->codes.width, stride = blocks->capacity, lane = lane_bytes(blocks->words);
    uint64_t *lanes = blocks->scratch;
    if (width == 8)
        separate(bytes, count, lanes, stride, 1);
    else if (width == 16)
        separate(bytes, count, lanes, stride, 2);
    else if (width == 32)
        separate(bytes, count, lanes, stride, 4);
    else if (width == 64)
        separate(bytes, count, lanes, stride, 8);
    else if (width == 4)
        memcpy(lanes, bytes, 4 * count);
    else
        separate_uneven(bytes, count, width, blocks->scratch, stride, lane);
    for (size_t word = 0; word < num_lanes(blocks->words); word++)
        memset((uint8_t *)blocks->scratch + lane * (word * stride + count), 0, lane * (padded(count) - count));
}

struct block block_at(const struct blocks *blocks, size_t first)
{
    size_t length = smaller(first < FIRST_BLOCK ? FIRST_BLOCK : padded(first), blocks->capacity);
    struct block block = {
        .lanes = blocks->scratch,
        .stride = blocks->capacity,
        .count = smaller(length, blocks->codes.count - first),
        .first = first,
    };
    const uint8_t *bytes = blocks->codes.bytes + first * blocks->codes.width;
    if (blocks->direct && block.count % MAX_GROUP == 0)
        block.lanes = bytes;
    else
        lay_out(blocks, bytes, block.count);
    return block;
}

void fetch_ahead(const struct blocks *blocks, size_t first, size_t part, size_t parts)
{
    const struct codes *codes = &blocks->codes;
    if (first >= codes->count || parts < FEW_QUERIES)
        return;
    size_t bytes = smaller(blocks->capacity, codes->count - first) * codes->width;
    const uint8_t *begin = codes->bytes + first * codes->width;
    for (size_t at = bytes * part / parts / LINE * LINE; at < bytes * (part + 1) / parts; at += LINE)
        __builtin_prefetch(begin + at, 0, 2);
}

void query_words(struct codes queries, size_t number, uint64_t words[MAX_WORDS])
{
    memset(words, 0, 8 * MAX_WORDS);
    memcpy(words, queries.bytes + number * queries.width, queries.width);
    if (queries.width <= 4) { /* compared with words of 4 bytes */
        uint32_t narrow;
        memcpy(&narrow, words, 4);
        words[0] = narrow;
    }
}

static struct kernels kernels_for(size_t words, int32_t level)
{
#if X86
    if (has(AVX512, level))
        return hamming_avx512(words);
    if (has(AVX2, level))
        return hamming_avx2(words);
#endif
    return hamming_portable(words);
}

int32_t open_pair(struct pair *made, const uint8_t *queries, int64_t num_queries, const uint8_t *database,
    int64_t num_codes, int32_t width, int32_t level)
{
    const int64_t most = (int64_t)POSITION_MASK / MAX_WIDTH;
    if (num_queries < 0 || num_queries > most || num_codes < 0 || num_codes > most || width < 1 || width > MAX_WIDTH)
        return OUT_OF_RANGE;
    *made = (struct pair){
        .queries = {queries, (size_t)num_queries, (size_t)width},
        .keys = malloc(MAX_KEYS * sizeof *made->keys),
        .distances = malloc(MAX_BLOCK * sizeof *made->distances),
    };
    int32_t trouble = make_blocks(
        &made->database, (struct codes){database, (size_t)num_codes, (size_t)width}, (size_t)num_queries);
    if (trouble || !made->keys || !made->distances) {
        close_pair(made);
        return NO_MEMORY;
    }
    made->kernels = kernels_for(made->database.words, level);
    return 0;
}

void close_pair(struct pair *pair)
{
    free_blocks(&pair->database);
    free(pair->keys);
    free(pair->distances);
}

size_t keys_within(
    const struct pair *pair, const struct block *block, const uint64_t *query, uint32_t limit, size_t *before)
{
    int amount = *before > block->count / SOME_SHARE ? MANY : *before > block->count / FEW_SHARE ? SOME : FEW;
    *before = pair->kernels.within[amount](block, query, limit, pair->keys);
    return *before;
}
