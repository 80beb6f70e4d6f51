/* What the Hamming functions share: codes cut into blocks, and what is done with a block on each level of CPU.
 *
 * A block is padded and laid out word by word, so that a vector holds one word of several codes. It is as long as the
 * first cache holds, and is compared with all queries of a call before the next one is made. Where enough of them look
 * for few of its codes, it is sliced first, into planes of one bit each: hamming_planes.h.
 */
#ifndef CIBHASH_HAMMING_H
#define CIBHASH_HAMMING_H

#include "library.h"

#define MAX_WIDTH 64
#define MAX_WORDS 8
#define MAX_BITS (8 * MAX_WIDTH)
#define BLOCK_BYTES 32768
#define PLANES_BYTES (BLOCK_BYTES / 32 * 39) /* of narrow codes, which take the most: 39 planes for 32 bits */
#define MAX_BLOCK (BLOCK_BYTES / 4) /* codes; fewer than a 16-bit counter holds */
#define MAX_GROUP 512               /* codes that a kernel takes at once; blocks are padded to a multiple */
#define MAX_NARROW_GROUP 1024       /* narrow ones */
#define MAX_KEYS (MAX_BLOCK + 16)   /* a vector is written whole, however few of its keys count */
#define BUDGET 67108864             /* bytes that the buffers of one call take, beside its answer, about */

/* A code that was found: its distance in the upper 16 bits, its position in the others. */
#define DISTANCE_SHIFT 48
#define POSITION_MASK ((UINT64_C(1) << DISTANCE_SHIFT) - 1)

struct codes {
    const uint8_t *bytes;
    size_t count, width;
};

/* Where `words` words of 8 bytes make a code, or NARROW, one of 4 bytes. */
#define NARROW 0

struct block {
    const void *lanes; /* word w of code i is number w * stride + i */
    size_t stride, count, first;
    const void *planes;           /* NULL until it is sliced */
    size_t sparse, sparse_before; /* queries for which FEW or SOME are expected, here and in the block before */
};

#define PLANES_AT_ONCE 8

/* The planes that are added for a query: of the bits that it has or, where these are more than half, that it lacks. */
struct addends {
    int known; /* not before they are needed */
    size_t ones, of_zeros, count; /* bits that the query has; whether it lacks these; a multiple of PLANES_AT_ONCE */
    uint16_t planes[MAX_BITS / 2 + PLANES_AT_ONCE]; /* numbers times 8: that saves a shift each, a tenth of all time */
};

struct query {
    uint64_t words[MAX_WORDS];
    struct addends addends;
};

/* How codes are cut into blocks. */
struct blocks {
    struct codes codes;
    size_t words, capacity;
    int direct; /* blocks may lie in the codes themselves */
    void *scratch;
};

/* How many are within a limit, which decides what is the fastest way to find them. Where there are planes, it is by
 * them unless there are MANY. */
enum { FEW, SOME, MANY, IN_PLANES };

/* What a level does with the `count` codes of a block. */
struct kernels {
    /* Their distances to a query. Writes up to a multiple of MAX_GROUP. */
    void (*distances)(const struct block *block, const uint64_t *query, uint16_t *distances);
    /* Keys of those within the limit, by position; one each for FEW, SOME and MANY of them, and one for what is sliced.
     * Returns how many. May write 15 further keys. */
    size_t (*within[4])(const struct block *block, const struct query *query, uint32_t limit, uint64_t *keys);
    /* Writes their planes, up to PLANES_BYTES. This pays from so many queries on. */
    void (*slice)(const struct block *block, size_t words, void *planes);
    size_t sliced_from;
    /* Adds `shift` to the values of those whose label, or any bit of whose mask, is the query's. */
    void (*shift_equal)(uint16_t *values, size_t count, const int64_t *labels, int64_t label, uint16_t shift);
    void (*shift_sharing)(uint16_t *values, size_t count, const int64_t *masks, size_t stride, const int64_t *mask,
        size_t mask_stride, size_t mask_words, uint16_t shift);
};

/* Of codes with so many words. */
struct kernels hamming_portable(size_t words);
struct kernels hamming_avx2(size_t words);
struct kernels hamming_avx512(size_t words);

/* What a call works with. */
struct pair {
    struct codes queries;
    struct blocks database;
    struct kernels kernels;
    uint64_t *keys;      /* MAX_KEYS */
    uint16_t *distances; /* MAX_BLOCK */
    void *planes;        /* PLANES_BYTES; NULL where they cannot pay */
};

/* Checks what all functions take and makes the buffers. Returns 0 or why it could not; then nothing is to be freed. */
int32_t open_pair(struct pair *made, const uint8_t *queries, int64_t num_queries, const uint8_t *database,
    int64_t num_codes, int32_t width, int32_t level);
void close_pair(struct pair *pair);

int32_t make_blocks(struct blocks *made, struct codes codes, size_t num_queries);
void free_blocks(struct blocks *blocks);

/* Goes on to the next block, from {0} to the first. Returns 0 where there is none. Blocks are shorter near the
 * beginning: what is found there narrows what follows. */
int next_block(const struct blocks *blocks, struct block *block);

/* Asks for one of some parts of what follows a block, while others are compared with it. */
void fetch_ahead(const struct blocks *blocks, const struct block *block, size_t part, size_t parts);

/* A query as words, of which those beyond its width are zero. */
void query_words(struct codes queries, size_t number, uint64_t words[MAX_WORDS]);

void make_query(struct codes queries, size_t number, struct query *made);

/* What lies within the limit: uses the kernel that suits how many there were in the block before, and notes it. */
size_t keys_within(
    const struct pair *pair, struct block *block, struct query *query, uint32_t limit, size_t *before);

/* The k nearest by counting all distances first: for a k that is a good share of the database. */
int32_t rank_all(const struct pair *pair, size_t k, int64_t *positions, int32_t *distances);

/* From how many codes lie at each distance to where the first of each goes. */
static inline void to_starts(uint64_t *counts, size_t num_distances)
{
    uint64_t start = 0;
    for (size_t distance = 0; distance < num_distances; distance++) {
        uint64_t count = counts[distance];
        counts[distance] = start;
        start += count;
    }
}

static inline size_t bits_of(const struct pair *pair)
{
    return 8 * pair->queries.width;
}

static inline size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

#endif
