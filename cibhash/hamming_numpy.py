"""Exact Hamming search and distance histograms by position in numpy, in bounded memory.

Knows nothing of ids and of the compiled library, whose answers are the same. Shapes: Q queries, N database codes, B
bits, K neighbors, W words per code. Work goes by blocks of queries and of the database; answers do not depend on the
blocks. The arguments have been checked.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cibhash.binary import as_words
from cibhash.relevance import Relevance
from cibhash.types import Codes, Distances, Ids

_Block = npt.NDArray[np.unsignedinteger[Any]]

_QUERY_ROWS = 8
_FIRST_ROWS = 2**14
_DATABASE_ROWS = 2**17
_TILE_CELLS = 2**16
"""Query-database pairs compared at once: their words stay in cache between the exclusive or and the count."""


def distances(queries: Codes, database: Codes) -> Distances:
    """All distances, int32 (Q, N)."""
    result = np.empty((len(queries), len(database)), dtype=np.int32)
    for columns, words in _database_blocks(database, _DATABASE_ROWS):
        for rows, block in _query_blocks(queries, words):
            result[rows, columns] = block
    return result


def search(queries: Codes, database: Codes, k: int) -> tuple[Ids, Distances]:
    """Positions and distances of the k nearest, (Q, k), in the order of (distance, position); k is at most N."""
    best_distances = np.empty((len(queries), k), dtype=_distance_dtype(queries))
    best_rows = np.empty((len(queries), k), dtype=np.int64)
    for columns, words in _database_blocks(database, max(_FIRST_ROWS, 2 * k)):
        seen = min(k, columns.start)
        for rows, block in _query_blocks(queries, words):
            for row, distances_N in enumerate(block, rows.start):
                _keep_nearest(best_distances[row], best_rows[row], seen, distances_N, columns.start)
    return best_rows, best_distances.astype(np.int32)


def range_search(queries: Codes, database: Codes, radius: int) -> tuple[Ids, Ids, Distances]:
    """Limits (Q + 1,), positions and distances of all within the radius, in the order of (distance, position)."""
    found_queries, found_rows = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    found_distances = [np.empty(0, dtype=np.int32)]
    for columns, words in _database_blocks(database, _DATABASE_ROWS):
        for rows, block in _query_blocks(queries, words):
            cells = np.flatnonzero(block <= radius)
            query, column = np.divmod(cells, block.shape[1])
            found_queries.append(query + rows.start)
            found_rows.append(column + columns.start)
            found_distances.append(block.ravel()[cells].astype(np.int32))
    query, row, distance = np.concatenate(found_queries), np.concatenate(found_rows), np.concatenate(found_distances)
    ranking = np.lexsort((row, distance, query))
    limits = np.zeros(len(queries) + 1, dtype=np.int64)
    np.cumsum(np.bincount(query, minlength=len(queries)), out=limits[1:])
    return limits, row[ranking], distance[ranking]


def range_counts(queries: Codes, database: Codes, radius: int) -> Ids:
    """How many codes lie within the radius of each query, int64 (Q,)."""
    counts = np.zeros(len(queries), dtype=np.int64)
    for _, words in _database_blocks(database, _DATABASE_ROWS):
        for rows, block in _query_blocks(queries, words):
            counts[rows] += np.count_nonzero(block <= radius, axis=1)
    return counts


def histogram(queries: Codes, database: Codes, relevant_pairs: Relevance) -> tuple[Ids, Ids]:
    """How many codes, and how many relevant ones, lie at each distance, int64 (Q, B + 1) each."""
    num_distances = 8 * queries.shape[1] + 1
    counts = np.zeros((len(queries), 2 * num_distances), dtype=np.int64)
    for columns, words in _database_blocks(database, _DATABASE_ROWS):
        for rows, block in _query_blocks(queries, words, np.min_scalar_type(2 * num_distances - 1)):
            _shift_relevant(block, rows, columns, relevant_pairs, num_distances)
            for row, keys in enumerate(block, rows.start):
                counts[row] += np.bincount(keys, minlength=2 * num_distances)
    relevant = counts[:, num_distances:].copy()
    return counts[:, :num_distances] + relevant, relevant


def _keep_nearest(distances_K: _Block, rows_K: Ids, seen: int, distances_N: _Block, first_row: int) -> None:
    """Merges one block into the nearest rows so far, of which the first `seen` are set, in place.

    Rows of later blocks are larger, so a stable sort by distance is the order of (distance, row).
    """
    kept = len(distances_K)
    if seen == kept:
        candidates = np.flatnonzero(distances_N < distances_K[-1])
        if not candidates.size:
            return
    elif len(distances_N) > kept:
        bound = np.searchsorted(np.cumsum(np.bincount(distances_N)), kept)
        candidates = np.flatnonzero(distances_N <= bound)
    else:
        candidates = np.arange(len(distances_N))
    merged_distances = np.concatenate((distances_K[:seen], distances_N[candidates]))
    merged_rows = np.concatenate((rows_K[:seen], candidates + first_row))
    nearest = np.argsort(merged_distances, kind="stable")[:kept]
    distances_K[: len(nearest)] = merged_distances[nearest]
    rows_K[: len(nearest)] = merged_rows[nearest]


def _shift_relevant(block: _Block, rows: slice, columns: slice, relevant_pairs: Relevance, shift: int) -> None:
    """Adds `shift` to the distance of every relevant pair, so that one count tells both kinds apart."""
    tile = _TILE_CELLS // len(block)
    for start in range(0, block.shape[1], tile):
        tile_columns = slice(columns.start + start, min(columns.start + start + tile, columns.stop))
        shifts = relevant_pairs(rows, tile_columns).astype(block.dtype)
        shifts *= block.dtype.type(shift)
        block[:, start : start + tile] += shifts


def _database_blocks(database: Codes, first: int) -> Iterator[tuple[slice, _Block]]:
    """Yields row ranges with their words (W, n), each as long as all before it: early ones tighten later bounds."""
    start = 0
    while start < len(database):
        stop = min(len(database), start + max(first, min(start, _DATABASE_ROWS)))
        rows = slice(start, stop)
        yield rows, as_words(database[rows])
        start = stop


def _query_blocks(queries: Codes, words: _Block, dtype: np.dtype[Any] | None = None) -> Iterator[tuple[slice, _Block]]:
    """Yields query ranges with their distances (q, n) to the codes in `words`; each block overwrites the last."""
    num_rows = max(1, min(_QUERY_ROWS, _QUERY_ROWS * _DATABASE_ROWS // words.shape[1], len(queries)))
    buffer = np.empty((num_rows, words.shape[1]), dtype=dtype or _distance_dtype(queries))
    query_words = as_words(queries)
    for start in range(0, len(queries), num_rows):
        rows = slice(start, min(len(queries), start + num_rows))
        block = buffer[: rows.stop - start]
        _count_differences(query_words[:, rows], words, block)
        yield rows, block


def _count_differences(query_words: _Block, database_words: _Block, block: _Block) -> None:
    tile = _TILE_CELLS // len(block)
    differences = np.empty((len(block), tile), dtype=database_words.dtype)
    for start in range(0, database_words.shape[1], tile):
        distances_QN = block[:, start : start + tile]
        scratch = differences[:, : distances_QN.shape[1]]
        for word, (query_word, database_word) in enumerate(zip(query_words, database_words, strict=True)):
            np.bitwise_xor(query_word[:, None], database_word[None, start : start + tile], out=scratch)
            if word == 0:
                np.bitwise_count(scratch, out=distances_QN)
            else:
                distances_QN += np.bitwise_count(scratch)


def _distance_dtype(codes: Codes) -> np.dtype[Any]:
    return np.min_scalar_type(8 * codes.shape[1])
