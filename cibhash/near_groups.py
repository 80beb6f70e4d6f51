"""What is kept of the pairs of a self-join, in bounded memory: groups, counts, closest pairs, nearest by split.

Knows nothing of ids, files and Ray. Rows of a self-join are distinct codes; behind each stand images of one or several
splits. Whatever the order and the portions in which pairs are added, and whatever summaries are merged, the outcome is
the same. Shapes: D distinct codes, T splits, R = radius + 1 distances.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cibhash.components import Components, spanning_edges
from cibhash.near_pairs import NearPairs, concatenated
from cibhash.types import Distances, Ids

_PORTION = 2**18
_UNSORTED = 2**20


class Nearest(NamedTuple):
    """Distance from codes to the nearest other code that stands for an image of a split; each (code, split) once."""

    codes: Ids
    splits: Ids
    distances: Distances

    def take(self, kept: npt.NDArray[Any]) -> "Nearest":
        """Some of them, by index or mask."""
        return Nearest(self.codes[kept], self.splits[kept], self.distances[kept])


class PairSummary(NamedTuple):
    """What is known of some of the pairs."""

    links: tuple[Ids, Ids]
    """Edges that connect the same codes as all pairs do, fewer than codes."""
    closest: NearPairs
    """Of each group that these pairs make, the `limit` closest pairs, in the order of (distance, first, second)."""
    counts: npt.NDArray[np.int64]
    """int64 (R, T, T): pairs of images by distance and splits, the first code's and the second's."""
    nearest: Nearest


class PairSummarizer:
    """Adds up pairs and summaries of them."""

    def __init__(self, images: npt.NDArray[np.int64], radius: int, limit: int) -> None:
        """Begins without a pair.

        Args:
            images: How many images of each split a code stands for, int64 (D, T).
            radius: Largest distance of a pair.
            limit: Pairs of a group that are kept, the closest ones.
        """
        self._images, self._limit = images, limit
        splits = images.shape[1]
        self._counts = np.zeros((radius + 1, splits, splits), np.int64)
        self._portion: list[NearPairs] = []
        self._links: list[tuple[Ids, Ids]] = []
        self._closest: list[NearPairs] = []
        self._nearest: list[Nearest] = []
        self._num_in_portion, self._num_kept, self._sort_at = 0, 0, _UNSORTED

    def add(self, pairs: NearPairs) -> None:
        """Adds pairs that were not added before."""
        self._portion.append(pairs)
        self._num_in_portion += len(pairs.first)
        if self._num_in_portion >= _PORTION:
            self._count()

    def merge(self, other: PairSummary) -> None:
        """Adds a summary of pairs that were not added before."""
        self._counts += other.counts
        self._keep(other.links, other.closest, other.nearest)

    def summary(self) -> PairSummary:
        """All that was added."""
        self._count()
        self._reduce()
        return PairSummary(self._links[0], self._closest[0], self._counts, self._nearest[0])

    def _count(self) -> None:
        pairs = concatenated(self._portion)
        self._portion, self._num_in_portion = [], 0
        images = self._images
        for distance in np.unique(pairs.distances):
            at = pairs.distances == distance
            self._counts[distance] += images[pairs.first[at]].T @ images[pairs.second[at]]
        ends = ((pairs.first, pairs.second), (pairs.second, pairs.first))
        nearest = []
        for split in range(images.shape[1]):
            for code, other in ends:
                there = images[other, split] > 0
                found = code[there]
                nearest.append(Nearest(found, np.full(len(found), split), pairs.distances[there]))
        self._keep((pairs.first, pairs.second), pairs, _joined(nearest))

    def _keep(self, links: tuple[Ids, Ids], closest: NearPairs, nearest: Nearest) -> None:
        self._links.append(links)
        self._closest.append(closest)
        self._nearest.append(nearest)
        self._num_kept += len(links[0]) + len(closest.first) + len(nearest.codes)
        if self._num_kept > self._sort_at:
            self._reduce()
            self._sort_at = max(_UNSORTED, 2 * self._num_kept)

    def _reduce(self) -> None:
        """Drops what the rest makes superfluous."""
        first, second = (np.concatenate([np.empty(0, np.int64), *ends]) for ends in zip(*self._links, strict=True))
        links = spanning_edges(first, second)
        components = Components(len(self._images))
        components.join(*links)
        closest = closest_of_groups(concatenated(self._closest), components.smallest, self._limit)
        nearest = _least(_joined(self._nearest), self._images.shape[1])
        self._links, self._closest, self._nearest = [links], [closest], [nearest]
        self._num_kept = len(links[0]) + len(closest.first) + len(nearest.codes)


def summarize(portions: Iterable[NearPairs], images: npt.NDArray[np.int64], radius: int, limit: int) -> PairSummary:
    """The summary of all pairs; arguments as `PairSummarizer` has them."""
    summarizer = PairSummarizer(images, radius, limit)
    for pairs in portions:
        summarizer.add(pairs)
    return summarizer.summary()


def closest_of_groups(pairs: NearPairs, group: Ids, limit: int) -> NearPairs:
    """Of each group the `limit` closest pairs, all in the order of (distance, first, second).

    Args:
        pairs: The pairs.
        group: Group of each row, int64 (D,); both rows of a pair have the same.
        limit: At least 1.
    """
    pairs = pairs.take(np.lexsort((pairs.second, pairs.first, pairs.distances)))
    return pairs.take(places_in_groups(group[pairs.first]) < limit)


def places_in_groups(group: Ids) -> Ids:
    """How many entries of its group come before each entry, int64 (E,)."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    lengths = np.diff(starts, append=len(ordered))
    places = np.empty(len(group), np.int64)
    places[order] = np.arange(len(group)) - np.repeat(starts, lengths)
    return places


def _joined(parts: list[Nearest]) -> Nearest:
    nothing = Nearest(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))
    codes, splits, distances = zip(nothing, *parts, strict=True)
    return Nearest(np.concatenate(codes), np.concatenate(splits), np.concatenate(distances))


def _least(nearest: Nearest, num_splits: int) -> Nearest:
    """Each (code, split) once, with its least distance."""
    order = np.lexsort((nearest.distances, nearest.codes * num_splits + nearest.splits))
    ordered = nearest.take(order)
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (ordered.codes[1:] != ordered.codes[:-1]) | (ordered.splits[1:] != ordered.splits[:-1])
    return ordered.take(is_first)
