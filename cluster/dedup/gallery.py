"""Groups and pairs for people to look at.

Knows nothing of how they are shown. Equal results give equal choices: the largest groups and some that are evenly
spaced over the others; pairs evenly spaced over those of each distance, so that the doubtful ones are seen as well.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cibhash.near_pairs import code_distances
from cibhash.types import Ids
from cluster.dedup.confirm import Correlations
from cluster.dedup.found import Duplicates
from cluster.dedup.plan import DedupPlan
from cluster.dedup.rows import Rows, look_up
from cluster.dedup.written import grouped_rows
from cluster.index.shard_index import Row

LARGEST, SPACED, IMAGES_PER_GROUP = 6, 8, 12
PAIRS_PER_DISTANCE, MAX_PAIRS = 6, 36


@dataclass(frozen=True)
class ShownImage:
    """One image of a group or a pair."""

    row: Row
    split: str
    distance: int
    """To the group's representative, or between the images of a pair."""


@dataclass(frozen=True)
class ShownGroup:
    """A group, its representative first."""

    number: int
    size: int
    images: tuple[ShownImage, ...]

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels of the representative, with which others may disagree."""
        return self.images[0].row.labels


@dataclass(frozen=True)
class ShownPair:
    """Two images that are close."""

    first: ShownImage
    second: ShownImage
    correlation: float | None


@dataclass(frozen=True)
class Gallery:
    """All that is shown."""

    groups: tuple[ShownGroup, ...]
    between: tuple[ShownPair, ...]
    """Pairs of images of two splits."""
    within: tuple[ShownPair, ...]


def choose_gallery(plan: DedupPlan, rows: Rows, duplicates: Duplicates, correlation: Correlations | None) -> Gallery:
    """Chooses what is shown and reads the columns that are needed for it."""
    members, groups = grouped_rows(duplicates.representative)
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1])[: len(groups)])
    sizes = np.diff(starts, append=len(groups))
    numbers = _largest_and_spaced(len(starts))
    shown = [members[starts[number] :][: min(int(sizes[number]), IMAGES_PER_GROUP)] for number in numbers]
    pairs = duplicates.pairs
    across = rows.splits[pairs.first] != rows.splits[pairs.second]
    chosen = [_by_distance(pairs.distances, np.flatnonzero(kind)) for kind in (across, ~across)]
    wanted = np.unique(np.concatenate([*shown, *(end[at] for at in chosen for end in (pairs.first, pairs.second))]))
    found = _images(plan, rows, wanted.astype(np.int64))

    def image(row: int, to: int) -> ShownImage:
        distance = code_distances(rows.codes[[row]], rows.codes[[to]])[0]
        return ShownImage(found[row], plan.names[rows.splits[row]], int(distance))

    def pair(at: int) -> ShownPair:
        first, second = int(pairs.first[at]), int(pairs.second[at])
        measured = None if correlation is None else float(correlation[at])
        return ShownPair(image(first, second), image(second, first), measured)

    return Gallery(
        tuple(
            ShownGroup(number, int(sizes[number]), tuple(image(row, int(some[0])) for row in some.tolist()))
            for number, some in zip(numbers, shown, strict=True)
        ),
        *(tuple(pair(at) for at in kind.tolist()) for kind in chosen),
    )


def _largest_and_spaced(count: int) -> list[int]:
    rest = np.arange(LARGEST, count)
    spaced = rest[_evenly(len(rest), SPACED)]
    return [*range(min(LARGEST, count)), *spaced.tolist()]


def _by_distance(distances: npt.NDArray[np.int32], candidates: Ids) -> Ids:
    """Some candidates of each distance, evenly spaced among those."""
    kinds = np.unique(distances[candidates])
    each = max(1, min(PAIRS_PER_DISTANCE, MAX_PAIRS // max(1, len(kinds))))
    chosen = [np.empty(0, np.int64)]
    for kind in kinds[:MAX_PAIRS]:
        there = candidates[distances[candidates] == kind]
        chosen.append(there[_evenly(len(there), each)])
    return np.concatenate(chosen)


def _evenly(count: int, wanted: int) -> Ids:
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))


def _images(plan: DedupPlan, rows: Rows, wanted: Ids) -> dict[int, Row]:
    table = look_up(plan, rows, wanted, ["id", "key", "labels", "shard", "offset", "size"])
    return {
        row: Row(one["id"], one["key"], tuple(one["labels"]), one["shard"], one["offset"], one["size"])
        for row, one in zip(wanted.tolist(), table.to_pylist(), strict=True)
    }
