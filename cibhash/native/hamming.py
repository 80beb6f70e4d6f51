"""Exact Hamming search, radius search and histograms in compiled code, by position in the database.

Knows nothing of ids and of where codes come from. Shapes: Q queries, N database codes, B bits, C classes. Each function
returns None where numpy has to do it: without a library, for codes of more than 512 bits, and where memory ran out.
The buffers of a call take about 64 MB beside its answer, whatever Q, N and k.
"""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from cibhash.native.library import BEST, Level, library
from cibhash.types import Codes, Distances, Ids, Labels

Comparable = npt.NDArray[np.int64]
MAX_BITS = 512
_LABEL_ROWS = 2**12
"""Rows of labels that are packed at once: together, several times as fast as each for itself."""


def search(queries: Codes, database: Codes, k: int, level: Level = BEST) -> tuple[Ids, Distances] | None:
    """Positions and distances of the k nearest codes, in the order of (distance, position).

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Packed codes, uint8 (N, B/8).
        k: 1 to N.
        level: The most that the CPU is used for.

    Returns:
        int64 and int32, (Q, k).
    """
    native = _library_for(queries)
    if native is None:
        return None
    pair = _Pair(queries, database)
    positions, distances = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.int32)
    if native.cibhash_hamming_search(*pair.arguments, k, _address(positions), _address(distances), level):
        return None
    return positions, distances


def range_search(
    queries: Codes, database: Codes, radius: int, level: Level = BEST
) -> tuple[Ids, Ids, Distances] | None:
    """Positions and distances of all codes within a radius, in the order of (distance, position).

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Packed codes, uint8 (N, B/8).
        radius: Largest distance that counts, 0 to B.
        level: The most that the CPU is used for.

    Returns:
        `limits`, int64 (Q + 1,), positions and distances: those of query q are `limits[q]:limits[q + 1]`.
    """
    native, found = _library_for(queries), range_counts(queries, database, radius, level)
    if native is None or found is None:
        return None
    pair = _Pair(queries, database)
    limits = np.concatenate((np.zeros(1, np.int64), np.cumsum(found)))
    positions, distances = np.empty(limits[-1], np.int64), np.empty(limits[-1], np.int32)
    addresses = (_address(array) for array in (limits, positions, distances))
    if native.cibhash_hamming_fill(*pair.arguments, radius, *addresses, level):
        return None
    return limits, positions, distances


def range_counts(queries: Codes, database: Codes, radius: int, level: Level = BEST) -> Ids | None:
    """How many codes lie within a radius of each query, int64 (Q,).

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Packed codes, uint8 (N, B/8).
        radius: Largest distance that counts, 0 to B.
        level: The most that the CPU is used for.
    """
    native = _library_for(queries)
    if native is None:
        return None
    pair = _Pair(queries, database)
    found = np.zeros(len(queries), np.int64)
    if native.cibhash_hamming_count(*pair.arguments, radius, _address(found), level):
        return None
    return found


def histogram(
    queries: Codes, database: Codes, query_labels: Comparable, database_labels: Comparable, level: Level = BEST
) -> tuple[Ids, Ids] | None:
    """Counts, per query and distance, the codes there and how many of them share a label with the query.

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Packed codes, uint8 (N, B/8).
        query_labels: As from `comparable`.
        database_labels: As from `comparable`.
        level: The most that the CPU is used for.

    Returns:
        `(total, relevant)`, int64 (Q, B + 1) each.
    """
    native = _library_for(queries)
    if native is None:
        return None
    pair = _Pair(queries, database)
    of_queries, of_database = np.ascontiguousarray(query_labels), np.ascontiguousarray(database_labels)
    mask_words = len(of_queries) if of_queries.ndim == 2 else 0
    counts = np.empty((2, len(queries), 8 * queries.shape[1] + 1), np.int64)
    addresses = (_address(array) for array in (of_queries, of_database))
    totals = (_address(array) for array in counts)
    if native.cibhash_hamming_histogram(*pair.arguments, *addresses, mask_words, *totals, level):
        return None
    return counts[0], counts[1]


def comparable(labels: Labels) -> Comparable:
    """Labels as `histogram` takes them.

    Args:
        labels: int64 (N,), one label each, -1 for none; or bool (N, C), several each.

    Returns:
        int64 (N,) as they are; or one bit per class, int64 (words, N), of at least one word.
    """
    if labels.ndim == 1:
        return np.ascontiguousarray(labels, dtype=np.int64)
    num_words = max(1, -(-labels.shape[1] // 64))
    masks = np.empty((num_words, len(labels)), np.int64)
    block = np.zeros((_LABEL_ROWS, 64 * num_words), np.bool_)
    for first in range(0, len(labels), _LABEL_ROWS):
        part = labels[first : first + _LABEL_ROWS]
        block[: len(part), : part.shape[1]] = part
        packed = np.packbits(block.ravel()).view(np.int64).reshape(_LABEL_ROWS, num_words)
        masks[:, first : first + len(part)] = packed[: len(part)].T
    return masks


class _Pair:
    """Two arrays as the library takes them, alive as long as this."""

    def __init__(self, queries: Codes, database: Codes) -> None:
        self.queries, self.database = np.ascontiguousarray(queries), np.ascontiguousarray(database)
        sizes = len(queries), len(database)
        self.arguments = (_address(self.queries), sizes[0], _address(self.database), sizes[1], queries.shape[1])


def _library_for(queries: Codes) -> ctypes.CDLL | None:
    return library() if 8 * queries.shape[1] <= MAX_BITS else None


def _address(array: npt.NDArray[Any]) -> int:
    return array.ctypes.data
