"""Lists of the positions at which equal codes stand, and what a search makes of the lists it has visited.

Knows nothing of codes and of how lists are chosen. One int64 holds query, distance and position, so that sorting it
orders the answers of a block of queries.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cibhash.types import Distances, Ids

_POSITION_BITS, _DISTANCE_BITS = 40, 10
_BLOCK_QUERIES = 2 ** (63 - _POSITION_BITS - _DISTANCE_BITS)
_BLOCK_CELLS = 2**21
"""Positions of a block of queries, unless one query alone has more."""


class Visits(NamedTuple):
    """Lists at some distance from some query: int64 (V,) each, in the order of (query, distance)."""

    query: Ids
    list: Ids
    distance: Ids


@dataclass(frozen=True)
class PostingLists:
    """Those of list g are `positions[starts[g] : starts[g] + lengths[g]]`, ascending."""

    positions: npt.NDArray[np.integer]
    starts: Ids
    lengths: Ids

    def nearest(self, visits: Visits, num_queries: int, k: int) -> tuple[Ids, Distances]:
        """Positions and distances (Q, k) of the k nearest in the lists visited, which hold as many for each query."""
        lengths = self.lengths[visits.list]
        # Of a list, at most as many positions count as are wanted once all that is closer has been taken.
        wanted = np.minimum(lengths, k - _closer(visits, lengths))
        positions, distances = np.empty((num_queries, k), np.int64), np.empty((num_queries, k), np.int32)
        for rows, starts, found in self._blocks(visits, np.maximum(wanted, 0), num_queries):
            picked = found[starts[:, None] + np.arange(k)]
            positions[rows], distances[rows] = _position(picked), _distance(picked)
        return positions, distances

    def all_of(self, visits: Visits, num_queries: int) -> tuple[Ids, Ids, Distances]:
        """Limits (Q + 1,), positions and distances of all that the lists visited hold."""
        lengths = self.lengths[visits.list]
        limits = np.zeros(num_queries + 1, np.int64)
        np.cumsum(_sums(visits.query, lengths, num_queries), out=limits[1:])
        positions, distances = np.empty(limits[-1], np.int64), np.empty(limits[-1], np.int32)
        for rows, _, found in self._blocks(visits, lengths, num_queries):
            cells = slice(limits[rows.start], limits[rows.stop])
            positions[cells], distances[cells] = _position(found), _distance(found)
        return limits, positions, distances

    def _blocks(self, visits: Visits, lengths: Ids, num_queries: int) -> Iterator[tuple[slice, Ids, Ids]]:
        """Ranges of queries; where each one's answers begin; and all of these, sorted."""
        ends = np.cumsum(_sums(visits.query, lengths, num_queries))
        for rows in _ranges(ends):
            first, last = np.searchsorted(visits.query, (rows.start, rows.stop))
            part, sizes = Visits(*(array[first:last] for array in visits)), lengths[first:last]
            shifts = self.starts[part.list] - (np.cumsum(sizes) - sizes)
            places = np.arange(sizes.sum()) + np.repeat(shifts, sizes)
            heads = (part.query - rows.start) << _DISTANCE_BITS | part.distance
            found = np.repeat(heads << _POSITION_BITS, sizes) | self.positions[places].astype(np.int64)
            found.sort()
            yield rows, np.concatenate(([0], ends[rows][:-1] - (ends[rows.start - 1] if rows.start else 0))), found


def _closer(visits: Visits, lengths: Ids) -> Ids:
    """Per visit, the positions in all lists that are closer to the same query."""
    before = np.cumsum(lengths) - lengths
    new_query = np.diff(visits.query, prepend=-1) != 0
    new_distance = new_query | (np.diff(visits.distance, prepend=-1) != 0)
    number = np.arange(len(lengths))
    of_query, of_distance = (np.maximum.accumulate(np.where(new, number, 0)) for new in (new_query, new_distance))
    return before[of_distance] - before[of_query]


def _sums(query: Ids, lengths: Ids, num_queries: int) -> Ids:
    """Per query, the sum of its lengths."""
    limits = np.searchsorted(query, np.arange(num_queries + 1))
    return np.diff(np.concatenate(([0], np.cumsum(lengths)))[limits])


def _ranges(ends: Ids) -> Iterator[slice]:
    """Ranges of queries with at most so many positions together as a block may have, or a single query."""
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _BLOCK_CELLS, "right")))
        stop = min(stop, start + _BLOCK_QUERIES)
        yield slice(start, stop)
        start = stop


def _position(found: Ids) -> Ids:
    positions: Ids = found & (2**_POSITION_BITS - 1)
    return positions


def _distance(found: Ids) -> Ids:
    distances: Ids = (found >> _POSITION_BITS) & (2**_DISTANCE_BITS - 1)
    return distances
