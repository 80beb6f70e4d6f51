/* The k nearest codes by counting all distances: one pass counts, one writes each code to where it belongs. */
#include <stdlib.h>
#include <string.h>

#include "hamming.h"

struct ranking {
    struct query query;
    uint64_t places[MAX_BITS + 1]; /* by distance: how many codes, then where the next one goes */
    uint32_t limit;                /* distance of the k-th */
    size_t before;
};

static void count_all(const struct pair *pair, struct ranking *rankings, size_t num)
{
    struct block block = {0};
    while (next_block(&pair->database, &block)) {
        for (size_t i = 0; i < num; i++) {
            pair->kernels.distances(&block, rankings[i].query.words, pair->distances);
            for (size_t code = 0; code < block.count; code++)
                rankings[i].places[pair->distances[code]]++;
        }
    }
}

static void write_distances(struct ranking *ranking, size_t k, int32_t *distances)
{
    size_t written = 0;
    for (uint32_t distance = 0; written < k; distance++) {
        for (size_t end = smaller(k, written + ranking->places[distance]); written < end; written++)
            distances[written] = (int32_t)distance;
        ranking->limit = distance;
    }
}

static void write_positions(const struct pair *pair, struct ranking *rankings, size_t num, size_t k, int64_t *positions)
{
    struct block block = {0};
    while (next_block(&pair->database, &block)) {
        for (size_t i = 0; i < num; i++) {
            struct ranking *ranking = rankings + i;
            size_t count = keys_within(pair, &block, &ranking->query, ranking->limit, &ranking->before);
            for (size_t key = 0; key < count; key++) {
                uint64_t place = ranking->places[pair->keys[key] >> DISTANCE_SHIFT]++;
                if (place < k)
                    positions[i * k + place] = (int64_t)(pair->keys[key] & POSITION_MASK);
            }
        }
    }
}

int32_t rank_all(const struct pair *pair, size_t k, int64_t *positions, int32_t *distances)
{
    size_t num_queries = pair->queries.count, together = smaller(num_queries, BUDGET / sizeof(struct ranking));
    struct ranking *rankings = malloc(together * sizeof *rankings);
    if (!rankings)
        return NO_MEMORY;
    for (size_t first = 0; first < num_queries; first += together) {
        size_t num = smaller(together, num_queries - first);
        memset(rankings, 0, num * sizeof *rankings);
        for (size_t i = 0; i < num; i++)
            make_query(pair->queries, first + i, &rankings[i].query);
        count_all(pair, rankings, num);
        for (size_t i = 0; i < num; i++) {
            write_distances(rankings + i, k, distances + (first + i) * k);
            to_starts(rankings[i].places, bits_of(pair) + 1);
        }
        write_positions(pair, rankings, num, k, positions + first * k);
    }
    free(rankings);
    return 0;
}
