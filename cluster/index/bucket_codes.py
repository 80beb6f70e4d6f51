"""Exact search over codes of 16 bits in time that does not grow with their number: one bucket for each possible code.

Knows nothing of ids and rows.
"""

from collections.abc import Iterator

import numpy as np

from cibhash.binary import as_words
from cibhash.types import Codes, Distances, Ids
from cluster.index.kinds import TABLE_BITS
from cluster.index.posting_lists import PostingLists, Visits

_BLOCK_QUERIES = 64
"""Queries that visit buckets together; each has at most 65,536."""


class BucketCodes:
    """Positions by code. A query visits its own bucket, then those at distance 1, and so on while it needs more."""

    def __init__(self, codes: Codes) -> None:
        """Takes packed codes uint8 (N, 2).

        Raises:
            ValueError: codes of another length.
        """
        if 8 * codes.shape[1] != TABLE_BITS:
            raise ValueError(f"codes of {8 * codes.shape[1]} bits, a table holds codes of {TABLE_BITS} bits")
        (words,) = as_words(codes)
        every = np.arange(2**TABLE_BITS)
        positions = np.argsort(words, kind="stable").astype(np.min_scalar_type(len(codes)))
        lengths = np.bincount(words, minlength=len(every))
        self._count = len(codes)
        self._lists = PostingLists(positions, np.cumsum(lengths) - lengths, lengths)
        self._masks = [every[np.bitwise_count(every) == distance] for distance in range(TABLE_BITS + 1)]

    def search(self, codes: Codes, k: int) -> tuple[Ids, Distances]:
        """Positions and distances (Q, k) of the k nearest; k is 1 to N."""
        positions, distances = np.empty((len(codes), k), np.int64), np.empty((len(codes), k), np.int32)
        for rows, words in _blocks(codes):
            visits = self._visits(words, TABLE_BITS, k)
            positions[rows], distances[rows] = self._lists.nearest(visits, len(words), k)
        return positions, distances

    def range_search(self, codes: Codes, radius: int) -> tuple[Ids, Ids, Distances]:
        """Limits (Q + 1,), positions and distances of all codes within the inclusive radius."""
        sizes, positions, distances = [np.zeros(1, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for _, words in _blocks(codes):
            visits = self._visits(words, min(radius, TABLE_BITS), self._count + 1)
            limits, found, found_distances = self._lists.all_of(visits, len(words))
            sizes.append(np.diff(limits))
            positions.append(found)
            distances.append(found_distances)
        return np.cumsum(np.concatenate(sizes)), np.concatenate(positions), np.concatenate(distances)

    def _visits(self, words: Ids, radius: int, wanted: int) -> Visits:
        """All buckets with a code up to the radius, or up to the distance at which a query has what it wants."""
        found = np.zeros(len(words), np.int64)
        pieces: list[tuple[Ids, ...]] = []
        for distance, masks in enumerate(self._masks[: radius + 1]):
            searching = np.flatnonzero(found < wanted)
            if not len(searching):
                break
            buckets = words[searching, None] ^ masks
            lengths = self._lists.lengths[buckets]
            found[searching] += lengths.sum(axis=1)
            rows, columns = np.nonzero(lengths)
            pieces.append((searching[rows], buckets[rows, columns], np.full(len(rows), distance)))
        query, bucket, distances = map(np.concatenate, zip(*pieces, strict=True))
        order = np.argsort(query, kind="stable")
        return Visits(query[order], bucket[order], distances[order])


def _blocks(codes: Codes) -> Iterator[tuple[slice, Ids]]:
    """Ranges of queries, and these as numbers."""
    (words,) = as_words(codes)
    for start in range(0, len(words), _BLOCK_QUERIES):
        rows = slice(start, min(len(words), start + _BLOCK_QUERIES))
        yield rows, words[rows].astype(np.int64)
