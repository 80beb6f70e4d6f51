/* The k nearest codes, exact, by counting.
 *
 * Per query, a code enters if it is nearer than the bound, which falls as soon as k codes below it are found: positions
 * ascend, so a later code at the distance of the k-th cannot enter. What entered is kept by position, thinned out when
 * there is too much of it, and sorted by counting in the end.
 *
 * The first bound is taken from a sample of the database, or most of what enters would be early codes that leave again.
 * A sample may mislead: where fewer than k codes are below its bound, that query is scanned again without.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hamming.h"

#define PORTION 256           /* keys that enter before the bound is looked at again */
#define SAMPLED_FROM 2048     /* codes; of fewer no sample is taken */
#define SAMPLE_SHARE 64       /* codes for each that is in the sample */
#define MAX_SAMPLE 262144
#define ALL_SHARE 16          /* of more than this part of the database, all distances are counted */
#define MAX_KEPT (BUDGET / 64) /* and of more than this, so that the budget has room for one query at least */

struct selection {
    size_t number;               /* of the query */
    size_t bound, found, before; /* `found`: at most at the bound; `before`: in the last block */
    size_t num_kept;
    uint64_t *counts, *kept; /* counts of what entered, by distance up to the first bound */
    struct query query;
};

static void start(const struct pair *pair, struct selection *selection, size_t bound)
{
    memset(selection->counts, 0, (bits_of(pair) + 2) * sizeof *selection->counts);
    selection->bound = bound;
    selection->found = selection->num_kept = selection->before = 0;
}

static void thin_out(struct selection *selection)
{
    size_t kept = 0;
    for (size_t i = 0; i < selection->num_kept; i++) {
        uint64_t key = selection->kept[i];
        selection->kept[kept] = key;
        kept += key >> DISTANCE_SHIFT <= selection->bound;
    }
    selection->num_kept = kept;
}

/* What is kept after thinning out is less than 2 (k + PORTION): at the bound there are no more than entered before it
 * fell, and below it no more than make it fall. */
static size_t room(size_t k)
{
    return 4 * (k + PORTION);
}

static void enter(struct selection *selection, const uint64_t *keys, size_t count, size_t k)
{
    for (size_t begin = 0; begin < count; begin += PORTION) {
        size_t end = smaller(begin + PORTION, count);
        if (selection->num_kept + PORTION > room(k))
            thin_out(selection);
        for (size_t i = begin; i < end; i++) {
            size_t distance = keys[i] >> DISTANCE_SHIFT, enters = distance < selection->bound;
            selection->kept[selection->num_kept] = keys[i];
            selection->num_kept += enters;
            selection->found += enters;
            selection->counts[distance] += enters;
        }
        while (selection->found - selection->counts[selection->bound] >= k) {
            selection->found -= selection->counts[selection->bound];
            selection->bound--;
        }
    }
}

/* Compares all codes with all selections. */
static void scan(
    const struct pair *pair, const struct blocks *blocks, struct selection *selections, size_t num, size_t k)
{
    struct block block = {0};
    while (next_block(blocks, &block)) {
        for (size_t i = 0; i < num; i++) {
            struct selection *selection = selections + i;
            fetch_ahead(blocks, &block, i, num);
            if (selection->bound == 0)
                continue;
            uint32_t limit = (uint32_t)selection->bound - 1;
            size_t count = keys_within(pair, &block, &selection->query, limit, &selection->before);
            if (count)
                enter(selection, pair->keys, count, k);
        }
    }
}

/* Gathers codes from all over the database, a cache line at a time. Makes none of a small one. */
static int32_t make_sample(struct blocks *made, struct codes codes, size_t num_queries)
{
    *made = (struct blocks){0};
    if (codes.count < SAMPLED_FROM)
        return 0;
    size_t share = codes.count / MAX_SAMPLE > SAMPLE_SHARE ? codes.count / MAX_SAMPLE : SAMPLE_SHARE;
    size_t run = MAX_WIDTH / codes.width, num_runs = codes.count / (run * share), bytes = run * codes.width;
    uint8_t *sample = malloc(num_runs * bytes);
    if (!sample)
        return NO_MEMORY;
    for (size_t i = 0; i < num_runs; i++)
        memcpy(sample + i * bytes, codes.bytes + i * bytes * share, bytes);
    int32_t trouble = make_blocks(made, (struct codes){sample, num_runs * run, codes.width}, num_queries);
    if (trouble)
        free(sample);
    return trouble;
}

static void free_sample(struct blocks *sample)
{
    free((void *)sample->codes.bytes);
    free_blocks(sample);
}

/* As many of the sample as stand for k, and some more: fewer than k codes within their distances are unlikely. */
static size_t rank_in_sample(size_t k, size_t in_sample, size_t in_database)
{
    double expected = (double)k * (double)in_sample / (double)in_database;
    return (size_t)(expected + 3 * sqrt(expected) + 3);
}

/* The bound below which the sample has `rank` codes. */
static size_t bound_from(const struct selection *selection, size_t rank)
{
    size_t bound = 0;
    for (uint64_t found = 0; found < rank; bound++)
        found += selection->counts[bound];
    return bound;
}

static void start_all(
    const struct pair *pair, const struct blocks *sample, struct selection *selections, size_t num, size_t k)
{
    size_t in_sample = sample->codes.count, rank = rank_in_sample(k, in_sample, pair->database.codes.count);
    for (size_t i = 0; i < num; i++)
        start(pair, selections + i, bits_of(pair) + 1);
    if (rank > in_sample || rank > k)
        return;
    scan(pair, sample, selections, num, rank);
    for (size_t i = 0; i < num; i++)
        start(pair, selections + i, bound_from(selections + i, rank));
}

/* Those that found fewer than k codes, to the front. Returns how many. */
static size_t misled(struct selection *selections, size_t num, size_t k)
{
    size_t front = 0;
    for (size_t i = 0; i < num; i++)
        if (selections[i].found < k) {
            struct selection other = selections[front];
            selections[front++] = selections[i];
            selections[i] = other;
        }
    return front;
}

static void write_nearest(struct selection *selection, size_t k, int64_t *positions, int32_t *distances)
{
    size_t written = 0;
    for (size_t distance = 0; written < k; distance++)
        for (size_t end = smaller(k, written + selection->counts[distance]); written < end; written++)
            distances[written] = (int32_t)distance;
    to_starts(selection->counts, selection->bound + 1);
    for (size_t i = 0; i < selection->num_kept; i++) {
        uint64_t key = selection->kept[i], distance = key >> DISTANCE_SHIFT;
        if (distance > selection->bound)
            continue;
        uint64_t place = selection->counts[distance]++;
        if (place < k)
            positions[place] = (int64_t)(key & POSITION_MASK);
    }
}

/* Finds the k nearest of some queries, whose numbers begin with `first`. */
static void search_together(const struct pair *pair, const struct blocks *sample, struct selection *selections,
    size_t first, size_t num, size_t k, int64_t *positions, int32_t *distances)
{
    for (size_t i = 0; i < num; i++) {
        selections[i].number = first + i;
        make_query(pair->queries, first + i, &selections[i].query);
    }
    start_all(pair, sample, selections, num, k);
    scan(pair, &pair->database, selections, num, k);
    size_t again = misled(selections, num, k);
    for (size_t i = 0; i < again; i++)
        start(pair, selections + i, bits_of(pair) + 1);
    if (again)
        scan(pair, &pair->database, selections, again, k);
    for (size_t i = 0; i < num; i++) {
        size_t at = selections[i].number * k;
        write_nearest(selections + i, k, positions + at, distances + at);
    }
}

static int32_t search(const struct pair *pair, size_t k, int64_t *positions, int32_t *distances)
{
    size_t num_queries = pair->queries.count, numbers = bits_of(pair) + 2 + room(k);
    size_t together = smaller(num_queries, BUDGET / (sizeof(struct selection) + numbers * sizeof(uint64_t)));
    struct selection *selections = malloc(together * sizeof *selections);
    uint64_t *memory = malloc(together * numbers * sizeof *memory);
    struct blocks sample = {0};
    int32_t trouble = selections && memory ? make_sample(&sample, pair->database.codes, num_queries) : NO_MEMORY;
    if (!trouble) {
        for (size_t i = 0; i < together; i++) {
            selections[i].counts = memory + i * numbers;
            selections[i].kept = selections[i].counts + bits_of(pair) + 2;
        }
        for (size_t first = 0; first < num_queries; first += together) {
            size_t num = smaller(together, num_queries - first);
            search_together(pair, &sample, selections, first, num, k, positions, distances);
        }
        free_sample(&sample);
    }
    free(selections);
    free(memory);
    return trouble;
}

int32_t cibhash_hamming_search(
    const uint8_t *queries, int64_t num_queries, const uint8_t *database, int64_t num_codes, int32_t width, int64_t k,
    int64_t *positions, int32_t *distances, int32_t level)
{
    struct pair pair;
    if (k < 1 || k > num_codes)
        return OUT_OF_RANGE;
    int32_t trouble = open_pair(&pair, queries, num_queries, database, num_codes, width, level);
    if (trouble)
        return trouble;
    if (num_queries > 0) {
        int large = k > num_codes / ALL_SHARE || k > MAX_KEPT;
        trouble = (large ? rank_all : search)(&pair, (size_t)k, positions, distances);
    }
    close_pair(&pair);
    return trouble;
}
