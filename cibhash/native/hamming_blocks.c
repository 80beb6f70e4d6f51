/* Codes cut into blocks, and the buffers that the Hamming functions share. */
#include <stdlib.h>
#include <string.h>

#include "hamming.h"

#define FIRST_BLOCK 256
#define LINE 64 /* bytes that the cache takes at once */
#define FEW_SHARE 1024
#define SOME_SHARE 64
#define SLICED_CODES 16384 /* of fewer, finding the addends of a query takes longer than they save */
#define FEW_QUERIES 4 /* for fewer it pays neither to fetch ahead nor to copy what only lies unevenly */

static size_t lane_bytes(size_t words)
{
    return words == NARROW ? 4 : 8;
}

static size_t num_lanes(size_t words)
{
    return words == NARROW ? 1 : words;
}

static size_t padded(size_t count, size_t words)
{
    size_t group = words == NARROW ? MAX_NARROW_GROUP : MAX_GROUP;
    return (count + group - 1) / group * group;
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
    size_t missing = padded(count, blocks->words) - count;
    for (size_t word = 0; word < num_lanes(blocks->words); word++)
        memset((uint8_t *)blocks->scratch + lane * (word * stride + count), 0, lane * missing);
}

int next_block(const struct blocks *blocks, struct block *block)
{
    size_t first = block->first + block->count;
    if (first >= blocks->codes.count)
        return 0;
    size_t length = smaller(first < FIRST_BLOCK ? FIRST_BLOCK : first, blocks->capacity);
    *block = (struct block){
        .lanes = blocks->scratch,
        .stride = blocks->capacity,
        .count = smaller(length, blocks->codes.count - first),
        .first = first,
        .sparse_before = block->sparse,
    };
    const uint8_t *bytes = blocks->codes.bytes + first * blocks->codes.width;
    if (blocks->direct && padded(block->count, blocks->words) == block->count)
        block->lanes = bytes;
    else
        lay_out(blocks, bytes, block->count);
    return 1;
}

void fetch_ahead(const struct blocks *blocks, const struct block *block, size_t part, size_t parts)
{
    const struct codes *codes = &blocks->codes;
    size_t first = block->first + block->count;
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

void make_query(struct codes queries, size_t number, struct query *made)
{
    query_words(queries, number, made->words);
    made->addends.known = 0;
}

static void find_addends(struct addends *addends, const uint64_t *words, size_t width)
{
    size_t bits = 8 * width, zero_plane = width <= 4 ? 32 : (bits + 63) / 64 * 64, count = 0;
    addends->ones = 0;
    for (size_t word = 0; word < MAX_WORDS; word++)
        addends->ones += (size_t)__builtin_popcountll(words[word]);
    addends->of_zeros = 2 * addends->ones > bits;
    for (size_t bit = 0; bit < bits; bit++) { /* without branches, as no CPU could foresee them */
        addends->planes[count] = (uint16_t)(8 * bit);
        count += (words[bit / 64] >> bit % 64 & 1) != addends->of_zeros;
    }
    while (count % PLANES_AT_ONCE)
        addends->planes[count++] = (uint16_t)(8 * zero_plane);
    addends->count = count;
    addends->known = 1;
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
    made->kernels = kernels_for(made->database.words, level);
    int sliced = made->queries.count >= made->kernels.sliced_from && made->database.codes.count >= SLICED_CODES;
    if (sliced)
        made->planes = aligned_alloc(LINE, PLANES_BYTES);
    if (trouble || !made->keys || !made->distances || (sliced && !made->planes)) {
        close_pair(made);
        return NO_MEMORY;
    }
    return 0;
}

void close_pair(struct pair *pair)
{
    free_blocks(&pair->database);
    free(pair->keys);
    free(pair->distances);
    free(pair->planes);
}

/* Whether to use planes, which are then there: where enough queries had a use for them in the block before. */
static int by_planes(const struct pair *pair, struct block *block, struct query *query)
{
    block->sparse++;
    if (!pair->planes || block->sparse_before < pair->kernels.sliced_from || 2 * block->count < block->stride)
        return 0;
    if (!query->addends.known)
        find_addends(&query->addends, query->words, pair->queries.width);
    if (!block->planes)
        pair->kernels.slice(block, pair->database.words, pair->planes);
    block->planes = pair->planes;
    return 1;
}

size_t keys_within(
    const struct pair *pair, struct block *block, struct query *query, uint32_t limit, size_t *before)
{
    int amount = *before > block->count / SOME_SHARE ? MANY : *before > block->count / FEW_SHARE ? SOME : FEW;
    if (amount != MANY && by_planes(pair, block, query))
        amount = IN_PLANES;
    *before = pair->kernels.within[amount](block, query, limit, pair->keys);
    return *before;
}
