"""Exact search over codes with FAISS, by position.

Knows nothing of ids and rows. The order is (distance, position), and one int64 key `distance << 40 | position` holds
both. FAISS does not define which of several equally distant codes it returns: where its answer ends
inside a group of ties, the rest of the group is fetched by a range search and the smallest positions are kept.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from cibhash.types import PADDING_DISTANCE, Codes, Distances, Ids
from cluster.index.faiss_module import faiss_with

_SEGMENT_ROWS = 2**20
"""Codes per FAISS index; bounds what one range search of one query can return."""
_BLOCK_CELLS = 2**23
"""Entries that a block of queries may get back from FAISS at once, in the worst case."""
_POSITION_BITS = 40
_POSITION_MASK = 2**_POSITION_BITS - 1


class FaissFlat:
    """A copy of the codes in FAISS; safe to use from several threads."""

    def __init__(self, codes: Codes, threads: int) -> None:
        """Takes packed codes uint8 (N, B/8); `threads` is OpenMP's number for a search."""
        faiss = faiss_with(threads)
        self._bits, self._threads = 8 * codes.shape[1], threads
        self._segments: list[tuple[int, Any]] = []
        for start in range(0, len(codes), _SEGMENT_ROWS):
            flat = faiss.IndexBinaryFlat(self._bits)
            flat.add(np.ascontiguousarray(codes[start : start + _SEGMENT_ROWS]))
            self._segments.append((start, flat))

    def search(self, codes: Codes, k: int) -> tuple[Ids, Distances]:
        """Positions and distances (Q, k) of the k nearest; k is 1 to N."""
        faiss_with(self._threads)
        positions, distances = np.empty((len(codes), k), np.int64), np.empty((len(codes), k), np.int32)
        for rows in _blocks(len(codes), k + 1):
            keys = self._nearest_keys(np.ascontiguousarray(codes[rows]), k)
            positions[rows], distances[rows] = keys & _POSITION_MASK, keys >> _POSITION_BITS
        return positions, distances

    def range_search(self, codes: Codes, radius: int) -> tuple[Ids, Ids, Distances]:
        """Limits (Q + 1,), positions and distances of all codes within the inclusive radius."""
        faiss_with(self._threads)
        keys, queries = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for first, flat in self._segments:
            for rows in _blocks(len(codes), flat.ntotal):
                limits, found = _within(flat, first, np.ascontiguousarray(codes[rows]), min(radius, self._bits))
                keys.append(found)
                queries.append(rows.start + np.repeat(np.arange(len(limits) - 1), np.diff(limits)))
        query, key = np.concatenate(queries), np.concatenate(keys)
        key = key[np.lexsort((key, query))]
        limits = np.zeros(len(codes) + 1, np.int64)
        np.cumsum(np.bincount(query, minlength=len(codes)), out=limits[1:])
        return limits, key & _POSITION_MASK, (key >> _POSITION_BITS).astype(np.int32)

    def _nearest_keys(self, codes: Codes, kept: int) -> Ids:
        """Keys (Q, kept) of the nearest codes, ascending; `kept` is at most `count`."""
        keys = np.empty((len(codes), 0), np.int64)
        ends = np.full((len(self._segments), len(codes)), PADDING_DISTANCE)
        for segment, (first, flat) in enumerate(self._segments):
            asked = min(kept + 1, flat.ntotal)
            distances, positions = flat.search(codes, asked)
            found = (distances.astype(np.int64) << _POSITION_BITS) | (positions + first)
            keys = np.sort(np.concatenate((keys, found), axis=1), axis=1)[:, : kept + 1]
            if asked < flat.ntotal:
                ends[segment] = distances.max(axis=1)
        keys = keys[:, :kept]
        # What a segment left out is at least as far as what it returned last. It matters only where that is the
        # distance of the k-th neighbor, and only while that neighbor's position is not before the segment.
        last = keys[:, -1] >> _POSITION_BITS
        for segment, (first, flat) in enumerate(self._segments):
            open_queries = np.flatnonzero((ends[segment] == last) & ((keys[:, -1] & _POSITION_MASK) >= first))
            for distance in np.unique(last[open_queries]).tolist():
                tied = open_queries[last[open_queries] == distance]
                for rows in _blocks(len(tied), flat.ntotal):
                    limits, found = _within(flat, first, codes[tied[rows]], distance)
                    for query, group in zip(tied[rows], np.split(found, limits[1:-1]), strict=True):
                        group = group[group >> _POSITION_BITS == distance]
                        keys[query] = np.union1d(keys[query], group)[:kept]
        return keys


def _within(flat: Any, first: int, codes: Codes, radius: int) -> tuple[Ids, Ids]:
    """Limits (Q + 1,) and keys, in no order, of a segment's codes within the inclusive radius."""
    # FAISS: distance < radius; distances float32, limits uint64.
    limits, distances, positions = flat.range_search(codes, radius + 1)
    return limits.astype(np.int64), (distances.astype(np.int64) << _POSITION_BITS) | (positions + first)


def _blocks(num_queries: int, cells: int) -> Iterator[slice]:
    """Ranges of queries that may get `cells` entries each."""
    step = max(1, _BLOCK_CELLS // cells)
    for start in range(0, num_queries, step):
        yield slice(start, min(num_queries, start + step))
