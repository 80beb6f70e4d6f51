/* How many codes lie at each distance of each query, and how many of them share a label with it. */
#include <string.h>

#include "hamming.h"

#define NO_LABEL (-1)
#define PARTS 4 /* counters of the same value, used in turn: adding to what was just written waits for it */
#define MAX_VALUES (2 * (MAX_BITS + 1))

/* A value is a distance, or of a relevant code that plus the number of distances. */
static void tally(const uint16_t *values, size_t count, uint16_t parts[PARTS][MAX_VALUES])
{
    size_t i = 0;
    for (; i + PARTS <= count; i += PARTS)
        for (size_t part = 0; part < PARTS; part++)
            parts[part][values[i + part]]++;
    for (; i < count; i++)
        parts[0][values[i]]++;
}

static void add_parts(uint16_t parts[PARTS][MAX_VALUES], size_t num_distances, int64_t *total, int64_t *relevant)
{
    for (size_t distance = 0; distance < num_distances; distance++) {
        int64_t others = 0, sharing = 0;
        for (size_t part = 0; part < PARTS; part++) {
            others += parts[part][distance];
            sharing += parts[part][num_distances + distance];
        }
        total[distance] += others + sharing;
        relevant[distance] += sharing;
    }
}

int32_t cibhash_hamming_histogram(
    const uint8_t *queries, int64_t num_queries, const uint8_t *database, int64_t num_codes, int32_t width,
    const int64_t *query_labels, const int64_t *labels, int32_t mask_words, int64_t *total, int64_t *relevant,
    int32_t level)
{
    struct pair pair;
    if (mask_words < 0)
        return OUT_OF_RANGE;
    int32_t trouble = open_pair(&pair, queries, num_queries, database, num_codes, width, level);
    if (trouble)
        return trouble;
    size_t num_distances = bits_of(&pair) + 1, counted = pair.queries.count, codes = pair.database.codes.count;
    uint16_t shift = (uint16_t)num_distances, parts[PARTS][MAX_VALUES];
    memset(total, 0, counted * num_distances * sizeof *total);
    memset(relevant, 0, counted * num_distances * sizeof *relevant);
    struct block block = {0};
    while (next_block(&pair.database, &block)) {
        for (size_t i = 0; i < counted; i++) {
            uint64_t query[MAX_WORDS];
            query_words(pair.queries, i, query);
            pair.kernels.distances(&block, query, pair.distances);
            if (mask_words)
                pair.kernels.shift_sharing(pair.distances, block.count, labels + block.first, codes, query_labels + i,
                    counted, (size_t)mask_words, shift);
            else if (query_labels[i] != NO_LABEL)
                pair.kernels.shift_equal(pair.distances, block.count, labels + block.first, query_labels[i], shift);
            for (size_t part = 0; part < PARTS; part++)
                memset(parts[part], 0, 2 * num_distances * sizeof **parts);
            tally(pair.distances, block.count, parts);
            add_parts(parts, num_distances, total + i * num_distances, relevant + i * num_distances);
        }
    }
    close_pair(&pair);
    return 0;
}
