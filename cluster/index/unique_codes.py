"""Exact search in time that grows with the distinct codes of a shard: these are searched, then their positions listed.

Knows nothing of ids and rows.
"""

import numpy as np

from cibhash.distinct_codes import distinct_codes
from cibhash.types import Codes, Distances, Ids
from cluster.index.flat_codes import flat_codes
from cluster.index.posting_lists import PostingLists, Visits


class UniqueCodes:
    """The distinct codes by their first position, with all positions of each; memory of its own.

    The k nearest codes are all among the k nearest distinct ones in the order of (distance, first position): whatever
    distinct code comes before another has at least one position that comes before all of the other's.
    """

    def __init__(self, codes: Codes, threads: int) -> None:
        """Takes packed codes uint8 (N, B/8); a search shares its queries among the threads."""
        order, limits = distinct_codes(codes)
        starts, lengths = limits[:-1], np.diff(limits)
        by_first = np.argsort(order[starts])
        self._lists = PostingLists(order, starts[by_first], lengths[by_first])
        self._distinct = flat_codes(codes[order[self._lists.starts]], threads)
        self.num_distinct = len(starts)

    def search(self, codes: Codes, k: int) -> tuple[Ids, Distances]:
        """Positions and distances (Q, k) of the k nearest; k is 1 to N."""
        kept = min(k, self.num_distinct)
        found, distances = self._distinct.search(codes, kept)
        query = np.repeat(np.arange(len(codes)), kept)
        visits = Visits(query, found.ravel(), distances.ravel().astype(np.int64))
        return self._lists.nearest(visits, len(codes), k)

    def range_search(self, codes: Codes, radius: int) -> tuple[Ids, Ids, Distances]:
        """Limits (Q + 1,), positions and distances of all codes within the inclusive radius."""
        limits, found, distances = self._distinct.range_search(codes, radius)
        query = np.repeat(np.arange(len(codes)), np.diff(limits))
        return self._lists.all_of(Visits(query, found, distances.astype(np.int64)), len(codes))
