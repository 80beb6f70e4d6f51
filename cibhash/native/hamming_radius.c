/* All codes within a radius: one call counts, so that its caller can make room, another one writes them. */
#include <stdlib.h>
#include <string.h>

#include "hamming.h"

struct search {
    struct query query;
    size_t found, before;
};

/* Some queries at once, as many as the budget has room for. */
static struct search *make_searches(const struct pair *pair, size_t *num)
{
    *num = smaller(pair->queries.count, BUDGET / sizeof(struct search));
    return malloc((*num ? *num : 1) * sizeof(struct search));
}

static void start(const struct pair *pair, struct search *searches, size_t first, size_t num)
{
    for (size_t i = 0; i < num; i++) {
        searches[i].found = searches[i].before = 0;
        make_query(pair->queries, first + i, &searches[i].query);
    }
}

/* Where there is a place for keys, appends them to those before. Returns 0, or OUT_OF_RANGE for more than fit. */
static int32_t scan(const struct pair *pair, struct search *searches, size_t num, uint32_t radius,
    const int64_t *limits, int64_t *places)
{
    struct block block = {0};
    while (next_block(&pair->database, &block)) {
        for (size_t i = 0; i < num; i++) {
            size_t before = searches[i].found;
            fetch_ahead(&pair->database, &block, i, num);
            size_t count = keys_within(pair, &block, &searches[i].query, radius, &searches[i].before);
            searches[i].found += count;
            if (!places)
                continue;
            if (searches[i].found > (size_t)(limits[i + 1] - limits[i]))
                return OUT_OF_RANGE;
            memcpy(places + limits[i] + before, pair->keys, count * sizeof *places);
        }
    }
    return 0;
}

/* Sorts keys by counting, stable, to positions in place of them and distances. */
static void sort_keys(int64_t *keys, size_t count, uint32_t radius, uint64_t *scratch, int32_t *distances)
{
    uint64_t places[MAX_BITS + 1] = {0};
    memcpy(scratch, keys, count * sizeof *scratch);
    for (size_t i = 0; i < count; i++)
        places[scratch[i] >> DISTANCE_SHIFT]++;
    to_starts(places, radius + 1);
    for (size_t i = 0; i < count; i++) {
        uint64_t place = places[scratch[i] >> DISTANCE_SHIFT]++;
        keys[place] = (int64_t)(scratch[i] & POSITION_MASK);
        distances[place] = (int32_t)(scratch[i] >> DISTANCE_SHIFT);
    }
}

/* Room for the keys of any one query, or NULL where there is none. */
static uint64_t *make_scratch(const int64_t *limits, size_t num_queries)
{
    int64_t most = 1;
    for (size_t i = 0; i < num_queries; i++)
        most = limits[i + 1] - limits[i] > most ? limits[i + 1] - limits[i] : most;
    return malloc((size_t)most * sizeof(uint64_t));
}

static int ascend(const int64_t *limits, size_t num_queries)
{
    for (size_t i = 0; i < num_queries; i++)
        if (limits[i] > limits[i + 1])
            return 0;
    return limits[0] >= 0;
}

int32_t cibhash_hamming_count(
    const uint8_t *queries, int64_t num_queries, const uint8_t *database, int64_t num_codes, int32_t width,
    int32_t radius, int64_t *found, int32_t level)
{
    struct pair pair;
    if (radius < 0 || radius > 8 * width)
        return OUT_OF_RANGE;
    int32_t trouble = open_pair(&pair, queries, num_queries, database, num_codes, width, level);
    if (trouble)
        return trouble;
    size_t together;
    struct search *searches = make_searches(&pair, &together);
    trouble = searches ? 0 : NO_MEMORY;
    for (size_t first = 0; !trouble && first < pair.queries.count; first += together) {
        size_t num = smaller(together, pair.queries.count - first);
        start(&pair, searches, first, num);
        trouble = scan(&pair, searches, num, (uint32_t)radius, NULL, NULL);
        for (size_t i = 0; i < num; i++)
            found[first + i] = (int64_t)searches[i].found;
    }
    free(searches);
    close_pair(&pair);
    return trouble;
}

int32_t cibhash_hamming_fill(
    const uint8_t *queries, int64_t num_queries, const uint8_t *database, int64_t num_codes, int32_t width,
    int32_t radius, const int64_t *limits, int64_t *positions, int32_t *distances, int32_t level)
{
    struct pair pair;
    if (radius < 0 || radius > 8 * width)
        return OUT_OF_RANGE;
    int32_t trouble = open_pair(&pair, queries, num_queries, database, num_codes, width, level);
    if (trouble)
        return trouble;
    if (!ascend(limits, pair.queries.count)) {
        close_pair(&pair);
        return OUT_OF_RANGE;
    }
    size_t together;
    struct search *searches = make_searches(&pair, &together);
    uint64_t *scratch = make_scratch(limits, pair.queries.count);
    trouble = searches && scratch ? 0 : NO_MEMORY;
    for (size_t first = 0; !trouble && first < pair.queries.count; first += together) {
        size_t num = smaller(together, pair.queries.count - first);
        start(&pair, searches, first, num);
        trouble = scan(&pair, searches, num, (uint32_t)radius, limits + first, positions);
        for (size_t i = 0; !trouble && i < num; i++) {
            int64_t at = limits[first + i];
            if (searches[i].found == (size_t)(limits[first + i + 1] - at))
                sort_keys(positions + at, searches[i].found, (uint32_t)radius, scratch, distances + at);
            else
                trouble = OUT_OF_RANGE;
        }
    }
    free(searches);
    free(scratch);
    close_pair(&pair);
    return trouble;
}
