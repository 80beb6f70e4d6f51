"""What is kept of the pairs of a self-join, in bounded memory: groups, counts, closest pairs, nearest by split.

Knows nothing of ids, files and Ray. Rows of a self-join are distinct codes; behind each stand images of one or several
splits. Whatever the order and the portions in which pairs are added, and whatever summaries are merged, the outcome is
the same. Shapes: D distinct codes, T splits, R = radius + 1 distances.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cibhash.components import Components
from cibhash.near_pairs import NearPairs, concatenated
from cibhash.types import Distances, Ids

_PORTION = 2**18
_MANY = 2**20


class Nearest(NamedTuple):
    """Distance from codes to the nearest other code that stands for an image of a split; each (code, split) once."""

    codes: Ids
    splits: Ids
    distances: Distances


class PairSummary(NamedTuple):
    """What is known of some of the pairs."""

    links: tuple[Ids, Ids]
    """Edges that connect the same codes as all pairs do, fewer than codes."""
    closest: NearPairs
    """Of each group that these pairs make, the `limit` closest pairs, ties by (first, second), in any order."""
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
        self._images, self._limit, self._none = images, limit, radius + 1
        splits = images.shape[1]
        self._counts = np.zeros((radius + 1, splits, splits), np.int64)
        self._nearest = np.full(images.shape, self._none, np.int32)
        self._components = Components(len(images))
        self._portion: list[NearPairs] = []
        self._links: list[tuple[Ids, Ids]] = []
        self._closest: list[NearPairs] = []
        self._num_in_portion, self._num_links, self._num_closest, self._prune_at = 0, 0, 0, max(_MANY, limit)

    def add(self, pairs: NearPairs) -> None:
        """Adds pairs that were not added before."""
        self._portion.append(pairs)
        self._num_in_portion += len(pairs.first)
        if self._num_in_portion >= _PORTION:
            self._count()

    def merge(self, other: PairSummary) -> None:
        """Adds a summary of pairs that were not added before."""
        self._counts += other.counts
        codes, splits, distances = other.nearest
        self._nearest[codes, splits] = np.minimum(self._nearest[codes, splits], distances)
        self._keep(other.links, other.closest)

    def summary(self) -> PairSummary:
        """All that was added."""
        self._count()
        self._prune()
        codes, splits = np.nonzero(self._nearest < self._none)
        nearest = Nearest(codes, splits, self._nearest[codes, splits])
        return PairSummary(self._components.edges(), self._closest[0], self._counts, nearest)

    def _count(self) -> None:
        pairs = concatenated(self._portion)
        self._portion, self._num_in_portion = [], 0
        images = self._images
        for distance in np.unique(pairs.distances):
            at = pairs.distances == distance
            self._counts[distance] += images[pairs.first[at]].T @ images[pairs.second[at]]
        for split in range(images.shape[1]):
            for code, other in ((pairs.first, pairs.second), (pairs.second, pairs.first)):
                there = images[other, split] > 0
                np.minimum.at(self._nearest[:, split], code[there], pairs.distances[there])
        self._keep((pairs.first, pairs.second), pairs)

    def _keep(self, links: tuple[Ids, Ids], closest: NearPairs) -> None:
        self._links.append(links)
        self._closest.append(closest)
        self._num_links += len(links[0])
        self._num_closest += len(closest.first)
        if self._num_links >= _PORTION:
            self._join()
        if self._num_closest > self._prune_at:
            self._prune()
            self._prune_at = max(_MANY, self._limit, 2 * self._num_closest)

    def _join(self) -> None:
        first, second = (np.concatenate([np.empty(0, np.int64), *ends]) for ends in zip(*self._links, strict=True))
        self._components.join(first, second)
        self._links, self._num_links = [(first[:0], second[:0])], 0

    def _prune(self) -> None:
        """Drops pairs of groups that have more than are kept: there are none while all pairs are no more than that."""
        self._join()
        closest = concatenated(self._closest)
        if len(closest.first) > self._limit:
            closest = closest_of_groups(closest, self._components.smallest, self._limit)
        self._closest, self._num_closest = [closest], len(closest.first)


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
